"""Faults under load: many streams over engines of which one is killed, one hangs, one is slow and one emits garbage.

Every request ends with the right answer or with an error that says so, within its time; none is cut silently, what the
gateway counts is what its clients saw, and no path shows a thought.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tests.gateway.scripted import (
    JSON,
    Delta,
    End,
    ErrorEvent,
    Finish,
    Raw,
    Recorded,
    Script,
    ScriptedUpstream,
    Scripts,
    Status,
    Step,
    Wait,
    chunked,
)
from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.app import Gateway
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys
from thinkserve.gateway.pool import HealthPolicy, Pool
from thinkserve.gateway.upstream import Upstream
from thinkserve.thoughts import get_format

PATH = "/v1/chat/completions"
STREAMS = 64
GATHERED = 16
# In which each request must have ended: far less than an engine may be silent (IDLE_SECONDS).
LIMIT_SECONDS = 20.0
IDLE_SECONDS = 120.0
HEALTH = HealthPolicy(
    check_every=0.1, check_timeout=0.3, first_pause=0.1, longest_pause=0.5, silent_seconds=0.2
)
THINKING = ["Here is my thought process:\n", "SECRET ", "SECRET\n"]
MARKER = "Here is my response:\n"


def answer(seed: int) -> str:
    return f"The answer to question {seed} is {seed * seed}."


def right(seed: int) -> list[Step]:
    return [*THINKING, MARKER, *chunked(answer(seed), 6)]


class Engine(ScriptedUpstream):
    """An engine that hangs until `runs` is set: it takes connections, and answers neither health checks nor requests."""

    def __init__(self, script: Scripts) -> None:
        super().__init__(script)
        self.runs = asyncio.Event()
        self.runs.set()

    async def _models(self, request: web.Request) -> web.Response:
        await self.runs.wait()
        return await super()._models(request)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        await self.runs.wait()
        return await super()._chat(request)


@dataclass
class Ended:
    """How a request ended, as its client saw it."""

    seed: int
    status: int
    raw: bytes
    seconds: float
    stream: bool

    @property
    def events(self) -> list[JSON]:
        parts = self.raw.decode().split("\n\n")
        return [msgspec.json.decode(part[6:]) for part in parts if part.startswith("data: {")]

    @property
    def text(self) -> str:
        """What was shown of the response."""
        if not self.stream:
            return str(msgspec.json.decode(self.raw)["choices"][0]["message"]["content"])
        choices = [choice for event in self.events for choice in event.get("choices", [])]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def outcome(self) -> str:
        """`right`, `error` or `stream error`; anything else is a failure of the gateway, in words."""
        if self.status != 200:
            error = msgspec.json.decode(self.raw)["error"]
            return "error" if self.status == 503 and error["code"] == "engine_unavailable" else str(error)
        if self.stream and self.events and "error" in self.events[-1]:
            if self.raw.endswith(b"[DONE]\n\n") or not answer(self.seed).startswith(self.text):
                return f"a wrong end: {self.raw!r}"
            error = self.events[-1]["error"]
            return "stream error" if error["code"] == "engine_unavailable" else str(error)
        if self.stream and not self.raw.endswith(b"data: [DONE]\n\n"):
            return f"cut silently: {self.raw!r}"
        return "right" if self.text == answer(self.seed) else f"wrong: {self.text!r}"


@dataclass
class Served:
    """A gateway that runs, and a client of it."""

    gateway: Gateway
    url: str
    http: aiohttp.ClientSession

    async def ask(self, seed: int, *, stream: bool = True) -> Ended:
        began = time.monotonic()
        body = {"messages": [{"role": "user", "content": "Question"}], "seed": seed, "stream": stream}
        async with self.http.post(self.url + PATH, json=body) as response:
            raw = await response.read()
        return Ended(seed, response.status, raw, time.monotonic() - began, stream)

    async def metrics(self) -> dict[str, float]:
        """The counters of what was asked for here, by name and labels."""
        async with self.http.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    def settled(self) -> bool:
        """Whether nothing runs any more, and nothing is counted as if it did."""
        upstreams = self.gateway.pool.upstreams
        return not self.gateway.running and not any(one.running or one.outstanding for one in upstreams)


Start = Callable[..., Awaitable[Served]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a gateway over engines: `await start(engine, ...)`."""
    async with AsyncExitStack() as stack:

        async def begin(*engines: ScriptedUpstream) -> Served:
            upstreams = [
                Upstream(Endpoint(engine.url), name=engine.url, idle_seconds=IDLE_SECONDS)
                for engine in engines
            ]
            config = GatewayConfig(
                format=get_format("tpo-generic"), model_name="thinker", idle_seconds=IDLE_SECONDS
            )
            gateway = Gateway(config, Pool(upstreams, health=HEALTH), Keys({}))
            runner = web.AppRunner(
                gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            return Served(gateway, f"http://127.0.0.1:{runner.addresses[0][1]}", http)

        yield begin


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.01)


