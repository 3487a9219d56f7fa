"""Whether a gateway stays the size it is: many mixed requests through one process, or many idle streams held by it.

    python benchmarks/soak.py [--requests 100000] [--connections 32] [--seconds 900] [--gate] [--json FILE]
    python benchmarks/soak.py --idle 2000 [--hold 20] [--gate] [--json FILE]

`thinkserve serve --upstream` over the scripted engine of `scripted_upstream.py`. **Soak**: streams, whole answers, paced
streams, long thoughts, clients that leave while it thinks and while it answers, requests that are refused, outputs that
break their format, engines that refuse and engines that are lost in the middle. Every answer is checked: its status,
how much of the response came, and that nothing of a thought did. It runs in ten phases; between two, all clients leave,
and the gateway's resident memory, open files and tasks are counted. **Idle**: streams whose engine thinks a token a
second; keep-alives flow to every client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs as a script, from anywhere
from benchmarks.gateway import free_port, models, wait_until
from benchmarks.load import Exchange, request_bytes
from benchmarks.scripted_upstream import Engine, Plan, writes_of

MODEL = "scripted"
PHASES = 10
KEEPALIVE = b"\n: "
TASKS_FILE = "THINKSERVE_SOAK_TASKS"
# What an exchange may take, and how long the gateway has to let go of what clients left behind.
ANSWER_SECONDS, SETTLE_SECONDS = 30.0, 2.0
# Gates: memory in MB (10^6 bytes).
MOST_GROWTH_MB, MOST_IDLE_MB, MOST_NEW_TASKS = 5.0, 300.0, 3


# --- what is asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of request, how it should be answered, and when its client leaves."""

    name: str
    weight: int
    request: bytes
    status: int = 200
    events: int = 0
    """Response events of its answer."""
    leaves_after: float | None = None
    """Seconds; None: the client stays."""


def planned(name: str, weight: int, plan: Plan, *, stream: bool = True) -> Shape:
    """A request that is answered as planned."""
    return Shape(name, weight, request_bytes(MODEL, plan.prompt, stream=stream), events=plan.response)


def leaving(name: str, weight: int, plan: Plan) -> Shape:
    """A stream whose client leaves long before its end."""
    return Shape(name, weight, request_bytes(MODEL, plan.prompt, stream=True), leaves_after=0.03)


def faulty(name: str, weight: int, fault: str, status: int, *, stream: bool = True, events: int = 0) -> Shape:
    """A request that the engine fails."""
    return Shape(name, weight, request_bytes(MODEL, f"fault={fault}", stream=stream), status, events)


