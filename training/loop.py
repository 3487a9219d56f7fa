"""The loop of a run: each iteration's stages in order, each in a process of its own, and what comes of them all.

A stage whose marker is there is not run again, so a run that was stopped or killed goes on where it stood. The two arms
of `mode: both` take the same prompts, and run side by side where the recipe says so.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.records import write_whole
from thinkserve.training.folder import IterationFolder, Stage, TrainFolder
from thinkserve.training.models import format_of
from thinkserve.training.recipe import Arm, Recipe
from thinkserve.training.recipe_file import differing_keys, dump_recipe, kept_recipe
from thinkserve.training.results import write_results
from thinkserve.training.steps import LOCK, Step, error_file, shared_steps, steps

STOP_SECONDS = 10.0
# `status` looks at the lock for an instant.
LOCK_TRIES, LOCK_SECONDS = 5, 0.1


Tell = Callable[[Step, Mapping[str, Any] | None], None]
"""Called when a step begins (None) and when it is done (its marker)."""


def train(
    recipe: Recipe, out: Path, *, only: Stage | None = None, tell: Tell = lambda *_: None
) -> TrainFolder:
    """Run a recipe, or go on with it.

    Args:
        recipe: what to run.
        out: the folder of the run, new or of the same recipe.
        only: run this stage alone, where it is the next one.
        tell: is told of each step.

    Raises:
        UsageError: the folder belongs to another recipe or to a run that is at work, or the recipe cannot be run.
        ThinkserveError: a stage failed (the message is its own), or the folder cannot be written to; running again goes
            on from there.
        KeyboardInterrupt: Ctrl-C; the stages have been ended.
        asyncio.CancelledError: the same by SIGTERM.
    """
    _check(recipe)
    run = TrainFolder(out, recipe.mode)
    replaced = _check_folder(run, recipe)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            if replaced:
                shutil.rmtree(run.prompts, ignore_errors=True)
            # What changes no result may have changed.
            write_whole(run.recipe, dump_recipe(recipe).encode())
            asyncio.run(_Loop(run, recipe, tell).run(only))
            write_results(run, recipe)
    except OSError as exc:
        raise ThinkserveError(
            f"{exc.filename or out}: {exc.strerror or exc}; give another --out, or mend that (free some space) and run "
            "again: what is finished is kept"
        ) from exc
    return run


def _check(recipe: Recipe) -> None:
    format = format_of(recipe)
    if "direct" in recipe.arms and format.prompt is None and not format.allows_direct:
        raise UsageError(
            f"mode: {recipe.mode} has a direct arm, and in the thought format {format.name!r} a model thinks without being "
            "asked; use mode: thought, or a thought_format with a prompt"
        )
    if recipe.mode == "both" and format.prompt is None:
        raise UsageError(
            f"mode: both compares models that are asked to think with models that are not, and the thought format "
            f"{format.name!r} has no prompt that asks: both arms would be the same; use a thought_format with a prompt, or "
            "mode: thought"
        )
    if recipe.evaluate.metric == "win_rate" and format.prompt is None and not format.allows_direct:
        raise UsageError(
            f"evaluate.metric: win_rate compares with direct responses, and in the thought format {format.name!r} there "
            "are none; use evaluate.metric: accuracy"
        )


def _check_folder(run: TrainFolder, recipe: Recipe) -> bool:
    """Whether the folder has the prompts of another recipe that has done nothing yet, and may be replaced."""
    if run.recipe.exists():
        changed = differing_keys(kept_recipe(run.recipe), recipe)
        if changed and not run.run_iteration.marker("prompts").exists():
            return True
        if changed:
            raise UsageError(
                f"{run.path} has a run of another recipe (different: {', '.join(changed)}); give another --out, or the "
                "recipe and --set of that run"
            )
    elif run.path.is_dir() and any(path.name != LOCK for path in run.path.iterdir()):
        raise UsageError(f"{run.path} is not empty and no training run; give a new or empty folder as --out")
    elif run.path.exists() and not run.path.is_dir():
        raise UsageError(f"{run.path} is a file; give a folder as --out")
    return False


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder. The lock goes with this process, however that ends."""
    with open(out / LOCK, "wb") as file:
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise UsageError(
                        f"{out}: another run is at work in this folder; wait for it, or choose another --out"
                    ) from None
                time.sleep(LOCK_SECONDS)
            except OSError:  # a network file system without locks
                break
        yield


