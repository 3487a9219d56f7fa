"""A child process that serves HTTP on a private Unix socket: started, watched, restarted and stopped.

Every local engine (vllm, transformers) is one `EngineProcess`. It says nothing about what the process generates: it
only promises that `start()` returns when the process answers, that a process that dies by itself comes back, and
that no process of the tree outlives `stop()`, a crash of the engine, or the death (even by SIGKILL) of this process.

Stopping is "mixed", as systemd calls it: SIGTERM goes to the engine's main process alone, which knows in which order
to end its own children (vLLM drains its requests only if EngineCore is left alone); after the grace, or as soon as
the main process has ended, SIGKILL goes to the whole process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from thinkserve.engines.engine import Endpoint
from thinkserve.errors import EngineError

logger = logging.getLogger(__name__)

SOCKET_PATH_LIMIT = 104  # bytes with the final NUL, on macOS; Linux allows 108
TAIL_LINES = 40  # kept of the log
REPORTED_LINES = 12  # shown in an error
LINE_LIMIT = 400  # characters of one kept line
PROBE_INTERVAL = 0.1  # seconds

# Runs in a fresh, single-threaded interpreter between us and the engine, so that nothing but exec happens after our
# own fork (a preexec_fn in a threaded process may deadlock). It asks the kernel to kill the engine when our process
# dies, and leaves a guard behind in the engine's process group: when the engine's main process has ended, for whatever
# reason, the guard kills the rest of the group. So the tree comes down from the top without anyone's help.
# Python's resource trackers are spared for two seconds: they end by themselves once all others have, and remove the
# shared memory that killed processes leave (vLLM: hundreds of megabytes each time).
# PR_SET_PDEATHSIG (1) and /proc are Linux only; elsewhere the tree is only killed by us.
_LAUNCHER = """
import ctypes, os, signal, sys, time

def others():
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as stat, open(f"/proc/{name}/cmdline", "rb") as command:
                state, _, group = stat.read().rpartition(b")")[2].split()[:3]
                if int(group) == engine and int(name) != os.getpid() and state != b"Z":
                    yield int(name), b"multiprocessing.resource_tracker" in command.read()
        except OSError:
            pass

def guard():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    prctl(1, signal.SIGUSR1)
    if os.getppid() == engine:
        signal.sigwait({signal.SIGUSR1})
    deadline = time.monotonic() + 2
    while (group := list(others())) and time.monotonic() < deadline:
        for pid, spared in group:
            if not spared:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    os.killpg(engine, signal.SIGKILL)

parent, argv, engine = int(sys.argv[1]), sys.argv[2:], os.getpid()
if sys.platform == "linux":
    prctl = ctypes.CDLL(None).prctl
    if os.fork() == 0:
        guard()
    prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process has ended")
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
try:
    os.execvp(argv[0], argv)
except OSError as exc:
    sys.exit(f"cannot run {argv[0]}: {exc.strerror}")
"""
_GUARD_TIMEOUT = 5.0 if sys.platform == "linux" else 0.0  # seconds until we do the guard's work ourselves


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a process that died is started again: after 1, 2, 4 ... 30 seconds, and not for ever.

    A process that was up for `stable_after` seconds has no past: the next delay is the first one again. After
    `give_up_after` failures in a row without such a time, it is left alone.
    """

    first_delay: float = 1.0
    longest_delay: float = 30.0
    stable_after: float = 60.0
    give_up_after: int = 5

    def delay(self, failures: int) -> float:
        """Seconds to wait after the given number of failures in a row (1 or more)."""
        return min(self.first_delay * 2.0 ** (failures - 1), self.longest_delay)


def private_socket_path() -> Path:
    """A new path for an engine's socket, in a folder of its own that `EngineProcess` makes (0700) and removes."""
    folder = f"thinkserve-{secrets.token_hex(8)}"
    path = Path(tempfile.gettempdir(), folder, "engine.sock")
    if len(os.fsencode(path)) >= SOCKET_PATH_LIMIT:
        path = Path("/tmp", folder, "engine.sock")
    return path


