"""Engine processes as they are: real children, real signals, real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import aiohttp
import pytest
import uvloop

from thinkserve.engines.process import EngineProcess, RestartPolicy, private_socket_path
from thinkserve.errors import EngineError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Binds its socket as vLLM does: a file that is already there is an error. `notes` is a folder it writes into.
SERVER = """
import signal, socket, subprocess, sys, time
from pathlib import Path

path, notes, mode = sys.argv[1], Path(sys.argv[2]), set(sys.argv[3:])
print("starting, stdin says", repr(sys.stdin.read()), flush=True)
if "chatty" in mode:
    for number in range(1000):
        print("line", number, "x" * 5000, file=sys.stderr, flush=True)
if "child" in mode:
    # A child that does not end at SIGTERM and holds our output open.
    code = "import signal, time; from pathlib import Path\\n"
    code += f"signal.signal(15, lambda *_: Path({str(notes)!r}, 'child-got-sigterm').touch())\\n"
    code += f"Path({str(notes)!r}, 'child-is-up').touch()\\n"
    code += "while True: time.sleep(0.1)"
    child = subprocess.Popen([sys.executable, "-c", code])
    (notes / "child").write_text(str(child.pid))
    while not (notes / "child-is-up").exists():
        time.sleep(0.01)
if "shared" in mode:
    from multiprocessing.shared_memory import SharedMemory
    (notes / "shared").write_text(SharedMemory(create=True, size=100).name)
if "die" in mode or ("die-later" in mode and (notes / "started").exists()):
    print("no such checkpoint", file=sys.stderr)
    sys.exit(3)
if "stubborn" in mode:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(notes / "started").touch()
if "mute" in mode:
    time.sleep(600)
awake = time.monotonic() + (0.3 if "slow" in mode else 0)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    status = "200 OK" if time.monotonic() > awake else "503 Service Unavailable"
    connection.sendall(f"HTTP/1.1 {status}\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n".encode())
    connection.close()
"""

FAST = RestartPolicy(first_delay=0.05, give_up_after=3)


class Engine:
    """An `EngineProcess` of the server above, in the given modes."""

    def __init__(
        self, notes: Path, *modes: str, restart: RestartPolicy = FAST, **options: float | Path
    ) -> None:
        self.notes = notes
        self.socket = private_socket_path()
        script = notes / "server.py"
        script.write_text(SERVER)
        self.process = EngineProcess(
            [sys.executable, str(script), str(self.socket), str(notes), *modes],
            socket=self.socket,
            name="toy",
            restart=restart,
            **{"start_timeout": 20.0, "stop_grace": 5.0, **options},  # type: ignore[arg-type]
        )

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def child(self) -> int:
        return int((self.notes / "child").read_text())

    async def answers(self) -> bool:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session:
            try:
                async with session.get("http://localhost/health") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

    async def is_back(self, restarts: int) -> None:
        await until(lambda: self.process.restarts == restarts and self.process.ready)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running one."""
    engine = Engine(tmp_path)
    await engine.process.start()
    yield engine
    await engine.process.stop()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  (nothing tells us)
            await asyncio.sleep(0.02)


async def all_gone(pids: Iterable[int]) -> None:
    pids = list(pids)
    await until(lambda: not any(is_alive(pid) for pid in pids), 5)


def processes_that_mention(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if text.encode() in (folder / "cmdline").read_bytes() and is_alive(int(folder.name)):
                    found.append(int(folder.name))
    return found


# Starting and stopping


async def test_start_returns_when_the_process_answers(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "slow")
    await engine.process.start()
    assert await engine.answers()
    await engine.process.stop()


async def test_stop_leaves_no_process_and_no_socket(engine: Engine) -> None:
    await engine.process.stop()
    assert not processes_that_mention(str(engine.socket))
    assert not engine.socket.parent.exists()


async def test_stop_may_come_twice_and_before_the_start(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    await engine.process.stop()
    await engine.process.start()
    await asyncio.gather(engine.process.stop(), engine.process.stop())
    await engine.process.stop()
    assert not processes_that_mention(str(engine.socket))


async def test_a_stopped_process_can_be_started_again(engine: Engine) -> None:
    await engine.process.stop()
    await engine.process.start()
    assert await engine.answers()


async def test_a_second_start_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="already started"):
        await engine.process.start()
    assert await engine.answers()


async def test_only_our_user_can_reach_the_socket(engine: Engine) -> None:
    assert stat.S_IMODE(engine.socket.parent.stat().st_mode) == 0o700


async def test_its_standard_input_is_empty(engine: Engine) -> None:
    assert "starting, stdin says ''" in engine.process.log_tail()


def test_socket_path_is_short_enough_where_the_temporary_folder_is_deep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("deep" * 30)))
    assert len(os.fsencode(private_socket_path())) < 104


