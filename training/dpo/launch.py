"""Whether training runs in this process or under `accelerate launch`, and the launch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import msgspec
import torch

from thinkserve.errors import ThinkserveError
from thinkserve.training.dpo.job import Job, job_file
from thinkserve.training.dpo.script import Failure
from thinkserve.training.recipe import DpoRecipe

SCRIPT = "thinkserve.training.dpo.script"
STOP_SECONDS = 10.0


def processes_of(recipe: DpoRecipe) -> int:
    """As many as the recipe says, or one a GPU, or one."""
    return recipe.processes or max(1, torch.cuda.device_count())


def needs_launch(recipe: DpoRecipe) -> bool:
    """One process on one device needs none. Where more GPUs are visible than used, TRL would take all of them."""
    return recipe.accelerate_config is not None or processes_of(recipe) > 1 or torch.cuda.device_count() > 1


def launch(job: Job) -> None:
    """Train in processes of their own; they end with this one.

    Raises:
        ThinkserveError: what a process said when it failed, or that it died.
    """
    job.error.unlink(missing_ok=True)
    command, environment = _command(job), _environment(job)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    try:
        code = process.wait()
    finally:
        process.stdin.close()  # tells all processes to end, if this one must
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if job.error.exists():
        raise msgspec.json.decode(job.error.read_bytes(), type=Failure).error()
    if code:
        raise ThinkserveError(
            f"training ended with exit code {code}; the log of this stage says why. Out of memory: lower dpo.device_batch "
            "or dpo.max_length, or take more GPUs. Running again goes on after the last finished epoch"
        )


def _command(job: Job) -> list[str]:
    recipe, script = job.recipe.dpo, ["-m", SCRIPT, str(job_file(job.folder))]
    if recipe.accelerate_config is None and processes_of(recipe) == 1:
        return [sys.executable, *script]
    options = ["--main_process_port", "0"]
    if recipe.accelerate_config is not None:
        options = ["--config_file", recipe.accelerate_config]
        if recipe.processes is not None:
            options += ["--num_processes", str(recipe.processes)]
    else:
        # `--multi_gpu` is the launcher of several processes; without GPUs they are processes on the CPU.
        options += ["--multi_gpu", "--num_processes", str(processes_of(recipe)), "--num_machines", "1"]
        options += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # what the trainer decides
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *script]


def _environment(job: Job) -> Mapping[str, str]:
    environment = dict(os.environ)
    if job.recipe.compute.threads is not None:
        environment["OMP_NUM_THREADS"] = str(job.recipe.compute.threads)
    if processes_of(job.recipe.dpo) == 1 and job.recipe.dpo.accelerate_config is None:
        environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return environment
