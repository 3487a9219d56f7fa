"""The stage: thought and direct prompts, all outputs in the order of the instructions, the same after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from thinkserve.eval.instruction import id_of
from thinkserve.eval.records import read_records, write_records
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import get_format
from thinkserve.training import records
from thinkserve.training.folder import TrainFolder
from thinkserve.training.pocket.world import draw_distinct
from thinkserve.training.recipe import Arm, ComputeRecipe, Recipe, SampleRecipe
from thinkserve.training.records import Sampled, SampleRecord
from thinkserve.training.sampling.stage import is_broken, make_asks, run
from thinkserve.training.stage import StageContext

FORMAT = get_format(CHECKPOINT)
SAMPLE = SampleRecipe(engine="transformers", k=4, temperature=1.0, top_p=1.0, max_tokens=40, concurrency=32)


def context_of(
    path: Path, arm: Arm = "thought", sample: SampleRecipe = SAMPLE, count: int = 40
) -> StageContext:
    """The first iteration of a run of the pocket seed, with its instructions written."""
    recipe = Recipe(
        name="test", model="pocket-seed", mode="both", sample=sample, compute=ComputeRecipe(threads=1)
    )
    folder = TrainFolder(path, recipe.mode)
    lines = [
        {"id": id_of(task.instruction), "text": task.instruction, "categories": {}}
        for task in draw_distinct(3, count)
    ]
    write_records(folder.prompts_of(1), lines)
    return StageContext(folder, recipe, arm, 1, "sample")


def test_the_samples_are_in_the_order_of_the_instructions(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    numbers = run(context)
    found = records.read(context.folder.samples, SampleRecord)
    assert [record.id for record in found] == [id_of(task.instruction) for task in draw_distinct(3, 40)]
    assert all(len(record.outputs) == 4 for record in found)
    tokens = sum(output.tokens for record in found for output in record.outputs)
    assert (numbers["prompts"], numbers["outputs"], numbers["output_tokens"]) == (40, 160, tokens)
    assert numbers["engine"].startswith("transformers ") and numbers["prompt_tokens"] > 0
    assert numbers["tokens_per_second"] == pytest.approx(tokens / numbers["seconds"])
    progress = json.loads(context.folder.progress("sample").read_bytes())
    assert (progress["done"], progress["total"]) == (40, 40)
    assert [path.name for path in context.folder.path.iterdir() if "log" in path.name] == []


def test_only_the_thought_arm_asks_for_thoughts_and_both_draw_from_the_same_seeds(tmp_path: Path) -> None:
    thought, direct = (make_asks(context_of(tmp_path, arm), FORMAT) for arm in ("thought", "direct"))
    for one, other in zip(thought, direct, strict=True):
        assert one.message == FORMAT.thought_prompt(other.message)
        assert (one.id, one.seed) == (other.id, other.seed)
    assert len({ask.seed for ask in thought}) == len(thought)
    later = replace(context_of(tmp_path), iteration=2)
    write_records(later.run.prompts_of(2), [read.data for read in read_records(later.run.prompts_of(1))])
    assert make_asks(later, FORMAT)[0].seed != thought[0].seed


def test_broken_outputs_are_sampled_again(tmp_path: Path) -> None:
    """With 8 tokens many outputs do not end. Those that do stay; each retry gives the others a new chance."""
    short = replace(SAMPLE, max_tokens=8)
    once, often = (
        context_of(tmp_path / "once", sample=short),
        context_of(tmp_path / "often", sample=replace(short, retry_broken=3)),
    )
    run(once)
    run(often)
    first, last = (records.read(context.folder.samples, SampleRecord) for context in (once, often))
    broken = repaired = 0
    for before, after in zip(first, last, strict=True):
        for old, new in zip(before.outputs, after.outputs, strict=True):
            if is_broken(old, FORMAT, direct=False):
                broken += 1
                repaired += not is_broken(new, FORMAT, direct=False)
            else:
                assert new == old
    assert 0 < repaired < broken


def test_what_counts_as_broken() -> None:
    assert not is_broken(Sampled("so<R>yes", "stop", 4), FORMAT, direct=False)
    assert is_broken(Sampled("so yes", "stop", 4), FORMAT, direct=False)
    assert not is_broken(Sampled("yes", "stop", 4), FORMAT, direct=True)
    assert is_broken(Sampled("so<R>ye", "length", 4), FORMAT, direct=False)
    assert is_broken(Sampled("so<R>", "stop", 4), FORMAT, direct=False)
    assert not is_broken(Sampled("", "length", 0), FORMAT, direct=False)  # no room: no use in trying again


def test_whole_samples_without_a_marker_are_not_sampled_again(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    numbers = run(context)
    written = context.folder.samples.stat().st_mtime_ns
    again = run(context)
    assert context.folder.samples.stat().st_mtime_ns == written
    assert again["output_tokens"] == numbers["output_tokens"] and "seconds" not in again


RETRYING = replace(SAMPLE, max_tokens=12, retry_broken=1)
PROGRAM = """
import sys
from pathlib import Path
from tests.training.test_sampling_stage import RETRYING, context_of
from thinkserve.training.sampling.stage import run
run(context_of(Path(sys.argv[1]), sample=RETRYING, count=160))
"""


def start(path: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], cwd=root, env=environment, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Killed once there are some records, then among those that are sampled again."""
    run(context_of(tmp_path / "whole", sample=RETRYING, count=160))
    killed = tmp_path / "killed" / "iter-1"
    for log, lines in (("samples.log.jsonl", 20), ("samples.again-1.log.jsonl", 1)):
        process = start(tmp_path / "killed")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            path = killed / log
            if path.exists() and path.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "samples.jsonl").exists()
    run(context_of(tmp_path / "killed", sample=RETRYING, count=160))
    samples = (killed / "samples.jsonl").read_bytes()
    assert samples == (tmp_path / "whole" / "iter-1" / "samples.jsonl").read_bytes()
    assert samples.count(b"\n") == 160
