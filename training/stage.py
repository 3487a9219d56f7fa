"""What a stage is given, and what it tells while it runs and when it is done.

A stage is a function `run(context) -> numbers` in a module of its own. It runs in a process of its own, reads and writes
the files of its iteration's folder, and is finished when its marker is there (`loop.py` writes it last, with the numbers).
A stage that is started again goes on with what it finds, and ends with the same files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from thinkserve.eval.judging.progress import Progress
from thinkserve.eval.records import write_whole
from thinkserve.training.folder import IterationFolder, Stage, TrainFolder
from thinkserve.training.recipe import Arm, Recipe

WRITE_SECONDS = 1.0


class StageProgress(Progress):
    """The progress of a stage: shown as any, and kept in a file that `thinkserve train status` reads.

    Args:
        path: of that file.
        label: as in `Progress`.
        unit: as in `Progress`.
    """

    def __init__(self, path: Path, label: str, unit: str) -> None:
        super().__init__(label, unit=unit)
        self._path, self._written = path, 0.0

    def begin(self, total: int, kept: int = 0) -> None:
        """Say how many there are, and how many of them were there already."""
        super().begin(total, kept)
        self._write_file()

    def advance(self, *, failed: bool = False) -> None:
        """One more is done; `failed`: in vain."""
        super().advance(failed=failed)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self._write_file()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, exc, trace)
        self._write_file()

    def _write_file(self) -> None:
        self._written = time.monotonic()
        state = {
            "label": self.label,
            "done": self.done,
            "total": self.total,
            "kept": self.kept,
            "failed": self.failures,
            "unit": self.unit,
            "per_second": self.rate,
            "seconds_left": self.seconds_left,
            "updated": time.time(),
        }
        write_whole(self._path, msgspec.json.encode(state))


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage is given."""

    run: TrainFolder
    recipe: Recipe
    arm: Arm
    iteration: int
    """From 1; 0 is the start model, which is only evaluated."""
    stage: Stage

    @property
    def folder(self) -> IterationFolder:
        """Of this iteration."""
        return self.run.iteration(self.arm, self.iteration)

    @property
    def start_model(self) -> str:
        """M_(t-1), which this iteration starts from and compares with: a checkpoint folder or a name on the Hub."""
        if self.iteration <= 1:
            return self.recipe.model
        return str(self.run.iteration(self.arm, self.iteration - 1).checkpoint)

    @property
    def model(self) -> str:
        """M_t: what this iteration made."""
        return self.recipe.model if self.iteration == 0 else str(self.folder.checkpoint)

    def progress(self, unit: str) -> StageProgress:
        """A progress to open while the stage works."""
        label = f"{self.arm} iteration {self.iteration}: {self.stage}"
        return StageProgress(self.folder.progress(self.stage), label, unit)

    def seed(self, purpose: str) -> int:
        """A seed for one purpose of this stage, from 0 to 2**31 - 1; the same for both arms."""
        from thinkserve.eval.answering.answerer import seed_of

        return seed_of(self.recipe.seed, f"{purpose} of iteration {self.iteration}")


Run = Callable[[StageContext], Mapping[str, Any]]
"""A stage; the numbers that it gives go into its marker: counts, tokens, whatever the report shows."""
