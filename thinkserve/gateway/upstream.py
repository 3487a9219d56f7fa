"""The engines as the gateway sees them: somewhere to stream from, with a count of what is running there.

An upstream is always asked to stream. It is asked for token ids too (`return_token_ids`, which vLLM and our own server
know and most others ignore); one that refuses the field is not asked for it again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.errors import ApiError, UpstreamFailed
from thinkserve.gateway.sse import EventDecoder
from thinkserve.gateway.wire import encode

logger = logging.getLogger(__name__)

# uvicorn, which vLLM runs on, closes connections that were idle for 5 s; ours go first.
KEEPALIVE_SECONDS = 4.0
CONNECT_SECONDS = 10.0
PROBE_SECONDS = 5.0
# Extensions of vLLM's chat API that our own server speaks too. Other servers ignore them or refuse them with a 400.
EXTENSIONS = frozenset({"return_token_ids", "cache_salt", "skip_special_tokens"})


class UpstreamStream:
    """One running output of an upstream. Closing it before its end makes the engine stop its work."""

    __slots__ = ("_content", "_decoder", "_response", "_upstream")

    def __init__(self, upstream: Upstream, response: aiohttp.ClientResponse) -> None:
        self._upstream = upstream
        self._response = response
        self._content = response.content
        self._decoder = EventDecoder()

    async def read(self) -> list[bytes] | None:
        """The data of the events of the next read (possibly none); None at the end of the stream.

        Raises:
            UpstreamFailed: the connection broke, or the engine was silent for too long.
        """
        try:
            block = await self._content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise UpstreamFailed(f"the stream broke ({type(exc).__name__})") from exc
        return self._decoder.feed(block) if block else None

    @property
    def ended(self) -> bool:
        """Whether the engine's answer has been read to its end."""
        return self._content.at_eof()

    async def finish(self) -> None:
        """Read to the end after `[DONE]`, so that the connection can be used again."""
        try:
            async with asyncio.timeout(0.5):
                while not self._content.at_eof():
                    await self._content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._response.close()

    def close(self) -> None:
        """Let go of the stream. One that has not ended is cut, and the engine ends its work."""
        if self._content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Upstream:
    """One engine: its connections, its load, and what it can do."""

    def __init__(self, endpoint: Endpoint, *, name: str, idle_seconds: float) -> None:
        self.name = name
        self.running = 0
        """Outputs being generated there for this gateway."""
        self.healthy = False
        self.model = endpoint.model
        self.extensions = True
        self.structural_tags = False
        """Whether a grammar may hold a thought format (vLLM's `structural_tag`)."""
        self._endpoint = endpoint
        self._chat_url = URL(f"{endpoint.base_url}/v1/chat/completions")
        self._idle_seconds = idle_seconds
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the session; must run in the event loop that will use it."""
        connector: aiohttp.BaseConnector
        if self._endpoint.uds is not None:
            connector = aiohttp.UnixConnector(
                str(self._endpoint.uds), limit=0, keepalive_timeout=KEEPALIVE_SECONDS
            )
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        # No compression: an event must be readable when it arrives.
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=self._idle_seconds
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def probe(self) -> bool:
        """Ask for the list of models: tells whether the engine answers, what it serves, and what it is."""
        was = self.healthy
        try:
            self.healthy = await self._probe()
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            msgspec.DecodeError,
            AttributeError,
            TypeError,
        ) as exc:
            self.healthy = False
            if was:
                logger.warning("engine %s no longer answers (%s)", self.name, type(exc).__name__)
        if self.healthy and not was:
            logger.info("engine %s answers", self.name)
        return self.healthy

    async def _probe(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        async with self._client.get(f"{self._endpoint.base_url}/v1/models", timeout=timeout) as response:
            if response.status in (404, 405, 501):
                return True  # it answers, and has no list of models
            if response.status != 200:
                return False
            models = msgspec.json.decode(await response.read())["data"]
        if models:
            if self._endpoint.model is None:
                self.model = models[0].get("id")
            self.structural_tags = models[0].get("owned_by") == "vllm"
        return True

    async def stream(self, body: dict[str, Any], request_id: str) -> UpstreamStream:
        """Begin an output.

        Raises:
            ApiError: the engine refuses the request itself (400, 404, 413, 422, 429): nothing was generated.
            UpstreamFailed: it did not answer, or answered with anything else.
        """
        if self.model is not None:
            body.setdefault("model", self.model)
        if not self.extensions:
            body = {key: value for key, value in body.items() if key not in EXTENSIONS}
        response = await self._post(body, request_id)
        if response.status in (400, 422) and self.extensions and not self.structural_tags:
            # Perhaps it is strict about fields it does not know. If it takes the request without them, it is.
            response.close()
            plain = {key: value for key, value in body.items() if key not in EXTENSIONS}
            response = await self._post(plain, request_id)
            self.extensions = response.status != 200
        if response.status != 200:
            raise await _refusal(response)
        return UpstreamStream(self, response)

    async def _post(self, body: dict[str, Any], request_id: str) -> aiohttp.ClientResponse:
        headers = {"X-Request-Id": request_id}
        data = encode(body)
        try:
            try:
                return await self._client.post(self._chat_url, data=data, headers=headers)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # The engine may have closed an idle connection just as it was taken from the pool. Nothing was shown
                # to anyone, so asking once more is safe.
                return await self._client.post(self._chat_url, data=data, headers=headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            self.healthy = False
            raise UpstreamFailed(f"it cannot be reached ({type(exc).__name__})") from exc

    @property
    def _client(self) -> aiohttp.ClientSession:
        assert self._session is not None, "open() was not called"
        return self._session


async def _refusal(response: aiohttp.ClientResponse) -> Exception:
    """Turn an engine's HTTP error into ours. Its words are passed on only where it refused what the client asked."""
    try:
        raw = await response.content.read(64 * 1024)
        data = msgspec.json.decode(raw)
        error = data.get("error", data)
        message = str(error["message"])[:500]
    except (
        aiohttp.ClientError,
        OSError,
        TimeoutError,
        msgspec.DecodeError,
        AttributeError,
        KeyError,
        TypeError,
    ):
        message = ""
    finally:
        response.close()
    status = response.status
    if status in (400, 413, 422) and message:
        lowered = message.lower()
        too_long = "context length" in lowered or "too long" in lowered or "max_model_len" in lowered
        return ApiError(400, message, code="context_length_exceeded" if too_long else None)
    if status == 429:
        return ApiError(429, "the engine is busy; try again in a moment", type="rate_limit_error")
    return UpstreamFailed(f"it answered with HTTP {status}")


