"""Measuring a model on held-out instructions: generate one output each, cut it, have the response judged.

Validation and evaluation are both made of this. Every output and every score is kept as it comes, so a measurement that
is killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkserve.eval.answering.answerer import seed_of
from thinkserve.eval.instruction import Instruction
from thinkserve.thoughts import Response
from thinkserve.training import records
from thinkserve.training.judges.collect import check_unscored, score_groups
from thinkserve.training.judges.judge import Group, GroupScores, Judge
from thinkserve.training.models import format_of, resolve, revision_of
from thinkserve.training.recipe import Arm
from thinkserve.training.records import CutOutput, OutputRecord
from thinkserve.training.sampling.collect import generate_all
from thinkserve.training.sampling.generator import Ask, Sampling
from thinkserve.training.sampling.opening import open_generator
from thinkserve.training.split import cut, token_counter
from thinkserve.training.stage import StageContext

Outputs = Mapping[str, CutOutput]
"""By instruction."""


async def generate(
    context: StageContext,
    model: str,
    instructions: Sequence[Instruction],
    wanted: Mapping[Path, Sampling],
    *,
    arm: Arm,
    counted: dict[str, Any],
) -> dict[Path, Outputs]:
    """One output an instruction for each way of decoding; the model is loaded once, and not at all if all is there.

    Args:
        context: of the stage.
        model: which one.
        instructions: what is asked.
        wanted: from the file that the cut outputs are kept in (`OutputRecord`s) to how tokens are drawn.
        arm: whether the model is asked to think.
        counted: the generator's numbers are added to it.
    """
    missing = {path: sampling for path, sampling in wanted.items() if not path.exists()}
    if missing:
        recipe = context.recipe
        format, count = format_of(recipe), token_counter(model, revision_of(recipe, model))
        async with open_generator(
            recipe.sample,
            resolve(model),
            threads=recipe.compute.threads,
            chat_template=recipe.chat_template,
            format=format,
            revision=revision_of(recipe, model),
        ) as generator:
            for path, sampling in missing.items():
                # The same seeds for all models that are compared: what differs is the model.
                asks = [
                    Ask(
                        one.id,
                        format.thought_prompt(one.text) if arm == "thought" else one.text,
                        seed_of(recipe.seed, f"measuring {one.text}"),
                    )
                    for one in instructions
                ]
                log = path.with_suffix(".log.jsonl")
                with context.progress("outputs") as progress:
                    sampled = await generate_all(generator, asks, sampling, log, progress)
                records.write(
                    path,
                    (
                        OutputRecord(
                            record.id, (cut(record.outputs[0], format, count, direct=arm == "direct"),)
                        )
                        for record in sampled
                    ),
                )
                log.unlink(missing_ok=True)
            for name, number in generator.numbers.items():
                counted[name] = counted.get(name, 0) + number
    return {path: read_outputs(path, instructions) for path in wanted}


def read_outputs(path: Path, instructions: Sequence[Instruction]) -> Outputs:
    """The outputs in a file that `generate` wrote.

    Raises:
        UsageError: the file is malformed, or lacks an instruction.
    """
    found = records.by_id(records.read(path, OutputRecord))
    ids = [one.id for one in instructions]
    return {record.id: record.outputs[0] for record in records.in_order(found, ids, path)}


async def score(
    context: StageContext,
    judge: Judge,
    instructions: Sequence[Instruction],
    outputs: Outputs,
    log: Path,
    *,
    max_unscored: float,
) -> dict[str, float | None]:
    """The judge's score of each readable response, by instruction; None where there is no score.

    Raises:
        ThinkserveError: a larger share than `max_unscored` of them has none.
    """
    groups = [
        Group(one.id, one.text, (Response(outputs[one.id].response),))
        for one in instructions
        if outputs[one.id].problem is None
    ]
    with context.progress("responses") as progress:
        scored = await score_groups(judge, groups, log, progress)
    _check(judge, scored, max_unscored)
    return {one.id: scored[one.id].scores[0] if one.id in scored else None for one in instructions}


async def prefer(
    context: StageContext,
    judge: Judge,
    instructions: Sequence[Instruction],
    outputs: Outputs,
    baseline: Outputs,
    log: Path,
    *,
    max_unscored: float,
) -> dict[str, float | None]:
    """How often the judge prefers a response to the baseline's: 1, 0, or 0.5 for a tie; None: it has no score.

    A response that is missing loses against one that is there, and equal ones tie, without a judge: a reward model's scores
    of the same text differ in the last digits where they are in different batches.

    Raises:
        ThinkserveError: a larger share than `max_unscored` of those that were compared has no score.
    """
    both = [
        Group(one.id, one.text, (Response(outputs[one.id].response), Response(baseline[one.id].response)))
        for one in instructions
        if outputs[one.id].problem is None
        and baseline[one.id].problem is None
        and outputs[one.id].response != baseline[one.id].response
    ]
    with context.progress("comparisons") as progress:
        scored = await score_groups(judge, both, log, progress)
    _check(judge, scored, max_unscored)
    found: dict[str, float | None] = {}
    for one in instructions:
        if one.id in scored:
            found[one.id] = preference(*scored[one.id].scores)
        else:
            ours, theirs = (side[one.id].problem is None for side in (outputs, baseline))
            found[one.id] = (1 + ours - theirs) / 2
    return found


def _check(judge: Judge, scored: Mapping[str, GroupScores], limit: float) -> None:
    scores = [score for group in scored.values() for score in group.scores]
    check_unscored(scores.count(None), len(scores), limit, judge, scored.values())


def preference(ours: float | None, theirs: float | None) -> float | None:
    """1 if our score is higher, 0 if it is lower, 0.5 if both are equal; None where one is missing."""
    if ours is None or theirs is None:
        return None
    return (1 + (ours > theirs) - (ours < theirs)) / 2
