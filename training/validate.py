"""The stage that chooses the best epoch: by the mean judge score of its responses to held-out instructions.

An epoch that breaks its format too often is not chosen if another one does not, however good its readable responses are.
The start model is measured too, so that everybody can see whether training helped, but an iteration always moves on: the
paper's best checkpoint is one of the epochs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.errors import ThinkserveError
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.records import write_whole
from thinkserve.training import measuring
from thinkserve.training.judges.judge import Judge
from thinkserve.training.judges.opening import open_judge
from thinkserve.training.measuring import Outputs
from thinkserve.training.prompts.stage import read_instructions
from thinkserve.training.recipe import ValidateRecipe
from thinkserve.training.sampling.generator import Sampling
from thinkserve.training.split import mean, numbers
from thinkserve.training.stage import StageContext


@dataclass(frozen=True, slots=True)
class Candidate:
    """How one epoch did."""

    epoch: int
    """0: the start model, which is not chosen."""
    n: int
    mean_score: float | None
    """Of readable responses; of a pairwise judge: how often they are preferred to those of the start model."""
    broken: float
    """Share of outputs without a readable response."""
    mean_thought_tokens: float | None
    mean_response_tokens: float | None


def run(context: StageContext) -> Mapping[str, Any]:
    """Measure the start model and all epochs, and choose."""
    return asyncio.run(_run(context))


async def _run(context: StageContext) -> Mapping[str, Any]:
    recipe, folder = context.recipe, context.folder
    instructions = read_instructions(context.run.prompts_of("validation"))
    settings = recipe.validate
    sampling = Sampling(
        k=1,
        temperature=settings.temperature,
        top_p=1.0,
        max_tokens=settings.max_tokens or recipe.sample.max_tokens,
    )
    models = {0: context.start_model}
    models |= {epoch: str(folder.epoch(epoch)) for epoch in range(1, recipe.dpo.epochs + 1)}
    outputs: dict[int, Outputs] = {}
    generated: dict[str, Any] = {}
    for epoch, model in models.items():
        path = folder.validation_outputs / f"epoch-{epoch}.jsonl"
        found = await measuring.generate(
            context, model, instructions, {path: sampling}, arm=context.arm, counted=generated
        )
        outputs[epoch] = found[path]
    async with open_judge(recipe.judge, cache=folder.judgments, seed=recipe.seed) as judge:
        candidates = [
            _candidate(epoch, found, await _scores(context, judge, instructions, outputs, epoch))
            for epoch, found in outputs.items()
        ]
        counted = dict(judge.numbers)
    chosen, reason = choose(candidates, settings)
    state = {
        "candidates": [asdict(candidate) for candidate in candidates],
        "chosen": chosen.epoch,
        "reason": reason,
    }
    write_whole(folder.validation, msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    return {
        "chosen": chosen.epoch,
        "reason": reason,
        "mean_score": chosen.mean_score,
        **generated,
        "judge": counted,
    }


async def _scores(
    context: StageContext,
    judge: Judge,
    instructions: Sequence[Instruction],
    outputs: Mapping[int, Outputs],
    epoch: int,
) -> dict[str, float | None]:
    log: Path = context.folder.validation_outputs / f"epoch-{epoch}.scores.jsonl"
    limit = context.recipe.judge.max_unscored
    # What a pairwise judge says of one response alone says nothing.
    if context.recipe.judge.kind == "pairwise":
        return await measuring.prefer(
            context, judge, instructions, outputs[epoch], outputs[0], log, max_unscored=limit
        )
    return await measuring.score(context, judge, instructions, outputs[epoch], log, max_unscored=limit)


def _candidate(epoch: int, outputs: Outputs, scores: Mapping[str, float | None]) -> Candidate:
    counted = numbers(list(outputs.values()))
    readable = [value for id, value in scores.items() if value is not None and outputs[id].problem is None]
    return Candidate(
        epoch,
        n=len(outputs),
        mean_score=mean(readable),
        broken=counted["parse_failures"],
        mean_thought_tokens=counted["mean_thought_tokens"],
        mean_response_tokens=counted["mean_response_tokens"],
    )


def choose(candidates: Sequence[Candidate], settings: ValidateRecipe) -> tuple[Candidate, str]:
    """The best epoch, and why; of equally good ones the earliest, which is nearest to the start model.

    Raises:
        ThinkserveError: no epoch has a response that could be scored.
    """
    epochs = [one for one in candidates if one.epoch > 0 and one.mean_score is not None]
    if not epochs:
        broken = ", ".join(f"{100 * one.broken:.0f} %" for one in candidates if one.epoch > 0)
        raise ThinkserveError(
            f"no epoch wrote a response that could be scored (broken outputs by epoch: {broken}); training has wrecked "
            "the model: lower dpo.learning_rate, or raise validate.max_tokens if outputs are cut off"
        )
    sound = [one for one in epochs if one.broken <= settings.max_broken]
    best = max(sound or epochs, key=lambda one: (one.mean_score, -one.epoch))
    # Where there is no other, it may well be worse than the start model.
    reason = (
        f"the best mean score of {len(epochs)} epochs" if len(epochs) > 1 else "the only epoch with a score"
    )
    if not sound:
        best = min(epochs, key=lambda one: (one.broken, -(one.mean_score or 0.0)))
        reason = (
            f"the fewest broken outputs: no epoch has less than validate.max_broken = {settings.max_broken:g}"
        )
    elif len(sound) < len(epochs):
        reason += f", without {len(epochs) - len(sound)} that broke too many outputs"
    return best, reason