def refused(name: str, weight: int, body: bytes) -> Shape:
    """A request that the gateway refuses."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return Shape(name, weight, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, 400)


CUT_EVENTS = 5
ENDLESS = 1000
SHAPES = (
    planned("stream", 30, Plan(8, 16)),
    planned("long stream", 8, Plan(8, 200)),
    planned("paced stream", 10, Plan(8, 8, delay_us=2000)),
    planned("whole", 25, Plan(8, 16, pad=72), stream=False),
    planned("long thought", 4, Plan(1000, 4)),
    planned("long thought, whole", 2, Plan(1000, 4), stream=False),
    leaving("leaves in the thought", 5, Plan(ENDLESS, 1, delay_us=5000)),
    leaving("leaves in the response", 5, Plan(8, ENDLESS, delay_us=5000)),
    refused("refused field", 3, b'{"model":"scripted","messages":[],"stop_token_ids":[1]}'),
    refused("no JSON", 2, b'{"model":'),
    faulty("refused by the engine", 2, "refuse", 400),
    faulty("broken format", 2, "broken", 502, stream=False),
    faulty("engine lost", 2, "cut", 200, events=CUT_EVENTS),
)
_FAULT = re.compile(rb"fault=(\w+)")


class FaultyEngine(Engine):
    """The scripted engine, which fails where it is asked to."""

    def _answer(self, request: bytes) -> None:
        found = _FAULT.search(request)
        if found is None:
            super()._answer(request)
        elif found[1] == b"refuse":
            body = b'{"error":{"message":"this engine was told to refuse","code":400}}'
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-length: {len(body)}\r\n"
            self._transport.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        elif found[1] == b"broken":
            # All but the closing marker and the response; the first write has them all.
            parts = writes_of(Plan(8, 1, delay_us=1))
            before, _, _ = parts[0].partition(b'"content":"\\nHere is my response')
            opened = before.rpartition(b"data: ")[0].rpartition(b"\r\n")[0].rpartition(b"\r\n")[0]
            self._transport.write(opened + b"\r\n" + parts[-1])
        else:
            parts = writes_of(Plan(8, ENDLESS, delay_us=1))
            self._transport.write(b"".join(parts[:CUT_EVENTS]))
            self._transport.close()


# --- processes -------------------------------------------------------------------------------------------------------


async def serve_upstream() -> None:
    """Be the engine."""
    server = await asyncio.get_running_loop().create_server(FaultyEngine, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def serve_gateway(arguments: list[str]) -> None:
    """Be the gateway, which tells how many tasks it has when it gets SIGUSR1."""
    from thinkserve.cli import main as thinkserve

    told = Path(os.environ[TASKS_FILE])

    def tell(number: int, frame: object) -> None:
        told.write_text(f"{len(asyncio.all_tasks())}\n")

    signal.signal(signal.SIGUSR1, tell)
    sys.argv = ["thinkserve", "serve", *arguments]
    thinkserve()


@contextmanager
def started(arguments: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """This file, run as something else, until the block ends."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(slots=True)
class Gateway:
    """The gateway under load."""

    pid: int
    port: int
    tasks_file: Path

    def resident_mb(self) -> float:
        """Resident memory in MB (10^6 bytes)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6

    def files(self) -> int:
        """Open files."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def tasks(self) -> int:
        """Asyncio tasks that have not ended."""
        self.tasks_file.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        for _ in range(int(ANSWER_SECONDS * 100)):
            await asyncio.sleep(0.01)
            if self.tasks_file.exists() and (text := self.tasks_file.read_text()).endswith("\n"):
                return int(text)
        sys.exit("the gateway does not tell its tasks")


# --- soak ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Count:
    """The gateway between two phases."""

    requests: int
    resident_mb: float
    files: int
    tasks: int
    seconds: float


@dataclass(slots=True)
class Tally:
    """How requests ended."""

    answered: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    leaked: int = 0


class Client:
    """One client: a request after the other, on one connection as long as that lives."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port, self._tally = port, tally
        self._over = asyncio.Event()
        self._exchange: Exchange | None = None

    async def ask(self, shape: Shape) -> None:
        """Send one request, and see that it is answered as it should be."""
        exchange = self._exchange
        if exchange is None or exchange.transport.is_closing():
            exchange = await self._connect()
        self._over.clear()
        exchange.send(shape.request)
        try:
            async with asyncio.timeout(shape.leaves_after or ANSWER_SECONDS):
                await self._over.wait()
        except TimeoutError:
            self.leave()
            self._count(shape, exchange, right=shape.leaves_after is not None)
            return
        right = exchange.status == shape.status and exchange.events == shape.events
        self._count(shape, exchange, right=right)

    def leave(self) -> None:
        """Drop the connection."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    async def _connect(self) -> Exchange:
        loop = asyncio.get_running_loop()
        _, self._exchange = await loop.create_connection(
            lambda: Exchange(lambda _: self._over.set()), "127.0.0.1", self._port
        )
        return self._exchange

    def _count(self, shape: Shape, exchange: Exchange, *, right: bool) -> None:
        self._tally.leaked += exchange.leaked
        if right and not exchange.leaked:
            self._tally.answered[shape.name] += 1
        else:
            self._tally.wrong[f"{shape.name}: {exchange.status}, {exchange.events} events"] += 1


