"""Arena-Hard's official files: what is read, what is refused in one line, what is written."""

import gzip
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.eval.arena_data import V01, V01_MODELS, V20, V20_MODELS, expected, needs_data
from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers, Style
from thinkserve.eval.arena.files import (
    ReadMatches,
    read_answers,
    read_matches,
    read_questions,
    write_answers,
    write_judgments,
)
from thinkserve.eval.arena.scoring import score_arena
from thinkserve.eval.arena.unseen import UnseenAnswer
from thinkserve.eval.arena.verdict import verdict_of
from thinkserve.eval.arena.version import Version
from thinkserve.eval.bench import Compat
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Game, Match, PlayedGame
from thinkserve.thoughts import Response

BASELINES = {"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"}
INSTRUCTIONS = (
    Instruction("q1", "2 + 2?", {"category": "hard_prompt", "subcategory": "math"}, 0),
    Instruction("q2", "sort", {"category": "hard_prompt", "subcategory": "coding"}, 1),
    Instruction("q3", "a poem", {"category": "creative_writing", "subcategory": "creative_writing"}, 2),
)
OLD = (Instruction("q1", "2 + 2?", {"cluster": "c"}, 0), Instruction("q2", "sort", {"cluster": "c"}, 1))
Row = dict[str, Any]
COMPATS: tuple[Compat, ...] = ("aligned", "official")


