"""What a run will take, computed from its recipe before anything is run: stages, calls, tokens, hours, memory, disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rich.console import Console

from thinkserve.training.cost import Counter, Speed, StageCost, total
from thinkserve.training.lengths import Lengths, lengths_of
from thinkserve.training.memory import Need, Part, disk_parts, dpo_need, judge_need, sampling_need
from thinkserve.training.model_size import ModelSize, size_of
from thinkserve.training.models import format_of, resolve
from thinkserve.training.planned_judge import PlannedJudge
from thinkserve.training.recipe import Arm, Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take. Counts are upper bounds, hours and bytes estimates under `lengths` and `speed`."""

    recipe: Recipe
    model: ModelSize
    judge: PlannedJudge
    evaluation_judge: PlannedJudge
    """The same, unless the recipe has another one for evaluation."""
    lengths: Lengths
    speed: Speed
    baseline: StageCost | None
    """Before both arms, where win rates are measured."""
    training: Mapping[Arm, tuple[StageCost, ...]]
    """The stages of one iteration; all iterations of an arm are alike."""
    evaluation: Mapping[Arm, StageCost]
    """Measuring one iteration's model; the start model is measured as well."""
    memory: tuple[Need, ...]
    disk: tuple[Part, ...]

    @property
    def total(self) -> StageCost:
        """The whole run."""
        iterations = self.recipe.iterations
        costs = [total("dpo", stages, iterations) for stages in self.training.values()]
        costs += [total("evaluate", [cost], iterations + 1) for cost in self.evaluation.values()]
        return total("dpo", [*costs, *([self.baseline] if self.baseline else [])])

    @property
    def disk_bytes(self) -> float | None:
        """On disk at most; None: the model's size is not known."""
        known = [part.size for part in self.disk if part.size is not None]
        return sum(known) if len(known) == len(self.disk) else None

    def render(self, console: Console) -> None:
        """Print it."""
        from thinkserve.training.plan_page import parts_of

        for part in parts_of(self):
            console.print(part)


def plan(recipe: Recipe, *, speed: Speed | None = None, lengths: Lengths | None = None) -> Plan:
    """Count what a recipe will take. Nothing is downloaded or started.

    Args:
        recipe: to be run.
        speed: of a GPU; None: an H100's.
        lengths: of instructions, thoughts and responses; None: those of the paper, or of the pocket world.

    Raises:
        UsageError: the model, its thought format or the accelerate configuration is not there or malformed.
    """
    speed = speed or Speed()
    lengths = lengths or lengths_of(recipe, format_of(recipe))
    model = replace(size_of(resolve(recipe.model), recipe.revision), name=recipe.model)
    judge = PlannedJudge.of(recipe.judge)
    evaluation_judge = PlannedJudge.of(recipe.evaluate.judge) if recipe.evaluate.judge else judge
    counter = Counter(recipe, lengths, model, judge, evaluation_judge, speed)
    training = {arm: counter.training(arm) for arm in recipe.arms}
    baseline = counter.baseline() if recipe.evaluate.metric == "win_rate" else None
    sampled = recipe.iterations * sum(stages[0].written_tokens for stages in training.values())
    return Plan(
        recipe=recipe,
        model=model,
        judge=judge,
        evaluation_judge=evaluation_judge,
        lengths=lengths,
        speed=speed,
        baseline=baseline,
        training=training,
        evaluation={arm: counter.evaluation(arm) for arm in recipe.arms},
        memory=tuple(_memory(recipe, model, judge, evaluation_judge, lengths)),
        disk=disk_parts(recipe, model, sampled),
    )


def _memory(
    recipe: Recipe, model: ModelSize, judge: PlannedJudge, evaluation_judge: PlannedJudge, lengths: Lengths
) -> Iterator[Need]:
    if not recipe.sample.engine.startswith("http"):
        most = recipe.sample.max_tokens
        yield sampling_need(
            recipe, model, max(lengths.prompt(arm) + lengths.output(arm, most) for arm in recipe.arms)
        )
    if (need := judge_need("score", judge)) is not None:
        yield need
    if evaluation_judge is not judge and (need := judge_need("evaluate", evaluation_judge)) is not None:
        yield need
    yield dpo_need(recipe, model)
