"""TRL's DPOTrainer over a job: resumable at every epoch, with epochs that are there as a whole or not at all."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from transformers import PrinterCallback
from trl import DPOTrainer

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.training.dpo.companions import decoding, write_companions
from thinkserve.training.dpo.disk import explain_full_disk
from thinkserve.training.dpo.job import Job
from thinkserve.training.dpo.log import LogLines, averages, open_log
from thinkserve.training.dpo.settings import dpo_config, lora_config
from thinkserve.training.dpo.weights import write_weights

logger = logging.getLogger(__name__)

STATE = "checkpoint-"
"""transformers' folders of the trainer's state, by step."""


class EpochTrainer(DPOTrainer):  # type: ignore[misc] # TRL is untyped
    """TRL's trainer with our tokens, an end at the first loss that is no number, and epochs that are kept."""

    job: Job

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        # The ids are there (tokens.py says why); TRL would make its own from strings.
        return dataset

    def _send_telemetry(self) -> None:
        # Training tells nobody.
        pass

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """None for the trainer's state; checkpoints have ours."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As TRL's; its loss is a number, or training ends."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not loss.isfinite():
            recipe = self.job.recipe.dpo
            raise ThinkserveError(
                f"the loss is {loss.item()} in step {self.state.global_step + 1} of {self.job.steps}; nothing of this "
                f"epoch is kept. Try a lower dpo.learning_rate (now {recipe.learning_rate:g}), a larger "
                f"dpo.warmup_share (now {recipe.warmup_share:g}) or dpo.max_grad_norm = 1 (now {recipe.max_grad_norm:g})"
            )
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        epoch = round(self.state.global_step / self.job.steps_per_epoch)
        with explain_full_disk(self.job.folder.dpo, f"epoch {epoch}"):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every process writes its part of the state
            if self.args.should_save:
                _keep_epoch(self.job, epoch, state_folder(self.job, self.state.global_step))
        self.accelerator.wait_for_everyone()


def _keep_epoch(job: Job, epoch: int, state: Path) -> None:
    """Write an epoch's checkpoint. Once it is there, the state beside it is complete too, and older ones can go."""
    out = job.folder.epoch(epoch)
    draft = out.with_name(f".{out.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write_weights(state, draft, job.start)
    write_companions(draft, job.start, job.recipe, job.arm)
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    for older in job.trainer.glob(f"{STATE}*"):
        if older != state:
            shutil.rmtree(older)


def state_folder(job: Job, step: int) -> Path:
    """Where the trainer's state after a step is."""
    return job.trainer / f"{STATE}{step}"


def finished_epochs(job: Job) -> int:
    """The epoch to go on from: its checkpoint is there, and the trainer's state after it. 0: from the beginning."""
    for epoch in range(job.recipe.dpo.epochs, 0, -1):
        if job.folder.epoch(epoch).exists() and state_folder(job, epoch * job.steps_per_epoch).exists():
            return epoch
    return 0


def train(job: Job) -> dict[str, Any] | None:
    """Train, or go on with it.

    Returns:
        The numbers; None in all processes but the first.

    Raises:
        UsageError: settings that the libraries refuse.
        ThinkserveError: the loss is no number, or a disk or a memory is full; running again goes on after the last epoch.
    """
    try:
        return _train(job)
    except torch.OutOfMemoryError as exc:
        recipe = job.recipe.dpo
        raise ThinkserveError(
            f"the GPU's memory is too small ({_first_line(exc)}); lower dpo.device_batch (now {recipe.device_batch}) or "
            f"dpo.max_length (now {recipe.max_length}), set dpo.gradient_checkpointing, train adapters (dpo.lora), or "
            "spread the model over GPUs (dpo.accelerate_config)"
        ) from exc


def _train(job: Job) -> dict[str, Any] | None:
    finished = finished_epochs(job)
    first_step = finished * job.steps_per_epoch
    with _quiet(), explain_full_disk(job.folder.dpo, f"epoch {finished + 1}"):
        began = time.monotonic()
        trainer = make_trainer(job)
        ready = time.monotonic()
        with open_log(job.folder.dpo_log, first_step) if trainer.args.should_save else nullcontext() as log:
            if log is not None:
                trainer.add_callback(LogLines(log))
            trainer.train(resume_from_checkpoint=str(state_folder(job, first_step)) if finished else None)
        seconds = time.monotonic() - ready
    if not trainer.args.should_save:
        return None
    counts, epochs = job.counts, job.recipe.dpo.epochs
    return {
        "pairs": counts.pairs,
        "too_long": counts.too_long,
        "longest": counts.longest,
        "epochs": epochs,
        "steps": job.steps,
        "tokens": counts.tokens * epochs,
        # Of what this process did; one that was killed before has no part in it.
        "tokens_per_second": counts.tokens * (epochs - finished) / seconds,
        "seconds": seconds,
        "preparing_seconds": ready - began,
        "resumed_after_epoch": finished,
        "processes": trainer.accelerator.num_processes,
        "device": _device_name(),
        "peak_memory_gb": _peak_memory() / 1e9,
        "last_epoch": averages(job.folder.dpo_log, after=job.steps - job.steps_per_epoch),
    }


def make_trainer(job: Job) -> EpochTrainer:
    """The trainer of a job, with the reference's log-probabilities computed.

    Raises:
        UsageError: settings that the libraries refuse.
    """
    recipe = job.recipe.dpo
    processes = PartialState(cpu=not torch.cuda.is_available()).num_processes
    config = dpo_config(
        recipe,
        out=job.trainer,
        steps=job.steps,
        seed=job.seed,
        processes=processes,
        revision=job.start.revision,
    )
    try:
        trainer = EpochTrainer(
            # The path and never a model: TRL patches the forward of what it is given, and so the weights that the
            # reference's log-probabilities are made with are those of the files, also where training goes on.
            model=job.start.path,
            args=config,
            train_dataset=Dataset.load_from_disk(str(job.pairs)),
            processing_class=job.start.tokenizer(),
            peft_config=None if recipe.lora is None else lora_config(recipe.lora),
        )
    except ValueError as exc:
        raise UsageError(f"dpo: TRL cannot train {job.start.path} so: {_first_line(exc)}") from exc
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        # Else the first epoch would be trained and could not be written.
        raise UsageError(
            f"{recipe.accelerate_config}: fsdp_state_dict_type is {plugin.state_dict_type}; set it to FULL_STATE_DICT, so "
            "that epochs are models"
        )
    trainer.job = job
    trainer.remove_callback(PrinterCallback)
    # Checked whenever weights are saved, and refused if it has a temperature and no do_sample: not after an epoch.
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if recipe.lora is not None else model
    base.generation_config = decoding(job.start, job.recipe.sample)
    return trainer


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _peak_memory() -> int:
    """Bytes, of the first process: on its GPU, or of all it had."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars in the log of a stage; the stage has a progress of its own."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    before = os.environ.get("TQDM_DISABLE")  # all that TRL looks at
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