class EngineProcess:
    """One engine process, its process group, its log and its restarts.

    Attributes:
        restarts: how often it was started again after it had died by itself.
        failed: why it is no longer restarted, or None.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        socket: Path,
        env: Mapping[str, str] | None = None,
        name: str = "engine",
        health_path: str = "/health",
        start_timeout: float = 600.0,
        stop_grace: float = 30.0,
        restart: RestartPolicy | None = None,
        log_file: Path | None = None,
    ) -> None:
        """Describe the process; nothing is started yet.

        Args:
            argv: the command; it must listen on `socket` by itself.
            socket: a path from `private_socket_path()`; its folder must not exist while the process is stopped.
            env: the whole environment of the process; None means ours.
            name: what messages and logs call it.
            health_path: answers 200 once the engine can generate.
            start_timeout: seconds until it must answer.
            stop_grace: seconds between SIGTERM and SIGKILL.
            restart: when to start it again; None means the defaults.
            log_file: gets everything the process writes, appended (created 0600).
        """
        self.name = name
        self.socket = socket
        self.restarts = 0
        self.failed: str | None = None
        self._argv = list(argv)
        self._env = None if env is None else dict(env)
        self._health_path = health_path
        self._start_timeout = start_timeout
        self._stop_grace = stop_grace
        self._restart = restart or RestartPolicy()
        self._log_file = log_file
        self._log = _Log(name, None)
        self._process: asyncio.subprocess.Process | None = None
        self._ready_at: float | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The engine's main process, which leads its process group; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def ready(self) -> bool:
        """Whether the current process has answered."""
        return self._ready_at is not None

    def log_tail(self) -> list[str]:
        """The last lines that the current (or last) process wrote."""
        return list(self._log.tail)

    async def start(self) -> None:
        """Start it and return when it answers.

        Raises:
            EngineError: it ended or the time was over before it answered (the message holds the last lines of its
                log), or `stop()` came first. Nothing of it is left then.
        """
        if self._supervisor is not None and not self._supervisor.done():
            raise EngineError(f"{self.name} is already started")
        self.failed = None
        self._stopping = False
        answers: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(answers), name=f"supervise {self.name}")
        try:
            await asyncio.wait((answers, self._supervisor), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if not answers.done():
            raise EngineError(self.failed or f"{self.name} was stopped while it started")

    async def stop(self) -> None:
        """End it and everything it started, and remove its socket; safe at any moment, and more than once."""
        if self._supervisor is None:
            return
        if not self._stopping:  # a second cancel would cut the first one's clean-up short
            self._stopping = True
            self._supervisor.cancel()
        await asyncio.wait([self._supervisor])

    async def _supervise(self, answers: asyncio.Future[None]) -> None:
        """Own the process for its whole life, so that cancelling this task is all that stopping means."""
        try:
            _make_private(self.socket.parent)
            await self._launch()
            answers.set_result(None)
            await self._keep_alive()
        except EngineError as exc:
            self.failed = str(exc)
        finally:
            await self._end(self._stop_grace)
            shutil.rmtree(self.socket.parent, ignore_errors=True)

    async def _keep_alive(self) -> None:
        """Start it again each time it dies.

        Raises:
            EngineError: it failed too often in a row.
        """
        failures = 0
        while self._process is not None:
            await self._process.wait()
            up = time.monotonic() - (self._ready_at or 0.0)
            report = await self._report_end(f"died after {up:.0f} s")
            if up >= self._restart.stable_after:
                failures = 0
            while self._process is None:
                failures += 1
                if failures >= self._restart.give_up_after:
                    logger.error("%s; given up after %d failures in a row", _one_line(report), failures)
                    raise EngineError(f"gave up after {failures} failures in a row; the last one: {report}")
                delay = self._restart.delay(failures)
                logger.error("%s; starting it again in %g s", _one_line(report), delay)
                await asyncio.sleep(delay)
                self.restarts += 1
                try:
                    await self._launch()
                except EngineError as exc:
                    report = str(exc)

    async def _launch(self) -> None:
        """Spawn the process and wait until it answers; a process that does not is gone when this raises."""
        self.socket.unlink(missing_ok=True)  # left by a killed process: vLLM cannot bind an existing path
        await self._spawn()
        try:
            async with asyncio.timeout(self._start_timeout):
                answers = await self._until_healthy()
        except TimeoutError:
            answers, event = False, f"did not answer within {self._start_timeout:g} s"
        else:
            event = "ended before it answered"
        if not answers:
            raise EngineError(await self._report_end(event))
        self._ready_at = time.monotonic()

    async def _spawn(self) -> None:
        try:
            self._log = _Log(self.name, self._log_file)
            # A pipe of our own: asyncio's would tie `wait()` to every child that holds it open.
            read_fd, write_fd = os.pipe()
            try:
                reader = os.fdopen(read_fd, "rb", 0)
                await asyncio.get_running_loop().connect_read_pipe(lambda: self._log, reader)
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *self._argv),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write_fd,
                    stderr=write_fd,
                    env=self._env,
                    start_new_session=True,
                )
            finally:
                os.close(write_fd)
        except OSError as exc:
            raise EngineError(f"{self.name} could not be started: {exc}") from exc
        logger.info("%s started, pid %d", self.name, self._process.pid)

    async def _until_healthy(self) -> bool:
        """Probe until the engine answers (True) or its process has ended (False)."""
        connector, timeout = aiohttp.UnixConnector(str(self.socket)), aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            while self._process is not None and self._process.returncode is None:
                # OSError: nothing listens yet; the others: it listens, but is not up to it yet.
                with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with session.get(f"http://localhost{self._health_path}") as response:
                        if response.status == 200:
                            return True
                await asyncio.sleep(PROBE_INTERVAL)
        return False

    async def _report_end(self, event: str) -> str:
        """Reap the process and say in a few lines what happened to it."""
        code = None if self._process is None else self._process.returncode
        await self._end(grace=0)
        how = "" if code is None else f" ({_exit_text(code)})"
        lines = self.log_tail()[-REPORTED_LINES:]
        log = "".join(f"\n  {line}" for line in lines) if lines else " nothing"
        return f"{self.name} {event}{how}; the last it wrote:{log}"

    async def _end(self, grace: float) -> None:
        """End the process group, reap its leader and read its log to the end."""
        process = self._process
        if process is None:
            return
        if grace > 0 and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        # Every process of the group writes into our pipe, and the guard lives longest: the end of the pipe is theirs.
        if not await self._log.is_complete(_GUARD_TIMEOUT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await self._log.is_complete(1)  # a process that left the group may hold the pipe for ever
        self._log.close()
        self._process = self._ready_at = None


class _Log(asyncio.Protocol):
    """Reads what a process writes: keeps the last lines, passes each on to `logging` and the log file."""

    def __init__(self, name: str, path: Path | None) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._name = name
        self._file: io.FileIO | None = None
        if path is not None:
            private = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = os.fdopen(private, "ab", buffering=0)
        self._transport: asyncio.BaseTransport | None = None
        self._rest = b""
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._file is not None:
            with contextlib.suppress(
                OSError
            ):  # a full disk must not close the pipe: that would end the engine
                self._file.write(data)
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = rest[: 4 * LINE_LIMIT]  # a line without an end must not grow for ever
        for line in lines:
            self._keep(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep(self._rest)
        if self._file is not None:
            self._file.close()
        self._closed.set()

    async def is_complete(self, seconds: float) -> bool:
        """Whether every process that could write has ended within so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
        return self._closed.is_set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _keep(self, line: bytes) -> None:
        if text := line.decode(errors="replace").rstrip()[:LINE_LIMIT]:
            self.tail.append(text)
            logger.debug("%s: %s", self._name, text)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except OSError as exc:
        raise EngineError(f"cannot make the folder {folder} for the engine's socket: {exc.strerror}") from exc


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _one_line(report: str) -> str:
    return report.replace("\n ", " |")


class ProcessEngine:
    """An engine that is one `EngineProcess`: what the local engines have in common beside how they are started."""

    endpoint: Endpoint
    _process: EngineProcess

    @property
    def restarts(self) -> int:
        """How often it died and was started again."""
        return self._process.restarts

    @property
    def failed(self) -> str | None:
        """Why it is no longer restarted, or None."""
        return self._process.failed

    @property
    def pid(self) -> int | None:
        """Its main process, which leads its process group; None while there is none."""
        return self._process.pid

    async def start(self) -> None:
        """Start it and return when it answers.

        Raises:
            EngineError: it ended before it answered; the message holds the last lines of its log.
        """
        await self._process.start()

    async def stop(self) -> None:
        """Let it finish what it is generating, for a bounded time, then end all of its processes."""
        await self._process.stop()
