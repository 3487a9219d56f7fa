"""HTTP/1.1 connections to one engine, kept alive between requests.

Written over asyncio's transports and httptools (the parser of Node.js and uvicorn) rather than over an HTTP client, for
one reason: what an engine streams is handed on in the very call in which it arrives. While a model thinks there is
nothing to send, so no task has to wake for it. Over aiohttp's client each event of a hidden thought cost a task switch
and a pass through its stream buffer, which was more than all else that the gateway does with it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools

from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.errors import UpstreamFailed

# uvicorn, which vLLM runs on, closes connections that were idle for 5 s; ours go first.
KEEPALIVE_SECONDS = 4.0
CONNECT_SECONDS = 10.0
# What a reader that is busy lets wait before the engine's side of the connection is told to wait too.
BACKLOG_BYTES = 256 * 1024
# How long the end of an answer may take after its last event.
TRAILER_SECONDS = 1.0

Consumer = Callable[[bytes], bool]
Movable = Callable[[], bool]


def never() -> bool:
    """For an exchange that is to be waited for, whatever is known of the engine."""
    return False


class ConnectionLost(UpstreamFailed):
    """The connection ended before there was any answer, so the same request may be sent again."""


class Connection(asyncio.Protocol):
    """One connection, with one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.usable = True
        """Whether another request may be sent on it."""
        self._transport: asyncio.Transport | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget the last exchange."""
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.ended = False
        self.failure: Exception | None = None
        self._last_read = 0.0
        self._parts: list[bytes] = []
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._consume: Consumer | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_seconds = 0.0
        self._movable: Movable = never

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._last_read = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(UpstreamFailed("it sent what is not HTTP"))
        if self._parts:
            # All of a read at once: an engine that sends each event in an HTTP chunk of its own costs no more.
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._deliver(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if not self.ended:
            # An answer of unknown length ends with its connection; whether it was whole, its events tell.
            if not self.status:
                self.failure = ConnectionLost("it closed the connection without an answer")
            elif exc is not None:
                self.failure = UpstreamFailed(f"the stream broke ({type(exc).__name__})")
            self._end()

    # What httptools calls

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._wake()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def _deliver(self, body: bytes) -> None:
        if self._consume is not None and not self._backlog:
            self._hand_on(body)
            return
        self._backlog.append(body)
        self._backlog_bytes += len(body)
        # Not at the end of an answer: nothing more comes then, and the connection must read when it is used again.
        if self._backlog_bytes > BACKLOG_BYTES and not self.ended and self._transport is not None:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status < 200:
            self.status = 0
            return
        self.usable = self.usable and self._parser.should_keep_alive()
        self._end()

    # What the gateway calls

    @property
    def drained(self) -> bool:
        """Whether the answer has ended and all of it was read."""
        return self.ended and not self._backlog

    async def send(self, request: bytes, idle_seconds: float, movable: Movable) -> None:
        """Send a request and wait for the head of its answer; `status` has its status then.

        Args:
            request: all of it.
            idle_seconds: how long the engine may be silent, now and until the answer has ended.
            movable: tells whether another engine may be asked instead.

        Raises:
            UpstreamFailed: the connection ended before that, or the engine was silent for too long.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost("the connection is closed")
        self._begin()
        self._idle_seconds = idle_seconds
        self._movable = movable
        self._last_read = self._loop.time()
        self._timer = self._loop.call_later(idle_seconds, self._look)
        self._transport.write(request)
        await self._wait()
        if self.failure is not None:
            raise self.failure

    async def read(self, consume: Consumer) -> None:
        """Give the body to `consume` as it comes, until it returns True or the body has ended.

        Raises:
            UpstreamFailed: the connection broke.
            Exception: whatever `consume` raises.
        """
        while self._backlog:
            body = self._backlog.popleft()
            self._backlog_bytes -= len(body)
            if self._backlog_bytes <= BACKLOG_BYTES // 2 and self._transport is not None and not self.ended:
                self._transport.resume_reading()
            if consume(body):
                return
        if not self.ended:
            self._consume = consume
            try:
                await self._wait()
            finally:
                self._consume = None
        if self.failure is not None and not self._backlog:
            raise self.failure

    def _hand_on(self, body: bytes) -> None:
        assert self._consume is not None
        try:
            wake = self._consume(body)
        except Exception as exc:  # noqa: BLE001 - raised anew in the task that reads
            self.failure, wake = exc, True
        if wake:
            self._consume = None
            self._wake()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look(self) -> None:
        """Give up the engine if it has been silent for too long, or look again when that could be."""
        left = self._idle_seconds - self._silent_seconds()
        if left <= 0:
            self._fail(UpstreamFailed(f"it was silent for {self._idle_seconds:g} s"))
        else:
            self._timer = self._loop.call_later(left, self._look)

    def _silent_seconds(self) -> float:
        """How long the engine has been silent. It is not while it waits for whoever reads here."""
        if self._backlog:
            self._last_read = self._loop.time()
        return self._loop.time() - self._last_read

    def give_up(self, seconds: float) -> None:
        """End an exchange in which the engine has been silent for so long, if another engine may be asked."""
        if not self.ended and self._silent_seconds() >= seconds and self._movable():
            self._fail(UpstreamFailed(f"it was silent for {seconds:g} s and fails its health checks"))

    def _fail(self, failure: Exception) -> None:
        self.failure = failure
        self.abort()
        self._end()

    def _end(self) -> None:
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def abort(self) -> None:
        """Cut the connection at once, whatever is on it; an engine ends its work for it then."""
        self.usable = False
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()


