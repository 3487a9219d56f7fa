"""The copies of a reward model, one a device: whoever is idle takes the next batch."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Protocol

import msgspec

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.training.judges.reward_worker import (
    Batch,
    RewardModelSpec,
    RewardScorer,
    WorkerAnswer,
    WorkerStart,
)

STOP_SECONDS = 5.0
LAST_WORDS = 300


class Worker(Protocol):
    """Scores a batch at a time: a `RewardScorer` in this process, or a `WorkerProcess`."""

    @property
    def waits(self) -> bool:
        """Whether it works elsewhere, so that this process has something better to do than to wait."""

    def score(self, batch: Batch) -> list[float | None]:
        """The scores of some conversations; None where there is none."""


class WorkerProcess:
    """A process with a reward model on a device; it loads while others do.

    Args:
        spec: the model.
        device: as torch names it.
    """

    def __init__(self, spec: RewardModelSpec, device: str) -> None:
        self._device = device
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thinkserve.training.judges.reward_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._write(msgspec.json.encode(WorkerStart(spec, device)))

    @property
    def waits(self) -> bool:
        """It does."""
        return True

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            ThinkserveError: it cannot be, or the process died.
        """
        self._read()

    def score(self, batch: Batch) -> list[float | None]:
        """The scores of some conversations; None where there is none.

        Raises:
            ThinkserveError: the process has failed or died; has its last words.
        """
        self._write(msgspec.json.encode(batch))
        return self._read()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._errors.close()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        # If it has died, it may have said why: `_read` finds out.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def _read(self) -> list[float | None]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ThinkserveError(self._obituary())
        answer = msgspec.json.decode(line, type=WorkerAnswer)
        if answer.error:
            kind = UsageError if answer.user_error else ThinkserveError
            raise kind(answer.error)
        return answer.scores

    def _obituary(self) -> str:
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        end = f"with exit code {code}"
        if code < 0:
            end = f"of {signal.Signals(-code).name}" + (
                " (out of memory?)" if code == -signal.SIGKILL else ""
            )
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace").strip()[-LAST_WORDS:]
        last = f"; its last words: {words}" if words else ""
        return f"the reward model's process on {self._device} died {end}; run again: what was scored is kept{last}"


class RewardPool:
    """Some workers.

    Args:
        workers: each is given a batch at a time.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        for worker in workers:
            self._idle.put_nowait(worker)

    async def score(self, batch: Batch) -> list[float | None]:
        """Wait for a worker, and have it score.

        Raises:
            ThinkserveError: the worker failed.
        """
        worker = await self._idle.get()
        if worker.waits:
            return await self._wait_for(worker, batch)
        # In another thread torch allocates the same memory over and over: a CPU scores 15 % fewer responses there.
        try:
            # So that what is scored is taken, and Ctrl-C is heard, between two batches.
            await asyncio.sleep(0)
            return worker.score(batch)
        finally:
            self._idle.put_nowait(worker)

    async def _wait_for(self, worker: Worker, batch: Batch) -> list[float | None]:
        def release(call: asyncio.Future[list[float | None]]) -> None:
            if not call.cancelled():
                call.exception()
            self._idle.put_nowait(worker)

        # A thread cannot be cancelled: the worker is idle when its answer is there, not when nobody wants it any more.
        call = asyncio.ensure_future(asyncio.to_thread(worker.score, batch))
        call.add_done_callback(release)
        return await asyncio.shield(call)


@asynccontextmanager
async def open_pool(spec: RewardModelSpec, devices: Sequence[str]) -> AsyncIterator[RewardPool]:
    """Load a copy of a model on each device: in this process for one, else each in a process of its own.

    Args:
        spec: the model.
        devices: as torch names them; one may be named twice.

    Raises:
        ThinkserveError: a copy could not be loaded.
    """
    if len(devices) == 1:
        yield RewardPool([await asyncio.to_thread(RewardScorer, spec, devices[0])])
        return
    with ExitStack() as stack:
        workers = []
        for device in devices:
            workers.append(WorkerProcess(spec, device))
            stack.callback(workers[-1].close)
        for worker in workers:
            await asyncio.to_thread(worker.wait_until_ready)
        yield RewardPool(workers)
