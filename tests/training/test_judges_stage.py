"""The stage that scores: from cut outputs to a score an output, with a judge that is a function."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.instruction import id_of
from thinkserve.eval.records import write_records
from thinkserve.training import records
from thinkserve.training.folder import TrainFolder
from thinkserve.training.judges import stage
from thinkserve.training.recipe import JudgeRecipe, Recipe
from thinkserve.training.records import CutOutput, OutputRecord, Problem, ScoreRecord
from thinkserve.training.stage import StageContext

RULES = """
import os, time

def length(instruction, response):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(repr((instruction, response)) + "\\n")
    return len(response)

def slow(instruction, response):
    time.sleep(0.02)
    return length(instruction, response)

def picky(instruction, response):
    return float("nan") if response.startswith("bad") and "MENDED" not in os.environ else length(instruction, response)
"""

RUN = """
import sys
from pathlib import Path
from tests.training.test_judges_stage import context
from thinkserve.training.judges import stage
stage.run(context(Path(sys.argv[1]), "slow"))
"""


def context(path: Path, function: str, **changes: object) -> StageContext:
    judge = JudgeRecipe(kind="function", function=f"stage_rules:{function}", **changes)  # type: ignore[arg-type]
    recipe = Recipe(name="test", judge=judge)
    return StageContext(TrainFolder(path, "thought"), recipe, "thought", 1, "score")


def output(response: str, problem: Problem | None = None, thought: str = "SECRET-THOUGHT") -> CutOutput:
    return CutOutput(thought, response, problem, 3, len(response))


def write_outputs(path: Path, outputs: dict[str, list[CutOutput]]) -> list[str]:
    folder = TrainFolder(path, "thought")
    ids = [id_of(text) for text in outputs]
    write_records(
        folder.prompts_of(1),
        ({"id": id, "text": text, "categories": {}} for id, text in zip(ids, outputs, strict=True)),
    )
    found = [OutputRecord(id, tuple(some)) for id, some in zip(ids, outputs.values(), strict=True)]
    # Sampling finishes in any order; scores are in that of the instructions.
    records.write(folder.iteration("thought", 1).outputs, reversed(found))
    return ids


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that each call of the judge is written to."""
    (tmp_path / "stage_rules.py").write_text(RULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stage_rules", raising=False)
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("CALLS", str(path))
    monkeypatch.delenv("MENDED", raising=False)
    return path


def test_each_output_gets_a_score_in_the_order_of_instructions_and_samples(tmp_path: Path) -> None:
    """Readable: 4 + 1 of 7 outputs, with lengths 2, 2, 4, 6 and 3: a mean of 3.4. Distinct: 4."""
    ids = write_outputs(
        tmp_path,
        {
            "one": [output("ab"), output("no", "unclosed"), output("ab"), output("abcd"), output("abcdef")],
            "two": [output("", "empty")],
            "three": [output("xyz", thought="")],
        },
    )
    found = context(tmp_path, "length")
    numbers = stage.run(found)
    assert records.read(found.folder.scores, ScoreRecord) == [
        ScoreRecord(ids[0], (2.0, None, 2.0, 4.0, 6.0)),
        ScoreRecord(ids[1], (None,)),
        ScoreRecord(ids[2], (3.0,)),
    ]
    seconds = numbers["seconds"]
    assert 0 <= seconds < 60
    assert numbers == {
        "groups": 2,
        "responses": 5,
        "distinct": 4,
        "unscored": 0,
        "mean_score": pytest.approx(3.4),
        "judge": "function stage_rules:length",
        "judge_numbers": {"calls": 4, "not_finite": 0},
        "seconds": seconds,
    }


def test_no_thought_reaches_the_judge(tmp_path: Path, calls: Path) -> None:
    write_outputs(
        tmp_path,
        {
            "What is it?": [
                output("This."),
                output("SECRET-UNCLOSED", "unclosed"),
                output("SECRET-TRUNCATED", "truncated"),
            ]
        },
    )
    stage.run(context(tmp_path, "length"))
    assert calls.read_text() == "('What is it?', 'This.')\n"


def test_too_many_responses_without_a_score_end_the_stage_and_only_these_are_judged_again(
    tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 of 10 responses are more than 0.1."""
    texts = ["bad1", "bad2", *(f"good{at}" for at in range(8))]
    write_outputs(tmp_path, {f"prompt {text}": [output(text)] for text in texts})
    found = context(tmp_path, "picky")
    with pytest.raises(
        ThinkserveError,
        match=r"gave no score to 2 of 10 responses \(20 %\), more than judge\.max_unscored = 0\.1; most often \(2 times\): "
        r"stage_rules:picky gave nan; .* run again",
    ):
        stage.run(found)
    assert not found.folder.scores.exists()
    before = calls.read_text()
    monkeypatch.setenv("MENDED", "yes")
    assert stage.run(found)["unscored"] == 0
    assert calls.read_text().removeprefix(before) == "('prompt bad1', 'bad1')\n('prompt bad2', 'bad2')\n"


def test_some_responses_without_a_score_are_counted(tmp_path: Path) -> None:
    ids = write_outputs(tmp_path, {"one": [output("bad")], "two": [output("good")]})
    found = context(tmp_path, "picky", max_unscored=0.5)
    numbers = stage.run(found)
    assert (numbers["unscored"], numbers["mean_score"]) == (1, 4.0)
    scores = records.by_id(records.read(found.folder.scores, ScoreRecord))
    assert scores[ids[0]].scores == (None,)
    assert scores[ids[0]].details == {"reasons": ["stage_rules:picky gave nan"]}


def test_outputs_that_are_all_broken_are_not_judged_and_no_mistake_of_the_judge(tmp_path: Path) -> None:
    write_outputs(tmp_path, {"one": [output("", "empty"), output("", "unclosed")]})
    numbers = stage.run(context(tmp_path, "length"))
    assert (numbers["groups"], numbers["unscored"], numbers["mean_score"]) == (0, 0, None)


def test_outputs_of_other_instructions_are_refused(tmp_path: Path) -> None:
    write_outputs(tmp_path, {"one": [output("a")]})
    (tmp_path / "prompts" / "iter-1.jsonl").write_text(
        f'{{"id": "{id_of("other")}", "text": "other", "categories": {{}}}}\n'
    )
    with pytest.raises(UsageError, match=r"outputs\.jsonl: has no line for instruction"):
        stage.run(context(tmp_path, "length"))


def test_a_stage_that_is_killed_and_started_again_ends_with_the_same_file(
    tmp_path: Path, calls: Path
) -> None:
    write_outputs(tmp_path, {f"prompt {at}": [output("r" * at), output("s" * 3)] for at in range(1, 61)})
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((root, str(tmp_path)))}
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while calls.read_bytes().count(b"\n") < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    found = context(tmp_path, "slow")
    assert not found.folder.scores.exists()
    stage.run(found)
    after_kill = found.folder.scores.read_bytes()
    # Of the group that was at work, at most two responses were scored twice.
    assert 119 <= calls.read_bytes().count(b"\n") <= 121
    found.folder.scores.with_suffix(".log.jsonl").unlink()
    stage.run(found)
    assert found.folder.scores.read_bytes() == after_kill
