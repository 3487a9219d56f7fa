"""One request while it runs: the bridge between the decode thread and the handler that writes its reply.

The decode thread's deltas arrive on the event loop and wait here, merged by choice, until the handler takes them. So a
reader that lags gets fewer and larger chunks, and what waits is never more than one output's worth.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from thinkserve.engines.transformers_server.request import ChatRequest

TokenLogprobs = tuple[
    int, float, list[tuple[int, float]]
]  # token id, its log-probability, the likeliest tokens


@dataclass(slots=True)
class Delta:
    """What one choice gained since the last one; the last delta of a choice has a finish reason."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def merge(self, later: Delta) -> None:
        """Append what came after this."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason


class GenerationFailed(Exception):
    """The engine could not go on with this request; the message is fit for the client."""


class Generation:
    """A request with its prompt, and the deltas of its choices.

    Attributes:
        cancelled: set by the handler when nobody wants the rest; the decode thread reads it before each step.
    """

    def __init__(self, request: ChatRequest, prompt_ids: list[int], max_tokens: int) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.max_tokens = max_tokens
        self.cancelled = False
        self._waiting: dict[int, Delta] = {}
        self._unfinished = request.n
        self._error: str | None = None
        self._wake = asyncio.Event()

    def push(self, index: int, delta: Delta) -> None:
        """Add to a choice's deltas (event loop only)."""
        waiting = self._waiting.get(index)
        if waiting is None:
            self._waiting[index] = delta
        else:
            waiting.merge(delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
        self._wake.set()

    def fail(self, message: str) -> None:
        """End it with an error, after what has been pushed (event loop only)."""
        self._error = message
        self._wake.set()

    async def deltas(self) -> AsyncIterator[dict[int, Delta]]:
        """Deltas by choice, as they come, until every choice has finished.

        Raises:
            GenerationFailed: the decode thread gave up.
        """
        while self._unfinished or self._waiting:
            if self._error is not None and not self._waiting:
                raise GenerationFailed(self._error)
            await self._wake.wait()
            self._wake.clear()
            taken, self._waiting = self._waiting, {}
            if taken:
                yield taken
