"""Small real runs of `thinkserve train`, for tests: the pocket recipe with a handful of instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

SMALL = (
    "mode=thought",
    "iterations=1",
    "prompts.per_iteration=32",
    "prompts.validation=8",
    "prompts.evaluation=16",
    "sample.k=4",
    "dpo.epochs=2",
    "dpo.batch=8",
    "dpo.device_batch=8",
    "compute.parallel_arms=false",
)


def command(out: Path, *changes: str, options: tuple[str, ...] = (), recipe: str = "pocket") -> list[str]:
    """The command line of a small run."""
    arguments = [sys.executable, "-m", "thinkserve.cli", "train", recipe, "--out", str(out), *options]
    for change in (*SMALL, *changes):
        arguments += ["--set", change]
    return arguments


def environment() -> dict[str, str]:
    """One thread a process: tests share two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}


def train(
    out: Path, *changes: str, options: tuple[str, ...] = (), recipe: str = "pocket", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(out, *changes, options=options, recipe=recipe),
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
        cwd=cwd,
        check=False,
    )


# What a run comes to. Times and rates are in markers, logs and reports, which are not compared.
RESULTS = (
    "samples.jsonl",
    "outputs.jsonl",
    "scores.jsonl",
    "pairs.jsonl",
    "pairs.json",
    "validation.json",
    "checkpoint/model.safetensors",
    "checkpoint/tokenizer.json",
    "evaluation/greedy.jsonl",
    "evaluation/sampled.jsonl",
)


def digests(out: Path) -> dict[str, str]:
    """From file to sha256, of all that a run comes to."""
    files = [path for name in RESULTS for path in out.rglob(f"iter-*/{name}")]
    files += [out / "results.json", *(out / "prompts").glob("*.jsonl")]
    return {str(path.relative_to(out)): sha256(path.read_bytes()).hexdigest() for path in files}
