"""How many requests run at once, and how many may wait for their turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from types import TracebackType

from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.metrics import Metrics


class Concurrency:
    """An async context that at most `limit` requests are in, while at most `queue` wait for it, the first one first.

    Of this process alone: where a gateway is several, each takes its part of the operator's limit.

    Args:
        limit: None: no limit.
        queue: who comes beyond that is told at once that the server is busy.
        metrics: where the waiting are counted.
    """

    def __init__(self, limit: int | None, queue: int, metrics: Metrics) -> None:
        self._limit = limit
        self._queue = queue
        self._metrics = metrics
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        """Wait for a turn.

        Raises:
            ApiError: 503, the queue is full.
        """
        if self._limit is None:
            return
        if self._running < self._limit:  # then nobody waits
            self._running += 1
            return
        if len(self._waiting) >= self._queue:
            self._metrics.busy.inc()
            raise ApiError(
                503,
                f"the server is busy: {self._running} requests are running and {len(self._waiting)} are waiting; "
                "try again in a moment",
                type="service_unavailable_error",
                code="server_busy",
                headers={"Retry-After": "2"},
            )
        await self._turn()

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._metrics.waiting.inc()
        came = time.monotonic()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had come in the same moment: it is the next one's now
                self._leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        finally:
            self._metrics.waiting.dec()
            self._metrics.queue_seconds.observe(time.monotonic() - came)

    async def __aexit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._limit is not None:
            self._leave()

    def _leave(self) -> None:
        """Give the place to who has waited longest, so that nobody who comes now can take it before."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1
