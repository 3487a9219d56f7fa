"""What each stage of a run does, counted from the recipe: outputs, judge calls, tokens, steps and GPU hours.

Counts are upper bounds: every output is readable, no two are equal, and every instruction gives a pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from thinkserve.training.folder import Decoding, Stage
from thinkserve.training.lengths import Lengths
from thinkserve.training.model_size import ModelSize
from thinkserve.training.planned_judge import PlannedJudge
from thinkserve.training.recipe import Arm, Recipe

DECODINGS = len(get_args(Decoding))
# vLLM's `--max-num-seqs` where nobody sets it, on most GPUs.
SERVER_OUTPUTS = 256
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a GPU is taken to be. The shares are of its peak; they are chosen by us, and good engines reach more."""

    device: str = "H100"
    peak: float = 989e12
    """Floating-point operations in a second, in bf16 without sparsity."""
    reading: float = 0.40
    """Share when reading prompts and scoring: 2 operations a parameter and token."""
    writing: float = 0.15
    """Share when sampling with many outputs at once: 2 operations a parameter and token."""
    steps: float = 100.0
    """Tokens that one output gets in a second at most: small models are slowed by launching kernels."""
    training: float = 0.35
    """Share when training: 6 operations a parameter and token, 4 with adapters; recomputed activations do not count."""

    def hours_reading(self, parameters: float, tokens: float) -> float:
        """GPU hours of forward passes."""
        return 2 * parameters * tokens / (self.peak * self.reading) / HOUR

    def tokens_written(self, parameters: float, at_once: int) -> float:
        """Tokens that are sampled in a second."""
        return min(self.peak * self.writing / (2 * parameters), self.steps * at_once)

    def hours_training(self, parameters: float, tokens: float, *, adapters: bool) -> float:
        """GPU hours of forward and backward passes."""
        return (4 if adapters else 6) * parameters * tokens / (self.peak * self.training) / HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage does, or several together."""

    stage: Stage
    outputs: int = 0
    """Sampled."""
    judge_calls: int = 0
    """Responses scored by a reward model or a function, or calls of an LLM."""
    read_tokens: float = 0.0
    """Prompts of the model, and all that a judge reads."""
    written_tokens: float = 0.0
    """By the model, and by an LLM judge."""
    trained_tokens: float = 0.0
    """Of both sides of all pairs in all epochs."""
    steps: int = 0
    """Of the optimizer."""
    gpu_hours: float | None = 0.0
    """The judge's included; None: the size of a model is not known."""


