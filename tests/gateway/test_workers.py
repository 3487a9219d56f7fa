"""A gateway of several processes: connections are spread, a dead worker comes back, signals reach all, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import msgspec
import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from tests.gateway.scripted import JSON, Script, ScriptedUpstream, Wait
from thinkserve.engines.engine import Endpoint
from thinkserve.engines.process import EngineProcess, ProcessEngine, private_socket_path
from thinkserve.errors import UsageError
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys, read_keys
from thinkserve.gateway.server import check_address, reserve_port
from thinkserve.pocket import CHECKPOINT
from thinkserve.serve import ServeConfig, make_engines, run
from thinkserve.source import Source
from thinkserve.thoughts import get_format

BODY: JSON = {"messages": [{"role": "user", "content": "Hi"}]}
THINKING = ["Here is my thought process:\n", "SECRET\n"]
ANSWERING = [*THINKING, "Here is my response:\n", "Hel", "lo"]
PATH = "/v1/chat/completions"

SERVER = """
import asyncio, pickle, sys
from thinkserve.errors import ThinkserveError
from thinkserve.serve import run
config = pickle.loads(sys.stdin.buffer.read())
def announce(gateway, url):
    print(url, flush=True)
try:
    asyncio.run(run(config, announce=announce))
except ThinkserveError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def config_of(*upstreams: str, keys: Keys | None = None, port: int = 0, **settings: Any) -> ServeConfig:
    """Two workers in front of these servers."""
    gateway = {name: settings.pop(name) for name in ("drain_seconds", "thought_log") if name in settings}
    return ServeConfig(
        **{"source": Source(None, upstreams), "workers": 2, **settings},
        engine="transformers",
        engine_args=(),
        gateway=GatewayConfig(format=get_format("tpo-generic"), model_name="thinker", **gateway),
        keys=keys or Keys({}),
        host="127.0.0.1",
        port=port,
    )


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal():
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    found.append(int(entry.name))
    return sorted(found)


def started_since(before: list[int]) -> list[int]:
    """Our processes that were not there before."""
    return [pid for pid in children(os.getpid()) if pid not in before]


@dataclass
class Served:
    """A server that runs as a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    http: aiohttp.ClientSession

    @property
    def workers(self) -> list[int]:
        return children(self.process.pid)

    async def post(self, key: str = "none") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {key}"}
        async with self.http.post(self.url + PATH, json=BODY, headers=headers) as response:
            return response.status, await response.read()

    def counts(self) -> dict[int, float]:
        """How many requests each worker has answered, by its process."""
        folder = Path(environment(self.workers[0])["PROMETHEUS_MULTIPROC_DIR"])
        counts = {}
        for pid in self.workers:
            files = [str(file) for file in folder.glob(f"counter_{pid}.db")]
            metrics = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
            counts[pid] = sum(
                sample.value
                for metric in metrics
                if metric.name == "thinkserve_requests"
                for sample in metric.samples
                if sample.labels["status"] == "200"
            )
        return counts


def public_of(pid: int) -> bytes:
    """What every process of the machine may read of another, or at least of its user."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


