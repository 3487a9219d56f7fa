"""Killed at any moment and run again, a DPO stage ends with the same bytes; so it does after a full disk.

Each stage runs in a process of its own, forked from one that has the libraries loaded, and is killed with SIGKILL by an
audit hook: at the n-th time that it touches a file of its folder.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.training.dpo_run import context, digests, log_lines, pocket_pairs, write_pairs
from thinkserve.errors import ThinkserveError
from thinkserve.training.recipe import LoraRecipe
from thinkserve.training.stage import StageContext

PAIRS = 40
EPOCHS = 2
DPO: dict[str, Any] = {"epochs": EPOCHS, "batch": 16, "device_batch": 8}
# What touches files: a kill comes before it is done.
TOUCHES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")
Hook = Callable[[str, str], None]
"""Called with the event and the path."""


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(
        ["thinkserve.training.dpo.launch", "thinkserve.eval.answering.answerer", "peft"]
    )
    return found


def stage_in(out: Path, **dpo: Any) -> StageContext:
    """The stage under test; the same pairs for all."""
    stage = context(out, dpo={**DPO, **dpo})
    write_pairs(stage, pocket_pairs(PAIRS))
    return stage


def work(stage: StageContext, touched: Hook | None, told: Path) -> None:
    """In the child: run the stage, and tell how it ended."""
    import torch

    from thinkserve.training.dpo.stage import run

    torch.set_num_threads(1)
    if touched is not None:
        inside = str(stage.folder.dpo)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in TOUCHES and isinstance(arguments[0], str | os.PathLike):
                path = os.fspath(arguments[0])
                if isinstance(path, str) and path.startswith(inside):
                    touched(event, path.removeprefix(inside))

        sys.addaudithook(hook)
    try:
        result: Any = dict(run(stage))
    except ThinkserveError as error:
        result = {"error": str(error)}
    told.write_bytes(msgspec.json.encode(result))


def run_in(
    processes: ForkServerContext, stage: StageContext, touched: Hook | None = None
) -> tuple[int | None, dict[str, Any]]:
    """Run a stage in a process; its exit code (negative: the signal) and what it told."""
    told = stage.run.path / "told.json"
    told.unlink(missing_ok=True)
    process = processes.Process(target=work, args=(stage, touched, told))
    process.start()
    process.join(100)
    assert process.exitcode is not None, "the stage hangs"
    return process.exitcode, msgspec.json.decode(told.read_bytes()) if told.exists() else {}


class KillAtTouch:
    """At the n-th touch of a file."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, event: str, path: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class KillAt:
    """At the first touch of a kind."""

    def __init__(self, event: str, end: str) -> None:
        self.event, self.end = event, end

    def __call__(self, event: str, path: str) -> None:
        if event == self.event and path.endswith(self.end):
            os.kill(os.getpid(), signal.SIGKILL)


class Count:
    """Writes how many touches there were."""

    def __init__(self, out: Path) -> None:
        self.out, self.count = out, 0

    def __call__(self, event: str, path: str) -> None:
        self.count += 1
        self.out.write_text(str(self.count))


class LimitFilesAfter:
    """A disk that is full once an epoch is there: no file may be larger than a megabyte any more."""

    def __init__(self, epoch: int) -> None:
        self.end = f".epoch-{epoch}"

    def __call__(self, event: str, path: str) -> None:
        if event == "os.rename" and path.endswith(self.end):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def uninterrupted(
    processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], int]:
    """What it comes to, and how often it touches files."""
    out = tmp_path_factory.mktemp("uninterrupted")
    stage = stage_in(out / "run")
    code, numbers = run_in(processes, stage, Count(out / "touches"))
    assert code == 0
    assert (numbers["steps"], numbers["resumed_after_epoch"]) == (6, 0)
    assert [line["step"] for line in log_lines(stage)] == list(range(1, 7))
    found = digests(stage)
    assert {name.partition("/")[0] for name in found} == {"epoch-1", "epoch-2", "log.jsonl"}
    return found, int((out / "touches").read_text())