class _Loop:
    def __init__(self, run: TrainFolder, recipe: Recipe, tell: Tell) -> None:
        self._run, self._recipe, self._tell = run, recipe, tell

    async def run(self, only: Stage | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        # As Ctrl-C does: the stages are ended, and their files stay.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        if only is not None:
            await self._run_only(only)
            return
        for step in shared_steps(self._recipe):
            await self._run_step(step)
        if self._recipe.compute.parallel_arms:
            try:
                async with asyncio.TaskGroup() as group:
                    for arm in self._recipe.arms:
                        group.create_task(self._run_arm(arm), name=arm)
            except* (ThinkserveError, OSError) as failed:
                raise failed.exceptions[0] from None
        else:
            for arm in self._recipe.arms:
                await self._run_arm(arm)

    async def _run_arm(self, arm: Arm) -> None:
        for step in steps(self._recipe, arm):
            await self._run_step(step)
            if step.stage == "evaluate":
                write_results(self._run, self._recipe)

    async def _run_only(self, only: Stage) -> None:
        next_steps = [self._next(arm) for arm in self._recipe.arms]
        wanted = [step for step in next_steps if step is not None and step.stage == only]
        if not wanted:
            waiting = (
                f"{step.stage} (iteration {step.iteration}, {arm})" if step else f"none ({arm})"
                for arm, step in zip(self._recipe.arms, next_steps, strict=True)
            )
            raise UsageError(f"--stage {only}: it is not the next stage here; next is {', '.join(waiting)}")
        for step in wanted:
            await self._run_step(step)

    def _next(self, arm: Arm) -> Step | None:
        """What an arm has to do next; what comes before both arms is the same step for both. None: it is finished."""
        every = (*shared_steps(self._recipe), *steps(self._recipe, arm))
        return next((step for step in every if not self._done(step)), None)

    def _done(self, step: Step) -> bool:
        marker = step.folder(self._run).marker(step.stage)
        if not marker.exists():
            return False
        # A run that is continued for more iterations needs more prompts; those that are there stay as they are.
        return step.stage != "prompts" or self._run.prompts_of(self._recipe.iterations).exists()

    async def _run_step(self, step: Step) -> None:
        folder = step.folder(self._run)
        if self._done(step):
            return
        self._tell(step, None)
        error_file(folder, step.stage).unlink(missing_ok=True)
        process = await self._start(step, folder.log(step.stage))
        try:
            code = await process.wait()
        finally:
            await _end(process)
        if code != 0:
            raise _failure(step, folder, code)
        self._tell(step, msgspec.json.decode(folder.marker(step.stage).read_bytes()))

    async def _start(self, step: Step, log: Path) -> asyncio.subprocess.Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "thinkserve.training.run_stage",
                str(self._run.path),
                step.arm,
                str(step.iteration),
                step.stage,
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(self._recipe),
            )
        finally:
            os.close(output)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a stage, if it has not ended: politely, so that it can stop its engine, then for good."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment(recipe: Recipe) -> dict[str, str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if recipe.compute.threads is not None:
        # torch takes its number of threads from there, and stages without torch need not load it to be told. Threads that
        # spin while they wait take the core from those of the other arm.
        environment |= {"OMP_NUM_THREADS": str(recipe.compute.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return environment


def _failure(step: Step, folder: IterationFolder, code: int) -> ThinkserveError:
    log = folder.log(step.stage)
    where = f"{step.arm} iteration {step.iteration}, stage {step.stage}"
    with suppress(OSError, msgspec.DecodeError):
        failed = msgspec.json.decode(error_file(folder, step.stage).read_bytes())
        kind = UsageError if failed["exit_code"] == UsageError.exit_code else ThinkserveError
        return kind(f"{where}: {failed['message']}")
    reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last = next((line for line in reversed(_lines(log)) if line.strip()), "nothing")
    return ThinkserveError(
        f"{where} {reason}; the last line of {log}: {last.strip()}; run again to go on from there"
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
