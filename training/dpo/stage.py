"""The stage that trains: pairs in, a checkpoint after each epoch out.

Started again it goes on after the last epoch that is there, from the trainer's state beside it; the weights that come out
are those of a run that nobody stopped.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from thinkserve.training.dpo.disk import explain_full_disk
from thinkserve.training.dpo.job import Job, prepare
from thinkserve.training.stage import StageContext

LOOK_SECONDS = 0.5


def run(context: StageContext) -> Mapping[str, Any]:
    """Train M_t from M_(t-1) on the pairs of iteration t.

    Raises:
        UsageError: the start model cannot be used, or settings that the libraries refuse.
        ThinkserveError: nothing to train on, a loss that is no number, or a full disk; finished epochs are kept.
    """
    # Hashing of weights and loading of libraries take a while; the stage shows that it has begun.
    from thinkserve.training.dpo.launch import launch, needs_launch
    from thinkserve.training.dpo.script import main

    with explain_full_disk(context.folder.dpo, "the tokenized pairs"):
        job = prepare(context)
    if not job.result.exists():
        with _progress(context, job):
            if needs_launch(job.recipe.dpo):
                launch(job)
            else:
                main(job)
    numbers: dict[str, Any] = msgspec.json.decode(job.result.read_bytes())
    # Optimizer and reference are of no further use, and as large as several checkpoints.
    shutil.rmtree(job.work, ignore_errors=True)
    return numbers


@contextmanager
def _progress(context: StageContext, job: Job) -> Iterator[None]:
    """The progress as the log tells it: the steps may be made in other processes."""
    from thinkserve.training.dpo.trainer import finished_epochs

    with context.progress("steps") as progress:
        progress.begin(job.steps, kept=finished_epochs(job) * job.steps_per_epoch)
        done = threading.Event()

        def follow() -> None:
            while not done.wait(LOOK_SECONDS):
                catch_up()

        def catch_up() -> None:
            log = job.folder.dpo_log
            steps = log.read_bytes().count(b"\n") if log.exists() else 0
            while progress.done < steps:
                progress.advance()

        follower = threading.Thread(target=follow, name="steps", daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()
            catch_up()
