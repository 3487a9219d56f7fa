"""`thinkserve score`, `report` and `leaderboard` as other programs run them, on the official files.

A process takes a second or two, so what needs none of its own (the refusals) calls what the command calls.
"""

import gzip
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.eval.alpaca_data import DATA, OFFICIAL, annotations_of, needs_data, outputs_of
from tests.eval.alpaca_data import expected as alpaca_expected
from tests.eval.arena_data import V01, V20, V20_MODELS, expected, rows
from thinkserve.errors import UsageError
from thinkserve.evaluate import score
from thinkserve.training.pocket.bench import BASELINE, PocketBench

BASE = OFFICIAL / "reference_outputs" / "gpt4_1106_preview.jsonl.gz"
V01_JUDGMENTS = V01 / "model_judgment" / "gpt-4-1106-preview"
GPT35 = V01_JUDGMENTS / "gpt-3.5-turbo-0125.jsonl.gz"
SOME = ("claude-2.1", "FuseChat-Llama-3.1-8B-Instruct", "NullModel", "alpaca-7b_concise")
CLAUDE = annotations_of("claude-2.1")
Rows = Sequence[Mapping[str, Any] | str]
pytestmark = needs_data


def thinkserve(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thinkserve.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=DATA.parent,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        check=False,
    )


