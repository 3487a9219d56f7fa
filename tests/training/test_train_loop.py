"""Whole runs: the files they leave, killed in every stage and gone on with, and refused where they cannot be run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.training.train_run import command, digests, environment, train
from thinkserve.source import find_format, find_source
from thinkserve.training.folder import TRAINING_STAGES, Stage

STAGES: tuple[Stage, ...] = ("prompts", "evaluate", *TRAINING_STAGES, "evaluate")
# With so many instructions the two runs of both arms below take two minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("finished") / "run"
    done = train(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def stage_seconds(out: Path) -> list[float]:
    """How long the process of each stage lived, its start included: from the marker before it to its own."""
    folders = [out / "prompts", out / "iter-0", *[out / "iter-1"] * (len(STAGES) - 2)]
    markers = [folder / "stages" / f"{stage}.json" for folder, stage in zip(folders, STAGES, strict=True)]
    written = [marker.stat().st_mtime for marker in markers]
    first = json.loads(markers[0].read_text(encoding="utf-8"))["seconds"]
    return [float(first), *(after - before for before, after in pairwise(written))]


def test_a_run_leaves_results_a_report_and_a_checkpoint_that_can_be_served(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert results["schema"] == "thinkserve.train/1"
    assert [one["iteration"] for one in results["iterations"]] == [0, 1]
    for iteration in results["iterations"]:
        assert "direct" not in iteration
        assert "paired" not in iteration
        for decoding in ("greedy", "sampled"):
            found = iteration["thought"][decoding]
            assert found["n"] == 16
            assert 0 <= found["ci"][0] <= found["accuracy"] <= found["ci"][1] <= 1
            assert set(found) >= {"score", "parse_failures", "mean_thought_tokens", "mean_response_tokens"}
            assert sum(group["n"] for group in found["categories"].values()) == 16
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")
    checkpoint = find_source(str(finished / "iter-1" / "checkpoint"), ())
    assert find_format(checkpoint, None).name == "pocket"


def test_a_finished_run_does_nothing_again(finished: Path) -> None:
    before = digests(finished)
    weights = finished / "iter-1" / "checkpoint" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    began = time.monotonic()
    done = train(finished)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert digests(finished) == before
    assert weights.stat().st_mtime_ns == written


def test_a_run_killed_in_every_stage_ends_with_the_same_pairs_weights_and_results(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    random = Random(7)
    killed = []
    for number, (stage, seconds) in enumerate(zip(STAGES, stage_seconds(finished), strict=True)):
        alone = command(out, options=("--stage", stage))
        process = subprocess.Popen(
            alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        child = child_of(process.pid)
        # Somewhere between the start of the process and the end of its work.
        time.sleep(random.uniform(0.1, 0.8) * seconds)
        if process.poll() is None:
            killed.append(stage)
            # Now the run, now only the stage: both happen to people. A stage may just have ended by itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child if number % 2 else process.pid, signal.SIGKILL)
        process.wait(60)
        assert gone(child)
        last = subprocess.run(alone, capture_output=True, text=True, env=environment(), check=False)
        finished_before = f"--stage {stage}: it is not the next stage" in last.stderr
        assert last.returncode == 0 or finished_before, last.stdout + last.stderr
    # Where the machine is faster now than in the run before, a stage may end before its time.
    assert len(killed) >= len(STAGES) // 2, killed
    assert train(out).returncode == 0
    assert digests(out) == digests(finished)


def child_of(pid: int) -> int:
    """The process of the stage, as soon as there is one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.02)
    raise AssertionError("no stage was started")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_both_arms_take_the_same_prompts_and_are_compared(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = train(out, "mode=both", "compute.parallel_arms=true", "dpo.epochs=1")
    assert done.returncode == 0, done.stdout + done.stderr
    for folder in (out, out / "direct"):
        assert (folder / "iter-1" / "checkpoint" / "model.safetensors").exists()
    thought, direct = (
        [json.loads(line)["id"] for line in (folder / "iter-1" / "samples.jsonl").read_text().splitlines()]
        for folder in (out, out / "direct")
    )
    assert thought == direct
    last = json.loads((out / "results.json").read_text(encoding="utf-8"))["iterations"][-1]
    for decoding in ("greedy", "sampled"):
        paired = last["paired"][decoding]
        assert paired["n"] == 16
        difference = last["thought"][decoding]["accuracy"] - last["direct"][decoding]["accuracy"]
        assert paired["difference"] == pytest.approx(difference)
        assert paired["ci"][0] <= paired["difference"] <= paired["ci"][1]
    rejected = [
        json.loads(line) for line in (out / "direct" / "iter-1" / "pairs.jsonl").read_text().splitlines()
    ]
    assert all("<R>" not in pair["chosen"] + pair["prompt"] for pair in rejected)


def test_a_folder_of_another_recipe_is_left_alone(finished: Path) -> None:
    before = digests(finished)
    done = train(finished, "dpo.beta=0.3")
    assert done.returncode == 2
    assert "different: dpo.beta" in done.stderr
    assert digests(finished) == before


def test_a_stage_that_is_not_next_is_refused_and_the_next_one_named(tmp_path: Path) -> None:
    done = train(tmp_path / "run", options=("--stage", "dpo"))
    assert done.returncode == 2
    assert "next is prompts" in done.stderr


def test_a_stage_alone_is_run_in_each_arm_whose_next_one_it_is(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for stage in ("prompts", "evaluate"):
        done = train(out, "mode=both", options=("--stage", stage))
        assert done.returncode == 0, done.stdout + done.stderr
    for folder in (out, out / "direct"):
        assert (folder / "iter-0" / "stages" / "evaluate.json").exists()
        assert not (folder / "iter-1").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = subprocess.Popen(
        command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    try:
        child_of(first.pid)
        second = train(out)
        assert second.returncode == 2
        assert "another run is at work in this folder" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_bad_lines_of_a_prompt_file_are_named_and_nothing_is_lost_when_they_are_mended(
    tmp_path: Path,
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    good = [
        json.dumps({"instruction": f"Repeat {'abcdefgh'[n % 8]}{'klmnopqr'[n // 8]}xy"}) for n in range(64)
    ]
    prompts.write_text("\n".join([*good[:10], '{"instruction": 5}', *good[10:]]), encoding="utf-8")
    changes = (f"prompts.source={prompts}", "prompts.per_iteration=8")
    refused = train(tmp_path / "run", *changes, options=("--stage", "prompts"))
    assert refused.returncode == 2
    assert f"{prompts}:11" in refused.stderr
    assert "bad_lines" in refused.stderr
    prompts.write_text("\n".join(good), encoding="utf-8")
    again = train(tmp_path / "run", *changes, options=("--stage", "prompts"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "prompts" / "iter-1.jsonl").exists()