async def soak(gateway: Gateway, args: argparse.Namespace) -> tuple[list[Count], Tally]:
    """All phases."""
    tally = Tally()
    source = random.Random(0)
    weights = [shape.weight for shape in SHAPES]
    began = time.monotonic()
    counts: list[Count] = []
    for phase in range(PHASES):
        upto = args.requests * (phase + 1) // PHASES - args.requests * phase // PHASES
        shapes = iter(source.choices(SHAPES, weights, k=upto))

        async def work(shapes: Iterator[Shape] = shapes) -> None:
            client = Client(gateway.port, tally)
            for shape in shapes:
                if time.monotonic() - began > args.seconds:
                    break
                await client.ask(shape)
            client.leave()

        async with asyncio.TaskGroup() as group:
            for _ in range(args.connections):
                group.create_task(work())
        await asyncio.sleep(SETTLE_SECONDS)
        asked = tally.answered.total() + tally.wrong.total()
        seconds = time.monotonic() - began
        counts.append(Count(asked, gateway.resident_mb(), gateway.files(), await gateway.tasks(), seconds))
        print(shown(counts[-1]), flush=True)
        if seconds > args.seconds:
            print(f"the time of {args.seconds:g} s is over")
            break
    return counts, tally


def shown(count: Count) -> str:
    """A line of the table."""
    return (
        f"{count.requests:9,d} requests {count.seconds:6.1f} s   {count.resident_mb:6.1f} MB "
        f"{count.files:5d} files {count.tasks:5d} tasks"
    )


def gate(what: str, value: float, most: float, unit: str) -> bool:
    """Print a gate; returns whether it is kept."""
    kept = value <= most
    print(f"{what}: {value:.1f} {unit}, <= {most:g} {'ok' if kept else 'MISSED'}")
    return kept


def report_soak(counts: list[Count], tally: Tally, connections: int) -> tuple[bool, dict[str, object]]:
    """Print what came of it."""
    warm, last = counts[0], counts[-1]
    for name, number in sorted(tally.answered.items()):
        print(f"  {name}: {number:,d}")
    for name, number in tally.wrong.most_common():
        print(f"  WRONG {name}: {number:,d}")
    kept = [
        gate("wrong answers", tally.wrong.total(), 0, ""),
        gate("answers with a part of a thought", tally.leaked, 0, ""),
        gate(
            f"memory, from {warm.requests:,d} requests to {last.requests:,d}",
            max(count.resident_mb for count in counts) - warm.resident_mb,
            MOST_GROWTH_MB,
            "MB more",
        ),
        # Connections to the engine are kept for the next request.
        gate("open files", last.files - warm.files, connections, "more"),
        gate("tasks", last.tasks - warm.tasks, MOST_NEW_TASKS, "more"),
    ]
    rows = [(count.requests, count.seconds, count.resident_mb, count.files, count.tasks) for count in counts]
    return all(kept), {"counts": rows, "answered": tally.answered, "wrong": tally.wrong}


# --- idle streams ----------------------------------------------------------------------------------------------------


class Idler(Exchange):
    """A stream that only gets keep-alives."""

    def __init__(self, on_done: Callable[[Exchange], None]) -> None:
        super().__init__(on_done)
        self.beats = 0

    def data_received(self, data: bytes) -> None:
        self.beats += data.count(KEEPALIVE)
        super().data_received(data)


async def idle(gateway: Gateway, args: argparse.Namespace) -> tuple[bool, dict[str, object]]:
    """Hold idle streams, then let go of them."""
    loop = asyncio.get_running_loop()
    before = Count(0, gateway.resident_mb(), gateway.files(), await gateway.tasks(), 0.0)
    request = request_bytes(MODEL, Plan(3600, 1, delay_us=1_000_000).prompt, stream=True)
    ended: list[Exchange] = []
    idlers: list[Idler] = []
    began = time.monotonic()
    for _ in range(args.idle):
        _, idler = await loop.create_connection(lambda: Idler(ended.append), "127.0.0.1", gateway.port)
        idler.send(request)
        idlers.append(idler)
    opened = time.monotonic() - began
    most = 0.0
    while time.monotonic() - began < opened + args.hold:
        await asyncio.sleep(1)
        most = max(most, gateway.resident_mb())
    cpu = time.clock_gettime((~gateway.pid << 3) | 2)
    await asyncio.sleep(5)
    cpu = (time.clock_gettime((~gateway.pid << 3) | 2) - cpu) / 5
    held = Count(args.idle, max(most, gateway.resident_mb()), gateway.files(), await gateway.tasks(), opened)
    beats = sorted(idler.beats for idler in idlers)
    leaked = sum(idler.leaked for idler in idlers)
    for idler in idlers:
        idler.close()
    await asyncio.sleep(SETTLE_SECONDS)
    after = Count(0, gateway.resident_mb(), gateway.files(), await gateway.tasks(), 0.0)
    for name, count in (("before", before), ("held", held), ("after", after)):
        print(
            f"{name:7s} {count.resident_mb:6.1f} MB {count.files:5d} files {count.tasks:5d} tasks", flush=True
        )
    a_stream = (held.resident_mb - before.resident_mb) * 1e3 / args.idle
    print(
        f"{args.idle:,d} streams opened in {opened:.1f} s, {a_stream:.1f} kB each; keep-alives a stream: "
        f"{beats[0]} to {beats[-1]} in {args.hold + 5:g} s; the gateway takes {cpu * 100:.0f} % of a core"
    )
    kept = [
        gate("memory with all streams held", held.resident_mb, MOST_IDLE_MB, "MB"),
        gate("streams that ended", len(ended), 0, ""),
        gate("streams with a part of a thought", leaked, 0, ""),
        gate("streams without a keep-alive", sum(not count for count in beats), 0, ""),
        gate("open files after", after.files - before.files, 8, "more"),
        gate("tasks after", after.tasks - before.tasks, MOST_NEW_TASKS, "more"),
    ]
    numbers = {"resident_mb": held.resident_mb, "kb_a_stream": a_stream, "cpu_share": cpu, "beats": beats[0]}
    return all(kept), numbers


