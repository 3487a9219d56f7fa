"""An engine as the gateway sees it: somewhere to stream from, with a count of what runs and what failed there.

An upstream is always asked to stream. It is asked for token ids too (`return_token_ids`, which vLLM and our own server
know and most others ignore); one that refuses the field is not asked for it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.connection import Connection, Connections, Movable, never
from thinkserve.gateway.errors import ApiError, UpstreamFailed
from thinkserve.gateway.sse import EventDecoder
from thinkserve.gateway.wire import encode

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
# The longest body that is read of an answer that is no stream: a list of models, an error.
MAX_BODY_BYTES = 2**20
# Extensions of vLLM's chat API that our own server speaks too. Other servers ignore them or refuse them with a 400.
EXTENSIONS = frozenset({"return_token_ids", "cache_salt", "skip_special_tokens", "stream_interval"})

Take = Callable[[list[bytes]], bool]


class UpstreamStream:
    """One running output of an upstream. Closing it before its end makes the engine stop its work."""

    __slots__ = ("_connection", "_connections", "_decoder", "_take")

    def __init__(self, connections: Connections, connection: Connection) -> None:
        self._connections = connections
        self._connection = connection
        self._decoder = EventDecoder()
        self._take: Take | None = None

    async def read(self, take: Take) -> None:
        """Give `take` the data of the events of each read, in the call in which they arrive, until it returns True.

        Returns without that when the stream has ended.

        Raises:
            UpstreamFailed: the connection broke, or the engine was silent for too long.
            Exception: whatever `take` raises.
        """
        self._take = take
        await self._connection.read(self._consume)

    def _consume(self, body: bytes) -> bool:
        assert self._take is not None
        return self._take(self._decoder.feed(body))

    @property
    def ended(self) -> bool:
        """Whether the engine's answer has been read to its end."""
        return self._connection.drained

    def close(self, *, complete: bool = False) -> None:
        """Let go of the stream. Unless all its events were read (`complete`), the engine is to end its work."""
        self._connections.release(self._connection, expected=complete)


