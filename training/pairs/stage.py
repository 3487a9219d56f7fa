"""The stage that makes pairs: from samples and their scores to `pairs.jsonl`, and the audit of it.

It makes no call and takes seconds, so it writes its files whole: one that was killed starts again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from thinkserve.errors import ThinkserveError
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.records import write_whole
from thinkserve.training.models import format_of
from thinkserve.training.pairs.audit import Made, audit
from thinkserve.training.pairs.candidates import Readable, candidates_of
from thinkserve.training.pairs.selection import Pick
from thinkserve.training.pairs.tuning import tune
from thinkserve.training.prompts.stage import read_instructions
from thinkserve.training.records import (
    OutputRecord,
    PairRecord,
    SampleRecord,
    ScoreRecord,
    by_id,
    in_order,
    read,
    write,
)
from thinkserve.training.report.pair_audit import REASONS, pair_page
from thinkserve.training.stage import StageContext

ADVICE = {
    "no_readable": "see whether the thought format is the model's (thought_format), and whether sample.max_tokens is large "
    "enough",
    "unscored": "see the log of the score stage",
    "one_output": "raise sample.temperature or sample.k",
    "tied": "raise sample.k or sample.temperature, or take a judge that tells more apart",
    "small_spread": "lower pairs.min_spread",
    "low_chosen": "lower pairs.min_chosen_score",
    "length_control": "lower pairs.rho, or the values of pairs.rho_steps",
}


def run(context: StageContext) -> Mapping[str, Any]:
    """Make the pairs of an iteration.

    Raises:
        UsageError: a file of the iteration is missing, malformed or of other instructions.
        ThinkserveError: not one pair can be made.
    """
    folder, recipe = context.folder, context.recipe
    instructions = read_instructions(context.run.prompts_of(context.iteration))
    ids = [instruction.id for instruction in instructions]
    samples = list(in_order(by_id(read(folder.samples, SampleRecord)), ids, folder.samples))
    outputs = list(in_order(by_id(read(folder.outputs, OutputRecord)), ids, folder.outputs))
    scores = in_order(by_id(read(folder.scores, ScoreRecord)), ids, folder.scores)
    groups = [
        candidates_of(sample, cut, scored, recipe.pairs, folder.scores)
        for sample, cut, scored in zip(samples, outputs, scores, strict=True)
    ]
    tuning = tune(groups, recipe.pairs, context.seed("pairs"))
    made = Made(instructions, outputs, groups, tuning)
    statistics = {
        "arm": context.arm,
        "iteration": context.iteration,
        **audit(made, recipe, context.seed("examples of pairs")),
    }
    if not tuning.selection.pairs:
        raise ThinkserveError(_no_pairs(context, statistics))
    write(folder.pairs, _records(context, instructions, tuning.selection.picks))
    write_whole(
        folder.pair_statistics, msgspec.json.format(msgspec.json.encode(statistics), indent=1) + b"\n"
    )
    write_whole(folder.pair_page, pair_page(statistics).encode())
    counts = statistics["counts"]
    return {
        **{
            key: counts[key]
            for key in ("instructions", "pairs", "broken_pairs", "broken_share", "duplicates")
        },
        "no_pair": statistics["no_pair"],
        "rho": statistics["rho"],
        "rho_reached": statistics["rho_reached"],
        **statistics["means"],
        "warnings": statistics["warnings"],
    }


def _records(
    context: StageContext, instructions: Sequence[Instruction], picks: Sequence[object]
) -> list[PairRecord]:
    format = format_of(context.recipe) if context.arm == "thought" else None
    return [
        PairRecord(
            id=instruction.id,
            prompt=instruction.text if format is None else format.thought_prompt(instruction.text),
            chosen=pick.chosen.text,
            rejected=pick.rejected.text,
            chosen_index=pick.chosen.index,
            rejected_index=pick.rejected.index,
            chosen_score=pick.chosen.score,
            rejected_score=pick.rejected.score if isinstance(pick.rejected, Readable) else None,
            chosen_value=pick.chosen_value,
            rejected_value=pick.rejected_value,
            chosen_length=pick.chosen.length,
            rejected_length=pick.rejected.length,
        )
        for instruction, pick in zip(instructions, picks, strict=True)
        if isinstance(pick, Pick)
    ]


def _no_pairs(context: StageContext, statistics: Mapping[str, Any]) -> str:
    """Why there is no pair, the most frequent reason first, and what would help against that one."""
    where = context.folder.scores
    reasons = sorted(statistics["no_pair"].items(), key=lambda found: -found[1])
    if not reasons:
        return f"{context.run.prompts_of(context.iteration)}: no instructions, so no pairs; raise prompts.per_iteration"
    counted = ", ".join(f"{n:,} {REASONS[reason]}" for reason, n in reasons)
    beyond = statistics["counts"]["broken_beyond_cap"]
    capped = (
        f"; {beyond:,} could have a broken output as the rejected one, but for pairs.max_broken"
        if beyond
        else ""
    )
    return (
        f"{where}: no pair can be made of {statistics['counts']['instructions']:,} instructions: {counted}{capped}; "
        f"{ADVICE[reasons[0][0]]}"
    )