def scored(out: Path, bench: str, *arguments: object) -> dict[str, Any]:
    """What a process wrote; nothing may stand on its standard error, and no number may be beside JSON."""
    run = thinkserve("score", "--bench", bench, "--data", DATA, "--out", out, *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    return strict(out)


def strict(out: Path) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads((out / "scores.json").read_bytes(), parse_constant=refuse)
    assert found["schema"] == "thinkserve.scores/1"
    assert not list(nothing(found))
    return found


def nothing(value: Any, path: str = "") -> Iterator[str]:
    """The paths of nulls: a key that does not apply is absent."""
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from nothing(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from nothing(item, f"{path}[]")


def every(option: str, paths: Sequence[Path]) -> list[object]:
    return [argument for path in paths for argument in (option, path)]


def written(path: Path, content: Rows, *, array: bool = False) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in content]
    text = f"[{', '.join(lines)}]" if array else "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_alpaca_eval_official_is_the_leaderboard(tmp_path: Path) -> None:
    """Also where a row is missing, and where the folds were others. Models are called what their files call them: the leaderboard's NullModel calls itself `example`."""
    found = scored(
        tmp_path,
        "alpaca-eval",
        *every("--judgments", [annotations_of(model) for model in SOME]),
        *every("--answers", [outputs_of(model) for model in SOME]),
        *("--baseline-answers", BASE, "--compat", "official"),
    )
    assert (found["bench"], found["judge"], found["baseline"], found["compat"]) == (
        "alpaca-eval",
        "weighted_alpaca_eval_gpt4_turbo",
        "gpt4_1106_preview",
        "official",
    )
    assert len(found["comparisons"]) == 6
    for model in SOME:
        group = found["models"]["example" if model == "NullModel" else model]
        known = alpaca_expected()[model]["official"]
        assert (group["n"], group["unscored"]) == (known["n_total"], 0)
        assert group["win_rate"] == pytest.approx(known["win_rate"], abs=1e-6)
        assert group["standard_error"] == pytest.approx(known["standard_error"], abs=1e-6)
        assert group["length_controlled_win_rate"] == pytest.approx(
            known["length_controlled_winrate"], abs=1e-6
        )
        assert (group["wins"], group["losses"], group["draws"]) == (
            known["n_wins"],
            known["n_wins_base"],
            known["n_draws"],
        )
        assert int(group["mean_length"]) == known["avg_length"]
        assert group["lc_standard_error"] > 0
        assert group["ci_level"] == 0.95
        datasets = group["categories"]["dataset"]
        assert set(datasets) == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
        assert sum(part["n"] for part in datasets.values()) == group["n"]
        lc = sum(part["n"] * part["length_controlled_win_rate"] for part in datasets.values()) / group["n"]
        assert lc == pytest.approx(group["length_controlled_win_rate"], abs=1e-9)


def test_alpaca_eval_aligned_does_not_hang_on_the_order_or_the_format_of_a_file(tmp_path: Path) -> None:
    judged = rows(CLAUDE)
    random.Random(1).shuffle(judged)
    for row in judged:
        row["generator_2"] = "anthropic/claude 2.1"
    array = written(tmp_path / "annotations.json", judged, array=True)
    answers = [{**row, "generator": "anthropic/claude 2.1"} for row in rows(outputs_of("claude-2.1"))]
    answered = written(tmp_path / "model_outputs.json", answers, array=True)
    found = scored(
        tmp_path / "a", "alpaca-eval", "--judgments", array, "--answers", answered, "--baseline-answers", BASE
    )
    group = found["models"]["anthropic/claude 2.1"]
    known = alpaca_expected()["claude-2.1"]["official"]
    assert group["length_controlled_win_rate"] == pytest.approx(known["length_controlled_winrate"], abs=1e-6)
    assert group["win_rate"] == pytest.approx(known["win_rate"], abs=1e-6)
    assert abs(group["compat"]["length_controlled_win_rate"] - known["length_controlled_winrate"]) > 1


def test_arena_hard_official_is_what_its_authors_code_prints(tmp_path: Path) -> None:
    """A model alone; its interval must not hang on that."""
    known = expected(V01)
    model = "mistral-small-24b-2501"
    found = scored(
        tmp_path,
        "arena-hard-v0.1",
        *("--judgments", V01_JUDGMENTS / f"{model}.jsonl.gz", "--compat", "official"),
        *("--answers", V01 / "model_answer" / f"{model}.jsonl.gz"),
    )
    group, printed = found["models"][model], known["official_code_output"]["default"][model]
    assert group["score"] == pytest.approx(known["models"][model]["exact_score"], abs=1e-6)
    assert group["ci"] == pytest.approx((printed["ci_lower"], printed["ci_upper"]), abs=0.6)
    assert group["ci_level"] == 0.95
    assert 0 < group["style_controlled_score"] < 100
    assert len(group["categories"]["cluster"]) == 250
    assert int(group["mean_tokens"]) == printed["avg_tokens"]


def test_arena_hard_v20_of_two_judges_by_category_and_its_report(tmp_path: Path) -> None:
    judges = ("synthetic-judge-a", "synthetic-judge-b")
    found = scored(
        tmp_path,
        "arena-hard",
        *every(
            "--judgments", [V20 / "model_judgment" / j / f"{m}.jsonl.gz" for m in V20_MODELS for j in judges]
        ),
        *every("--answers", [V20 / "model_answer" / f"{model}.jsonl.gz" for model in V20_MODELS]),
    )
    assert found["judge"] == "+".join(judges)
    known = expected(V20)["points_without_bootstrap"]
    for model in V20_MODELS:
        categories = found["models"][model]["categories"]
        for name in ("hard_prompt", "creative_writing"):
            point = known[f"{'+'.join(judges)}|{name}"][model]
            assert categories["category"][name]["score"] == pytest.approx(point["mean"], abs=1e-6)
            assert categories["category"][name]["n"] == point["n_questions"]
        for name in ("coding", "math"):
            point = known[f"{'+'.join(judges)}|sub:{name}"][model]
            assert categories["subcategory"][name]["score"] == pytest.approx(point["mean"], abs=1e-6)
        style = known[f"{'+'.join(judges)}|hard_prompt|style"]
        controlled = categories["category"]["hard_prompt"]["style_controlled_score"]
        assert controlled == pytest.approx(style["converged_optimum"][model], abs=0.01)
        assert controlled == pytest.approx(style["official_optimizer_full_data"][model], abs=0.25)
    (comparison,) = found["comparisons"]
    assert {comparison["a"], comparison["b"]} == set(V20_MODELS)
    page, board = thinkserve("report", tmp_path), thinkserve("leaderboard", tmp_path)
    assert (page.returncode, page.stderr, board.returncode, board.stderr) == (0, "", 0, "")
    assert all(model in (tmp_path / "report.html").read_text() for model in V20_MODELS)
    lines = [line.split()[:2] for line in board.stdout.splitlines() if line[:2].strip().isdigit()]
    assert lines == [["1", "sky-t1-32b"], ["2", "llama3.1-8b-instruct"]]


def test_judgments_of_some_questions_are_scored_without_answers(tmp_path: Path) -> None:
    """Of the 82 questions, 2 games of one have no verdict; the 418 that nobody judged are noted, and are not unscored."""
    (path,) = (V01 / "real_verdict_texts").glob("llama-3.1*.jsonl.gz")
    found = scored(tmp_path, "arena-hard-v0.1", "--judgments", path)
    known = expected(V01 / "real_verdict_texts")[path.name.removesuffix(".jsonl.gz")]
    (group,) = found["models"].values()
    assert group["score"] == pytest.approx(known["exact_score_of_this_subset"], abs=1e-6)
    assert (group["n"], group["unscored"]) == (81, 1)
    assert any("no judgments of 418 of 500 instructions" in note for note in found["notes"])
    (health,) = found["health"].values()
    assert (health["games"], health["unscored"]) == (164, known["scores"]["None"])


def test_wrong_input_is_one_line_and_leaves_the_scores_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("as it was")
    double = written(tmp_path / "double.jsonl", [*rows(GPT35), rows(GPT35)[3]])
    run = thinkserve(
        *("score", "--bench", "arena-hard-v0.1", "--data", DATA, "--out", tmp_path, "--judgments", double)
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert (
        "double.jsonl:501: field 'question_id' is '1b0157a79499418ebe22a567f9059e7f' a second" in run.stderr
    )
    assert (tmp_path / "scores.json").read_text() == "as it was"


# What is not decided by the readers of one format (their tests have the rest): swapped, strange and broken files.


def refused(
    out: Path,
    bench: str,
    judgments: Sequence[Path],
    answers: Sequence[Path] = (),
    baseline_answers: Sequence[Path] = (),
    seed: int = 0,
) -> str:
    """The line that `thinkserve score` would end with."""
    out.mkdir(exist_ok=True)
    (out / "scores.json").write_text("as it was")
    with pytest.raises(UsageError) as caught:
        score(
            bench,
            answers=answers,
            baseline_answers=baseline_answers,
            judgments=judgments,
            data=DATA,
            compat="aligned",
            seed=seed,
            out=out,
            console=Console(file=StringIO()),
        )
    assert caught.value.exit_code == 2
    assert (out / "scores.json").read_text() == "as it was"
    assert [path.name for path in out.iterdir()] == ["scores.json"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


V01_ANSWERS = V01 / "model_answer" / "gpt-3.5-turbo-0125.jsonl.gz"
KINDS = [
    ("alpaca-eval", [outputs_of("claude-2.1")], [], ":1: field 'output' says that these are AlpacaEval's answers: give them with --answers"),
    ("alpaca-eval", [CLAUDE], [CLAUDE], ":1: field 'generator_2' says that these are AlpacaEval's judgments: give them with --judgments"),
    ("alpaca-eval", [GPT35], [], ":1: field 'games' says that these are Arena-Hard's judgments, and the bench is alpaca-eval"),
    ("alpaca-eval", [CLAUDE], [V01_ANSWERS], ":1: field 'choices' says that these are Arena-Hard's answers, and the bench is alpaca-eval"),
    ("arena-hard-v0.1", [V01_ANSWERS], [], ":1: field 'choices' says that these are Arena-Hard's answers: give them with --answers"),
    ("arena-hard-v0.1", [GPT35], [GPT35], ":1: field 'games' says that these are Arena-Hard's judgments: give them with --judgments"),
    ("arena-hard-v0.1", [CLAUDE], [], ":1: field 'generator_2' says that these are AlpacaEval's judgments, and the bench is arena-hard-v0.1"),
    ("arena-hard-v0.1", [GPT35, CLAUDE], [], ":1: field 'generator_2' says that these are AlpacaEval's judgments, and the bench is arena-hard-v0.1"),
    ("arena-hard", [V01 / "question.jsonl.gz"], [], ":1: field 'turns' says that these are Arena-Hard's instructions: --judgments takes judgments"),
    ("arena-hard", [GPT35], [], ":1: field 'question_id' is '08d2f41143ff411c83c02a521eb01948', which is no question of this bench"),
    ("pocket", [CLAUDE], [], ":1: field 'generator_2' says that these are AlpacaEval's judgments, and pocket reads those that a run wrote"),
    ("alpaca-eval", [CLAUDE], [outputs_of("claude-2.1")] * 2, "claude-2.1.jsonl.gz: is given twice with --answers"),
    ("alpaca-eval", [OFFICIAL], [], "alpaca_eval: cannot be read: Is a directory"),
    ("alpaca-eval", [], [], "there are no judgments to score: give --judgments FILE"),
]  # fmt: skip


@pytest.mark.parametrize(("bench", "judgments", "answers", "message"), KINDS)
def test_files_in_the_wrong_place_are_called_what_they_are(
    tmp_path: Path, bench: str, judgments: Sequence[Path], answers: Sequence[Path], message: str
) -> None:
    assert message in refused(tmp_path / "out", bench, judgments, answers)


def test_a_seed_below_zero_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "out", "alpaca-eval", [CLAUDE], seed=-3) == "--seed -3: must be 0 or more"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match=r"--out \S+taken: \S+scores.json cannot be written: File exists"):
        score(
            "arena-hard-v0.1",
            answers=[],
            baseline_answers=[],
            judgments=[GPT35],
            data=DATA,
            compat="aligned",
            seed=0,
            out=tmp_path / "taken",
            console=Console(file=StringIO()),
        )


def test_scoring_imports_no_client_and_no_server() -> None:
    """They take 0.7 s, and a whole score of AlpacaEval must not take more than 3."""
    code = "import sys, thinkserve.eval.rescore; print([n for n in ('openai', 'aiohttp', 'pandas') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# A run's own files.


@cache
def pocket() -> PocketBench:
    return PocketBench(208)  # the first 200 are what is asked without --limit


def own_answers(model: str, count: int = 12) -> list[dict[str, Any]]:
    return [
        {"id": one.id, "model": model, "response": "four", "complete": True}
        for one in pocket().instructions[:count]
    ]


def own_judgments(model: str, count: int = 12, **changed: Any) -> list[dict[str, Any]]:
    """Won, won, a draw, and so on."""
    fields = {"game": 0, "model_first": True, "model": model, "baseline": BASELINE, "judge": "rule"}
    return [
        {
            "key": str(number),
            "id": one.id,
            **fields,
            "request_sha256": "",
            "verdict": {"label": "", "preference": 1.0 if number % 3 < 2 else 0.5},
            **changed,
        }
        for number, one in enumerate(pocket().instructions[:count])
    ]


def test_a_runs_own_files_are_scored(tmp_path: Path) -> None:
    """8 of 12 won and 4 drawn: 83.33."""
    for name in ("m", "n"):
        written(tmp_path / f"{name}.answers.jsonl", own_answers(name))
        written(tmp_path / f"{name}.jsonl.gz", own_judgments(name))
    written(tmp_path / "n.jsonl.gz", own_judgments("n", baseline="m"))
    score(
        "pocket",
        answers=[tmp_path / "m.answers.jsonl", tmp_path / "n.answers.jsonl"],
        baseline_answers=[],
        judgments=[tmp_path / "m.jsonl.gz", tmp_path / "n.jsonl.gz"],  # n against m, whose answers are there
        data=None,
        compat="aligned",
        seed=0,
        out=tmp_path,
        console=Console(file=StringIO()),
    )
    found = strict(tmp_path)
    assert {name: group["win_rate"] for name, group in found["models"].items()} == {
        "m": pytest.approx(100 * 10 / 12),
        "n": pytest.approx(100 * 10 / 12),
    }
    assert found["models"]["m"]["n"] == 12


def test_a_pocket_run_of_more_instructions_than_usual_is_scored(tmp_path: Path) -> None:
    judgments = written(tmp_path / "j.jsonl", own_judgments("m", 208))
    answers = written(tmp_path / "a.jsonl", own_answers("m", 208))
    found = scored(tmp_path / "out", "pocket", "--judgments", judgments, "--answers", answers)
    assert found["models"]["m"]["n"] == 208


OWN = [
    (own_judgments("m"), own_answers("m", 5), r"j.jsonl:6: field 'id' is '\w+', to which m has no answer"),
    (own_judgments("m"), own_answers("n"), r"j.jsonl: field 'model' is 'm', and there are no answers of it"),
    (own_judgments("m"), [*own_answers("m"), own_answers("n")[0]], r"a.jsonl:13: field 'model' is 'n', and was 'm'"),
    (own_judgments("m", baseline="m"), own_answers("m"), r"j.jsonl:1: field 'baseline' is 'm', and so is model"),
    (own_judgments("m", baseline="z"), own_answers("m"), r"j.jsonl:1: field 'baseline' is 'z', and there are no answers"),
    ([*own_judgments("m"), "", *own_judgments("m", 1, judge="b")], own_answers("m"), r"j.jsonl:14: field 'judge' is 'b', and was 'rule'"),
    ([*own_judgments("m"), *own_judgments("n", 1)], own_answers("m"), r"j.jsonl:13: field 'model' is 'n', and was 'm'"),
    ([*own_judgments("m"), *own_judgments("m", 1, baseline="z")], own_answers("m"), r"j.jsonl:13: field 'baseline' is 'z', and was"),
    (own_judgments("m", id="q"), own_answers("m"), r"j.jsonl:1: field 'id' is 'q', which is no instruction of pocket"),
    (own_judgments("m", verdict={"label": "", "preference": 7}), own_answers("m"), r"j.jsonl:1: field 'verdict' must have"),
    (own_answers("m"), own_answers("m"), r"j.jsonl:1: field 'response' says that these are a run's own answers: give"),
    (own_judgments("m"), own_judgments("m"), r"a.jsonl:1: field 'key' says that these are a run's own judgments: give"),
    (["{}", "{"], own_answers("m"), r"j.jsonl:1: no judgment"),
    ([], own_answers("m"), r"j.jsonl: the file is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("judgments", "answers", "message"), OWN)
def test_a_runs_own_files_that_do_not_fit_are_refused(
    tmp_path: Path, judgments: Rows, answers: Rows, message: str
) -> None:
    files = written(tmp_path / "j.jsonl", judgments), written(tmp_path / "a.jsonl", answers)
    line = refused(tmp_path / "out", "pocket", [files[0]], [files[1]])
    assert re.search(message, line), line


# Whatever is in a file, the command ends with scores or with a line.

STRANGE = [
    None,
    0,
    -1,
    1.5,
    10**30,
    True,
    "",
    "x",
    "A>B",
    "[[A>B]]",
    [],
    {},
    [None],
    {"a": 1},
    math.nan,
    math.inf,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def spoilt(content: Sequence[Any], rng: random.Random) -> list[Any]:
    """One field of one row, at any depth, is gone or is something else."""
    copied: list[Any] = json.loads(json.dumps(content))
    *path, last = rng.choice([place for place in places(copied) if place])
    at: Any = copied
    for step in path:
        at = at[step]
    if rng.random() < 0.3:
        del at[last]
    else:
        at[last] = rng.choice(STRANGE)
    return copied


@pytest.mark.parametrize("bench", ["alpaca-eval", "arena-hard-v0.1", "arena-hard", "pocket"])
def test_files_that_are_spoilt_anywhere_give_scores_or_one_line(tmp_path: Path, bench: str) -> None:
    judged, answered, theirs = spoilable(bench)
    rng = random.Random(bench)
    lines = 0
    for turn in range(24 if bench == "alpaca-eval" else 60):  # a fit takes 0.15 s
        files = [judged, answered, theirs]
        at = turn % (3 if theirs else 2)
        files[at] = spoilt(files[at], rng)
        paths = [
            [written(tmp_path / f"{name}.jsonl", content)] if content else []
            for name, content in zip("jab", files, strict=True)
        ]
        try:
            score(
                bench,
                answers=paths[1],
                baseline_answers=paths[2],
                judgments=paths[0],
                data=DATA,
                compat="official" if turn % 2 else "aligned",
                seed=0,
                out=tmp_path,
                console=Console(file=StringIO()),
            )
        except UsageError as error:
            assert "\n" not in str(error)
            assert ".jsonl" in str(error)
            lines += 1
        else:
            for group in strict(tmp_path)["models"].values():
                rates = [
                    group[key] for key in ("win_rate", "score", "style_controlled_score") if key in group
                ]
                assert all(0 <= rate <= 100 for rate in rates)
    assert lines > 8


def spoilable(bench: str) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """A few judgments with the answers that they are about."""
    few = 12
    if bench == "pocket":
        return own_judgments("m", few), own_answers("m", few), []
    if bench == "alpaca-eval":
        return tuple(rows(path)[:few] for path in (CLAUDE, outputs_of("claude-2.1"), BASE))  # type: ignore[return-value]
    folder, judge, model, baseline = {
        "arena-hard-v0.1": (V01, "gpt-4-1106-preview", "gpt-3.5-turbo-0125", "gpt-4-0314"),
        "arena-hard": (V20, "synthetic-judge-a", "sky-t1-32b", "o3-mini-2025-01-31"),
    }[bench]
    judged = rows(folder / "model_judgment" / judge / f"{model}.jsonl.gz")[:few]
    field = "question_id" if folder == V01 else "uid"
    ids = {row[field] for row in judged}
    found = [
        [row for row in rows(folder / "model_answer" / f"{name}.jsonl.gz") if row[field] in ids]
        for name in (model, baseline)
    ]
    return judged, *found  # type: ignore[return-value]