def written(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else msgspec.json.encode(row).decode() for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def game(score: str | None, text: str | None = None) -> Row:
    return {"score": score} if text is None else {"score": score, "judgment": {"answer": text}, "prompt": []}


def judged(id: str, *games: Any, model: str = "m", judge: str = "j", **more: str) -> Row:
    category = "creative_writing" if id == "q3" else "hard_prompt"
    row = {"uid": id, "category": category, "judge": judge, "model": model, "baseline": BASELINES[category]}
    return {**row, "games": list(games or (game("A>B"), game("B>A"))), **more}


def answered(id: str, content: Any = "four", model: str = "m", **more: Any) -> Row:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    return {"uid": id, "ans_id": "x", "model": model, "messages": messages, **more}


def read(
    tmp_path: Path,
    judgments: Sequence[Mapping[str, Any] | str],
    answers: Sequence[Mapping[str, Any] | str] = (),
    compat: Compat = "aligned",
) -> ReadMatches:
    answer_files = [written(tmp_path / "answers.jsonl", answers)] if answers else []
    judgment_file = written(tmp_path / "judgments.jsonl", judgments)
    return read_matches("v2.0", INSTRUCTIONS, answer_files, [], [judgment_file], compat=compat)


def preferences(found: ReadMatches, model: str = "m") -> dict[str, list[float | None]]:
    return {
        match.instruction.id: [
            played.verdict.preference if played.verdict else None for played in match.games
        ]
        for match in found.matches[model]
    }


def test_the_first_game_shows_the_model_second(tmp_path: Path) -> None:
    found = read(tmp_path, [judged("q1", game("B>A"), game("A>>B")), judged("q2", game("A>B"), game("B>A"))])
    assert found.judge == "j"
    assert preferences(found) == {"q1": [1.0, 1.0], "q2": [0.0, 0.0]}


@pytest.mark.parametrize("content", ["four", {"answer": "four"}, {"answer": "four", "thought": "SECRET"}])
def test_only_the_response_is_read(tmp_path: Path, content: Any) -> None:
    found = read(tmp_path, [judged("q1"), judged("q2")], [answered("q1", content), answered("q2", content)])
    answer = found.matches["m"][0].answer
    assert answer.response == "four" and isinstance(answer.response, Response)
    assert "SECRET" not in repr(found)


def test_an_answer_that_is_not_there_says_nothing_of_its_length(tmp_path: Path) -> None:
    found = read(tmp_path, [judged("q1"), judged("q2")])
    assert isinstance(found.matches["m"][0].answer, UnseenAnswer)
    group = score_arena("v2.0", found.matches, compat="aligned", seed=0).models["m"]
    assert group.score == 0.0
    assert (group.mean_length, group.mean_tokens, group.forfeits, group.style_controlled_score) == (None,) * 4


def test_the_text_counts_and_for_official_the_stored_score(tmp_path: Path) -> None:
    rows = [
        judged("q1", game(None, "so [[B>> A]]"), game("A>B", "<think>[[A>B]]</think>[[B>A]]")),
        judged("q2", game("A>B", ""), game("B<A", " ")),
    ]
    aligned, official = read(tmp_path, rows), read(tmp_path, rows, compat="official")
    assert preferences(aligned) == {"q1": [1.0, 0.0], "q2": [0.0, 1.0]}
    assert preferences(official) == {"q1": [None, 1.0], "q2": [0.0, 1.0]}
    assert any(
        "2 verdicts read from the judge's text are not the stored ones (1 are" in n for n in aligned.notes
    )
    assert any("the stored ones count" in note for note in official.notes)


def test_labels_that_are_none_are_unscored_and_counted(tmp_path: Path) -> None:
    rows = [judged("q1", game("A>>A"), game("A>B")), judged("q2", game("A"), None)]
    for compat in COMPATS:
        found = read(tmp_path, rows, compat=compat)
        assert preferences(found) == {"q1": [None, 1.0], "q2": [None, None]}
        assert "m: 2 games have stored labels that are none: A, A>>A" in found.notes


def test_rows_that_are_missing_are_listed_and_do_not_count(tmp_path: Path) -> None:
    rows = [judged("q2"), judged("q3", None, None)]
    for compat in COMPATS:
        found = read(tmp_path, rows, [answered("q2"), answered("q3")], compat)
        assert "m: no judgments of 1 of 3 instructions (q1); they do not count" in found.notes
        group = score_arena("v2.0", found.matches, compat=compat, seed=0).models["m"]
        assert (group.n, group.unscored) == (1, 1)


def test_many_missing_rows_are_counted_and_not_listed(tmp_path: Path) -> None:
    many = [Instruction(f"q{n}", "?", {"category": "hard_prompt"}, n) for n in range(9)]
    found = read_matches("v2.0", many, [], [], [written(tmp_path / "j.jsonl", [judged("q1")])])
    assert "m: no judgments of 8 of 9 instructions; they do not count" in found.notes


def test_answers_that_lack_what_was_judged_are_refused(tmp_path: Path) -> None:
    judgments = written(tmp_path / "j.jsonl", [judged("q1"), judged("q2")])
    whole = written(tmp_path / "whole.jsonl", [answered("q1"), answered("q2")])
    part = written(tmp_path / "part.jsonl", [answered("q1")])
    theirs = written(tmp_path / "theirs.jsonl", [answered("q1", model="o3-mini-2025-01-31")])
    message = r"j.jsonl:2: field 'uid' is 'q2', and has no row in \S*{}: what was judged is not there$"
    with pytest.raises(UsageError, match=message.format("part.jsonl")):
        read_matches("v2.0", INSTRUCTIONS, [part], [], [judgments])
    with pytest.raises(UsageError, match=message.format("theirs.jsonl")):
        read_matches("v2.0", INSTRUCTIONS, [whole], [theirs], [judgments])


def test_a_category_that_nobody_judged_is_not_missed(tmp_path: Path) -> None:
    found = read(tmp_path, [judged("q1"), judged("q2")])
    assert [match.instruction.id for match in found.matches["m"]] == ["q1", "q2"]
    assert not any("q3" in note for note in found.notes)


def test_the_files_order_is_kept_for_official_alone(tmp_path: Path) -> None:
    rows = [judged("q2"), judged("q1")]
    for compat, order in zip(COMPATS, (["q1", "q2"], ["q2", "q1"]), strict=True):
        found = read(tmp_path, rows, compat=compat)
        assert [match.instruction.id for match in found.matches["m"]] == order


def test_judges_that_judged_every_model_are_an_ensemble(tmp_path: Path) -> None:
    files = [
        written(tmp_path / f"{judge}-{model}.jsonl", [judged("q1", judge=judge, model=model)])
        for judge in ("j", "k")
        for model in ("m", "n")
    ]
    found = read_matches("v2.0", INSTRUCTIONS, [], [], files)
    assert found.judge == "j+k"
    assert [played.judge for played in found.matches["n"][0].games] == ["j", "j", "k", "k"]
    with pytest.raises(
        UsageError, match=r"j-n.jsonl:1: field 'judge' mixes judges: 'n' was judged by j, and 'm' by j, k"
    ):
        read_matches("v2.0", INSTRUCTIONS, [], [], files[:3])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([judged("q1"), judged("q1")], r"judgments.jsonl:2: field 'uid' is 'q1' a second time, after .*:1$"),
        ([judged("q9")], r"judgments.jsonl:1: field 'uid' is 'q9', which is no question of this bench"),
        (
            [judged("q1"), judged("q2", judge="k")],
            r":2: field 'judge' is 'k', and was 'j' before: mixed judges",
        ),
        (
            [judged("q1"), judged("q2", model="n")],
            r":2: field 'model' is 'n', and was 'm' before: give one file",
        ),
        (
            [judged("q1", baseline="gpt-4-0314")],
            r":1: field 'baseline' is 'gpt-4-0314', and must be 'o3-mini",
        ),
        ([judged("q1", model="o3-mini-2025-01-31")], r":1: field 'model' is 'o3-mini.*against itself"),
        ([judged("q1", game("A>B"))], r":1: field 'games' has 1 of 2 games"),
        ([judged("q1"), '{"uid": '], r"judgments.jsonl:2: bad JSON"),
        ([], r"judgments.jsonl: the file is empty"),
        ([{"uid": "q1", "model": "m", "judge": "j"}], r":1: field 'games' is missing"),
        ([{"uid": "q1", "model": "m", "games": [None, None]}], r":1: field 'judge' is missing"),
        ([judged("q1", {"score": 1}, None)], r":1: field 'games\[0\].score' is 1, and must be a label"),
        ([judged("q1", None, {})], r":1: field 'games\[1\].score' is missing"),
        ([judged("q1", None, "A>B")], r":1: field 'games\[1\]' must be an object or null"),
        ([judged("q1", None, {"judgment": 7})], r"field 'games\[1\].judgment' must be the judge's text"),
        (['["q1"]', "3"], r"judgments.jsonl:2: bad JSON"),
    ],
)
def test_judgments_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, rows: Sequence[Row | str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, rows)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answered("q1"), answered("q1")], r"answers.jsonl:2: field 'uid' is 'q1' a second time"),
        ([answered("q1"), answered("q2", model="n")], r":2: field 'model' is 'n', and was 'm' before"),
        ([answered("q9")], r"answers.jsonl:1: field 'uid' is 'q9', which is no question of this bench"),
        ([answered("q1", 7)], r":1: field 'messages\[1\].content' is a number, and must be a string"),
        ([answered("q1", {"thought": "x"})], r":1: field 'messages\[1\].content.answer' is missing"),
        ([answered("q1", metadata={"token_len": 3})], r":1: field 'metadata' has no counts .*header_count"),
        ([answered("q1", metadata=[])], r":1: field 'metadata' has no counts .*it is no object"),
        (
            [
                answered(
                    "q1", metadata={"token_len": -1, "header_count": {}, "list_count": {}, "bold_count": {}}
                )
            ],
            r":1: field 'metadata' has no counts .*token_len must be a count",
        ),
        ([{"uid": "q1", "model": "m", "messages": []}], r":1: field 'messages\[-1\]' is missing|content"),
        (
            [answered("q1", model="other")],
            r"answers.jsonl:1: field 'model' is 'other', and the judgments are of 'm'",
        ),
    ],
)
def test_answers_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, rows: Sequence[Row], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, [judged("q1")], rows)
    assert "\n" not in str(caught.value)


