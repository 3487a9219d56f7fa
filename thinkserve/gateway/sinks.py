"""Where the visible parts of an answer go: gathered into one body, or written as events while they come."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from thinkserve.gateway.choice import Choice, Visible
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.endpoint import Answer, Writer
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.wire import Usage

logger = logging.getLogger(__name__)

# How long a stream's head waits for the engine to take the request: an engine that refuses it does so at once, and then
# the client gets a plain HTTP error.
HEAD_SECONDS = 0.3
# Transports ask a writer to wait from 64 KiB on.
SEND_NOW_BYTES = 32 * 1024
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would collect events into a buffer otherwise.
    "X-Accel-Buffering": "no",
}


class Gathered:
    """The sink of an answer that is sent whole."""

    def __init__(self, choices: int) -> None:
        self.answers = [Answer() for _ in range(choices)]

    def sent(self, index: int) -> bool:
        return False

    async def opened(self) -> None:
        pass

    def begin(self, index: int, choice: Choice) -> None:
        pass

    def write(self, index: int, visible: Visible) -> None:
        self.answers[index].add(visible)

    def reveal(self, index: int, thought: str) -> None:
        self.answers[index].thoughts.append(thought)

    def restart(self, index: int) -> None:
        self.answers[index] = Answer()

    def end_choice(self, index: int, choice: Choice) -> None:
        self.answers[index].choice = choice

    def send_now(self) -> bool:
        return True  # there is nothing to send before the end

    async def flush(self) -> None:
        pass


class Streamed:
    """The sink of a streamed answer: sends events, and keeps the connection alive while there is nothing to show."""

    def __init__(
        self, http: web.Request, writer: Writer, choices: int, headers: dict[str, str], config: GatewayConfig
    ) -> None:
        self._http = http
        self._config = config
        self._response = web.StreamResponse(headers={**STREAM_HEADERS, **headers})
        self._writer = writer
        self._sent = [False] * choices
        self._out: list[bytes] = []
        self._head: asyncio.Task[None] | None = None
        self._head_sent = False
        self._writing_since: float | None = None
        self.stalled = False
        """Whether the client was given up because it did not read."""
        self._revealed = [False] * choices
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()
        self._timer = self._loop.call_later(HEAD_SECONDS, self._beat)
        self._background: asyncio.Task[None] | None = None

    def sent(self, index: int) -> bool:
        return self._sent[index]

    @property
    def begun(self) -> bool:
        """Whether the answer is a stream by now, so that an error can only be its last event."""
        return self._head is not None

    def abort(self) -> None:
        """Cut the connection."""
        if self._http.transport is not None:
            self._http.transport.abort()

    @property
    def response(self) -> web.StreamResponse:
        """The answer, as far as it has come."""
        return self._response

    async def opened(self) -> None:
        if not self._head_sent:
            await self._begin()

    async def _begin(self) -> None:
        """Send the head and the role chunks, once, whoever asks first."""
        if self._head is None:
            self._head = asyncio.ensure_future(self._send_head())
        await asyncio.shield(self._head)

    async def _send_head(self) -> None:
        await self._response.prepare(self._http)
        await self._response.write(self._writer.head())
        self._last_write = self._loop.time()
        self._head_sent = True

    def begin(self, index: int, choice: Choice) -> None:
        self._out.append(self._writer.begin(index, choice))

    def write(self, index: int, visible: Visible) -> None:
        self._sent[index] = True
        self._out.append(self._writer.text(index, visible))

    def reveal(self, index: int, thought: str) -> None:
        self._revealed[index] = True
        self._out.append(self._writer.thought(index, thought))

    def restart(self, index: int) -> None:
        # Nothing of the response was sent. An operator who sees thoughts has seen some of this one.
        if self._revealed[index]:
            self._out.append(self._writer.thought(index, "\n[sampled again]\n"))

    def send_now(self) -> bool:
        transport = self._http.transport
        if not self._head_sent or self._writing_since is not None:
            return False
        if transport is None or transport.get_write_buffer_size():
            return False
        data = b"".join(self._out)
        if len(data) > SEND_NOW_BYTES:
            return False
        if not data:  # a part of what goes out when it is whole: the stream is to be kept alive meanwhile
            self._out.clear()
            return True
        # With nothing before it, a write goes out without waiting for anything: run here, in the call in which the
        # engine's event came, it saves waking the task of the request for every event. It must not come to wait: the
        # future it would wait for could not be waited for again by the task.
        writing = self._response.write(data)
        self._out.clear()
        self._last_write = self._loop.time()
        try:
            writing.send(None)
        except StopIteration:
            return True
        raise RuntimeError("a small write to an empty buffer waited")

    async def flush(self) -> None:
        if self._out:
            if not self._head_sent:
                await self._begin()
            data = b"".join(self._out)
            self._out.clear()
            if data:
                await self._write(data)

    async def _write(self, data: bytes) -> None:
        self._last_write = self._writing_since = self._loop.time()
        try:
            await self._response.write(data)  # waits while the client does not read
        finally:
            self._writing_since = None

    def _beat(self) -> None:
        """From time to time: begin the stream, keep it alive, or give up a client that no longer reads."""
        now = self._loop.time()
        every = self._config.keepalive_seconds
        if self._writing_since is not None:
            if (
                now - self._writing_since > self._config.stalled_client_seconds
                and self._http.transport is not None
            ):
                self.stalled = True
                self.abort()
        elif not self._head_sent:
            self._in_background(self._begin())
        elif now - self._last_write >= every * 0.9:
            self._in_background(self._write(self._writer.keepalive))
        self._timer = self._loop.call_later(every, self._beat)

    def _in_background(self, work: Any) -> None:
        if self._background is None or self._background.done():
            self._background = self._loop.create_task(_ignoring_disconnect(work))
        else:
            work.close()

    def end_choice(self, index: int, choice: Choice) -> None:
        self._out.append(self._writer.end_choice(index, choice))

    def end(self, usage: Usage) -> None:
        """Take the end of the stream."""
        self._out.append(self._writer.end(usage))

    def fail(self, error: ApiError) -> None:
        """Take an error as the last event: the stream was good so far, and is not whole."""
        self._out.append(self._writer.fail(error))

    def stop_beating(self) -> None:
        """End the timer; the last write may follow."""
        self._timer.cancel()

    async def close(self) -> web.StreamResponse:
        """Send the rest and end the response, in one write."""
        await self.opened()
        try:
            async with asyncio.timeout(self._config.stalled_client_seconds):
                await self._response.write_eof(b"".join(self._out))
        except TimeoutError:
            self.stalled = True
            self.abort()
        self._out.clear()
        return self._response


async def _ignoring_disconnect(work: Any) -> None:
    """A heartbeat to a client that has just gone is nobody's error: its request is cancelled anyway."""
    try:
        await work
    except (ConnectionError, RuntimeError):
        logger.debug("heartbeat to a client that is gone")
