"""The stage that has the responses of an iteration scored. The judge gets instructions and responses, never a thought."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from thinkserve.thoughts import Response
from thinkserve.training import records
from thinkserve.training.judges.collect import check_unscored, score_groups
from thinkserve.training.judges.judge import Group, GroupScores
from thinkserve.training.judges.opening import open_judge
from thinkserve.training.prompts.stage import read_instructions
from thinkserve.training.records import OutputRecord, ScoreRecord
from thinkserve.training.stage import StageContext


def run(context: StageContext) -> Mapping[str, Any]:
    """Score the readable responses of an iteration; what is in the log is not scored again.

    Raises:
        ThinkserveError: the judge cannot go on, or too many responses got no score.
    """
    return asyncio.run(_run(context))


async def _run(context: StageContext) -> Mapping[str, Any]:
    folder, began = context.folder, time.monotonic()
    instructions = read_instructions(context.run.prompts_of(context.iteration))
    found = records.by_id(records.read(folder.outputs, OutputRecord))
    outputs = list(records.in_order(found, [one.id for one in instructions], folder.outputs))
    groups = [
        Group(one.id, one.text, distinct_responses(record))
        for one, record in zip(instructions, outputs, strict=True)
    ]
    judged = [group for group in groups if group.responses]
    recipe = context.recipe.judge
    async with open_judge(recipe, cache=folder.judgments, seed=context.recipe.seed) as judge:
        with context.progress("instructions") as progress:
            log = folder.scores.with_suffix(".log.jsonl")
            scored = await score_groups(judge, judged, log, progress)
    lines = [_spread(record, group, scored) for record, group in zip(outputs, groups, strict=True)]
    scores = [score for line in lines for score in line.scores if score is not None]
    readable = sum(output.problem is None for record in outputs for output in record.outputs)
    unscored = readable - len(scores)
    check_unscored(unscored, readable, recipe.max_unscored, judge, scored.values())
    records.write(folder.scores, lines)
    return {
        "groups": len(judged),
        "responses": readable,
        "distinct": sum(len(group.responses) for group in judged),
        "unscored": unscored,
        "mean_score": sum(scores) / len(scores) if scores else None,
        "judge": judge.name,
        "judge_numbers": dict(judge.numbers),
        "seconds": round(time.monotonic() - began, 3),
    }


def distinct_responses(record: OutputRecord) -> tuple[Response, ...]:
    """The readable responses to an instruction, equal ones once, in the order in which they first came."""
    readable = (output.response for output in record.outputs if output.problem is None)
    return tuple(Response(text) for text in dict.fromkeys(readable))


def _spread(record: OutputRecord, group: Group, scored: Mapping[str, GroupScores]) -> ScoreRecord:
    if not group.responses:
        return ScoreRecord(record.id, (None,) * len(record.outputs))
    scores = scored[record.id]
    of = dict(zip(group.responses, scores.scores, strict=True))
    return ScoreRecord(
        record.id,
        tuple(
            None if output.problem is not None else of[Response(output.response)] for output in record.outputs
        ),
        scores.details,
    )
