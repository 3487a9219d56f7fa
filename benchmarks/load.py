"""The load of the serving benchmarks: raw asyncio protocols that send bytes encoded beforehand, and count what comes.

Three kinds of load: `closed_loop` (each connection sends its next request when it has the answer), `wave` (streams
that begin together), and `recorded` (a closed loop over given requests that keeps every read and its time, so that
nothing is decoded while it runs). Everything is bounded in count and time.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import cast

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_LAST_HTTP_CHUNK = b"0\r\n\r\n"
VISIBLE, HIDDEN = b"~", b"^"
# How long a load may go on after its time, and how long one wave of streams may take.
GRACE_SECONDS = 10.0
WAVE_SECONDS = 60.0
RECORDED_SECONDS = 180.0

Address = int | Path
"""A port of 127.0.0.1, or a Unix socket."""


def request_bytes(model: str, prompt: str, *, stream: bool) -> bytes:
    """A chat completion request as it goes over the wire."""
    body = json.dumps(
        {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
    ).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Exchange(asyncio.Protocol):
    """One connection with one request at a time; `on_done` is called when its answer is whole, or lost."""

    def __init__(self, on_done: Callable[[Exchange], None]) -> None:
        self._on_done = on_done
        self._busy = False
        self.status = 0
        """The HTTP status of the answer."""
        self.events = 0
        """Response events that came."""
        self.leaked = False
        self.failed = False
        self.sent = self.first = self.done = 0.0
        """When the request was sent, its first response event came, and the answer was whole (seconds)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._finish(failed=True)

    def send(self, request: bytes) -> None:
        """Begin an exchange."""
        self.events, self.leaked, self.failed, self._busy = 0, False, False, True
        self.status = 0
        self._head: bytes | None = b""
        self._left = -1
        self._tail = b""
        self.sent = perf_counter()
        self.transport.write(request)

    def close(self) -> None:
        """Drop the connection, and what may still be running on it."""
        self._busy = False
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            data = self._head + data
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._head = data
                return
            self._head = None
            length = _LENGTH.search(data, 0, end)
            self._left = int(length[1]) if length else -1
            self.status = int(data[9:12])
            self.failed = self.status != 200
            data = data[end:]
        if events := data.count(VISIBLE):
            if not self.events:
                self.first = perf_counter()
            self.events += events
        self.leaked = self.leaked or HIDDEN in data
        if self._left >= 0:
            self._left -= len(data)
            if self._left == 0:
                self._finish(self.failed)
        else:
            self._tail = (self._tail + data)[-5:]
            if self._tail == _LAST_HTTP_CHUNK:
                self._finish(self.failed)

    def _finish(self, failed: bool) -> None:
        self.done = perf_counter()
        self.failed, self._busy = failed, False
        self._on_done(self)


