"""The decode thread: the only place where the model runs.

The event loop hands it generations through an inbox and gets each step's deltas back in one call, so that a step costs
one wake-up of the loop, however many tokens it made. If a step fails, nothing that runs can be trusted any more: every
generation gets an error, `/health` turns to 503 and the process ends, for its supervisor to start a new one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable

from thinkserve.engines.transformers_server.batch import ContinuousBatch, Event, Failure
from thinkserve.engines.transformers_server.generation import Generation
from thinkserve.engines.transformers_server.prompt import TextTokenizer
from thinkserve.engines.transformers_server.sequence import Sequence

logger = logging.getLogger(__name__)


class QueueFull(Exception):
    """Too many sequences wait already."""


class DecodeThread:
    """Runs a `ContinuousBatch` until it is closed or fails; `on_death` is then called on the event loop."""

    def __init__(
        self,
        batch: ContinuousBatch,
        tokenizer: TextTokenizer,
        loop: asyncio.AbstractEventLoop,
        *,
        max_waiting: int,
        on_death: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._tokenizer = tokenizer
        self._loop = loop
        self._max_waiting = max_waiting
        self._on_death = on_death
        self._inbox: deque[Sequence] = deque()
        self._live: set[Generation] = set()
        self._work = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it can still decode."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start decoding."""
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        """Queue all choices of a generation (event loop only).

        Raises:
            QueueFull: the queue has no room.
        """
        sequences = [Sequence(generation, index, self._tokenizer) for index in range(generation.request.n)]
        with self._work:
            if len(self._inbox) + len(self._batch.waiting) >= self._max_waiting:
                raise QueueFull
            self._inbox.extend(sequences)
            self._work.notify()
        self._live.add(generation)

    def release(self, generation: Generation) -> None:
        """Nobody waits for this generation any more: what still runs of it leaves at the next step."""
        generation.cancelled = True
        self._live.discard(generation)

    def close(self) -> None:
        """End the thread after the step it is in."""
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take_inbox():
                events, failures = self._batch.step()
                if events or failures:
                    self._loop.call_soon_threadsafe(_deliver, events, failures)
        except Exception:
            logger.exception("the decode thread failed")
            self._loop.call_soon_threadsafe(self._bury)

    def _take_inbox(self) -> bool:
        """Move new sequences to the batch's queue, waiting while there is nothing to do; False once closed."""
        with self._work:
            while not (self._inbox or self._batch.busy or self._closed):
                self._work.wait()
            self._batch.waiting.extend(self._inbox)
            self._inbox.clear()
            return not self._closed

    def _bury(self) -> None:
        self._thread.join()
        for generation in self._live:
            generation.fail("the engine failed; the request can be sent again")
        self._on_death()


def _deliver(events: list[Event], failures: list[Failure]) -> None:
    for generation, index, delta in events:
        generation.push(index, delta)
    for generation, message in failures:
        generation.fail(message)