def run_still(pids: list[int]) -> bool:
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where servers put their private files."""
    tmp_path_factory.getbasetemp()  # made now, so that it is not made in the folder, and removed with it
    with tempfile.TemporaryDirectory(prefix="ts-", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@pytest.fixture
async def serve(folder: Path) -> AsyncIterator[Serve]:
    """Starts servers: `await serve(config)`. They have ended, and left nothing, when the test is over."""
    async with AsyncExitStack() as stack:

        async def start(config: ServeConfig, command: Sequence[str] = ()) -> Served:
            process = await asyncio.create_subprocess_exec(
                *command,
                *(sys.executable, "-c", SERVER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(end, process)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(pickle.dumps(config))
            process.stdin.close()
            url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
            if not url:
                assert process.stderr is not None
                raise AssertionError((await process.stderr.read()).decode())
            # A connection for each request: they are what is dealt out.
            http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
            await stack.enter_async_context(http)
            return Served(process, url, http)

        yield start


async def end(process: asyncio.subprocess.Process) -> None:
    workers = children(process.pid)
    if process.returncode is None:
        process.kill()
    await process.communicate()
    await until(lambda: not run_still(workers))


async def test_requests_are_spread_a_killed_worker_comes_back_and_the_others_serve_meanwhile(
    serve: Serve,
) -> None:
    """Under load. Metrics tell those of all workers, also of the dead; no key is where other users could read it."""
    async with ScriptedUpstream(Script(ANSWERING, delay=0.01)) as engine:
        keys = Keys({"sk-client-key": "client"})
        served = await serve(config_of(engine.url, keys=keys, upstream_api_key="sk-engine-key"))
        answers = await asyncio.gather(*(served.post("sk-client-key") for _ in range(60)))
        assert all(status == 200 and b"Hello" in body for status, body in answers)
        assert engine.requests[0].headers["Authorization"] == "Bearer sk-engine-key"
        before = served.counts()
        assert len(before) == 2 and min(before.values()) > 0 and sum(before.values()) == 60

        for pid in served.workers:
            assert b"sk-" not in public_of(pid)

        killed, other = served.workers
        ended: list[str] = []
        stopping = False

        async def client() -> None:
            while not stopping:
                try:
                    status, body = await served.post("sk-client-key")
                    ended.append("right" if status == 200 and b"Hello" in body else f"{status} {body!r}")
                except aiohttp.ClientError:  # its worker was killed
                    ended.append("broken")

        clients = [asyncio.create_task(client()) for _ in range(16)]
        await asyncio.sleep(0.3)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: killed not in served.workers)
        await asyncio.sleep(0.1)
        served_alone = len(ended)
        await until(lambda: len(ended) > served_alone + 20)
        assert served.workers == [other] or len(served.workers) == 2
        await until(lambda: len(served.workers) == 2 and min(served.counts().values()) > 5)
        stopping = True
        await asyncio.gather(*clients)
        assert set(ended) <= {"right", "broken"} and 0 < ended.count("broken") <= 16, set(ended)

        total = 60 + ended.count("right")
        async with served.http.get(f"{served.url}/metrics") as response:
            text = await response.text()
        line = next(
            line
            for line in text.splitlines()
            if line.startswith("thinkserve_requests_total") and PATH in line and 'status="200"' in line
        )
        # Of the killed worker's, those count that it had answered; the client may have lost the end of such an answer.
        assert total <= float(line.split()[-1]) <= total + ended.count("broken")


async def streams_on_all(served: Served, stack: AsyncExitStack) -> list[aiohttp.ClientResponse]:
    """Begin streams until both workers have one; each has shown its beginning."""
    streams = []
    for _ in range(12):
        response = await stack.enter_async_context(
            served.http.post(served.url + PATH, json={**BODY, "stream": True})
        )
        await response.content.readuntil(b"\n\n")
        streams.append(response)
    return streams


async def test_sigterm_lets_all_workers_drain(serve: Serve, folder: Path) -> None:
    """Running streams end well, new requests get a 503, then all is gone."""
    release = asyncio.Event()
    script = Script([*THINKING, Wait(release), *ANSWERING[len(THINKING) :]])
    async with ScriptedUpstream(script) as engine, AsyncExitStack() as stack:
        served = await serve(config_of(engine.url))
        workers = served.workers
        streams = await streams_on_all(served, stack)
        served.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        late = [await served.post() for _ in range(6)]
        assert {status for status, _ in late} == {503} and all(b"draining" in body for _, body in late)
        release.set()
        for response in streams:
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(served.process.wait(), 10) == 0
        assert not run_still(workers)
        assert left_in(folder) == []
        assert served.process.stderr is not None
        assert b"Traceback" not in await served.process.stderr.read()


async def test_workers_end_with_their_parent_and_no_stream_is_cut_silently(serve: Serve) -> None:
    """Even when it is killed: each running stream ends with an error, without the thought."""
    release = asyncio.Event()
    async with ScriptedUpstream(Script([*THINKING, Wait(release)])) as engine, AsyncExitStack() as stack:
        served = await serve(config_of(engine.url))
        workers = served.workers
        streams = await streams_on_all(served, stack)
        served.process.kill()
        for response in streams:
            rest = await asyncio.wait_for(response.content.read(), 10)
            last = rest.strip().rsplit(b"\n\n", 1)[-1].removeprefix(b"data: ")
            assert msgspec.json.decode(last)["error"]["code"] == "draining" and b"SECRET" not in rest
        await until(lambda: not run_still(workers))


async def test_a_stream_that_does_not_end_is_ended_after_the_time_to_drain(serve: Serve) -> None:
    """The parent waits for its workers, not for ever."""
    async with ScriptedUpstream(Script([*THINKING, Wait(asyncio.Event())])) as engine:
        served = await serve(config_of(engine.url, drain_seconds=0.3))
        async with served.http.post(served.url + PATH, json={**BODY, "stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            served.process.send_signal(signal.SIGINT)
            assert b"draining" in await asyncio.wait_for(response.content.read(), 10)
        assert await asyncio.wait_for(served.process.wait(), 10) == 0


async def test_sighup_reaches_all_workers_and_one_that_starts_later_knows_the_new_keys(
    serve: Serve, tmp_path: Path
) -> None:
    """A key that was taken back must not come to life again in a worker that is started anew."""
    path = tmp_path / "keys"
    path.write_text("sk-old\n")

    async def statuses(key: str) -> set[int]:
        return {(await served.post(key))[0] for _ in range(12)}

    async with ScriptedUpstream(Script(ANSWERING)) as engine:
        served = await serve(config_of(engine.url, keys=read_keys(None, path)))
        assert await statuses("sk-old") == {200} and await statuses("sk-new") == {401}
        path.write_text("sk-new\n")
        served.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.3)
        assert await statuses("sk-old") == {401} and await statuses("sk-new") == {200}
        killed = served.workers
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        # One that is killed may listen for a moment more.
        await until(lambda: len(served.workers) == 2 and set(killed).isdisjoint(served.workers))
        await until(lambda: not refused(served.url))
        assert await statuses("sk-old") == {401} and await statuses("sk-new") == {200}


def refused(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) != 0


async def test_a_port_is_not_shared_with_another_server(serve: Serve) -> None:
    """With SO_REUSEPORT alone the second would start, and take half of the first one's clients."""
    async with ScriptedUpstream(Script(ANSWERING)) as engine:
        served = await serve(config_of(engine.url))
        port = int(served.url.rsplit(":", 1)[1])
        for workers in (1, 2):
            with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is in use"):
                await run(config_of(engine.url, port=port, workers=workers), announce=lambda *_: None)


