"""AlpacaEval's files: what is written can be read by us and by alpaca_eval, and what is wrong is named with its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.eval.alpaca_data import (
    DATA,
    OFFICIAL,
    Folder,
    annotations_of,
    expected,
    match,
    needs_data,
    official_bench,
    official_rows,
    outputs_of,
    whole_package,
)
from thinkserve.errors import UsageError
from thinkserve.eval.alpaca.bench import AlpacaEvalBench
from thinkserve.eval.alpaca.files import (
    read_annotations,
    read_answers,
    read_instructions,
    write_annotations,
    write_answers,
)
from thinkserve.eval.alpaca.matches import read_matches
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.thoughts import Response

TEXTS = ("What is 1+1?", "Name a colour.\n", "Écris « {output_2} ».")
INSTRUCTIONS = [Instruction(id_of(text), text, {"dataset": "koala"}, row) for row, text in enumerate(TEXTS)]
BASELINE = "gpt4_1106_preview"

Row = dict[str, Any]


def annotation(row: int, preference: object = 1.25, **fields: object) -> Row:
    return {
        "instruction": TEXTS[row],
        "output_1": f"of the baseline {row}",
        "generator_1": BASELINE,
        "output_2": f"of the model {row}",
        "generator_2": "model",
        "annotator": "judge",
        "preference": preference,
        **fields,
    }


def output(row: int, generator: str = "model", **fields: object) -> Row:
    whose = "of the baseline" if generator == BASELINE else "of the model"
    return {"instruction": TEXTS[row], "output": f"{whose} {row}", "generator": generator, **fields}


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["outputs.json", "outputs.jsonl", "outputs.json.gz", "outputs.jsonl.gz"])
def test_answers_are_read_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    responses = ("2", "", '"""}\n{output_1}<|im_end|>')
    by_id = {
        one.id: Answer(one.id, Response(text)) for one, text in zip(INSTRUCTIONS, responses, strict=True)
    }
    path = tmp_path / name
    write_answers(path, Answers("a/model", by_id), INSTRUCTIONS)
    assert read_answers(path, INSTRUCTIONS) == Answers("a/model", by_id)


def test_alpaca_eval_reads_the_answers_that_were_written(tmp_path: Path) -> None:
    by_id = {one.id: Answer(one.id, Response(f"response {one.position}")) for one in INSTRUCTIONS[:2]}
    write_answers(tmp_path / "outputs.json", Answers("model", by_id), INSTRUCTIONS)
    frame = whole_package().utils.load_or_convert_to_dataframe(tmp_path / "outputs.json")
    assert frame["instruction"].tolist() == list(TEXTS[:2])
    assert frame["output"].tolist() == ["response 0", "response 1"]
    assert set(frame["generator"]) == {"model"} and set(frame["dataset"]) == {"koala"}


@pytest.mark.parametrize("name", ["annotations.json", "annotations.jsonl.gz"])
def test_matches_are_read_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    rows = [annotation(2, 2), annotation(0, 1.0000001), annotation(1, None)]
    found = read_annotations(write(tmp_path / "given.jsonl", rows), INSTRUCTIONS)
    write_annotations(tmp_path / name, found.model, found.judge, found.matches)
    again = read_annotations(tmp_path / name, INSTRUCTIONS)
    assert again.matches == found.matches
    assert (again.model, again.baseline, again.judge) == ("model", BASELINE, "judge")


@needs_data
def test_alpaca_eval_finds_the_same_win_rate_in_the_annotations_that_were_written(tmp_path: Path) -> None:
    found = read_annotations(annotations_of("claude-2.1"), official_bench().instructions)
    logprobs = {match.instruction.id: {"m": -0.5, "M": -1.0} for match in found.matches[:1]}
    write_annotations(tmp_path / "annotations.json", found.model, found.judge, found.matches, logprobs)
    alpaca_eval = whole_package()
    frame = alpaca_eval.utils.load_or_convert_to_dataframe(tmp_path / "annotations.json")
    theirs = alpaca_eval.metrics.get_winrate(frame)
    assert theirs["win_rate"] == pytest.approx(expected()["claude-2.1"]["official"]["win_rate"], abs=1e-9)
    assert frame["top_logprobs"][0] == {"m": -0.5, "M": -1.0}
    written = json.loads((tmp_path / "annotations.json").read_text())
    for ours, official in zip(written, official_rows("claude-2.1"), strict=True):
        assert {name: official[name] for name in ours if name != "top_logprobs"} == {
            name: value for name, value in ours.items() if name != "top_logprobs"
        }


def test_a_failed_judgment_stays_a_row_that_alpaca_eval_does_not_count(tmp_path: Path) -> None:
    matches = [match("a", 1.0, "x", "y"), match("b", None, "x", "y"), match("c", 0.5, "x", "y")]
    write_annotations(tmp_path / "annotations.json", "model", "judge", matches)
    alpaca_eval = whole_package()
    frame = alpaca_eval.utils.load_or_convert_to_dataframe(tmp_path / "annotations.json")
    theirs = alpaca_eval.metrics.get_winrate(frame)
    assert (len(frame), theirs["n_total"], theirs["win_rate"]) == (3, 2, 75.0)


