"""What the gateway costs: one run, one table, each number beside that of a pass-through measured in the same run.

    python benchmarks/gateway.py [--quick] [--gate] [--json FILE] [--profile FILE] [--realtime]
                                 [--target direct passthrough thinkserve litellm]

Targets, all over one scripted engine: `direct` (no proxy), `passthrough` (aiohttp server and client that relay bytes),
`thinkserve` (`thinkserve serve --upstream`, hiding on), `litellm` (if it can be imported, or $LITELLM is its executable).
Each proxy is one process pinned to one core; the engine and this load generator share another one.

- **non-stream**: a reply of 1.5 kB. Every proxy but thinkserve asks the engine for one JSON body; thinkserve asks for a
  stream, as it always does, and gathers it: 8 thought and 16 response events, 8 kB, written by the engine at once.
- **paced**: 5 ms between events of 222 bytes, so that each is a read of its own. *Visible*: a thought of 8 events in the first
  write, then response events. *Hidden*: thought events one by one, then a response of one event. CPU is the CPU time of
  the proxy's process (all threads, user and system) over the response events (visible) or thought events (hidden); what
  the request itself costs is in it.
- **time to first response**: short streams that begin together; the thought and the first response event are the engine's
  first write, so all of the time is overhead.
- **flatness**: CPU per hidden event of long thoughts against that of 500 events, over as many events or more, 1 ms
  apart.

Gates are thinkserve's, and absolute. They were set on a machine whose pass-through took 18 us an event and 0.19 ms a
request; where the pass-through itself is slower than that, the ratio tells more than the gate.

Statistic: the best of several rounds, in which the targets take turns, for neighbours on a shared machine only ever add
time; p99 is the median of the rounds. LiteLLM gets one small round, which saturates it. Absolute
numbers of two runs compare badly, ratios to the pass-through better.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import pstats
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere
from benchmarks.load import Load, closed_loop, request_bytes, wave
from benchmarks.scripted_upstream import Plan

HERE = Path(__file__).resolve().parent
TARGETS = ("direct", "passthrough", "thinkserve", "litellm")
START_SECONDS = 60.0
PACE_US = 5000

Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; times in seconds."""

    rounds: int
    seconds: float
    visible: int
    hidden: int
    first_waves: int
    bursts: int
    long_thoughts: tuple[int, ...]
    long_streams: int
    long_rounds: int


FULL = Sizes(3, 0.6, 300, 500, 12, 4, (4000, 8000), 8, 1)
QUICK = Sizes(1, 0.4, 200, 300, 8, 3, (4000,), 4, 1)
# It is saturated by all of this, so a little of it, once, tells as much.
LITELLM = Sizes(1, 0.4, 60, 60, 2, 1, (), 0, 0)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    unit: str
    better: str = "low"
    """`low` or `high`: which round is the best; `median`: none is."""
    gate: float | None = None


ROWS = (
    Row("non-stream c=1", "req/s", "high"),
    Row("non-stream c=1 p50", "ms"),
    Row("non-stream c=1 p50 added", "ms", gate=0.5),
    Row("non-stream c=32", "req/s", "high", gate=3000),
    Row("non-stream c=32 p50", "ms"),
    Row("non-stream c=32 p99", "ms", "median"),
    Row("burst 16x200", "events/s", "high"),
    Row("CPU a visible event, 16 streams", "us", gate=40),
    Row("CPU a visible event, 64 streams", "us", gate=40),
    Row("CPU a hidden event, 16 streams", "us", gate=25),
    Row("CPU a hidden event, 64 streams", "us", gate=25),
    Row("delivered, 64 streams", "events/s", "high"),
    Row("delivered of direct, 64 streams", "%", "high", gate=91),
    Row("first response p50, 16 streams", "ms"),
    Row("first response p50 added, 16 streams", "ms", gate=3),
    Row("first response p50, 64 streams", "ms"),
    Row("first response p50 added, 64 streams", "ms", gate=15),
    Row("CPU a hidden event, thought of 500", "us"),
    Row("CPU a hidden event, thought of 4000", "us"),
    Row("CPU a hidden event, thought of 8000", "us"),
    Row("flatness 4000 / 500", "x", gate=1.2),
    Row("flatness 8000 / 500", "x", gate=1.2),
    Row("resident memory at the end", "MB", gate=100),
)