def test_a_port_that_others_share_is_not_reserved() -> None:
    """Also where they came while the engines were being started."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is in use"):
            reserve_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_the_operators_to_mend(host: str) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on {host}:0"):
        check_address(host, 0)


def test_a_name_with_several_addresses_gets_one_port() -> None:
    """`localhost` may be two: clients of either come to the same server."""
    held, port = reserve_port("localhost", 0)
    assert port and {holder.getsockname()[1] for holder in held} == {port}
    for holder in held:
        holder.close()


async def test_what_a_worker_cannot_do_is_told_in_one_line(folder: Path) -> None:
    """Nothing is left of the others."""
    log = folder / "thoughts.jsonl"
    log.touch(mode=0o644)
    before = children(os.getpid())  # of other tests
    with pytest.raises(UsageError, match="others can read the thought log"):
        await run(config_of("http://127.0.0.1:9", thought_log=log), announce=lambda *_: None)
    assert started_since(before) == [] and left_in(folder) == [log.name]


_ENGINE = """
import asyncio, sys
from aiohttp import web
async def health(request): return web.Response()
async def models(request): return web.json_response({"data": [{"id": "pocket", "owned_by": "vllm"}]})
async def main():
    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, sys.argv[1]).start()
    await asyncio.sleep(600)
asyncio.run(main())
"""


class LightEngine(ProcessEngine):
    """A real engine process without a model in it."""

    made: ClassVar[list[LightEngine]] = []

    def __init__(
        self,
        checkpoint: str,
        *,
        model_name: str,
        extra_args: Sequence[str],
        name: str,
        env: dict[str, str],
    ) -> None:
        self.name = name
        self.env = env
        socket = private_socket_path()
        self.endpoint = Endpoint(base_url="http://localhost", uds=socket, model=model_name)
        command = [sys.executable, "-c", _ENGINE, str(socket)]
        self._process = EngineProcess(command, socket=socket, name=name, env=env, stop_grace=5)
        self.made.append(self)


async def test_engines_are_started_once_by_the_parent_and_their_restarts_are_known_to_all_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas for two workers. Cancelled, nothing is left of any."""
    monkeypatch.setattr("thinkserve.serve.TransformersEngine", LightEngine)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(LightEngine, "made", [])
    config = config_of(source=Source(str(CHECKPOINT), ()), replicas=2)
    before = children(os.getpid())  # of other tests
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        run(config, announce=lambda _, url: address.set_result(url), handle_signals=False)
    )
    try:
        waited: tuple[asyncio.Future[str], asyncio.Task[None]] = (address, serving)
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        engines = LightEngine.made
        assert [engine.name for engine in engines] == ["transformers-0", "transformers-1"]
        assert [engine.env["CUDA_VISIBLE_DEVICES"] for engine in engines] == ["4,5", "6,7"]
        pid = engines[1].pid
        assert pid is not None and len(started_since(before)) == 4
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engines[1].restarts == 1 and engines[1].pid is not None)
        await asyncio.sleep(1)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            for _ in range(8):
                async with http.get(f"{address.result()}/metrics") as response:
                    assert "thinkserve_engine_restarts 1.0" in await response.text()
    finally:
        serving.cancel()
        await asyncio.wait({serving})
    assert started_since(before) == [] and left_in(folder) == []


