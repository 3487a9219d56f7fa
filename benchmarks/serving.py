"""What serving through thinkserve costs beside vLLM itself: the pocket model on a CPU, both in one run.

    python benchmarks/serving.py [--quick] [--gate] [--json FILE] [--realtime] [--streams 1 16 64] [--rounds N]
                                 [--intervals 1 4 8] [--guard] [--profile FILE]

One `vllm serve`, started as thinkserve starts it, and one `thinkserve serve --upstream` before it. The same requests go
to both in turns: *direct* requests straight to vLLM's Unix socket, the thought prompt already in them; through
*thinkserve* over TCP, as clients come (so the way over TCP is in thinkserve's numbers). Both generate the same number of
tokens, because `ignore_eos` is let through the benchmark's gateway; the usage of every answer is checked.

- **tokens/s**: closed loop of so many connections, streamed and not, with thoughts; of all tokens that were generated.
- **first token**: in *stream*, the first visible token of the response, and the arrival of the same token in direct's
  raw stream. *Answer* asks for no thought (`reasoning_effort: none`), so the very first token is visible in both; its
  requests begin apart from each other, as clients' do, and not in waves, in which each waits for all others.
- **CPU**: milliseconds a request of vLLM's API server and of the gateway, all threads.

vLLM's engine polls without a pause and would starve a client or a gateway that shares its core; `--realtime` gives the
client and the gateway, and so both targets, real-time priority (`SCHED_RR`), and prefers vLLM to what else the machine
computes, where that is permitted.

Statistic: targets take turns in every round, in changing order; ratios and differences are those of a pair of one
round, and what is shown is their median. `--intervals` measures thinkserve with several values of vLLM's
`stream_interval`; `--guard` measures vLLM alone, with and without a grammar that asks for the closing marker.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pstats
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import msgspec
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs as a script, from anywhere
from benchmarks.gateway import free_port, models, number, wait_until
from benchmarks.load import Address, Record, recorded
from thinkserve.engines.vllm import VllmEngine
from thinkserve.gateway.sse import EventDecoder
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import ThoughtFormat, get_format

MODEL = "pocket"
# The faster the engine, the harder it is to keep up with: on most CPUs bfloat16 takes twice as long as float32.
ENGINE_ARGS = ("--max-model-len", "1024", "--dtype", "float32")
QUESTIONS = (
    "How many b in cbabba?",
    "Repeat tqgx",
    "Greet Palo in Spanish",
    "Tell Dipo what rain is",
    "What is 398+823?",
    "Follow c>g e>f f>c g>i i>e from f, 4 steps",
    "In cbhf swap f-h, b-c",
    "Start at 3, add 4, take 6",
)
RATIO_GATE, FIRST_GATE_MS, GUARD_GATE = 0.95, 5.0, 3.0

Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for, again and again; `name` is the line of the table."""

    name: str
    streams: int
    requests: int
    stream: bool = True
    direct: bool = False
    tokens: int = 128
    interval: int | None = None
    """vLLM's `stream_interval`, where it is not thinkserve's own choice."""


@dataclass(slots=True)
class Target:
    """Something under load, and the processes whose CPU time counts, by name."""

    name: str
    address: Address
    pids: dict[str, int]
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def cpu_seconds(self) -> Sample:
        """The CPU time of each process so far."""
        # The clock id that clock_getcpuclockid(3) gives; Python has no name for it.
        return {name: time.clock_gettime((~pid << 3) | 2) for name, pid in self.pids.items()}


# --- requests and answers --------------------------------------------------------------------------------------------


def post(body: dict[str, Any]) -> bytes:
    """A chat completion request as it goes over the wire."""
    raw = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def request(load: Load, at: int, format: ThoughtFormat, banned: int, *, through: bool) -> bytes:
    """Request number `at` of a load.

    Args:
        banned: the token of the closing marker; answers without a thought may not hold it.
        through: it goes to thinkserve, which puts the thought prompt in and calls the bound otherwise.
    """
    question = QUESTIONS[at % len(QUESTIONS)]
    body: dict[str, Any] = {
        "model": MODEL,
        "temperature": 0,
        "ignore_eos": True,
        "stream": load.stream,
        "max_completion_tokens" if through else "max_tokens": load.tokens,
    }
    if load.stream:
        body["stream_options"] = {"include_usage": True}
    if through and load.interval is not None:
        body["stream_interval"] = load.interval
    if load.direct:
        body["logit_bias"] = {str(banned): -100}
        if through:
            body["reasoning_effort"] = "none"
    asked = question if through or load.direct else format.thought_prompt(question)
    return post({**body, "messages": [{"role": "user", "content": asked}]})