# --- all of it -------------------------------------------------------------------------------------------------------


def allow_many_files(most: int) -> None:
    """Raise this process's limit on open files, which children inherit."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < most:
        sys.exit(f"{most} open files are needed, and {hard} are allowed (ulimit -Hn); ask for fewer streams")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def run(args: argparse.Namespace, folder: Path) -> tuple[bool, dict[str, object]]:
    """Start everything, put it under load, stop everything."""
    upstream_log, log = folder / "upstream.log", folder / "gateway.log"
    tasks_file = folder / "tasks"
    with started(["--upstream"], upstream_log, {}) as upstream:
        wait_until(lambda: upstream_log.read_text().endswith("\n"), upstream, upstream_log)
        port = free_port()
        arguments = ["--upstream", f"http://127.0.0.1:{int(upstream_log.read_text())}"]
        arguments += ["--thought-format", "tpo-generic", "--port", str(port), "--log-level", "error"]
        if args.idle:
            arguments += ["--keepalive-seconds", "2"]
        with started(["--gateway", *arguments], log, {TASKS_FILE: str(tasks_file)}) as process:
            wait_until(lambda: bool(models(port)), process, log)
            gateway = Gateway(process.pid, port, tasks_file)
            if args.idle:
                result = uvloop.run(idle(gateway, args))
            else:
                counts, tally = uvloop.run(soak(gateway, args))
                result = report_soak(counts, tally, args.connections)
        # That a client leaves, or an engine is lost, is nobody's bug.
        kept, numbers = result
        text = log.read_text()
        kept = gate("errors in the gateway's log", text.count(" ERROR "), 0, "") and kept
        if " ERROR " in text:
            print("the first of them:\n ... ERROR" + text.partition(" ERROR")[2][:3000])
    return kept, numbers


def main() -> int:
    """Parse, run, print."""
    if sys.argv[1:2] == ["--gateway"]:
        serve_gateway(sys.argv[2:])
        return 0
    if sys.argv[1:2] == ["--upstream"]:
        uvloop.run(serve_upstream())
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000, metavar="N")
    parser.add_argument("--connections", type=int, default=32, metavar="N", help="clients at a time")
    parser.add_argument("--seconds", type=float, default=900.0, metavar="S", help="end after this time")
    parser.add_argument("--idle", type=int, default=0, metavar="N", help="hold so many idle streams instead")
    parser.add_argument("--hold", type=float, default=20.0, metavar="S", help="hold them for so long")
    parser.add_argument("--gate", action="store_true", help="exit with 1 if a gate is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    args = parser.parse_args()
    allow_many_files(max(4 * args.idle, 1024) + 1024)
    with tempfile.TemporaryDirectory() as folder:
        kept, numbers = run(args, Path(folder))
    print(
        f"load 1 min {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; Python {platform.python_version()}"
    )
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    return 1 if args.gate and not kept else 0


if __name__ == "__main__":
    sys.exit(main())
