"""The fake engine of the tests: an OpenAI-compatible server on a real loopback socket that streams what a test scripts.

Not a mock: bytes go through sockets, so timing, back-pressure, disconnects and torn reads are real. On the wire it is
vLLM 0.32 without a reasoning parser (chunk shape, role chunk first, `token_ids`, usage, in-stream errors). It cannot
answer without streaming, since the gateway must never ask for that.

    async with ScriptedUpstream(Script(chunked("Here is my thought process:\\n...", 5))) as upstream:
        ...  # upstream.url, upstream.requests, upstream.running, upstream.cancelled
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import msgspec
from aiohttp import web

JSON = dict[str, Any]
FIRST_TOKEN_ID = 100


@dataclass(frozen=True, slots=True)
class Delta:
    """One chunk. By default its text is one token; the id and logprob of a token are made from its text.

    `tokens` are the texts of its tokens where it is several (or none: `[]`); `token_ids` and `logprobs` (entries of
    OpenAI's `logprobs.content`) say outright what is sent when the request asks for them.
    """

    text: str
    token_ids: list[int] | None = None
    logprobs: list[JSON] | None = None
    delay: float = 0.0
    finish_reason: str | None = None
    index: int = 0
    tokens: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of the output in a chunk of its own without text. Implied at the end of a script that has none."""

    reason: str = "stop"


@dataclass(frozen=True, slots=True)
class Die:
    """Cut the TCP connection. As the first step: before the HTTP response begins."""


@dataclass(frozen=True, slots=True)
class End:
    """End the HTTP response in good order, but without a finish reason, usage or `[DONE]`."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Send nothing for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Send nothing until the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """vLLM's in-stream error, followed by `[DONE]`."""

    error: JSON = field(
        default_factory=lambda: {
            "message": "EngineCore encountered an issue",
            "type": "InternalServerError",
            "code": 500,
        }
    )


@dataclass(frozen=True, slots=True)
class Raw:
    """Any bytes, as they are."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Status:
    """Refuse with this HTTP status; only as the first step."""

    code: int
    body: JSON | str = ""


Step = str | Delta | Finish | Die | End | Stall | Wait | ErrorEvent | Raw | Status


@dataclass(frozen=True, slots=True)
class Script:
    """What one request is answered with.

    `delay` seconds pass before every chunk that has no delay of its own. `events_per_write` events go into one write,
    and `write_size` cuts every write into pieces of so many bytes, so that reads do not end where events do.
    """

    chunks: Sequence[Step] = ()
    delay: float = 0.0
    events_per_write: int = 1
    write_size: int | None = None
    prompt_tokens: int = 7


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as it came in."""

    body: JSON
    headers: Mapping[str, str]


Scripts = Script | list[Script] | Callable[[Recorded], Script]


def chunked(text: str, size: int) -> list[str]:
    """Cut a text into chunks of `size` characters."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def tokens(text: str, cuts: Sequence[int]) -> list[str]:
    """Cut a text into chunks at these positions (characters)."""
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


class ScriptedUpstream:
    """A scripted engine; runs while its context is open. Can be stopped, and started again on the same port.

    Args:
        script: one for all requests, or one a request (of a list, the last one stays), or chosen by a function.
        model: the name of its one model.
        uds: listen on this Unix socket instead of a TCP port.
    """

    def __init__(
        self, script: Scripts = Script(), *, model: str = "scripted", uds: Path | None = None
    ) -> None:
        self.script: Scripts = script
        self.model = model
        self.healthy = True
        self.requests: list[Recorded] = []
        self.probes = 0
        """How often its list of models was asked for."""
        self.running = 0
        self.cancelled = 0
        """Outputs that the other side left before their end."""
        self.token_ids: dict[str, int] = {}
        """The id of every token sent so far, by its text."""
        self._uds = uds
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._transports: set[asyncio.Transport] = set()

    @property
    def url(self) -> str:
        """Its base URL, without `/v1`."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen: on a free port, or on the one it had before."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        # Only with handler cancellation does a stalled stream notice that its client left.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        if self._uds is not None:
            await web.UnixSite(self._runner, self._uds).start()
        else:
            await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
            self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Die as a killed process does: connections are cut, further ones refused."""
        for transport in tuple(self._transports):
            transport.abort()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, request: web.Request) -> web.Response:
        self.probes += 1
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "vllm", "max_model_len": 4096}
        return web.json_response({"object": "list", "data": [model]})

    def _next_script(self, recorded: Recorded) -> Script:
        if isinstance(self.script, Script):
            return self.script
        if isinstance(self.script, list):
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return self.script(recorded)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        recorded = Recorded(await request.json(), dict(request.headers))
        self.requests.append(recorded)
        if recorded.body.get("stream") is not True:
            return web.Response(status=500, text="the gateway asked for an answer that is not streamed")
        script = self._next_script(recorded)
        first = script.chunks[0] if script.chunks else None
        if isinstance(first, Status):
            text = first.body if isinstance(first.body, str) else msgspec.json.encode(first.body).decode()
            return web.Response(status=first.code, text=text, content_type="application/json")
        with self._counted(request) as transport:
            if isinstance(first, Die):
                transport.abort()
                return web.Response()
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await response.prepare(request)  # aiohttp sets TCP_NODELAY
            await _Output(self, script, recorded.body, response, transport).run()
            return response

    @contextmanager
    def _counted(self, request: web.Request) -> Iterator[asyncio.Transport]:
        transport = request.transport
        assert transport is not None
        self.running += 1
        self._transports.add(transport)
        try:
            yield transport
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += self._runner is not None
            raise
        finally:
            self.running -= 1
            self._transports.discard(transport)


class _Output:
    """One request being answered."""

    def __init__(
        self,
        upstream: ScriptedUpstream,
        script: Script,
        body: JSON,
        response: web.StreamResponse,
        transport: asyncio.Transport,
    ) -> None:
        self._upstream, self._script, self._body = upstream, script, body
        self._response, self._transport = response, transport
        self._head: JSON = {
            "id": f"chatcmpl-{len(upstream.requests)}",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": upstream.model,
        }
        options = body.get("stream_options") or {}
        self._usage_at_end = bool(options.get("include_usage"))
        self._usage_always = self._usage_at_end and bool(options.get("continuous_usage_stats"))
        self._completion_tokens = 0
        self._begun = self._finished = False
        self._buffer: list[bytes] = []

    async def run(self) -> None:
        """Play the script."""
        for step in self._script.chunks:
            match step:
                case str() | Delta() | Finish():
                    await self._chunk(step)
                case Stall(seconds):
                    await self._flush()
                    await asyncio.sleep(seconds)
                case Wait(event):
                    await self._flush()
                    await event.wait()
                case ErrorEvent(error):
                    await self._event({"error": error})
                    await self._done()
                    return
                case Raw(data):
                    await self._write(data)
                case Die():
                    await self._flush()
                    self._transport.abort()
                    return
                case End():
                    await self._flush()
                    return
                case Status():
                    raise ValueError("Status is possible only as the first step")
        if not self._finished:
            await self._chunk(Finish())
        if self._usage_at_end:
            await self._event({**self._head, "choices": [], "usage": self._usage()})
        await self._done()

    async def _chunk(self, step: str | Delta | Finish) -> None:
        if isinstance(step, Finish):
            step = Delta("", tokens=[], finish_reason=step.reason)
        elif isinstance(step, str):
            step = Delta(step)
        if delay := step.delay or self._script.delay:
            await self._flush()
            await asyncio.sleep(delay)
        wants_ids = bool(self._body.get("return_token_ids"))
        if not self._begun:
            self._begun = True
            role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
            prompt = list(range(1, self._script.prompt_tokens + 1)) if wants_ids else None
            await self._event(self._envelope(role | {"finish_reason": None}) | {"prompt_token_ids": prompt})
        texts = step.tokens if step.tokens is not None else [step.text]
        ids = step.token_ids if step.token_ids is not None else [self._id(text) for text in texts]
        self._completion_tokens += len(ids)
        logprobs = None
        if self._body.get("logprobs"):
            entries = step.logprobs if step.logprobs is not None else [self._logprob(text) for text in texts]
            logprobs = {"content": entries} if entries or ids else None
        choice: JSON = {"index": step.index, "delta": {"content": step.text}, "logprobs": logprobs}
        choice |= {"finish_reason": step.finish_reason}
        if step.finish_reason is not None:
            self._finished = True
            choice["stop_reason"] = None
        choice["token_ids"] = ids if wants_ids else None
        await self._event(self._envelope(choice))

    def _envelope(self, choice: JSON) -> JSON:
        usage = {"usage": self._usage()} if self._usage_always else {}
        return {**self._head, "choices": [choice], **usage}

    def _usage(self) -> JSON:
        prompt, completion = self._script.prompt_tokens, self._completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _id(self, text: str) -> int:
        known = self._upstream.token_ids
        return known.setdefault(text, FIRST_TOKEN_ID + len(known))

    def _logprob(self, text: str) -> JSON:
        """The entry of a token; its alternatives are itself and made-up texts, as many as were asked for."""
        logprob = -0.01 * (self._id(text) % 100)
        alternatives = [
            {"token": other, "logprob": logprob - rank, "bytes": list(other.encode())}
            for rank in range(self._body.get("top_logprobs") or 0)
            for other in [text if rank == 0 else f"{text}~{rank}"]
        ]
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()),
            "top_logprobs": alternatives,
        }

    async def _event(self, payload: JSON) -> None:
        await self._write(b"data: " + msgspec.json.encode(payload) + b"\n\n")

    async def _done(self) -> None:
        await self._write(b"data: [DONE]\n\n")
        await self._flush()

    async def _write(self, event: bytes) -> None:
        self._buffer.append(event)
        if len(self._buffer) >= self._script.events_per_write:
            await self._flush()

    async def _flush(self) -> None:
        data, self._buffer = b"".join(self._buffer), []
        size = self._script.write_size or max(len(data), 1)
        for at in range(0, len(data), size):
            await self._response.write(data[at : at + size])
            # Two turns of the loop (readable, read): the other side reads this piece before the next one comes.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
