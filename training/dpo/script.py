"""The trainer's process: `python -m thinkserve.training.dpo.script JOB.json`, one or several under `accelerate launch`.

The stage calls `main` where one process will do. As a script it ends with the stage, also if that is killed: then its
standard input, a pipe that every process of the launch inherits, comes to an end.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

import msgspec
from accelerate import PartialState

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.records import write_whole
from thinkserve.training.dpo.job import Job, read_job
from thinkserve.training.dpo.trainer import train


def main(job: Job) -> None:
    """Train, and write the numbers.

    Raises:
        ThinkserveError: as `train` does.
    """
    numbers = train(job)
    if numbers is not None:
        write_whole(job.result, msgspec.json.format(msgspec.json.encode(numbers)) + b"\n")


class Failure(msgspec.Struct, frozen=True):
    """Why a process ended, for the stage that started it."""

    message: str
    usage: bool

    def error(self) -> ThinkserveError:
        """The error that it was."""
        return UsageError(self.message) if self.usage else ThinkserveError(self.message)


def _run(path: Path) -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    threading.Thread(target=_end_with_stage, name="end-with-stage", daemon=True).start()
    job = read_job(path)
    try:
        main(job)
    except ThinkserveError as error:
        failure = Failure(str(error), isinstance(error, UsageError))
        write_whole(job.error, msgspec.json.encode(failure))
        return error.exit_code
    PartialState().destroy_process_group()
    return 0


def _end_with_stage() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_run(Path(sys.argv[1])))
