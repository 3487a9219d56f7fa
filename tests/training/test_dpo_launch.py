"""Training in processes of its own, under `accelerate launch`: really two of them, on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.training.dpo_run import context, log_lines, pocket_pairs, write_pairs
from thinkserve.errors import UsageError
from thinkserve.training.dpo.job import job_file, prepare
from thinkserve.training.dpo.launch import launch, needs_launch
from thinkserve.training.dpo.stage import run
from thinkserve.training.recipe import LoraRecipe

STAGE = """
import sys
from pathlib import Path
from tests.training.dpo_run import context
from thinkserve.training.dpo.stage import run
run(context(Path(sys.argv[1]), dpo={"processes": 2, "epochs": 200}))
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


def running(needle: str) -> list[int]:
    """The processes whose command line has a text."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if needle.encode() in command and state != "Z":
                found.append(int(folder.name))
    return found


def test_one_device_needs_no_launch_and_a_configuration_does(tmp_path: Path) -> None:
    assert not needs_launch(context(tmp_path).recipe.dpo)
    assert needs_launch(context(tmp_path, dpo={"processes": 2}).recipe.dpo)
    assert needs_launch(context(tmp_path, dpo={"accelerate_config": "fsdp.yaml"}).recipe.dpo)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """The same pairs a step, half of them in each process: the sums differ only in their order."""
    lines = []
    for name, processes in (("one", 1), ("two", 2)):
        stage = context(
            tmp_path / name, dpo={"processes": processes, "nll_weight": 0.0, "batch": 8, "device_batch": 4}
        )
        write_pairs(stage, pocket_pairs(16))
        numbers = run(stage)
        assert numbers["processes"] == processes
        assert (stage.folder.epoch(2) / "model.safetensors").exists()
        lines.append(log_lines(stage))
    for alone, together in zip(*lines, strict=True):
        for key in ("step", "loss", "rewards/margins", "logps/chosen", "logps/rejected"):
            assert together[key] == pytest.approx(alone[key], rel=1e-2, abs=1e-3), key


def test_error_in_a_process_of_its_own_is_that_of_the_stage(tmp_path: Path) -> None:
    stage = context(tmp_path, dpo={"lora": LoraRecipe(r=2, alpha=2, target_modules=("nowhere",))})
    write_pairs(stage, pocket_pairs(2))
    with pytest.raises(UsageError, match="nowhere.*not found in the base model"):
        launch(prepare(stage))


@pytest.mark.slow
def test_processes_end_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    """Else a run that goes on would have two trainers in one folder."""
    stage = context(tmp_path, dpo={"processes": 2, "epochs": 200})
    write_pairs(stage, pocket_pairs(16))
    process = subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path)])
    try:
        deadline = time.monotonic() + 90
        while not (stage.folder.epoch(1)).exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        workers = running(str(job_file(stage.folder)))
        assert len(workers) == 3  # the launcher and two trainers
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while running(str(job_file(stage.folder))):
        assert time.monotonic() < deadline, "processes outlive the stage"
        time.sleep(0.1)
    assert msgspec.json.decode(job_file(stage.folder).read_bytes())["identity"]