def test_preferences_are_read_as_the_package_reads_them(tmp_path: Path) -> None:
    """0 was a draw once, null is a judgment that failed, and in between lies how far the model is preferred."""
    rows = [annotation(0, 0), annotation(1, None), annotation(2, 1.75)]
    found = read_annotations(write(tmp_path / "a.jsonl", rows), INSTRUCTIONS).matches
    verdicts = [one.games[0].verdict for one in found]
    assert [verdict and verdict.preference for verdict in verdicts] == [0.5, None, 0.75]


def test_files_of_two_models_are_joined_and_checked_against_their_answers(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [annotation(row) for row in range(3)])
    other = write(
        tmp_path / "other.jsonl",
        [annotation(2, 2, generator_2="other"), annotation(0, 1, generator_2="other")],
    )
    answers = write(tmp_path / "answers.jsonl", [output(row) for row in range(3)])
    baseline = write(tmp_path / "baseline.jsonl", [output(row, BASELINE) for row in range(3)])
    matches, judge, notes = read_matches(INSTRUCTIONS, [answers], baseline, [one, other])
    assert judge == "judge"
    assert {model: [found.instruction.position for found in rows] for model, rows in matches.items()} == {
        "model": [0, 1, 2],
        "other": [2, 0],
    }
    (note,) = notes
    assert note == "other: 1 of 3 instructions have no row in other.jsonl (counted from 0: 1)"


GOOD = [annotation(row) for row in range(3)]

WRONG_ANNOTATIONS: dict[str, tuple[list[Row], str]] = {
    "an instruction twice": (
        [*GOOD, annotation(1)],
        r"a.jsonl:4: field 'instruction' is the same as in .*a.jsonl:2: Name a colour.",
    ),
    "another bench": (
        [*GOOD[:2], annotation(2, instruction="Prove Fermat.")],
        r"a.jsonl:3: field 'instruction' is none of the 3 of this bench \(a file of another\?\): Prove Fermat.",
    ),
    "no instruction": ([GOOD[0], {"preference": 1}], r"a.jsonl:2: field 'generator_2' is missing"),
    "no output": (
        [{name: value for name, value in GOOD[0].items() if name != "output_1"}],
        r"a.jsonl:1: field 'output_1' is missing",
    ),
    "an output that is none": ([annotation(0, output_2=3)], r"a.jsonl:1: field 'output_2' is a number"),
    "no preference": (
        [{name: value for name, value in GOOD[0].items() if name != "preference"}],
        r"a.jsonl:1: field 'preference' is missing",
    ),
    "a preference of another scale": (
        [annotation(0, 2.5)],
        r"a.jsonl:1: field 'preference' is 2.5, and must be 1 to 2",
    ),
    "a preference in words": (
        [annotation(0, preference="m")],
        r"a.jsonl:1: field 'preference' is a string, and must be a number",
    ),
    "mixed judges": (
        [GOOD[0], annotation(1, annotator="another")],
        r"a.jsonl:2: field 'annotator' is 'another', and 'judge' in .*a.jsonl:1: one a file",
    ),
    "mixed models": (
        [GOOD[0], annotation(1, generator_2="another")],
        r"a.jsonl:2: field 'generator_2' is 'another', and 'model' in .*a.jsonl:1: one a file",
    ),
    "judged against itself": (
        [annotation(0, generator_2=BASELINE)],
        r"a.jsonl:1: field 'generator_2' is 'gpt4_1106_preview', and so is generator_1: a model judged against",
    ),
}


@pytest.mark.parametrize("rows, message", WRONG_ANNOTATIONS.values(), ids=WRONG_ANNOTATIONS)
def test_wrong_annotations_are_named_with_file_line_and_field(
    tmp_path: Path, rows: list[Row], message: str
) -> None:
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UsageError, match=message) as caught:
        read_matches(INSTRUCTIONS, [], None, [path])
    assert "\n" not in str(caught.value)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    path.write_text(path.read_text() + '{"instruction": \n')
    with pytest.raises(UsageError, match=r"a.jsonl:4: bad JSON"):
        read_matches(INSTRUCTIONS, [], None, [path])
    path.write_text("")
    with pytest.raises(UsageError, match=r"a.jsonl: the file is empty"):
        read_matches(INSTRUCTIONS, [], None, [path])
    with pytest.raises(UsageError, match="no judgments to score"):
        read_matches(INSTRUCTIONS, [], None, [])


def _answers(tmp_path: Path, rows: list[Row]) -> None:
    judged = write(tmp_path / "a.jsonl", GOOD)
    read_matches(INSTRUCTIONS, [write(tmp_path / "answers.jsonl", rows)], None, [judged])


def _baseline(tmp_path: Path, rows: list[Row]) -> None:
    judged = write(tmp_path / "a.jsonl", GOOD)
    read_matches(INSTRUCTIONS, [], write(tmp_path / "baseline.jsonl", rows), [judged])