def test_no_two_socket_paths_are_the_same() -> None:
    assert private_socket_path() != private_socket_path()


# Failing to start


async def test_death_before_it_answers_raises_with_exit_code_and_last_lines(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "die")
    with pytest.raises(
        EngineError, match=r"(?s)ended before it answered \(exit code 3\).*no such checkpoint"
    ):
        await engine.process.start()
    assert engine.process.failed is not None
    assert not engine.socket.parent.exists()


async def test_a_command_that_does_not_exist_is_an_engine_error(tmp_path: Path) -> None:
    process = EngineProcess([str(tmp_path / "missing")], socket=private_socket_path())
    with pytest.raises(EngineError, match="No such file or directory"):
        await process.start()


async def test_a_process_that_does_not_answer_in_time_is_killed(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "mute", start_timeout=1.0)
    with pytest.raises(EngineError, match="did not answer within 1 s"):
        await engine.process.start()
    assert not processes_that_mention(str(engine.socket))


async def test_an_error_shows_only_the_last_lines_and_no_endless_ones(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "chatty", "die")
    with pytest.raises(EngineError, match="line 999") as error:
        await engine.process.start()
    assert "line 900" not in str(error.value)
    assert len(str(error.value)) < 10_000


async def test_stop_during_the_start_ends_both(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "mute")
    start = asyncio.create_task(engine.process.start())
    await until((tmp_path / "started").exists)
    await engine.process.stop()
    with pytest.raises(EngineError, match="was stopped while it started"):
        await start
    assert not processes_that_mention(str(engine.socket))


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 5, 10, 20, 50, 100])
async def test_stop_at_any_moment_of_the_start_leaves_nothing(tmp_path: Path, milliseconds: int) -> None:
    engine = Engine(tmp_path, "child", stop_grace=0.2)
    start = asyncio.create_task(engine.process.start())
    await asyncio.sleep(milliseconds / 1000)
    await engine.process.stop()
    with pytest.raises(EngineError, match="was stopped while it started"):
        await start
    assert not processes_that_mention(str(engine.socket))
    assert not processes_that_mention(str(tmp_path))
    assert not engine.socket.parent.exists()


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "mute")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.process.start(), 1)
    assert not processes_that_mention(str(engine.socket))
    assert not engine.socket.parent.exists()


# Dying and coming back


async def test_a_killed_process_comes_back_at_the_same_socket_and_is_counted(engine: Engine) -> None:
    first = engine.pid
    os.kill(first, signal.SIGKILL)
    await engine.is_back(restarts=1)
    assert engine.pid != first
    assert await engine.answers()
    assert engine.process.restarts == 1
    assert engine.process.failed is None


