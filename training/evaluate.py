"""The stages that measure: each iteration's model on instructions by which nothing was chosen, and the baseline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkserve.training import measuring, records
from thinkserve.training.dpo.card import add_scores
from thinkserve.training.folder import DECODINGS, Decoding
from thinkserve.training.judges.opening import open_judge
from thinkserve.training.prompts.stage import read_instructions
from thinkserve.training.recipe import EvaluateRecipe, Recipe
from thinkserve.training.records import CutOutput, EvaluationRecord
from thinkserve.training.results import measure
from thinkserve.training.sampling.generator import Sampling
from thinkserve.training.split import mean
from thinkserve.training.stage import StageContext


def samplings(recipe: Recipe) -> dict[Decoding, Sampling]:
    """How tokens are drawn: greedily, and sampled."""
    settings = recipe.evaluate
    longest = settings.max_tokens or recipe.sample.max_tokens
    return {
        "greedy": Sampling(1, 0.0, 1.0, longest),
        "sampled": Sampling(1, settings.temperature, settings.top_p, longest),
    }


def run_baseline(context: StageContext) -> Mapping[str, Any]:
    """Have the start model answer directly: what win rates are measured against, for both arms and all iterations."""
    instructions = read_instructions(context.run.prompts_of("evaluation"))
    wanted = {context.run.baseline(name): sampling for name, sampling in samplings(context.recipe).items()}
    counted: dict[str, Any] = {}
    found = asyncio.run(
        measuring.generate(context, context.recipe.model, instructions, wanted, arm="direct", counted=counted)
    )
    broken = [output.problem is not None for outputs in found.values() for output in outputs.values()]
    return {"outputs": len(broken), "parse_failures": mean([float(one) for one in broken]), **counted}


def run(context: StageContext) -> Mapping[str, Any]:
    """Measure the model of an iteration, greedily and sampled."""
    return asyncio.run(_run(context))


async def _run(context: StageContext) -> Mapping[str, Any]:
    recipe, folder = context.recipe, context.folder
    instructions = read_instructions(context.run.prompts_of("evaluation"))
    drafts = {name: folder.evaluation(name).with_suffix(".outputs.jsonl") for name in DECODINGS}
    wanted = {drafts[name]: sampling for name, sampling in samplings(recipe).items()}
    found: dict[str, Any] = {}
    generated = await measuring.generate(
        context, context.model, instructions, wanted, arm=context.arm, counted=found
    )
    asked = recipe.evaluate.judge or recipe.judge
    own: dict[str, Any] = {}
    async with open_judge(asked, cache=folder.judgments, seed=recipe.seed) as judge:
        for name in DECODINGS:
            outputs = generated[drafts[name]]
            scores: dict[str, float | None] = dict.fromkeys(outputs)
            # A pairwise judge says nothing of one response alone.
            if asked.kind != "pairwise":
                log = _log(folder.evaluation(name), "scores")
                scores = await measuring.score(
                    context, judge, instructions, outputs, log, max_unscored=asked.max_unscored
                )
            values = {id: accuracy(outputs[id], score, recipe.evaluate) for id, score in scores.items()}
            if recipe.evaluate.metric == "win_rate":
                baseline = measuring.read_outputs(context.run.baseline(name), instructions)
                log = _log(folder.evaluation(name), "comparisons")
                values = await measuring.prefer(
                    context, judge, instructions, outputs, baseline, log, max_unscored=asked.max_unscored
                )
            measured = [
                _record(one.id, outputs[one.id], scores[one.id], values[one.id], one.categories)
                for one in instructions
            ]
            records.write(folder.evaluation(name), measured)
            own[name] = measure(measured, recipe.evaluate.metric, recipe.seed)
            known = [value for value in values.values() if value is not None]
            found[name] = {recipe.evaluate.metric: mean(known), "unscored": len(values) - len(known)}
        found["judge"] = dict(judge.numbers)
    if context.iteration > 0:
        add_scores(folder.checkpoint / "README.md", context, own)
    for path in drafts.values():
        path.unlink()
    return found


def accuracy(output: CutOutput, score: float | None, settings: EvaluateRecipe) -> float | None:
    """1 if the response is right, 0 if it is not or if there is none; None where it has no score."""
    if output.problem is not None:
        return 0.0
    return None if score is None else float(score >= settings.right_score)


def _log(path: Path, what: str) -> Path:
    return path.with_suffix(f".{what}.jsonl")


def _record(
    id: str, output: CutOutput, score: float | None, value: float | None, categories: Mapping[str, str]
) -> EvaluationRecord:
    return EvaluationRecord(
        id=id,
        thought=output.thought,
        response=output.response,
        problem=output.problem,
        thought_tokens=output.thought_tokens,
        response_tokens=output.response_tokens,
        score=score,
        value=value,
        categories=categories,
    )