def test_answers_of_another_model_are_no_baseline(tmp_path: Path) -> None:
    judgments = written(tmp_path / "j.jsonl", [judged("q1")])
    other = written(tmp_path / "o.jsonl", [answered("q1", model="gpt-4-0314")])
    with pytest.raises(UsageError, match="o.jsonl:1: field 'model' is 'gpt-4-0314', and the baseline of"):
        read_matches("v2.0", INSTRUCTIONS, [], [other], [judgments])
    with pytest.raises(UsageError, match="there are no judgments"):
        read_matches("v2.0", INSTRUCTIONS, [], [], [])


def test_two_files_of_the_same_model_are_refused(tmp_path: Path) -> None:
    judgments = written(tmp_path / "j.jsonl", [judged("q1")])
    files = [written(tmp_path / f"{name}.jsonl", [answered("q1")]) for name in "ab"]
    with pytest.raises(UsageError, match=r"b.jsonl:1: field 'model' is 'm', as in \S*a.jsonl: give one file"):
        read_matches("v2.0", INSTRUCTIONS, files, [], [judgments])
    with pytest.raises(UsageError, match=r"j.jsonl:1: field 'uid' is 'q1' a second time"):
        read_matches("v2.0", INSTRUCTIONS, [], [], [judgments, judgments])


def test_the_baselines_answers_may_be_among_the_models(tmp_path: Path) -> None:
    baseline = written(tmp_path / "b.jsonl", [answered("q1", "five", model="o3-mini-2025-01-31")])
    judgments = written(tmp_path / "j.jsonl", [judged("q1")])
    found = read_matches("v2.0", INSTRUCTIONS, [baseline], [], [judgments])
    assert found.matches["m"][0].baseline.response == "five"
    assert list(found.matches) == ["m"]


