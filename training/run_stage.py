"""One stage of a run, in a process of its own: `python -m thinkserve.training.run_stage DIR ARM ITERATION STAGE`.

`loop.py` starts it. It ends with the process that started it, writes the stage's marker last, and where it fails leaves
the reason beside the place of the marker.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import msgspec

from thinkserve.errors import ThinkserveError
from thinkserve.eval.records import write_whole
from thinkserve.training.folder import Stage, TrainFolder
from thinkserve.training.recipe import Arm
from thinkserve.training.recipe_file import load_recipe
from thinkserve.training.records import VERSION
from thinkserve.training.stage import StageContext
from thinkserve.training.steps import Step, error_file

MARKER = "thinkserve.stage/1"
FUNCTIONS: Mapping[Stage, str] = {
    "prompts": "prompts.stage:run",
    "baseline": "evaluate:run_baseline",
    "sample": "sampling.stage:run",
    "split": "split:run",
    "score": "judges.stage:run",
    "pairs": "pairs.stage:run",
    "dpo": "dpo.stage:run",
    "validate": "validate:run",
    "checkpoint": "dpo.checkpoint_stage:run",
    "evaluate": "evaluate:run",
}
_PR_SET_PDEATHSIG = 1


def run_stage(context: StageContext) -> None:
    """Run a stage and write its marker.

    Raises:
        ThinkserveError: it failed; what is finished is kept.
    """
    folder = step_of(context).folder(context.run)
    module, _, function = FUNCTIONS[context.stage].partition(":")
    began, clock = time.time(), time.monotonic()
    try:
        run = getattr(import_module(f"thinkserve.training.{module}"), function)
        found: Mapping[str, Any] = run(context)
        marker = {
            "schema": MARKER,
            "version": VERSION,
            "stage": context.stage,
            "arm": context.arm,
            "iteration": context.iteration,
            "began": began,
            "seconds": round(time.monotonic() - clock, 3),
            "numbers": found,
        }
        write_whole(folder.marker(context.stage), msgspec.json.format(msgspec.json.encode(marker)) + b"\n")
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("thinkserve"):
            raise
        raise ThinkserveError(f"training needs {exc.name}; run: pip install 'thinkserve[train]'") from exc
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ThinkserveError(
            f"the disk is full ({exc.strerror}: {exc.filename or folder.path}); free some space and run again: what is "
            "finished is kept"
        ) from exc
    folder.progress(context.stage).unlink(missing_ok=True)
    error_file(folder, context.stage).unlink(missing_ok=True)


def step_of(context: StageContext) -> Step:
    """The step that a context is of."""
    return Step(context.arm, context.iteration, context.stage)


def main() -> None:
    """Run from the command line. Exits with what the error asks for; an error nobody foresaw keeps its traceback."""
    path, arm, iteration, stage, parent = sys.argv[1:]
    _end_with(int(parent))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    recipe = load_recipe(Path(path) / "recipe.yaml")
    run = TrainFolder(Path(path), recipe.mode)
    context = StageContext(run, recipe, cast(Arm, arm), int(iteration), cast(Stage, stage))
    try:
        run_stage(context)
    except ThinkserveError as error:
        logging.getLogger(__name__).error("%s", error)
        failed = error_file(step_of(context).folder(run), context.stage)
        with suppress(OSError):  # on a full disk; the log has the reason
            write_whole(failed, msgspec.json.encode({"message": str(error), "exit_code": error.exit_code}))
        sys.exit(error.exit_code)


def _end_with(parent: int) -> None:
    """End when the process that started this one does, so that two runs never write to one folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended in between
            sys.exit(1)


if __name__ == "__main__":
    main()
