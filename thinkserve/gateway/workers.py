"""Several gateway processes on one port: started, watched, started again when they die, and stopped.

Each worker listens on a socket of its own with SO_REUSEPORT, and the kernel deals connections out by a hash of their
addresses: evenly, whatever each worker is doing. On one socket handed down to all, whichever worker wakes first takes
the connection, and under light load that is nearly always the same one. A worker that dies takes its socket with it, so
the kernel deals to the others until it is back.

Parent and worker are joined by a socket pair, which is the worker's standard input: what to serve goes down it (so no
key is in a command line or an environment), and `ready` comes back. When either ends, the other reads the end: no worker
outlives its parent. What workers share, they share by files of a private folder; their metrics are there, so that each of
them can tell those of all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec
from prometheus_client.multiprocess import mark_process_dead

from thinkserve.engines.process import RestartPolicy
from thinkserve.errors import ThinkserveError, UsageError

logger = logging.getLogger(__name__)

# Workers share nothing but the port, so one that dies is back soon; and they are tried for ever, as the others serve.
RESTART = RestartPolicy(first_delay=0.5, longest_delay=30.0, stable_after=10.0)
START_SECONDS = 60.0
METRICS = "metrics"
# What a worker may take to end after it has drained, before it is killed.
END_SECONDS = 5.0
# -P: a module in the working directory must not take the place of one of ours.
COMMAND = (sys.executable, "-P", "-c", "from thinkserve.gateway.workers import main; main()")


class WorkerReport(msgspec.Struct):
    """What a worker tells its parent, one line of JSON: that it serves, or why it cannot."""

    ready: bool = False
    error: str = ""


class Parent:
    """The worker's end of the pair."""

    def __init__(self, folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.folder = folder
        """Private, for all workers, and gone when they are."""
        self.engine_restarts = 0
        """How often engines were started again; the parent tells."""
        self._reader, self._writer = reader, writer

    def ready(self) -> None:
        """Tell that clients can come."""
        self._writer.write(msgspec.json.encode(WorkerReport(ready=True)) + b"\n")

    async def listen(self) -> None:
        """Take what the parent tells, until it has ended."""
        while line := await self._reader.readline():
            self.engine_restarts = msgspec.json.decode(line, type=int)


class Work(Protocol):
    """What a worker does; pickled, so an instance of a class, or a partial of a function, that can be imported."""

    def __call__(self, parent: Parent, *, restarted: bool) -> Coroutine[Any, Any, None]:
        """Serve until told to stop.

        Args:
            parent: to be told when clients can come.
            restarted: there was a worker in this place before, so what was read at the start may be old.
        """


class Workers:
    """The worker processes; they run from `start` to `stop`.

    Args:
        work: what each is to do, in its place.
        drain_seconds: how long they take to end by themselves, at most.
    """

    def __init__(self, work: list[Work], *, drain_seconds: float, restart: RestartPolicy = RESTART) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="thinkserve-workers-")  # 0700
        self.folder = Path(self._folder.name)
        """Private, for all workers; removed when they are stopped."""
        (self.folder / METRICS).mkdir()
        self._restart = restart
        self._drain_seconds = drain_seconds
        self._places = [_Place(place, one, self.folder) for place, one in enumerate(work)]
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start them all, and return when each can be reached; from then on one that dies is started again.

        Raises:
            UsageError: the operator must mend something first.
            ThinkserveError: one of them ended before it could be reached.
        """
        launches = [asyncio.create_task(place.launch(restarted=False)) for place in self._places]
        try:
            await asyncio.gather(*launches)
        finally:
            for launch in launches:
                launch.cancel()
            await asyncio.gather(*launches, return_exceptions=True)
        self._keepers = [asyncio.create_task(place.keep(self._restart)) for place in self._places]

    def reload(self) -> None:
        """Have all read again what may change while they run."""
        for place in self._places:
            place.reload()

    def tell(self, engine_restarts: int) -> None:
        """Tell all how often engines were started again."""
        for place in self._places:
            place.tell(engine_restarts)

    async def drain(self) -> None:
        """Let them finish what they are doing, for a bounded time; none is started again."""
        self._let_go()
        for place in self._places:
            place.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds + END_SECONDS):
                await asyncio.gather(*(place.ended() for place in self._places))

    async def stop(self) -> None:
        """End them now, with an error for whoever still waits for an answer; safe on workers that have ended."""
        self._let_go()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(place.stop() for place in self._places))
        self._folder.cleanup()

    def _let_go(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()


class _Place:
    """One worker, and those that come after it in its place."""

    def __init__(self, number: int, work: Work, folder: Path) -> None:
        self._number = number
        self._work = work
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._told = 0
        self._ready = False
        self._reload_due = False

    async def launch(self, *, restarted: bool) -> None:
        """Start a worker and return when it can be reached; one that cannot is gone when this raises."""
        self._ready = False
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *COMMAND,
                    stdin=theirs.fileno(),
                    env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder / METRICS)},
                    # Ctrl-C is for the parent alone, which tells the workers.
                    start_new_session=True,
                )
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            level = logging.getLogger().level
            task = pickle.dumps((self._work, restarted, self._number, self._folder, level))
            self._writer.write(struct.pack("!Q", len(task)) + task)
            self.tell(self._told)
            async with asyncio.timeout(START_SECONDS):
                line = await reader.readline()
        except TimeoutError:
            line = msgspec.json.encode(WorkerReport(error=f"it did not answer in {START_SECONDS:g} s"))
        except OSError:
            line = b""
        except asyncio.CancelledError:
            await self.stop()
            raise
        report = msgspec.json.decode(line, type=WorkerReport) if line else WorkerReport()
        if report.ready:
            self._ready = True
            if self._reload_due:
                self.reload()
            return
        await self.stop()
        if report.error:
            raise UsageError(report.error)
        raise ThinkserveError(
            f"worker {self._number} ended before it could be reached; its log has the reason"
        )

    async def keep(self, policy: RestartPolicy) -> None:
        """Start a worker again each time that it ends."""
        failures = 0
        while True:
            began = time.monotonic()
            how = f"ended with code {await self.ended()}"
            self._ready = False
            await self.stop()
            failures = 1 if time.monotonic() - began >= policy.stable_after else failures + 1
            while self._process is None:
                delay = policy.delay(min(failures, 10))
                logger.error("worker %d %s; starting it again in %g s", self._number, how, delay)
                await asyncio.sleep(delay)
                try:
                    await self.launch(restarted=True)
                except (ThinkserveError, OSError) as exc:
                    how = f"cannot be started ({exc})"
                    failures += 1

    async def ended(self) -> int | None:
        """Return when the worker has ended, with its exit code."""
        return None if self._process is None else await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def reload(self) -> None:
        """Have the worker reload; one that is just starting does not know the signal yet, which would end it."""
        self._reload_due = not self._ready
        if self._ready:
            self.signal(signal.SIGHUP)

    def tell(self, engine_restarts: int) -> None:
        self._told = engine_restarts
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(b"%d\n" % engine_restarts)

    async def stop(self) -> None:
        """End the worker: it reads the end of the pair and goes; or else it is killed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        process = self._process
        if process is None:
            return
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = (
            None  # only now: whoever is cancelled above leaves the process to the next who stops it
        )
        mark_process_dead(process.pid, str(self._folder / METRICS))  # type: ignore[no-untyped-call]


def main() -> None:
    """A worker: reads from its standard input what to do, and does it for as long as its parent lives."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work())


async def _work() -> None:
    pair = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    reader, writer = await asyncio.open_connection(sock=pair)
    try:
        (length,) = struct.unpack("!Q", await reader.readexactly(8))
        task = await reader.readexactly(length)
    except asyncio.IncompleteReadError:  # the parent has ended, or changed its mind
        writer.close()
        return
    work, restarted, number, folder, level = pickle.loads(task)
    logging.basicConfig(
        level=level,
        format=f"%(asctime)s %(levelname)s worker {number} %(name)s: %(message)s",
        stream=sys.stderr,
    )
    parent = Parent(folder, reader, writer)
    working = asyncio.create_task(work(parent, restarted=restarted))
    listening = asyncio.create_task(parent.listen())
    await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not working.done():  # the parent has ended, or wants this to end at once
            working.cancel()
            await asyncio.wait((working,))
        if not working.cancelled():
            working.result()
    except UsageError as exc:
        writer.write(msgspec.json.encode(WorkerReport(error=str(exc))) + b"\n")
    finally:
        listening.cancel()
        writer.close()