async def test_each_death_is_one_log_line_with_its_signal(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    os.kill(engine.pid, signal.SIGKILL)
    await engine.is_back(restarts=1)
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert re.match(r"toy died after \d+ s \(killed by SIGKILL\)", message)
    assert "\n" not in message


async def test_the_restart_waits_for_the_delay(tmp_path: Path) -> None:
    engine = Engine(tmp_path, restart=RestartPolicy(first_delay=0.8))
    await engine.process.start()
    killed = time.monotonic()
    os.kill(engine.pid, signal.SIGKILL)
    await engine.is_back(restarts=1)
    assert time.monotonic() - killed > 0.8
    await engine.process.stop()


def test_delays_double_up_to_the_longest() -> None:
    assert [RestartPolicy().delay(failures) for failures in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


async def test_it_gives_up_after_failures_in_a_row(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "die-later")
    await engine.process.start()
    os.kill(engine.pid, signal.SIGKILL)
    await until(lambda: engine.process.failed is not None)
    assert engine.process.failed is not None
    assert "gave up after 3 failures in a row" in engine.process.failed
    assert "no such checkpoint" in engine.process.failed
    assert engine.process.restarts == 2
    await engine.process.stop()
    assert not engine.socket.parent.exists()


async def test_a_process_that_was_up_for_long_is_never_given_up(tmp_path: Path) -> None:
    engine = Engine(tmp_path, restart=RestartPolicy(first_delay=0.05, stable_after=0.0, give_up_after=2))
    await engine.process.start()
    for death in (1, 2, 3):
        os.kill(engine.pid, signal.SIGKILL)
        await engine.is_back(restarts=death)
    assert engine.process.failed is None
    await engine.process.stop()


async def test_stop_while_it_waits_to_restart_ends_it(tmp_path: Path) -> None:
    engine = Engine(tmp_path, restart=RestartPolicy(first_delay=60.0))
    await engine.process.start()
    pid = engine.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: engine.process.pid is None)
    await asyncio.wait_for(engine.process.stop(), 5)
    assert engine.process.restarts == 0
    assert not engine.socket.parent.exists()


# The whole tree


async def test_stop_kills_the_children_too(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "child")
    await engine.process.start()
    child = engine.child
    await engine.process.stop()
    await all_gone([child])


async def test_only_the_main_process_is_told_to_stop(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "child")
    await engine.process.start()
    await engine.process.stop()
    assert not (tmp_path / "child-got-sigterm").exists()


async def test_children_of_a_killed_process_are_killed_before_the_next_one_starts(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "child")
    await engine.process.start()
    first_child = engine.child
    os.kill(engine.pid, signal.SIGKILL)
    await engine.is_back(restarts=1)
    assert not is_alive(first_child)
    assert is_alive(engine.child)
    await engine.process.stop()


async def test_a_killed_process_leaves_no_shared_memory(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "shared", "child")
    await engine.process.start()
    shared = f"/dev/shm/{(tmp_path / 'shared').read_text()}"
    assert os.path.exists(shared)  # noqa: ASYNC240
    os.kill(engine.pid, signal.SIGKILL)
    await engine.is_back(restarts=1)
    assert not os.path.exists(shared)  # noqa: ASYNC240
    await engine.process.stop()


async def test_the_tree_is_killed_even_without_its_guard(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "child")
    await engine.process.start()
    pids = [engine.pid, engine.child]
    (guard,) = [pid for pid in processes_that_mention(str(engine.socket)) if pid not in pids]
    os.kill(guard, signal.SIGKILL)
    await engine.process.stop()
    await all_gone(pids)


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    engine = Engine(tmp_path, "stubborn", "child", stop_grace=0.5)
    await engine.process.start()
    pids = [engine.pid, engine.child]
    began = time.monotonic()
    await engine.process.stop()
    assert 0.5 <= time.monotonic() - began < 5
    await all_gone(pids)


PARENT = """
import asyncio, sys
from pathlib import Path
from thinkserve.engines.process import EngineProcess

async def main():
    socket, *argv = sys.argv[1:]
    process = EngineProcess(argv, socket=Path(socket))
    await process.start()
    print(process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_nothing_is_left_when_our_own_process_is_killed(tmp_path: Path) -> None:
    """SIGKILL to the process that supervises: it cannot clean up, the kernel and the guard must."""
    engine = Engine(tmp_path, "child", "stubborn")
    argv = [
        sys.executable,
        str(tmp_path / "server.py"),
        str(engine.socket),
        str(tmp_path),
        "child",
        "stubborn",
    ]
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(engine.socket), *argv), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pids = [int(await asyncio.wait_for(parent.stdout.readline(), 20)), engine.child]
    assert all(is_alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    await all_gone(pids)
    await all_gone(processes_that_mention(str(engine.socket)))
    shutil.rmtree(engine.socket.parent)


# The log


async def test_the_log_file_gets_everything_and_is_private(tmp_path: Path) -> None:
    log_file = tmp_path / "engine.log"
    engine = Engine(tmp_path, "chatty", log_file=log_file)
    await engine.process.start()
    await engine.process.stop()
    assert sum(line.startswith("line ") for line in log_file.read_text().splitlines()) == 1000
    assert stat.S_IMODE(log_file.stat().st_mode) == 0o600


async def test_a_log_file_that_cannot_be_written_is_an_engine_error(tmp_path: Path) -> None:
    engine = Engine(tmp_path, log_file=tmp_path / "missing" / "engine.log")
    with pytest.raises(EngineError, match=r"engine\.log"):
        await engine.process.start()


def test_it_works_the_same_under_uvloop(tmp_path: Path) -> None:
    async def live() -> None:
        engine = Engine(tmp_path, "child")
        await engine.process.start()
        first = [engine.pid, engine.child]
        os.kill(engine.pid, signal.SIGKILL)
        await engine.is_back(restarts=1)
        second = [engine.pid, engine.child]
        await engine.process.stop()
        await all_gone([*first, *second])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())