class Body:
    """Takes HTTP apart: the body of an answer, a read at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def feed(self, data: bytes) -> bytes:
        """What a read has of the body."""
        self._parts.clear()
        self._parser.feed_data(data)
        return b"".join(self._parts)


@dataclass(slots=True)
class Answer:
    """One answer, read after the load has ended. Times in seconds."""

    tokens: int
    seconds: float
    first: float = 0.0
    """Until the first text of the response; 0: the answer was not streamed."""
    writes: int = 0
    """Reads in which it came."""
    text: str = ""


class Wrong(Exception):
    """A target did not answer as it should."""


def answer_of(record: Record, load: Load, closing: str | None) -> Answer:
    """Read one answer.

    Args:
        closing: the marker that the response comes after; None: it is all response.

    Raises:
        Wrong: it is an error, or has another number of tokens.
    """
    if record.failed or not record.reads:
        shown = b"".join(data for _, data in record.reads)[-300:]
        raise Wrong(f"{load.name}: an answer is an error or was cut: {shown!r}")
    body = Body()
    answer = Answer(0, record.done - record.sent, writes=len(record.reads))
    if not load.stream:
        whole = msgspec.json.decode(b"".join(body.feed(data) for _, data in record.reads))
        answer.tokens = whole["usage"]["completion_tokens"]
        answer.text = whole["choices"][0]["message"]["content"]
    else:
        decoder = EventDecoder()
        for at, data in record.reads:
            for payload in decoder.feed(body.feed(data)):
                chunk = {} if payload == b"[DONE]" else msgspec.json.decode(payload)
                for choice in chunk.get("choices", ()):
                    answer.text += choice["delta"].get("content") or ""
                answer.tokens = (chunk.get("usage") or {}).get("completion_tokens", answer.tokens)
            if not answer.first and begun(answer.text, closing):
                answer.first = at - record.sent
        if not answer.first:
            raise Wrong(f"{load.name}: an answer has no response: {answer.text!r}")
    if answer.tokens != load.tokens:
        raise Wrong(f"{load.name}: an answer has {answer.tokens} tokens, not {load.tokens}")
    return answer


def begun(text: str, closing: str | None) -> bool:
    """Whether an output so far has a response."""
    return bool((text if closing is None else text.partition(closing)[2]).strip())


# --- measurements ----------------------------------------------------------------------------------------------------


def percentile(values: list[float], share: float) -> float:
    """The value below which such a share of the values is."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def sample(
    target: Target, load: Load, requests: list[bytes], closing: str | None, spread: float = 0.0
) -> Sample:
    """One load on one target, whose streams begin over so many seconds."""
    before = target.cpu_seconds()
    records, seconds = await recorded(target.address, requests, connections=load.streams, spread=spread)
    after = target.cpu_seconds()
    answers = [answer_of(record, load, closing) for record in records]
    found = {
        "tokens/s": sum(answer.tokens for answer in answers) / seconds,
        "latency p50": statistics.median(answer.seconds for answer in answers) * 1e3,
        "writes": statistics.mean(answer.writes for answer in answers),
    }
    if load.stream:
        firsts = [answer.first * 1e3 for answer in answers]
        found |= {"first p50": statistics.median(firsts), "first p99": percentile(firsts, 0.99)}
    for name, spent in after.items():
        found[f"CPU {name}"] = (spent - before[name]) / len(answers) * 1e3
    return found


async def measure(
    targets: list[Target], loads: list[Load], rounds: int, requests: Callable[[Load, Target], list[bytes]]
) -> None:
    """All rounds of all loads; the targets take turns, and who begins changes."""
    format = get_format(CHECKPOINT)
    spreads: dict[str, float] = {}
    for at in range(-1, rounds):
        for load in loads:
            for target in targets if at % 2 else reversed(targets):
                raw = requests(load, target)
                hidden = target.name == "thinkserve" or load.direct
                closing = None if hidden else format.closing[0]
                # The round before the first opens connections and fills caches; it is short and does not count.
                raw = raw[: load.streams] if at < 0 else raw
                found = await sample(target, load, raw, closing, spreads.get(load.name, 0.0))
                if at >= 0:
                    target.samples.setdefault(load.name, []).append(found)
                elif load.direct:
                    spreads[load.name] = found["latency p50"] / 1e3
        if at >= 0:
            print(f"round {at + 1} of {rounds} done", file=sys.stderr, flush=True)