def test_same_bytes_after_kills_at_random_moments(
    processes: ForkServerContext, uninterrupted: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    """Three kills in a row, each somewhere in what was left to do."""
    expected, touches = uninterrupted
    assert touches > 50
    stage = stage_in(tmp_path)
    moments = random.Random(4)
    for _ in range(3):
        code, _ = run_in(processes, stage, KillAtTouch(moments.randint(1, touches * 2 // 3)))
        assert code in (-signal.SIGKILL, 0)
    assert run_in(processes, stage)[0] == 0
    assert digests(stage) == expected
    assert not (stage.folder.dpo / "work").exists()


@pytest.mark.parametrize(
    ("event", "end", "finished", "after"),
    [
        ("open", ".epoch-2/tokenizer_config.json", 1, 1),  # in the middle of an epoch's files
        ("os.rename", ".epoch-2", 1, 1),  # all written, not yet there
        ("shutil.rmtree", "checkpoint-3", 2, 2),  # the epoch is there, and the state before it too
        ("open", "pairs/state.json", 0, 0),  # in the middle of the token ids
        ("shutil.rmtree", "/work", 2, 0),  # all done, with the optimizer still there
    ],
)
def test_same_bytes_after_a_kill_at_the_worst_moment(
    event: str,
    end: str,
    finished: int,
    after: int,
    processes: ForkServerContext,
    uninterrupted: tuple[dict[str, str], int],
    tmp_path: Path,
) -> None:
    stage = stage_in(tmp_path)
    assert run_in(processes, stage, KillAt(event, end))[0] == -signal.SIGKILL
    epochs = sorted(path.name for path in stage.folder.dpo.glob("epoch-*"))
    assert epochs == [f"epoch-{number}" for number in range(1, finished + 1)]
    code, numbers = run_in(processes, stage)
    assert code == 0
    assert numbers["resumed_after_epoch"] == after
    assert digests(stage) == uninterrupted[0]


def test_adapters_are_resumed_too(processes: ForkServerContext, tmp_path: Path) -> None:
    lora = LoraRecipe(r=4, alpha=8)
    expected = stage_in(tmp_path / "a", lora=lora)
    assert run_in(processes, expected)[0] == 0
    stage = stage_in(tmp_path / "b", lora=lora)
    assert run_in(processes, stage, KillAt("os.rename", ".epoch-2"))[0] == -signal.SIGKILL
    assert run_in(processes, stage)[1]["resumed_after_epoch"] == 1
    assert digests(stage) == digests(expected)


def test_full_disk_is_told_in_a_line_and_loses_nothing(
    processes: ForkServerContext, uninterrupted: tuple[dict[str, str], int], tmp_path: Path
) -> None:
    stage = stage_in(tmp_path)
    code, told = run_in(processes, stage, LimitFilesAfter(1))
    assert code == 0
    assert "epoch 2 could not be written, the disk is full" in told["error"]
    assert "finished epochs are kept" in told["error"] and "\n" not in told["error"]
    there = {name: digest for name, digest in digests(stage).items() if name.startswith("epoch")}
    assert there == {name: digest for name, digest in uninterrupted[0].items() if name.startswith("epoch-1/")}
    assert run_in(processes, stage)[1]["resumed_after_epoch"] == 1
    assert digests(stage) == uninterrupted[0]


def test_loss_that_is_no_number_ends_training_and_keeps_no_epoch(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """A learning rate of 1e30 makes weights whose products overflow."""
    stage = stage_in(tmp_path, learning_rate=1e30)
    told = run_in(processes, stage)[1]
    assert re.match(
        r"the loss is nan in step [23] of 6; nothing of this epoch is kept\. Try a lower dpo", told["error"]
    )
    assert "now 1e+30" in told["error"]
    assert not list(stage.folder.dpo.glob("*epoch-*"))


def test_weights_that_are_no_numbers_are_not_kept(processes: ForkServerContext, tmp_path: Path) -> None:
    """With one step an epoch, no second loss tells that the first step has wrecked the weights."""
    stage = stage_in(
        tmp_path, learning_rate=1e38, batch=64, max_grad_norm=0.0, optimizer="sgd", beta=100.0, epochs=1
    )
    told = run_in(processes, stage)[1]
    assert "have become NaN or infinite" in told["error"] and "dpo.learning_rate" in told["error"]
    assert not list(stage.folder.dpo.glob("epoch-*"))