def _another(tmp_path: Path, rows: list[Row]) -> None:
    judged = write(tmp_path / "a.jsonl", GOOD)
    read_matches(INSTRUCTIONS, [], None, [judged, write(tmp_path / "b.jsonl", rows)])


@pytest.mark.parametrize(
    ("read", "rows", "message"),
    [
        (
            _answers,
            [output(0), output(1, output="another"), output(2)],
            r"a.jsonl:2: field 'output_2' is not the output in .*answers.jsonl: answers of another run",
        ),
        (
            _answers,
            [output(0), output(2)],
            r"a.jsonl:2: field 'instruction' has no row in .*answers.jsonl",
        ),
        (
            _answers,
            [output(0, "another")],
            r"answers.jsonl:1: field 'generator' is 'another', and the judgments are about model",
        ),
        (_answers, [output(0), output(0)], r"answers.jsonl:2: field 'instruction' is the same as in"),
        (
            _answers,
            [output(0), output(1, instruction="of another bench")],
            r"answers.jsonl:2: field 'instruction' is none of the 3",
        ),
        (_answers, [output(0, output=None)], r"answers.jsonl:1: field 'output' is null"),
        (
            _baseline,
            [output(row, BASELINE, output="another") for row in range(3)],
            r"a.jsonl:1: field 'output_1' is not the output in .*baseline.jsonl: answers of another run",
        ),
        (
            _baseline,
            [output(0)],
            r"a.jsonl:1: field 'generator_1' is 'gpt4_1106_preview', and .*baseline.jsonl are by 'model'",
        ),
        (_another, GOOD, r"b.jsonl:1: field 'generator_2' is 'model', as in .*a.jsonl"),
        (
            _another,
            [annotation(0, generator_2="other", annotator="another")],
            r"b.jsonl:1: field 'annotator' is 'another', and 'judge' in .*a.jsonl",
        ),
        (
            _another,
            [annotation(0, generator_2="other", generator_1="another")],
            r"b.jsonl:1: field 'generator_1' is 'another', and 'gpt4_1106_preview' in .*a.jsonl",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    tmp_path: Path, read: Callable[[Path, list[Row]], None], rows: list[Row], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, rows)


@needs_data
def test_the_official_files_fit_together() -> None:
    bench = official_bench()
    reference = OFFICIAL / "reference_outputs" / f"{BASELINE}.jsonl.gz"
    models = ["NullModel", "alpaca-7b_concise"]
    matches, judge, notes = read_matches(
        bench.instructions,
        [outputs_of(model) for model in models],
        reference,
        [annotations_of(m) for m in models],
    )
    assert judge == "weighted_alpaca_eval_gpt4_turbo"
    assert {model: len(rows) for model, rows in matches.items()} == {"example": 805, "alpaca-7b_concise": 804}
    (note,) = notes
    assert note.startswith("alpaca-7b_concise: 1 of 805 instructions have no row in") and "689" in note


@needs_data
def test_the_bench_takes_the_hubs_own_files_too(tmp_path: Path) -> None:
    """The hub has one JSON array of the baseline's outputs for instructions and answers, and a plain csv."""
    here = AlpacaEvalBench(Folder(DATA))
    reference = tmp_path / "alpaca_eval" / "reference_outputs" / f"{BASELINE}.json"
    (answers,) = here.baseline_answers(here.instructions).values()
    write_answers(reference, answers, here.instructions)
    (tmp_path / "alpaca_eval" / "instructions.json").write_bytes(reference.read_bytes())
    gamed = tmp_path / "alpaca_eval" / "glm" / "df_gamed.csv"
    gamed.parent.mkdir()
    gamed.write_bytes(gzip.decompress((OFFICIAL / "glm" / "df_gamed.csv.gz").read_bytes()))
    there = AlpacaEvalBench(Folder(tmp_path))
    assert there.instructions == here.instructions and len(here.instructions) == 805
    assert there.baseline_answers(there.instructions) == here.baseline_answers(here.instructions)
    assert (
        {there.baseline_of(one) for one in there.instructions}
        == {BASELINE}
        == there.baseline_answers(there.instructions).keys()
    )
    matches, _, _ = read_matches(here.instructions, [], None, [annotations_of("vicuna-7b")])
    scores = there.score(matches, compat="aligned", seed=0)
    assert scores.models["vicuna-7b"].length_controlled_win_rate == pytest.approx(
        expected()["vicuna-7b"]["official"]["length_controlled_winrate"], abs=1e-6
    )


def test_a_file_that_is_missing_is_told_before_anything_is_judged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no instructions"):
        AlpacaEvalBench(Folder(tmp_path))


def test_instructions_are_read_in_their_order_and_each_once(tmp_path: Path) -> None:
    rows: list[Row] = [{"instruction": text, "dataset": "koala"} for text in TEXTS]
    path = write(tmp_path / "instructions.jsonl", rows)
    assert read_instructions(path) == INSTRUCTIONS
    write(path, [*rows, rows[0]])
    with pytest.raises(UsageError, match=r"instructions.jsonl:4: field 'instruction' is the same as in"):
        read_instructions(path)
