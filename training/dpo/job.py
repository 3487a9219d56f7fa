"""What the trainer is asked: a file, since it may run in several processes, and its folder.

dpo/job.json       the job; written when the pairs are there
dpo/work/          gone when the stage is done:
    pairs/         the token ids, and beside them the reference's log-probabilities
    trainer/       the state after the last finished epoch, to go on from
    error.json     why a process of several ended
dpo/epoch-E/       the checkpoints, each there as a whole or not at all
dpo/log.jsonl      a line a step
dpo/result.json    the numbers; there when all is done
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.eval.records import write_whole
from thinkserve.training.dpo.data import PairCounts, write_pairs
from thinkserve.training.dpo.start_model import StartModel
from thinkserve.training.dpo.tokens import PairTokenizer
from thinkserve.training.folder import IterationFolder
from thinkserve.training.recipe import Arm, Recipe
from thinkserve.training.stage import StageContext

# What does not change the result but through the order of float sums: a run may go on with other values of these.
PLACEMENT = ("device_batch", "accelerate_config", "processes", "gradient_checkpointing")


class Job(msgspec.Struct, frozen=True):
    """What the trainer is asked."""

    identity: str
    """Of everything that the result depends on; a folder with another one is begun anew."""
    path: str
    """Of the iteration's folder."""
    arm: Arm
    recipe: Recipe
    start: StartModel
    seed: int
    counts: PairCounts

    @property
    def folder(self) -> IterationFolder:
        """The iteration's."""
        return IterationFolder(Path(self.path))

    @property
    def work(self) -> Path:
        """What is only needed while the trainer runs."""
        return self.folder.dpo / "work"

    @property
    def pairs(self) -> Path:
        """The token ids."""
        return self.work / "pairs"

    @property
    def trainer(self) -> Path:
        """The state to go on from."""
        return self.work / "trainer"

    @property
    def error(self) -> Path:
        """Why a process of several ended."""
        return self.work / "error.json"

    @property
    def result(self) -> Path:
        """The numbers."""
        return self.folder.dpo / "result.json"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last one of an epoch may have fewer pairs."""
        return -(-self.counts.pairs // self.recipe.dpo.batch)

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.steps_per_epoch * self.recipe.dpo.epochs


def job_file(folder: IterationFolder) -> Path:
    """Where an iteration's job is."""
    return folder.dpo / "job.json"


def read_job(path: Path) -> Job:
    """Read a job."""
    return msgspec.json.decode(path.read_bytes(), type=Job)


def prepare(context: StageContext) -> Job:
    """The job of a stage, with its pairs tokenized: the one that is there if it is the same, else a new one.

    Raises:
        UsageError: the start model cannot be loaded or has no chat template.
        ThinkserveError: there are no pairs.
    """
    folder, start = context.folder, StartModel.of(context)
    # At once, and not after hours of training.
    tokenizer = PairTokenizer(start.tokenizer(), start.generation_config().eos_token_id)
    identity = _identity(context, start, tokenizer)
    file = job_file(folder)
    if file.exists() and (job := read_job(file)).identity == identity:
        # The folder may lie elsewhere by now, and processes and batches may be spread otherwise.
        job = msgspec.structs.replace(job, path=str(folder.path), recipe=context.recipe, start=start)
        if job.result.exists() or job.pairs.exists():
            write_whole(file, msgspec.json.encode(job))
            return job
    # What is there belongs to other pairs, weights or settings, the reference's log-probabilities above all.
    shutil.rmtree(folder.dpo, ignore_errors=True)
    counts = write_pairs(folder, tokenizer, context.recipe.dpo.max_length, folder.dpo / "work" / "pairs")
    job = Job(
        identity=identity,
        path=str(folder.path),
        arm=context.arm,
        recipe=context.recipe,
        start=start,
        seed=context.seed("dpo"),
        counts=counts,
    )
    write_whole(file, msgspec.json.encode(job))
    return job


def _identity(context: StageContext, start: StartModel, tokenizer: PairTokenizer) -> str:
    settings: dict[str, Any] = msgspec.to_builtins(context.recipe.dpo)
    for key in PLACEMENT:
        settings.pop(key)
    parts = {
        "settings": settings,
        "seed": context.seed("dpo"),
        "start": start.fingerprint(),
        "template": tokenizer.template,
        "pairs": _digest(context.folder.pairs),
        "samples": _digest(context.folder.samples),
    }
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def _digest(path: Path) -> str | None:
    if not path.exists():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