@dataclass(slots=True)
class Target:
    """Something under load; `pid` is that of its process (None: direct)."""

    name: str
    port: int
    pid: int | None = None
    model: str = "scripted"
    rounds: list[Sample] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """The CPU time of its process so far, in nanosecond steps (ticks of /proc/PID/stat are 10 ms)."""
        # The clock id that clock_getcpuclockid(3) gives; Python has no name for it.
        return 0.0 if self.pid is None else time.clock_gettime((~self.pid << 3) | 2)

    def resident_mb(self) -> float:
        """Resident memory in MB (10^6 bytes)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6

    def request(self, plan: Plan, *, stream: bool = True) -> bytes:
        """A request for a plan."""
        return request_bytes(self.model, plan.prompt, stream=stream)


# --- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Whatever is started meanwhile runs on this core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(command: list[str], core: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to a core, stopped at the end."""
    with log.open("wb") as output, on_core(core):
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(check: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the check holds; end the program, with the log, if the process ends before or time runs out."""
    deadline = time.monotonic() + START_SECONDS
    while not check():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{process.args!r} did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


def models(port: int) -> list[str]:
    """The models that a server lists; none if it does not answer yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as answer:
            return [model["id"] for model in json.load(answer)["data"]]
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return []


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def litellm_executable() -> str | None:
    """The `litellm` command: $LITELLM, or that of this environment."""
    if named := os.environ.get("LITELLM"):
        return named
    here = Path(sys.executable).with_name("litellm")
    return str(here) if importlib.util.find_spec("litellm") and here.exists() else shutil.which("litellm")


def command_of(name: str, upstream: str, port: int, folder: Path, profile: Path | None) -> list[str] | None:
    """How a proxy is started; None if it is not installed."""
    if name == "passthrough":
        return [sys.executable, str(HERE / "passthrough.py"), upstream, str(port)]
    if name == "thinkserve":
        profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
        serve = ["serve", "--upstream", upstream, "--thought-format", "tpo-generic", "--port", str(port)]
        return [sys.executable, *profiler, "-m", "thinkserve.cli", *serve]
    executable = litellm_executable()
    if executable is None:
        return None
    config = folder / "litellm.json"  # JSON is YAML
    model = {"model": "openai/scripted", "api_base": f"{upstream}/v1", "api_key": "none"}
    settings = {"dangerously_permit_weak_or_unset_master_key": True}  # no target checks a key
    record = {
        "model_list": [{"model_name": "scripted", "litellm_params": model}],
        "general_settings": settings,
    }
    config.write_text(json.dumps(record))
    return [executable, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]


# --- measurements ----------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """A target did not answer as it should; the message says which, and to what."""


def checked(load: Load, target: Target, what: str) -> Load:
    """The load, if all of it was answered as it should be."""
    if load.failed or not load.answered:
        raise Wrong(
            f"{target.name}, {what}: {load.failed} of {load.failed + load.answered} were answered wrongly"
        )
    if load.leaked and target.name == "thinkserve":
        raise Wrong(f"{target.name}, {what}: {load.leaked} answers held a part of a thought")
    return load


async def waves(target: Target, plan: Plan, streams: int, times: int = 1) -> Load:
    """Waves of streams of one plan."""
    load = await wave(target.port, target.request(plan), events=plan.response, streams=streams, times=times)
    return checked(load, target, plan.prompt)


async def replies(target: Target, sizes: Sizes, sample: Sample) -> None:
    """Non-streamed replies, at concurrency 1 and 32."""
    plan = Plan(thought=8, response=16, pad=72)
    request = target.request(plan, stream=False)
    for connections in (1, 32):
        limits = {"connections": connections, "limit": 50_000}
        await closed_loop(target.port, request, events=16, seconds=0.1, **limits)
        load = await closed_loop(target.port, request, events=16, seconds=sizes.seconds, **limits)
        checked(load, target, f"non-stream c={connections}")
        name = f"non-stream c={connections}"
        sample[name] = load.answered / load.seconds
        sample[f"{name} p50"] = statistics.median(load.latencies) * 1e3
        sample[f"{name} p99"] = sorted(load.latencies)[int(len(load.latencies) * 0.99)] * 1e3


async def streams(target: Target, sizes: Sizes, sample: Sample) -> None:
    """Streamed answers: burst, paced with all visible and with nearly all hidden, time to the first response."""
    burst = Plan(thought=8, response=200)
    await waves(target, Plan(thought=8, response=20), 64)  # opens the connections of the pool
    load = await waves(target, burst, 16, sizes.bursts)
    sample["burst 16x200"] = load.events / load.seconds
    for count in (16, 64):
        times = max(sizes.first_waves * 16 // count, 1)
        first = await waves(target, Plan(8, 20, delay_us=PACE_US), count, times)
        sample[f"first response p50, {count} streams"] = statistics.median(first.firsts) * 1e3
        before = target.cpu_seconds()
        load = await waves(target, Plan(8, sizes.visible, delay_us=PACE_US), count)
        visible = target.cpu_seconds() - before
        if count == 64:
            sample["delivered, 64 streams"] = load.events / load.seconds
        if target.pid is not None:
            sample[f"CPU a visible event, {count} streams"] = visible / load.events * 1e6
            hidden = await hidden_cpu(target, sizes.hidden, count, PACE_US)
            sample[f"CPU a hidden event, {count} streams"] = hidden


async def hidden_cpu(target: Target, thought: int, count: int, pace_us: int, times: int = 1) -> float:
    """CPU microseconds a thought event."""
    before = target.cpu_seconds()
    await waves(target, Plan(thought, 1, delay_us=pace_us), count, times)
    return (target.cpu_seconds() - before) / (thought * count * times) * 1e6


async def flatness(target: Target, sizes: Sizes, sample: Sample) -> None:
    """CPU per hidden event by the length of the thought."""
    times = sizes.long_thoughts[0] // 500
    for thought in (500, *sizes.long_thoughts):
        cpu = await hidden_cpu(target, thought, sizes.long_streams, 1000, times if thought == 500 else 1)
        sample[f"CPU a hidden event, thought of {thought}"] = cpu


async def measure(targets: list[Target], sizes: Sizes) -> None:
    """All rounds; the targets take turns."""
    for at in range(sizes.rounds):
        for target in targets:
            mine = LITELLM if target.name == "litellm" else sizes
            if at >= mine.rounds:
                continue
            sample: Sample = {}
            await replies(target, mine, sample)
            await streams(target, mine, sample)
            if target.name == "thinkserve" and at < mine.long_rounds:
                await flatness(target, mine, sample)
            target.rounds.append(sample)
            print(f"round {at + 1} of {sizes.rounds}: {target.name} done", file=sys.stderr, flush=True)
    for target in targets:
        if target.pid is not None:
            target.rounds[-1]["resident memory at the end"] = target.resident_mb()


# --- results ---------------------------------------------------------------------------------------------------------


def results_of(targets: list[Target]) -> dict[str, Sample]:
    """The number of every row and target, with what is derived from others."""
    pick: dict[str, Callable[[list[float]], float]] = {"low": min, "high": max, "median": statistics.median}
    results: dict[str, Sample] = {}
    for target in targets:
        best = results[target.name] = {}
        for row in ROWS:
            values = [sample[row.name] for sample in target.rounds if row.name in sample]
            if values:
                best[row.name] = pick[row.better](values)
    direct = results.get("direct")
    for name, best in results.items():
        if direct and name != "direct":
            for base in (
                "non-stream c=1 p50",
                "first response p50, 16 streams",
                "first response p50, 64 streams",
            ):
                best[base.replace("p50", "p50 added")] = best[base] - direct[base]
            delivered = "delivered, 64 streams"
            best["delivered of direct, 64 streams"] = best[delivered] / direct[delivered] * 100
        for thought in (4000, 8000):
            if (long := best.get(f"CPU a hidden event, thought of {thought}")) is not None:
                best[f"flatness {thought} / 500"] = long / best["CPU a hidden event, thought of 500"]
    return results


def verdict(row: Row, ours: Sample) -> str:
    """`ok` or `MISSED`, for a row with a gate."""
    assert row.gate is not None
    sign = 1 if row.better == "high" else -1
    value = ours[row.name]
    if sign * value >= sign * row.gate:
        return "ok"
    return "MISSED"


def number(value: float | None) -> str:
    """A value with three significant digits or so."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(results: dict[str, Sample]) -> str:
    """The table; the ratio and the gate are thinkserve's."""
    ours, yardstick = results.get("thinkserve", {}), results.get("passthrough", {})
    lines = [["", "unit", *results, "/passthrough", "gate"]]
    for row in ROWS:
        values = [best.get(row.name) for best in results.values()]
        if all(value is None for value in values):
            continue
        mine, other = ours.get(row.name), yardstick.get(row.name)
        ratio = f"{mine / other:.2f}x" if mine is not None and other else ""
        gate = ""
        if row.gate is not None and mine is not None:
            gate = f"{'>=' if row.better == 'high' else '<='} {row.gate:g} {verdict(row, ours)}"
        lines.append([row.name, row.unit, *map(number, values), ratio, gate])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in (0, 1, len(widths) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def run(names: list[str], sizes: Sizes, profile: Path | None, folder: Path) -> list[Target]:
    """Start everything, measure, stop everything."""
    cores = sorted(os.sched_getaffinity(0))
    proxy_core, load_core = cores[0], cores[-1]
    if proxy_core == load_core:
        print("only one core: the proxy shares it with the engine and the load generator", file=sys.stderr)
    with ExitStack() as stack:
        log = folder / "upstream.log"
        script = [sys.executable, str(HERE / "scripted_upstream.py")]
        process = stack.enter_context(running(script, load_core, log))
        wait_until(lambda: log.read_text().endswith("\n"), process, log)
        upstream_port = int(log.read_text())
        targets = []
        for name in names:
            if name == "direct":
                targets.append(Target(name, upstream_port))
                continue
            port, log = free_port(), folder / f"{name}.log"
            command = command_of(name, f"http://127.0.0.1:{upstream_port}", port, folder, profile)
            if command is None:
                print(f"{name} is not installed (set $LITELLM to its executable): left out")
                continue
            process = stack.enter_context(running(command, proxy_core, log))
            wait_until(lambda port=port: bool(models(port)), process, log)  # type: ignore[misc]
            targets.append(Target(name, port, process.pid, models(port)[0]))
        try:
            with on_core(load_core):
                uvloop.run(measure(targets, sizes))
        except Wrong as exc:
            logs = "".join(f"--- {log.name}\n{log.read_text()[-2000:]}\n" for log in folder.glob("*.log"))
            sys.exit(f"{logs}{exc}")
    return targets


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small round, under 40 s")
    parser.add_argument(
        "--gate",
        action="store_true",
        help="exit with 1 if thinkserve misses a gate (one round, as of --quick, is noisy)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, with all rounds, there")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="run thinkserve under cProfile (numbers mean nothing then), write FILE, print its top",
    )
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="give all of it real-time priority, on a machine where others compute too (needs the right to)",
    )
    args = parser.parse_args()
    if args.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # children inherit it
    sizes = QUICK if args.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        targets = run(args.target, sizes, args.profile, Path(folder))
    results = results_of(targets)
    print(table(results))
    rounds = f"best of {sizes.rounds} rounds" if sizes.rounds > 1 else "one round"
    print(
        f"{rounds}; load 1 min {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; Python {platform.python_version()}"
    )
    if args.json:
        record = {"results": results, "rounds": {target.name: target.rounds for target in targets}}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if args.profile:
        pstats.Stats(str(args.profile)).sort_stats("tottime").print_stats(40)
    ours = results.get("thinkserve", {})
    gated = [row for row in ROWS if row.gate is not None and row.name in ours]
    missed = any(verdict(row, ours) == "MISSED" for row in gated)
    return 1 if args.gate and missed else 0


if __name__ == "__main__":
    sys.exit(main())
