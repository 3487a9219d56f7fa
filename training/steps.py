"""The steps of a run: each stage of each iteration of each arm, in order, and where it leaves its marker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thinkserve.training.folder import TRAINING_STAGES, IterationFolder, Stage, TrainFolder
from thinkserve.training.recipe import Arm, Recipe

LOCK = ".lock"
"""In a run's folder: locked (flock) by the process that is at work there."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of one iteration of one arm."""

    arm: Arm
    iteration: int
    stage: Stage

    def folder(self, run: TrainFolder) -> IterationFolder:
        """Where its marker and log are."""
        if self.stage in ("prompts", "baseline"):
            return run.run_iteration
        return run.iteration(self.arm, self.iteration)


def steps(recipe: Recipe, arm: Arm) -> Iterator[Step]:
    """All that an arm goes through, in order."""
    yield Step(arm, 0, "evaluate")
    for iteration in range(1, recipe.iterations + 1):
        for stage in (*TRAINING_STAGES, "evaluate"):
            yield Step(arm, iteration, stage)


def shared_steps(recipe: Recipe) -> Iterator[Step]:
    """What comes before both arms."""
    yield Step(recipe.arms[0], 0, "prompts")
    if recipe.evaluate.metric == "win_rate":
        yield Step(recipe.arms[0], 0, "baseline")


def error_file(folder: IterationFolder, stage: Stage) -> Path:
    """Where a failed stage leaves its reason."""
    return folder.marker(stage).with_suffix(".error.json")