class Upstream:
    """One engine: its connections, its load, its health, and what it can do."""

    def __init__(self, endpoint: Endpoint, *, name: str, idle_seconds: float) -> None:
        self.name = name
        """Tells it from the others of its pool."""
        self.running = 0
        """Outputs being generated there for this gateway."""
        self.outstanding = 0
        """The tokens that these are expected to take, prompts included."""
        self.last_taken = 0.0
        """When it was last given work (`time.monotonic`)."""
        self.healthy = False
        """Whether it answered when it was last asked anything."""
        self.failures = 0
        """How many of its outputs failed in a row."""
        self.ejected = False
        """Whether its pool gives it work only where nothing else is left."""
        self.known = False
        """Whether it ever told what it is."""
        self.model = endpoint.model
        self.extensions = True
        self.structural_tags = False
        """Whether a grammar may hold a thought format (vLLM's `structural_tag`)."""
        self.thinking_budgets = endpoint.thinking_budgets
        """Whether it bounds thoughts itself (vLLM's `thinking_token_budget`)."""
        self._endpoint = endpoint
        self._connections = Connections(endpoint, idle_seconds=idle_seconds)

    def close(self) -> None:
        """Close the connections that nothing runs on."""
        self._connections.close()

    @contextmanager
    def taking(self, tokens: int) -> Iterator[None]:
        """Count an output that runs here while the block does, and afterwards how it ended.

        An `UpstreamFailed` that leaves the block is a failure of the engine; an end without an exception shows that it
        works. Any other exception says nothing about the engine: the client left, or the request or the model's output
        was wrong.

        Args:
            tokens: what the output is expected to take, with its prompt (`Pool.expect`).
        """
        self.running += 1
        self.outstanding += tokens
        self.last_taken = time.monotonic()
        try:
            yield
        except UpstreamFailed:
            self.failures += 1
            raise
        else:
            self.failures = 0
        finally:
            self.running -= 1
            self.outstanding -= tokens

    def give_up_silent(self, seconds: float) -> None:
        """Fail what has been silent for so long and was shown to nobody, so that another engine is asked for it."""
        self._connections.give_up(seconds)

    async def probe(self, timeout_seconds: float = PROBE_SECONDS) -> bool:
        """Ask for the list of models: tells whether the engine answers, what it serves, and what it is."""
        was = self.healthy
        try:
            async with asyncio.timeout(timeout_seconds):
                self.healthy = await self._probe()
        except (
            UpstreamFailed,
            TimeoutError,
            msgspec.DecodeError,
            AttributeError,
            KeyError,
            TypeError,
        ) as exc:
            self.healthy = False
            if was:
                logger.warning("engine %s no longer answers (%s)", self.name, exc or type(exc).__name__)
        if self.healthy and not was:
            logger.info("engine %s answers", self.name)
        return self.healthy

    async def _probe(self) -> bool:
        status, raw = await self._whole(await self._connections.request("GET", "/v1/models"))
        if status in (404, 405, 501):
            self.known = True
            return True  # it answers, and has no list of models
        if status != 200:
            return False
        models = msgspec.json.decode(raw)["data"]
        if models:
            if self._endpoint.model is None:
                self.model = models[0].get("id")
            self.structural_tags = models[0].get("owned_by") == "vllm"
        self.known = True
        return True

    async def stream(
        self,
        body: dict[str, Any],
        request_id: str,
        headers: Mapping[str, str] = {},
        *,
        unseen: Movable = never,
    ) -> UpstreamStream:
        """Begin an output.

        Args:
            body: what the engine is asked.
            request_id: what its log and ours call the request.
            headers: more to send, such as a trace's.
            unseen: tells whether nobody has seen anything of the output, so that it may be given up for that of another
                engine. Until the answer begins that is taken for granted.

        Raises:
            ApiError: the engine refuses the request itself (400, 404, 413, 422, 429): nothing was generated.
            UpstreamFailed: it did not answer, or answered with anything else.
        """
        if self.model is not None:
            body.setdefault("model", self.model)
        if not self.extensions:
            body = {key: value for key, value in body.items() if key not in EXTENSIONS}
        head = _head({"X-Request-Id": request_id, **headers})
        connection = await self._post(body, head, unseen)
        if connection.status in (400, 422) and self.extensions and not self.structural_tags:
            # Perhaps it is strict about fields it does not know. If it takes the request without them, it is.
            await self._whole(connection)
            plain = {key: value for key, value in body.items() if key not in EXTENSIONS}
            connection = await self._post(plain, head, unseen)
            self.extensions = connection.status != 200
        if connection.status != 200:
            raise _refusal(*await self._whole(connection))
        return UpstreamStream(self._connections, connection)

    async def _post(self, body: dict[str, Any], head: str, unseen: Movable) -> Connection:
        begun = False

        def movable() -> bool:
            return not begun or unseen()

        try:
            connection = await self._connections.request(
                "POST", "/v1/chat/completions", encode(body), head, movable=movable
            )
        except UpstreamFailed:
            self.healthy = False
            raise
        begun = True
        return connection

    async def _whole(self, connection: Connection) -> tuple[int, bytes]:
        """The status and body of an answer that is no stream; too long a body is cut."""
        parts: list[bytes] = []

        def take(body: bytes) -> bool:
            parts.append(body)
            return sum(map(len, parts)) > MAX_BODY_BYTES

        try:
            async with asyncio.timeout(PROBE_SECONDS):
                while not connection.drained and sum(map(len, parts)) <= MAX_BODY_BYTES:
                    await connection.read(take)
        except TimeoutError as exc:
            raise UpstreamFailed("its answer does not end") from exc
        finally:
            self._connections.release(connection)
        return connection.status, b"".join(parts)


def _head(headers: Mapping[str, str]) -> str:
    """Headers as they are sent. A value that could end its line, or is no text of HTTP, is left out."""
    fit = {name: value for name, value in headers.items() if value.isascii() and value.isprintable()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fit.items())
    return f"Content-Type: application/json\r\n{lines}"


def _refusal(status: int, raw: bytes) -> Exception:
    """Turn an engine's HTTP error into ours. Its words are passed on only where it refused what the client asked."""
    try:
        data = msgspec.json.decode(raw)
        message = str(data.get("error", data)["message"])[:500]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        message = ""
    if status in (400, 413, 422) and message:
        lowered = message.lower()
        too_long = "context length" in lowered or "too long" in lowered or "max_model_len" in lowered
        return ApiError(400, message, code="context_length_exceeded" if too_long else None)
    if status == 429:
        return ApiError(
            429,
            "the engine is busy; try again in a moment",
            type="rate_limit_error",
            code="engine_busy",
            headers={"Retry-After": "2"},
        )
    return UpstreamFailed(f"it answered with HTTP {status}")