def loads_of(args: argparse.Namespace) -> list[Load]:
    """What is measured."""
    loads = []
    for streams in args.streams:
        # Long enough for a second or two.
        requests = max(streams * (2 if args.quick else 4), 8 if args.quick else 16)
        for stream in (True, False):
            for interval in args.intervals or [None]:
                kind = "stream" if stream else "whole"
                asked = "" if interval is None else f" interval {interval}"
                loads.append(Load(f"{kind} c={streams}{asked}", streams, requests, stream, interval=interval))
        if not args.intervals:
            loads.append(Load(f"answer c={streams}", streams, requests, direct=True))
    return loads


# --- results ---------------------------------------------------------------------------------------------------------


def paired(
    ours: list[Sample], direct: list[Sample], key: str, pair: Callable[[float, float], float]
) -> float:
    """The median over the rounds of what a pair of samples of one round gives."""
    return statistics.median(pair(mine[key], other[key]) for mine, other in zip(ours, direct, strict=True))


def results_of(ours: Target, direct: Target, loads: list[Load]) -> dict[str, Sample]:
    """The numbers of every load."""
    results: dict[str, Sample] = {}
    for load in loads:
        mine, other = ours.samples[load.name], direct.samples[load.name]
        row = results[load.name] = {}
        for target, samples in ((direct, other), (ours, mine)):
            for key in samples[0]:
                row[f"{target.name} {key}"] = statistics.median(each[key] for each in samples)
            row[f"{target.name} best tokens/s"] = max(each["tokens/s"] for each in samples)
        row["ratio"] = paired(mine, other, "tokens/s", lambda a, b: a / b)
        row["added latency p50"] = paired(mine, other, "latency p50", lambda a, b: a - b)
        if load.stream:
            row["added first p50"] = paired(mine, other, "first p50", lambda a, b: a - b)
    return results


def columns(ours: str, direct: str) -> list[tuple[str, str]]:
    """The columns of the table: heading, and the key of a result."""
    return [
        ("tok/s direct", f"{direct} tokens/s"),
        ("tok/s", f"{ours} tokens/s"),
        ("ratio", "ratio"),
        ("best direct", f"{direct} best tokens/s"),
        ("best", f"{ours} best tokens/s"),
        ("first p50 direct", f"{direct} first p50"),
        ("first p50", f"{ours} first p50"),
        ("added", "added first p50"),
        ("p99 direct", f"{direct} first p99"),
        ("p99", f"{ours} first p99"),
        ("latency added", "added latency p50"),
        ("CPU API direct", f"{direct} CPU API server"),
        ("CPU API", f"{ours} CPU API server"),
        ("CPU gateway", f"{ours} CPU gateway"),
        ("writes direct", f"{direct} writes"),
        ("writes", f"{ours} writes"),
    ]


def table(results: dict[str, Sample], shown: list[tuple[str, str]], verdicts: dict[str, str]) -> str:
    """The table; times in ms."""
    lines = [["", *(heading for heading, _ in shown), "gate"]]
    for name, row in results.items():
        lines.append([name, *(number(row.get(key)) for _, key in shown), verdicts.get(name, "")])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def gates(results: dict[str, Sample]) -> dict[str, str]:
    """What each load's gate says: the time to the first token of answers without a thought, tokens/s of all others."""
    said = {}
    for name, row in results.items():
        if name.startswith("answer"):
            kept, gate = row["added first p50"] <= FIRST_GATE_MS, f"added <= {FIRST_GATE_MS:g} ms"
        else:
            kept, gate = row["ratio"] >= RATIO_GATE, f"ratio >= {RATIO_GATE:g}"
        said[name] = f"{gate} {'ok' if kept else 'MISSED'}"
    return said


# --- the grammar that asks for the closing marker ----------------------------------------------------------------------


