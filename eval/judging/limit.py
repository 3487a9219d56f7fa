"""How many calls may run at once: as many as the user allows, and fewer while the server says that it is too many.

Additive increase, multiplicative decrease, as in TCP: a refusal halves the limit, and a round of successes adds one.
All calls that were running when the limit was last halved belong to the same refusal, so a burst of them halves it once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Servers have a bad moment now and then; only if more than this share of the last round failed, it is from the load.
FAILURES_FROM_LOAD = 0.25


class AdaptiveLimit:
    """Slots for calls; `most` of them at best, one at worst."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.running = 0
        self._allowed = float(most)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._halved_at = -1.0
        self._paused_until = 0.0
        self._failure_share = 0.0
        """A running average over about a round of calls."""

    @property
    def current(self) -> int:
        """How many calls may run at once now."""
        return max(1, int(self._allowed))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a slot and hold it; gives the time at which it began (`time.monotonic`)."""
        await self._acquire()
        try:
            yield time.monotonic()
        finally:
            self.running -= 1
            self._wake()

    def succeeded(self) -> None:
        """A call was answered."""
        self._allowed = min(self.most, self._allowed + 1 / self._allowed)
        self._failure_share -= self._failure_share / self._allowed
        self._wake()

    def refused(self, began: float, retry_after: float | None) -> None:
        """A call was refused as one too many.

        Args:
            began: when its slot did.
            retry_after: seconds for which the server wants no further call, if it said so.
        """
        self._halve(began)
        if retry_after:
            self.pause(retry_after)

    def failed(self, began: float) -> None:
        """A call failed as it does under load, among other reasons: an error of the server, or a time-out."""
        self._failure_share += (1 - self._failure_share) / self._allowed
        if self._failure_share > FAILURES_FROM_LOAD:
            self._halve(began)

    def pause(self, seconds: float) -> None:
        """Begin no call for a while."""
        until = time.monotonic() + seconds
        if until > self._paused_until:
            self._paused_until = until
            # A little later than asked for, since timers may be early by their resolution.
            asyncio.get_running_loop().call_later(seconds + 0.002, self._wake)

    def _halve(self, began: float) -> None:
        if began > self._halved_at:
            self._allowed = max(1.0, self._allowed / 2)
            self._halved_at = time.monotonic()
            self._failure_share = 0.0

    def _free(self) -> bool:
        return self.running < self.current and time.monotonic() >= self._paused_until

    async def _acquire(self) -> None:
        if not self._waiting and self._free():
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it got its slot in the same moment
                self.running -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._free():
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.running += 1
                turn.set_result(None)
