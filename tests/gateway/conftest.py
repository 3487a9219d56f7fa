"""A gateway on a real loopback socket, in front of scripted engines, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.app import Gateway
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys, Role
from thinkserve.gateway.pool import Pool
from thinkserve.gateway.upstream import Upstream
from thinkserve.thoughts import ThoughtFormat, get_format

JSON = dict[str, Any]


@dataclass
class Running:
    """A gateway that runs, and a client of it."""

    gateway: Gateway
    url: str
    http: aiohttp.ClientSession

    async def post(self, body: object, **headers: str) -> tuple[int, JSON]:
        """Ask for a chat completion; return the HTTP status and the answer."""
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as response:
            return response.status, msgspec.json.decode(await response.read())

    async def stream(self, body: JSON, **headers: str) -> list[JSON | str]:
        """Ask for a streamed chat completion; return its events, with comments as strings."""
        async with self.http.post(
            f"{self.url}/v1/chat/completions", json={**body, "stream": True}, headers=headers
        ) as response:
            raw = (await response.read()).decode()
        assert response.status == 200, raw
        events: list[JSON | str] = []
        for event in raw.split("\n\n"):
            if event.startswith("data: {"):
                events.append(msgspec.json.decode(event[6:]))
            elif event:
                events.append(event)
        return events


def content(events: list[JSON | str], index: int = 0) -> str:
    """The text that a stream's events add up to."""
    parts = [
        choice["delta"].get("content") or ""
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", [])
        if choice["index"] == index
    ]
    return "".join(parts)


StartGateway = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start_gateway() -> AsyncIterator[StartGateway]:
    """Starts gateways: `await start_gateway(upstream_url, ..., format="tpo-generic", keys={...}, **config)`."""
    async with AsyncExitStack() as stack:

        async def start(
            *engines: str | Endpoint,
            format: str | ThoughtFormat = "tpo-generic",
            keys: dict[str, Role] | None = None,
            skip_special_tokens: bool = True,
            **config: Any,
        ) -> Running:
            settings = GatewayConfig(**{"format": get_format(format), "model_name": "thinker", **config})
            endpoints = [Endpoint(engine) if isinstance(engine, str) else engine for engine in engines]
            upstreams = [
                Upstream(endpoint, name=endpoint.base_url, idle_seconds=settings.idle_seconds)
                for endpoint in endpoints
            ]
            gateway = Gateway(
                settings, Pool(upstreams), Keys(keys or {}), skip_special_tokens=skip_special_tokens
            )
            runner = web.AppRunner(
                gateway.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            http = await stack.enter_async_context(aiohttp.ClientSession())
            return Running(gateway, f"http://127.0.0.1:{runner.addresses[0][1]}", http)

        yield start


@dataclass
class Answer:
    """What one choice of a streamed answer adds up to, as the official client sees it."""

    content: str = ""
    finish_reason: str | None = None
    tokens: list[str] = field(default_factory=list)
    """The tokens of its logprobs."""
    usage: JSON | None = None


async def streamed(client: AsyncOpenAI, **request: Any) -> list[Answer]:
    """Ask for a stream through the official client; return its choices, by index."""
    answers: dict[int, Answer] = {}
    usage: JSON | None = None
    stream = await client.chat.completions.create(model="thinker", stream=True, **request)
    async for chunk in stream:
        usage = chunk.usage.model_dump() if chunk.usage is not None else usage
        for choice in chunk.choices:
            answer = answers.setdefault(choice.index, Answer())
            answer.content += choice.delta.content or ""
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            if choice.logprobs is not None:
                answer.tokens += [entry.token for entry in choice.logprobs.content or []]
    for answer in answers.values():
        answer.usage = usage
    return [answers[index] for index in sorted(answers)]


async def gathered(client: AsyncOpenAI, **request: Any) -> list[Answer]:
    """Ask for a whole answer through the official client; return its choices, by index."""
    completion = await client.chat.completions.create(model="thinker", **request)
    return [
        Answer(
            choice.message.content or "",
            choice.finish_reason,
            [entry.token for entry in (choice.logprobs and choice.logprobs.content) or []],
            completion.usage.model_dump() if completion.usage is not None else None,
        )
        for choice in sorted(completion.choices, key=lambda choice: choice.index)
    ]


Connect = Callable[..., AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes official clients: `connect(running, api_key="...")`. They do not retry, so that errors are seen."""
    async with AsyncExitStack() as stack:

        def connect(running: Running, api_key: str = "none") -> AsyncOpenAI:
            client = AsyncOpenAI(base_url=f"{running.url}/v1", api_key=api_key, max_retries=0, timeout=30)
            stack.push_async_callback(client.close)
            return client

        yield connect