def guard_body(body: dict[str, Any], format: ThoughtFormat) -> dict[str, Any]:
    """The body with a grammar: any text, the closing marker, any text."""
    elements = [
        {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": format.closing[0]},
        {"type": "any_text"},
    ]
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": elements}}
    return {**body, "structured_outputs": {"structural_tag": json.dumps(tag)}}


def guard_request(load: Load, at: int, format: ThoughtFormat, *, guarded: bool) -> bytes:
    """A direct request, with or without the grammar."""
    body: dict[str, Any] = {
        "model": MODEL,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": load.tokens,
        "messages": [
            {"role": "user", "content": format.thought_prompt(QUESTIONS[at % len(QUESTIONS)])},
        ],
    }
    return post(guard_body(body, format) if guarded else body)


def guard_gates(results: dict[str, Sample]) -> dict[str, str]:
    """Whether the grammar costs less than its gate."""
    said = {}
    for name, row in results.items():
        cost = (1 / row["ratio"] - 1) * 100
        said[name] = f"{cost:+.1f} % a token, <= {GUARD_GATE:g} {'ok' if cost <= GUARD_GATE else 'MISSED'}"
    return said


# --- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def gateway(socket: Path, folder: Path, profile: Path | None) -> Iterator[Target]:
    """`thinkserve serve` before vLLM's socket, until the block ends."""
    port, log = free_port(), folder / "gateway.log"
    profiler = ["-m", "cProfile", "-o", str(profile.resolve())] if profile else []
    command = [
        *(sys.executable, *profiler, "-m", "thinkserve.cli", "serve"),
        *("--upstream", f"unix://{socket}", "--thought-format", str(CHECKPOINT)),
        *("--tokenizer", str(CHECKPOINT / "tokenizer.json"), "--port", str(port)),
    ]
    for name in ("ignore_eos", "logit_bias", "stream_interval"):
        command += ["--allow-field", name]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: bool(models(port)), process, log)
        yield Target("thinkserve", port, {"gateway": process.pid})
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def server_pid(socket: Path) -> int:
    """vLLM's API server: the process whose command line names its socket."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(socket).encode() in command and b"--served-model-name" in command:
                return int(entry.name)
    raise Wrong(f"no process has the socket {socket} on its command line")


def prefer(pid: int) -> None:
    """Prefer the session of a process to others, where Linux groups processes by session and permits it."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-10")


def marker_token(format: ThoughtFormat) -> int:
    """The token id of the closing marker in the pocket model's vocabulary."""
    tokens = json.loads((CHECKPOINT / "tokenizer.json").read_text())["added_tokens"]
    return next(int(token["id"]) for token in tokens if token["content"] == format.closing[0])


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start everything, measure, stop everything, print; returns the record."""
    engine = VllmEngine(
        CHECKPOINT, model_name=MODEL, extra_args=ENGINE_ARGS, log_file=folder / "vllm.log", start_timeout=300
    )
    format = get_format(CHECKPOINT)
    await engine.start()
    try:
        socket = engine.endpoint.uds
        assert socket is not None
        if args.realtime:
            # After the engine, which must not have it; the gateway inherits it.
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            prefer(server_pid(socket))
        server = {"API server": server_pid(socket)}
        if args.guard:
            loads = [Load(f"guard c={count}", count, max(count * 4, 16)) for count in args.streams]
            targets = [Target("guarded", socket, server), Target("direct", socket, server)]
            await measure(
                targets,
                loads,
                args.rounds,
                lambda load, target: [
                    guard_request(load, at, format, guarded=target.name == "guarded")
                    for at in range(load.requests)
                ],
            )
        else:
            loads = loads_of(args)
            banned = marker_token(format)
            with gateway(socket, folder, args.profile) as ours:
                ours.pids |= server
                targets = [ours, Target("direct", socket, server)]
                await measure(
                    targets,
                    loads,
                    args.rounds,
                    lambda load, target: [
                        request(load, at, format, banned, through=target.name == "thinkserve")
                        for at in range(load.requests)
                    ],
                )
    finally:
        await engine.stop()
    results = results_of(targets[0], targets[1], loads)
    verdicts = guard_gates(results) if args.guard else gates(results)
    print(table(results, columns(targets[0].name, targets[1].name), verdicts))
    print(
        f"medians of {args.rounds} rounds, times in ms, CPU in ms a request; real-time: {args.realtime}; "
        f"load 1 min {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; Python {platform.python_version()}"
    )
    rounds = {target.name: target.samples for target in targets}
    return {"results": results, "rounds": rounds, "verdicts": verdicts}


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    parser.add_argument("--gate", action="store_true", help="exit with 1 if a gate is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, with all rounds, there")
    parser.add_argument("--realtime", action="store_true", help="give client and gateway real-time priority")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], metavar="N")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 5, or 2 with --quick")
    parser.add_argument(
        "--intervals", type=int, nargs="+", metavar="N", help="ask for these values of stream_interval"
    )
    parser.add_argument("--guard", action="store_true", help="the cost of a grammar, on vLLM alone")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="run thinkserve under cProfile (numbers mean nothing then), write FILE, print its top",
    )
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 5)
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        folder = Path(name)
        try:
            record = uvloop.run(run(args, folder))
        except Wrong as exc:
            logs = "".join(f"--- {log.name}\n{log.read_text()[-2000:]}\n" for log in folder.glob("*.log"))
            sys.exit(f"{logs}{exc}")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    if args.profile:
        pstats.Stats(str(args.profile)).sort_stats("tottime").print_stats(40)
    return 1 if args.gate and any("MISSED" in said for said in record["verdicts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