def outputs_at_once(recipe: Recipe, k: int) -> int:
    """How many outputs are written at the same time: a request to a server is for all `k` of an instruction."""
    if recipe.sample.engine == "transformers":
        return recipe.sample.concurrency
    return min(SERVER_OUTPUTS, recipe.sample.concurrency * k)


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts the stages of a recipe."""

    recipe: Recipe
    lengths: Lengths
    model: ModelSize
    judge: PlannedJudge
    evaluation_judge: PlannedJudge
    speed: Speed

    def baseline(self) -> StageCost:
        """The start model's direct responses, once for both arms."""
        return self._sampling(
            "baseline", "direct", self.recipe.prompts.evaluation * DECODINGS, 1, self._evaluated
        )

    def training(self, arm: Arm) -> tuple[StageCost, ...]:
        """The stages of one iteration that cost something, its evaluation left out."""
        recipe = self.recipe
        prompts, epochs = recipe.prompts, recipe.dpo.epochs
        # The start model is validated as well, to be compared with.
        models = epochs + 1
        validated = recipe.validate.max_tokens or recipe.sample.max_tokens
        sampled = self._sampling("validate", arm, prompts.validation * models, 1, validated)
        # A pairwise judge compares each epoch with the start model; equal responses need no call.
        groups = (2,) * epochs if recipe.judge.kind == "pairwise" else (1,) * models
        judged = self._judging("validate", arm, self.judge, prompts.validation, groups, validated)
        return (
            self._sampling("sample", arm, prompts.per_iteration, recipe.sample.k, recipe.sample.max_tokens),
            self._judging(
                "score", arm, self.judge, prompts.per_iteration, (recipe.sample.k,), recipe.sample.max_tokens
            ),
            self._dpo(arm),
            total("validate", (sampled, judged)),
        )

    def evaluation(self, arm: Arm) -> StageCost:
        """Measuring one iteration's model."""
        recipe = self.recipe
        # Every response is scored; for a win rate each is compared with the baseline's as well.
        groups = (1, 2) if recipe.evaluate.metric == "win_rate" else (1,)
        asked = recipe.prompts.evaluation * DECODINGS
        sampled = self._sampling("evaluate", arm, asked, 1, self._evaluated)
        judged = self._judging("evaluate", arm, self.evaluation_judge, asked, groups, self._evaluated)
        return total("evaluate", (sampled, judged))

    @property
    def _evaluated(self) -> int:
        return self.recipe.evaluate.max_tokens or self.recipe.sample.max_tokens

    def _sampling(self, stage: Stage, arm: Arm, asks: int, k: int, most: int) -> StageCost:
        read, outputs = asks * self.lengths.prompt(arm), asks * k
        written = outputs * self.lengths.output(arm, most)
        at_once = outputs_at_once(self.recipe, k)
        size, speed = self.model.parameters, self.speed
        return StageCost(
            stage=stage,
            outputs=outputs,
            read_tokens=read,
            written_tokens=written,
            gpu_hours=None
            if size is None
            else speed.hours_reading(size, read) + written / speed.tokens_written(size, at_once) / HOUR,
        )

    def _judging(
        self, stage: Stage, arm: Arm, judge: PlannedJudge, asks: int, groups: Sequence[int], most: int
    ) -> StageCost:
        """Groups of so many responses to each instruction."""
        calls = asks * judge.calls(groups)
        if judge.size is None:
            return StageCost(stage=stage, judge_calls=calls)
        response = self.lengths.judged(arm, most)
        read = calls * (judge.prompt + self.lengths.instruction + judge.responses * response)
        written, size, hours = calls * judge.judgment, judge.size.parameters, None
        if size is not None:
            hours = self.speed.hours_reading(size, read)
            hours += written / self.speed.tokens_written(size, judge.recipe.concurrency) / HOUR
        return StageCost(
            stage=stage, judge_calls=calls, read_tokens=read, written_tokens=written, gpu_hours=hours
        )

    def _dpo(self, arm: Arm) -> StageCost:
        dpo, pairs = self.recipe.dpo, self.recipe.prompts.per_iteration
        output = self.lengths.output(arm, self.recipe.sample.max_tokens)
        tokens = 2 * pairs * min(dpo.max_length, self.lengths.prompt(arm) + output)
        size, hours = self.model.parameters, None
        if size is not None:
            # The reference's log-probabilities are computed once, before the first epoch.
            hours = self.speed.hours_reading(size, tokens)
            hours += self.speed.hours_training(size, dpo.epochs * tokens, adapters=dpo.lora is not None)
        return StageCost(
            stage="dpo",
            read_tokens=tokens,
            trained_tokens=dpo.epochs * tokens,
            steps=dpo.epochs * math.ceil(pairs / dpo.batch),
            gpu_hours=hours,
        )


def total(stage: Stage, costs: Sequence[StageCost], times: int = 1) -> StageCost:
    """The sum of some costs, so many times over, under the name of one stage."""
    hours = [cost.gpu_hours for cost in costs if cost.gpu_hours is not None]
    return StageCost(
        stage=stage,
        outputs=times * sum(cost.outputs for cost in costs),
        judge_calls=times * sum(cost.judge_calls for cost in costs),
        read_tokens=times * sum(cost.read_tokens for cost in costs),
        written_tokens=times * sum(cost.written_tokens for cost in costs),
        trained_tokens=times * sum(cost.trained_tokens for cost in costs),
        steps=times * sum(cost.steps for cost in costs),
        gpu_hours=times * sum(hours) if len(hours) == len(costs) else None,
    )