class Pool:
    """Several upstreams; the one with the least to do is asked next."""

    def __init__(self, upstreams: list[Upstream], *, probe_every_seconds: float = 5.0) -> None:
        self.upstreams = upstreams
        self._probe_every = probe_every_seconds
        self._prober: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open all upstreams, look once at each, and keep looking."""
        for upstream in self.upstreams:
            await upstream.open()
        await self.probe()
        self._prober = asyncio.create_task(self._probe_forever())

    async def close(self) -> None:
        """Stop looking, and close all connections."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        for upstream in self.upstreams:
            await upstream.close()

    async def probe(self) -> bool:
        """Look at every upstream now; return whether any answers."""
        return any(await asyncio.gather(*(upstream.probe() for upstream in self.upstreams)))

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(self._probe_every)
            await self.probe()

    def pick(self, tried: set[Upstream]) -> Upstream | None:
        """The least busy upstream that was not tried yet; those that did not answer lately come last."""
        left = [upstream for upstream in self.upstreams if upstream not in tried]
        return min(left, key=lambda upstream: (not upstream.healthy, upstream.running), default=None)

    @property
    def structural_tags(self) -> bool:
        """Whether every upstream can bind a response by a grammar that leaves the thought free."""
        return all(upstream.structural_tags for upstream in self.upstreams)