class Connections:
    """The connections to one engine: takes a free one for a request, or makes one."""

    def __init__(self, endpoint: Endpoint, *, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        parts = urlsplit(endpoint.base_url)
        self._uds = endpoint.uds
        self._host = parts.hostname or "localhost"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._base_path = parts.path.rstrip("/")
        head = f"Host: {parts.netloc.rpartition('@')[2]}\r\nAccept-Encoding: identity\r\nUser-Agent: thinkserve\r\n"
        if endpoint.api_key:
            head += f"Authorization: Bearer {endpoint.api_key}\r\n"
        self._head = head
        self._free: deque[tuple[float, Connection]] = deque()
        self._busy: set[Connection] = set()
        self._closed = False
        self._ending: set[asyncio.Task[None]] = (
            set()
        )  # a task that nobody holds may be collected before it has run

    def close(self) -> None:
        """Close the connections that nothing runs on, and each of the others when it is given back."""
        self._closed = True
        while self._free:
            self._free.pop()[1].abort()

    def give_up(self, seconds: float) -> None:
        """End the exchanges in which the engine has been silent for so long, where another engine may be asked."""
        for connection in tuple(self._busy):
            connection.give_up(seconds)

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: str = "", *, movable: Movable = never
    ) -> Connection:
        """Send a request; return its connection when the head of the answer is there.

        A request that fails on a connection used before is sent once more on a new one: the engine may have closed it
        just then, and nothing of an answer had come.

        Args:
            method: of HTTP.
            path: behind the base URL.
            body: all of it.
            headers: more of them, each with its line end.
            movable: tells, as long as the answer has not ended, whether another engine may be asked instead.

        Raises:
            UpstreamFailed: the engine cannot be reached, or closes the connection without an answer.
        """
        request = (
            f"{method} {self._base_path}{path} HTTP/1.1\r\n{self._head}{headers}Content-Length: {len(body)}\r\n\r\n"
        ).encode("latin-1") + body
        connection = self._reusable()
        if connection is not None:
            try:
                return await self._sent(connection, request, movable)
            except ConnectionLost:
                pass
        return await self._sent(await self._connect(), request, movable)

    def release(self, connection: Connection, *, expected: bool = False) -> None:
        """Give a connection back. One whose answer has not ended is cut, so that the engine ends its work.

        Args:
            connection: what `request` returned.
            expected: all events were read, and only the end of the answer is still to come; it is waited for.
        """
        loop = asyncio.get_running_loop()
        self._busy.discard(connection)
        if connection.ended and connection.usable and not self._closed:
            self._free.append((loop.time(), connection))
        elif expected and not connection.ended:
            task = loop.create_task(self._end(connection))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        else:
            connection.abort()

    async def _end(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(TRAILER_SECONDS):
                while not connection.ended:
                    await connection.read(lambda body: False)
        except (TimeoutError, UpstreamFailed):
            connection.abort()
        except BaseException:
            connection.abort()
            raise
        else:
            self.release(connection)

    async def _sent(self, connection: Connection, request: bytes, movable: Movable) -> Connection:
        self._busy.add(connection)
        try:
            await connection.send(request, self._idle_seconds, movable)
        except BaseException:
            self._busy.discard(connection)
            connection.abort()
            raise
        return connection

    def _reusable(self) -> Connection | None:
        """The connection used last, if any is young enough; older ones are closed."""
        oldest = asyncio.get_running_loop().time() - KEEPALIVE_SECONDS
        while self._free and self._free[0][0] < oldest:
            self._free.popleft()[1].abort()
        while self._free:
            connection = self._free.pop()[1]
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self._uds is not None:
                    _, made = await loop.create_unix_connection(Connection, str(self._uds))
                else:
                    # asyncio and uvloop both set TCP_NODELAY.
                    _, made = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl)
        except (OSError, TimeoutError) as exc:
            raise UpstreamFailed(f"it cannot be reached ({type(exc).__name__})") from exc
        return made