def test_replicas_are_of_engines_that_are_started_here() -> None:
    """And a server that is named twice would count twice."""
    with pytest.raises(UsageError, match="give --upstream once for each server"):
        make_engines(Source(None, ("http://a:1",)), "auto", "", (), replicas=2)
    with pytest.raises(UsageError, match="was given twice"):
        make_engines(Source(None, ("http://a:1", "http://b:1", "http://a:1/v1/")), "auto", "", ())


# As `setsid --ctty` does: a session of its own, whose terminal is the first argument.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
if sys.argv[2] == "nohup":
    import signal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.stdin.close()
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize("how", ["plain", "nohup"])
async def test_a_terminal_that_is_closed_ends_the_server_unless_it_was_told_to_go_on(
    how: str, folder: Path
) -> None:
    """SIGHUP means reload to a server, and the end to a command in a terminal; which it is, the terminal tells."""
    async with ScriptedUpstream(Script(ANSWERING)) as engine:
        master, slave = os.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", IN_TERMINAL, str(slave), how, sys.executable, "-c"),
            SERVER.replace("sys.stdin.buffer.read()", "open(sys.argv[1], 'rb').read()"),
            str(folder / "config"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[slave],
        )
        os.close(slave)
        (folder / "config").write_bytes(pickle.dumps(config_of(engine.url, workers=1)))
        try:
            assert process.stdout is not None
            url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
            process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.2)
            assert not refused(url), "with its terminal open it reads its keys again"
            os.close(master)
            if how == "plain":
                assert await asyncio.wait_for(process.wait(), 10) == 0
            else:
                await asyncio.sleep(0.5)
                assert not refused(url)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