def test_questions_of_the_other_version_are_refused(tmp_path: Path) -> None:
    row = {"question_id": "a", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": "?"}]}
    path = written(tmp_path / "question.jsonl", [row])
    assert read_questions("v0.1", path) == (Instruction("a", "?", {"cluster": "c"}, 0),)
    with pytest.raises(UsageError, match="'category'"):
        read_questions("v2.0", path)


@pytest.mark.parametrize(("version", "instructions"), [("v0.1", OLD), ("v2.0", INSTRUCTIONS)])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_written_files_are_read_as_they_were(
    tmp_path: Path, version: Version, instructions: Sequence[Instruction], ending: str
) -> None:
    answers = Answers(
        "m", {"q1": Answer("q1", Response("# four\n**4**")), "q2": Answer("q2", Response(""), complete=False)}
    )
    path = tmp_path / f"answers{ending}"
    write_answers(path, version, instructions, answers)
    found = read_answers(path, instructions)
    assert found.model == "m" and list(found.by_id) == ["q1", "q2"]
    assert found.by_id["q1"].response == "# four\n**4**" and found.by_id["q1"].complete
    assert found.by_id["q1"].style is not None
    assert (found.by_id["q1"].style.headers, found.by_id["q1"].style.bold) == (1, 1)
    assert not found.by_id["q2"].complete and found.by_id["q2"].style == Style(0, 0, 0, 0)

    baseline = "gpt-4-0314" if version == "v0.1" else "o3-mini-2025-01-31"
    games = Game(0, model_first=False), Game(1, model_first=True)
    labels = {"q1": ("A>B", "A>>B"), "q2": ("A>>B", None)}
    matches = [
        Match(
            instruction,
            answers.by_id[instruction.id],
            Answer(instruction.id, Response("5")),
            baseline,
            tuple(
                PlayedGame(game, "j", None if label is None else verdict_of(label, game.model_first))
                for game, label in zip(games, labels[instruction.id], strict=True)
            ),
        )
        for instruction in instructions
        if instruction.id in labels
    ]
    judgments = [
        Judgment("k", "q1", 0, False, "m", baseline, "j", "", raw="first: [[A>B]]"),
        Judgment("k", "q1", 0, False, "m", baseline, "j", "", raw="so [[B<A]]"),
        Judgment("k", "q1", 1, True, "m", baseline, "j", "", raw="[[A>>B]]"),
        Judgment("k", "q2", 1, True, "m", baseline, "j", "", failure="timeout"),
    ]
    path = tmp_path / f"judgments{ending}"
    write_judgments(path, version, "m", "j", matches, judgments)
    for compat in COMPATS:
        found_matches = read_matches(version, instructions, [], [], [path], compat=compat)
        assert preferences(found_matches) == {"q1": [0.0, 1.0], "q2": [0.0, None]}
    raw = gzip.decompress(path.read_bytes()) if ending.endswith(".gz") else path.read_bytes()
    assert b"so [[B<A]]" in raw and b"first" not in raw


@needs_data
@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_real_verdict_texts_give_their_expected_score(version: Version) -> None:
    folder = (V01 if version == "v0.1" else V20) / "real_verdict_texts"
    instructions = read_questions(version, folder.parent / "question.jsonl.gz")
    known = expected(folder)
    for path in sorted(folder.glob("*.gz")):
        row = known[path.name.removesuffix(".jsonl.gz")] if version == "v0.1" else known
        for compat in COMPATS:
            found = read_matches(version, instructions, [], [], [path], compat=compat)
            (group,) = score_arena(version, found.matches, compat=compat, seed=0).models.values()
            score = row["exact_score_of_this_subset"] if version == "v0.1" else row["mean_score"]
            assert group.score == pytest.approx(score, abs=1e-9)
            judged = sum(bool(match.games) for (matches,) in [found.matches.values()] for match in matches)
            assert judged == row["questions"]


@needs_data
def test_official_answers_survive_being_written(tmp_path: Path) -> None:
    instructions = read_questions("v2.0", V20 / "question.jsonl.gz")
    answers = read_answers(V20 / "model_answer" / f"{V20_MODELS[0]}.jsonl.gz", instructions)
    few = Answers(answers.model, dict(list(answers.by_id.items())[:50]))
    write_answers(tmp_path / "a.jsonl", "v2.0", instructions, few)
    again = read_answers(tmp_path / "a.jsonl", instructions)
    assert {id: a.response for id, a in again.by_id.items()} == {
        id: a.response for id, a in few.by_id.items()
    }


@needs_data
def test_judgments_of_another_bench_are_refused() -> None:
    instructions = read_questions("v2.0", V20 / "question.jsonl.gz")
    path = V01 / "model_judgment" / "gpt-4-1106-preview" / f"{V01_MODELS[0]}.jsonl.gz"
    with pytest.raises(UsageError, match=re.escape(f"{path}:1: field 'question_id' is '08d2f41143ff")):
        read_matches("v2.0", instructions, [], [], [path])
