"""The stages that measure, over outputs that are there already: what they ask a judge, and what they make of its answers."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tests.eval.scripted_judge import scripted_judge
from tests.training.llm_judging import longer, recipe_of
from thinkserve.errors import ThinkserveError
from thinkserve.eval.instruction import id_of
from thinkserve.eval.records import write_records
from thinkserve.thoughts import Response
from thinkserve.training import evaluate, records, validate
from thinkserve.training.folder import DECODINGS, Stage, TrainFolder
from thinkserve.training.recipe import DpoRecipe, EvaluateRecipe, JudgeRecipe, Recipe
from thinkserve.training.records import CutOutput, EvaluationRecord, OutputRecord
from thinkserve.training.results import measure
from thinkserve.training.stage import StageContext

INSTRUCTIONS = ["one", "two", "three", "four"]


def half(instruction: str, response: Response) -> float:
    """Has no score for half of the instructions."""
    return 1.0 if instruction in ("two", "four") else float("nan")


def moody(instruction: str, response: Response) -> float:
    """Never says the same twice, as a reward model in bf16 whose batches differ."""
    return next(_MOODS)


_MOODS = itertools.count()
HALF = JudgeRecipe(kind="function", model=None, function=f"{__name__}:half")


def write(path: Path, *responses: str) -> None:
    outputs = zip(INSTRUCTIONS, responses, strict=True)
    lines = [OutputRecord(id_of(one), (CutOutput("t", text, None, 1, 1),)) for one, text in outputs]
    records.write(path, lines)


def context(path: Path, stage: Stage, judge: JudgeRecipe, evaluated: EvaluateRecipe) -> StageContext:
    """A stage of iteration 1 whose outputs were written before it was killed."""
    run = TrainFolder(path, "thought")
    for part in ("evaluation", "validation"):
        write_records(
            run.prompts / f"{part}.jsonl",
            [{"id": id_of(one), "text": one, "categories": {}} for one in INSTRUCTIONS],
        )
    found = StageContext(
        run,
        Recipe(name="test", judge=judge, evaluate=evaluated, dpo=DpoRecipe(epochs=1)),
        "thought",
        1,
        stage,
    )
    for name in DECODINGS:
        write(found.folder.evaluation(name).with_suffix(".outputs.jsonl"), "aaa", "bbb", "c", "dd")
        write(run.baseline(name), "aa", "bbb", "ccc", "d")
    for epoch in (0, 1):
        write(found.folder.validation_outputs / f"epoch-{epoch}.jsonl", "a", "b", "c", "d")
    return found


async def test_a_pairwise_judge_gives_a_win_rate_and_no_score(tmp_path: Path) -> None:
    """Won, tied (the same, which is no question), lost, won: 2.5 of 4. What it says of one response alone is nothing."""
    async with scripted_judge(longer) as judge:
        found = context(tmp_path, "evaluate", recipe_of("pairwise", judge.url), EvaluateRecipe())
        numbers = await asyncio.to_thread(evaluate.run, found)
    assert numbers["greedy"] == {"win_rate": 0.625, "unscored": 0}
    measured = records.read(found.folder.evaluation("greedy"), EvaluationRecord)
    assert [record.value for record in measured] == [1.0, 0.5, 0.0, 1.0]
    assert [record.score for record in measured] == [None] * 4
    assert measure(measured, "win_rate", 0)["score"] is None


def test_the_same_response_as_the_baselines_is_a_tie_whatever_a_judge_makes_of_it(tmp_path: Path) -> None:
    judge = JudgeRecipe(kind="function", model=None, function=f"{__name__}:moody")
    found = context(tmp_path, "evaluate", judge, EvaluateRecipe())
    evaluate.run(found)
    measured = records.read(found.folder.evaluation("greedy"), EvaluationRecord)
    assert [record.value for record in measured] == [0.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("metric", ["accuracy", "win_rate"])
def test_an_evaluation_without_scores_for_half_of_the_responses_ends_with_an_error(
    tmp_path: Path, metric: str
) -> None:
    """Their mean would be that of the instructions that the judge happens to like; nothing of the outputs is lost."""
    asked = EvaluateRecipe(metric=metric)  # type: ignore[arg-type]
    found = context(tmp_path, "evaluate", HALF, asked)
    with pytest.raises(ThinkserveError, match=r"gave no score to 2 of 4 responses \(50 %\)"):
        evaluate.run(found)
    assert not found.folder.evaluation("greedy").exists()
    lenient = context(tmp_path, "evaluate", replace(HALF, max_unscored=0.7), asked)
    assert evaluate.run(lenient)["greedy"]["unscored"] == 2


def test_a_validation_without_scores_for_half_of_the_responses_ends_with_an_error(tmp_path: Path) -> None:
    found = context(tmp_path, "validate", HALF, EvaluateRecipe())
    with pytest.raises(ThinkserveError, match=r"gave no score to 2 of 4 responses \(50 %\)"):
        validate.run(found)
    assert not found.folder.validation.exists()
