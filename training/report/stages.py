"""Where each stage of a run stands, and how long the rest will take."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import msgspec

from thinkserve.training.folder import IterationFolder
from thinkserve.training.report.loading import Marker, TrainRun, read_json
from thinkserve.training.steps import LOCK, Step, error_file, shared_steps, steps

State = Literal["done", "running", "failed", "stopped", "waiting"]
LOG_BYTES = 8192
"""Of the end of a log, in which its last line is looked for."""


class Progress(msgspec.Struct, frozen=True):
    """How far a running stage is, as it wrote it down itself."""

    done: int
    total: int
    unit: str
    updated: float
    """Seconds since the epoch."""
    failed: int = 0
    per_second: float = 0.0
    seconds_left: float | None = None

    @property
    def share(self) -> float | None:
        """Of what it counts, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else None


@dataclass(frozen=True, slots=True)
class Standing:
    """One step of a run, and where it stands."""

    step: Step
    state: State
    seconds: float | None = None
    """It took so long, if it is done."""
    progress: Progress | None = None
    news: float | None = None
    """When it was last heard of, in seconds since the epoch."""
    reason: str | None = None
    """Why it failed, or the last line of its log."""


@dataclass(frozen=True, slots=True)
class Standings:
    """All steps of a run."""

    at_work: bool
    """Whether a process works on the run now."""
    shared: tuple[Standing, ...]
    """What comes before both arms."""
    arms: Mapping[str, tuple[Standing, ...]]

    @property
    def every(self) -> tuple[Standing, ...]:
        """All of them, in order."""
        return (*self.shared, *(one for arm in self.arms.values() for one in arm))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(one.state == "done" for one in self.every)


def is_at_work(folder: Path) -> bool:
    """Whether a process holds the lock of a run's folder."""
    try:
        with open(folder / LOCK, "rb") as file:
            # Shared, and given back at once: others may look at the same time, and a run that begins is not kept out.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is no lock, or the file system has none
        return False
    return False


def standings(run: TrainRun) -> Standings:
    """Look at all steps of a run."""
    at_work = is_at_work(run.folder.path)
    shared = [_look(run, step) for step in shared_steps(run.recipe)]
    arms: dict[str, list[Standing]] = {
        arm: [_look(run, step) for step in steps(run.recipe, arm)] for arm in run.arms
    }
    current = _current(shared, arms)
    if at_work and not run.recipe.compute.parallel_arms:
        current = current[:1]
    for found in (shared, *arms.values()):
        found[:] = [_judged(one, at_work, one.step in current) for one in found]
    return Standings(at_work, tuple(shared), {arm: tuple(found) for arm, found in arms.items()})


def _look(run: TrainRun, step: Step) -> Standing:
    """What its files say of a step: done, failed, begun (as `stopped`), or waiting."""
    folder = step.folder(run.folder)
    marker = read_json(folder.marker(step.stage), Marker)
    if marker is not None:
        return Standing(step, "done", seconds=marker.seconds)
    progress = _progress(folder, step)
    news = [] if progress is None else [progress.updated]
    log = folder.log(step.stage)
    news += [log.stat().st_mtime] if log.is_file() else []
    latest = max(news, default=None)
    told = read_json(error_file(folder, step.stage), dict[str, Any])
    if told is not None:
        return Standing(step, "failed", None, progress, latest, str(told.get("message", "")))
    if latest is None:
        return Standing(step, "waiting")
    return Standing(step, "stopped", None, progress, latest, _last_line(log))


def _progress(folder: IterationFolder, step: Step) -> Progress | None:
    return read_json(folder.progress(step.stage), Progress)


def _last_line(log: Path) -> str | None:
    if not log.is_file():
        return None
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES))
        text = file.read().decode("utf-8", "replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)


def _current(shared: Sequence[Standing], arms: Mapping[str, Sequence[Standing]]) -> list[Step]:
    """The next step of each arm, the one that was heard of last first; before both arms, the next shared one alone."""
    waiting = [one for one in shared if one.state != "done"]
    if waiting:
        return [waiting[0].step]
    following = [next((one for one in found if one.state != "done"), None) for found in arms.values()]
    known = [one for one in following if one is not None]
    return [one.step for one in sorted(known, key=lambda one: -(one.news or 0.0))]


def _judged(one: Standing, at_work: bool, current: bool) -> Standing:
    if one.state == "done":
        return one
    if not current:
        return Standing(one.step, "waiting")
    if at_work:
        # What failed before, or was stopped, is what runs again now.
        return Standing(one.step, "running", None, one.progress, one.news)
    return one


def seconds_left(run: TrainRun, found: Standings) -> float | None:
    """How long the rest will take, judged by the same stages of finished iterations; None: that is not known yet."""
    took: dict[tuple[str, str], list[float]] = {}
    for one in found.every:
        if one.seconds is not None:
            took.setdefault((one.step.arm, one.step.stage), []).append(one.seconds)
    arms = {}
    for arm, steps_of in found.arms.items():
        left = [_left(one, took, run) for one in steps_of if one.state != "done"]
        if any(one is None for one in left):
            return None
        arms[arm] = sum(one or 0.0 for one in left)
    if any(one.state != "done" for one in found.shared):
        return None
    return max(arms.values()) if run.recipe.compute.parallel_arms else sum(arms.values())


def _left(one: Standing, took: Mapping[tuple[str, str], Sequence[float]], run: TrainRun) -> float | None:
    """An arm that has no finished stage of the kind is judged by the other one."""
    progress = one.progress if one.state == "running" else None
    for arm in (one.step.arm, *run.arms):
        if known := took.get((arm, one.step.stage)):
            # A stage may count several things one after another, so what it says itself is of the present one alone.
            return fmean(known) * (1 - ((progress.share or 0.0) if progress else 0.0))
    return progress.seconds_left if progress else None