GARBAGE: list[list[Step]] = [
    [Raw(b"data: SECRET\n\n")],
    [*THINKING, Raw(b'data: {"choices": {"SECRET": 1}}\n\n')],
    [*THINKING, Raw(b'data: {"choices": [{"delta": {"content": "SECRET\xff"}}]}\n\n')],
    [*THINKING, ErrorEvent({"message": "SECRET", "type": "x", "code": 500})],
    [*THINKING, End()],
    [Status(500, "SECRET")],
    [*THINKING, Finish("abort")],
    [*THINKING, MARKER, "The ans", Raw(b"data: SECRET\n\n")],
]


def garbage(recorded: Recorded) -> Script:
    return Script(GARBAGE[recorded.body["seed"] % len(GARBAGE)])


def slow(recorded: Recorded) -> Script:
    return Script(right(recorded.body["seed"]), delay=0.01)


async def test_every_request_ends_well_or_with_an_error_whatever_its_engine_does(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Of four engines only the slow one is well; it answers all that were not shown anything by another."""
    caplog.set_level("DEBUG")
    forever = asyncio.Event()

    def stops_halfway(recorded: Recorded) -> Script:
        """Half of them in the thought, half in the response."""
        seed = recorded.body["seed"]
        shown: list[Step] = [MARKER, *chunked(answer(seed)[:12], 6)] if seed % 2 else []
        return Script([*THINKING, *shown, Wait(forever)])

    def in_the_thought(recorded: Recorded) -> Script:
        return Script([*THINKING, Wait(forever)])

    async with (
        Engine(stops_halfway) as killed,
        Engine(in_the_thought) as hung,
        Engine(slow) as well,
        Engine(garbage) as bad,
    ):
        served = await start(killed, hung, well, bad)
        asked = [asyncio.create_task(served.ask(seed)) for seed in range(STREAMS)]
        asked += [
            asyncio.create_task(served.ask(seed, stream=False)) for seed in range(STREAMS, STREAMS + GATHERED)
        ]
        await until(lambda: killed.running and hung.running and well.running and bad.requests)
        await asyncio.sleep(0.3)
        shown = killed.running  # of which some have shown a part
        hung.runs.clear()
        await killed.stop()
        ended = await asyncio.wait_for(asyncio.gather(*asked), LIMIT_SECONDS)

        outcomes = Counter(one.outcome for one in ended)
        assert set(outcomes) <= {"right", "stream error"}, outcomes
        assert 0 < outcomes["stream error"] <= shown + STREAMS // len(GARBAGE)
        assert all(one.outcome == "right" for one in ended if not one.stream), "nothing was shown of these"
        assert not [one for one in ended if b"SECRET" in one.raw]
        assert "SECRET" not in caplog.text
        assert max(one.seconds for one in ended) < LIMIT_SECONDS

        await until(served.settled)
        counted = await served.metrics()
        assert total(counted, "thinkserve_requests_total", 'status="200"') == len(ended)
        assert (
            total(counted, "thinkserve_requests_total", 'status="stream_error"') == outcomes["stream error"]
        )
        assert total(counted, "thinkserve_choices_total", "") == outcomes["right"]
        assert total(counted, "thinkserve_failovers_total", "") > 0
        states = {upstream.name: upstream.ejected for upstream in served.gateway.pool.upstreams}
        assert states[hung.url] and not states[well.url]

        # They come back, and their outputs are right again.
        hung.runs.set()
        for engine in (killed, hung, bad):
            engine.script = lambda recorded: Script(right(recorded.body["seed"]))
        await killed.start()
        await until(lambda: not any(one.ejected or not one.healthy for one in served.gateway.pool.upstreams))
        for engine in (killed, hung, bad, well):
            engine.requests.clear()
        again = await asyncio.gather(*(served.ask(seed) for seed in range(STREAMS)))
        assert {one.outcome for one in again} == {"right"}
        assert all(engine.requests for engine in (killed, hung, bad, well))


def total(counted: dict[str, float], name: str, label: str) -> float:
    """The sum of a counter over its labels, for what the endpoint of these tests was asked."""
    return sum(
        value
        for key, value in counted.items()
        if key.partition("{")[0] == name and label in key and ('endpoint="' not in key or PATH in key)
    )


async def test_where_no_engine_is_well_every_request_ends_with_an_error(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Before its stream began an HTTP error, in it an error event; and counted as what it was."""
    caplog.set_level("DEBUG")
    async with Engine(garbage) as first, Engine(garbage) as second, Engine(garbage) as dead:
        served = await start(first, second, dead)
        await dead.stop()
        asked = [served.ask(seed, stream=seed % 3 > 0) for seed in range(STREAMS)]
        ended = await asyncio.wait_for(asyncio.gather(*asked), LIMIT_SECONDS)
        outcomes = Counter(one.outcome for one in ended)
        assert set(outcomes) == {"error", "stream error"}, outcomes
        assert not [one for one in ended if b"SECRET" in one.raw] and "SECRET" not in caplog.text
        await until(served.settled)
        counted = await served.metrics()
        assert total(counted, "thinkserve_requests_total", 'status="503"') == outcomes["error"]
        assert total(counted, "thinkserve_requests_total", 'status="200"') == outcomes["stream error"]
        assert (
            total(counted, "thinkserve_requests_total", 'status="stream_error"') == outcomes["stream error"]
        )
        assert total(counted, "thinkserve_choices_total", "") == 0


async def test_an_engine_that_emits_garbage_is_left_alone_after_a_few_outputs(start: Start) -> None:
    """It answers its health checks all the time, so only its outputs tell."""
    async with Engine(Script([Raw(b"data: no chunk\n\n")])) as bad, Engine(slow) as well:
        served = await start(bad, well)
        for seed in range(12):
            assert (await served.ask(seed)).outcome == "right"
        # Three until it is ejected, and one at most after each pause.
        assert 3 <= len(bad.requests) < 8


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_waits_on_an_engine_that_hangs_moves_on_in_time(
    stream: bool, start: Start
) -> None:
    """Before its answer has begun, and in the thought, where a gathered one may have come far."""
    script = [*THINKING, *([] if stream else [MARKER, "The "])]
    scripts: Sequence[Sequence[Step]] = (script, [Delta("", tokens=[])])
    for steps in scripts:
        async with Engine(Script([*steps, Wait(asyncio.Event())])) as hung, Engine(slow) as well:
            served = await start(hung, well)
            asked = asyncio.create_task(served.ask(3, stream=stream))
            await until(lambda: hung.running == 1)
            hung.runs.clear()
            one: Any = await asyncio.wait_for(asked, LIMIT_SECONDS)
            assert one.outcome == "right" and 0.3 < one.seconds < 10
            assert (await served.ask(4, stream=stream)).seconds < 5, "nobody asks it any more"
            assert len(hung.requests) == 1