class Recording(Exchange):
    """An exchange that keeps what comes."""

    def __init__(self, on_done: Callable[[Exchange], None]) -> None:
        super().__init__(on_done)
        self.at = 0
        """Which request it is."""
        self.reads: list[tuple[float, bytes]] = []
        """When bytes came (seconds), and they; with the HTTP head and HTTP chunks."""

    def send(self, request: bytes) -> None:
        self.reads = []
        super().send(request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((perf_counter(), data))
        super().data_received(data)


@dataclass(slots=True)
class Record:
    """One exchange, as it came. Times in seconds."""

    sent: float
    done: float
    failed: bool
    reads: list[tuple[float, bytes]]


@dataclass(slots=True)
class Load:
    """What came of a load. Times in seconds."""

    seconds: float = 0.0
    answered: int = 0
    failed: int = 0
    leaked: int = 0
    events: int = 0
    latencies: list[float] = field(default_factory=list)
    """Until the answer was whole."""
    firsts: list[float] = field(default_factory=list)
    """Until the first response event."""

    def add(self, exchange: Exchange, events: int) -> None:
        """Count an exchange that should have brought so many response events."""
        if exchange.failed or exchange.events != events:
            self.failed += 1
            return
        self.answered += 1
        self.leaked += exchange.leaked
        self.events += exchange.events
        self.latencies.append(exchange.done - exchange.sent)
        self.firsts.append(exchange.first - exchange.sent)


async def _connect(port: int, count: int, on_done: Callable[[Exchange], None]) -> list[Exchange]:
    loop = asyncio.get_running_loop()
    return [
        (await loop.create_connection(lambda: Exchange(on_done), "127.0.0.1", port))[1] for _ in range(count)
    ]


async def closed_loop(
    port: int, request: bytes, *, events: int, connections: int, seconds: float, limit: int
) -> Load:
    """Send `request` on each connection again and again, for so long and at most `limit` times in all.

    Args:
        events: the response events that each answer must hold.
    """
    load = Load()
    over = asyncio.Event()
    left = limit
    running = connections
    deadline = perf_counter() + seconds

    def on_done(exchange: Exchange) -> None:
        nonlocal left, running
        load.add(exchange, events)
        left -= 1
        if left >= running and exchange.done < deadline and not exchange.transport.is_closing():
            exchange.send(request)
            return
        running -= 1
        if not running:
            over.set()

    try:
        exchanges = await _connect(port, connections, on_done)
    except OSError:
        return Load(failed=1)
    began = perf_counter()
    deadline = began + seconds
    for exchange in exchanges:
        exchange.send(request)
    await _end(over, exchanges, seconds + GRACE_SECONDS, load)
    load.seconds = perf_counter() - began
    return load


async def wave(port: int, request: bytes, *, events: int, streams: int, times: int = 1) -> Load:
    """Begin so many streams at once, `times` over, each wave when the last has ended; connections are kept.

    Args:
        events: the response events that each stream must hold.
    """
    load = Load()
    over = asyncio.Event()
    running = 0

    def on_done(exchange: Exchange) -> None:
        nonlocal running
        load.add(exchange, events)
        running -= 1
        if not running:
            over.set()

    try:
        exchanges = await _connect(port, streams, on_done)
    except OSError:
        return Load(failed=1)
    for at in range(times):
        running = streams
        over.clear()
        began = perf_counter()
        for exchange in exchanges:
            exchange.send(request)
        await _end(over, exchanges if at == times - 1 else [], WAVE_SECONDS, load)
        load.seconds += perf_counter() - began
        if load.failed:
            break
    for exchange in exchanges:
        exchange.close()
    return load


async def recorded(
    address: Address, requests: list[bytes], *, connections: int, spread: float = 0.0
) -> tuple[list[Record], float]:
    """Send the requests over so many connections, each its next one when it has the answer.

    Args:
        spread: the seconds over which the connections begin; answers that take equally long stay that far apart.

    Returns:
        The exchanges in the order of the requests, and the seconds from the first byte sent to the last one read.
        Those that did not end in time are marked as failed.
    """
    records: dict[int, Record] = {}
    over = asyncio.Event()
    begun = 0
    running = connections = min(connections, len(requests))

    def begin(exchange: Recording) -> None:
        nonlocal begun, running
        if begun == len(requests):  # others were faster than this one's turn came
            running -= 1
            return
        exchange.at = begun
        begun += 1
        exchange.send(requests[exchange.at])

    def on_done(exchange: Exchange) -> None:
        nonlocal running
        assert isinstance(exchange, Recording)
        records[exchange.at] = Record(exchange.sent, exchange.done, exchange.failed, exchange.reads)
        if begun < len(requests) and not exchange.transport.is_closing():
            begin(exchange)
            return
        running -= 1
        if not running:
            over.set()

    loop = asyncio.get_running_loop()
    exchanges: list[Recording] = []
    for _ in range(connections):
        if isinstance(address, Path):
            _, made = await loop.create_unix_connection(lambda: Recording(on_done), str(address))
        else:
            _, made = await loop.create_connection(lambda: Recording(on_done), "127.0.0.1", address)
        exchanges.append(made)
    began = perf_counter()
    for at, exchange in enumerate(exchanges):
        if spread:
            loop.call_later(spread * at / connections, begin, exchange)
        else:
            begin(exchange)
    try:
        async with asyncio.timeout(RECORDED_SECONDS):
            await over.wait()
    except TimeoutError:
        pass
    for exchange in exchanges:
        exchange.close()
    lost = Record(began, began, True, [])
    ended = max((record.done for record in records.values()), default=began)
    return [records.get(at, lost) for at in range(len(requests))], ended - began


async def _end(over: asyncio.Event, exchanges: list[Exchange], seconds: float, load: Load) -> None:
    """Wait until all is answered, but no longer than so many seconds; then close the connections."""
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        load.failed += 1
    for exchange in exchanges:
        exchange.close()
