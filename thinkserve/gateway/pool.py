"""Several engines: which of them is asked next, and which are left alone for a while.

An output goes to the engine with the fewest tokens outstanding, so a slow one, which keeps its outputs for longer, gets
fewer. The turns of a long conversation go to one engine, whose prefix cache has the turns before, unless others have
much less to do. Which engine that is follows from the conversation and the engines' names alone, so gateways that know
nothing of each other agree on it.

Each engine is asked for its health every few seconds. One that does not answer, or whose outputs fail one after the
other, is ejected: it gets no work, and what waits there unseen moves on. It returns when it answers a health check
after a pause, which doubles each time. The last engine is never ejected: a doubtful engine is better than none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinkserve.gateway.wire import encode

if TYPE_CHECKING:
    from thinkserve.gateway.upstream import Upstream

logger = logging.getLogger(__name__)

# English text has about four bytes a token; an estimate is all that is needed.
BYTES_PER_TOKEN = 4
LOOK_SECONDS = 1.0
# What an output takes until the first have ended, and how much each of them moves the running mean.
FIRST_MEAN = 512.0
MEAN_STEP = 0.05
# A conversation shorter than this (in bytes) is read again in a few milliseconds: less than a longer queue costs.
SHORT_CONVERSATION = 1024
# How much more than the least busy engine the preferred one may have to do: a share, and some mean outputs, which a
# batch takes on at no cost that is felt.
MOST_LOAD = 1.25
SPARE_OUTPUTS = 4


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """When an engine is ejected, and when it may return. Times are in seconds."""

    check_every: float = 5.0
    check_timeout: float = 5.0
    most_failures: int = 3
    """So many outputs in a row that fail eject it."""
    most_misses: int = 2
    """So many health checks in a row that fail eject it."""
    first_pause: float = 1.0
    longest_pause: float = 30.0
    stable_after: float = 60.0
    """One that was back for so long has no past: the next pause is the first one again."""
    silent_seconds: float = 3.0
    """How long an ejected engine may be silent in an output that nobody has seen anything of."""


def conversation_key(messages: Sequence[dict[str, Any]], cache_salt: str) -> str:
    """What all turns of a conversation have in common, as a key; "" for one too short to be worth keeping together.

    Args:
        messages: the conversation, in OpenAI's form.
        cache_salt: keeps the engines' prefix caches of callers apart, so it keeps their conversations apart as well.
    """
    if len(encode(messages)) < SHORT_CONVERSATION:
        return ""
    first = next((at for at, message in enumerate(messages) if message.get("role") == "user"), 0)
    return hashlib.sha256(encode([cache_salt, *messages[: first + 1]])).hexdigest()


@dataclass(slots=True)
class _Past:
    """What led to the ejection of an upstream, or may lead to it."""

    misses: int = 0
    """Health checks that failed in a row."""
    pause: float = 0.0
    """For how long it was left alone last (seconds), if it was not back for long since."""
    paused_until: float = 0.0
    returned: float = -math.inf


class Pool:
    """The engines behind one gateway.

    Args:
        upstreams: the engines, each with a name of its own.
        health: when one is ejected, and when it may return.
    """

    def __init__(self, upstreams: list[Upstream], *, health: HealthPolicy | None = None) -> None:
        self.upstreams = upstreams
        self.on_eject: Callable[[Upstream], None] = lambda upstream: None
        """Called with each upstream that is ejected."""
        self._health = health or HealthPolicy()
        self._past: defaultdict[Upstream, _Past] = defaultdict(_Past)
        self._mean = FIRST_MEAN
        self._watchers: list[asyncio.Task[None]] = []
        self._look: asyncio.Task[bool] | None = None
        self._looked_at = 0.0

    async def open(self) -> None:
        """Look once at each upstream, and keep looking."""
        await self.probe()
        self._watchers = [asyncio.create_task(self._watch(upstream)) for upstream in self.upstreams]

    async def close(self) -> None:
        """Stop looking, and close all connections."""
        tasks = [*self._watchers, *([] if self._look is None else [self._look])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for upstream in self.upstreams:
            upstream.close()

    async def probe(self) -> bool:
        """Look at every upstream now; return whether any answers."""
        timeout = self._health.check_timeout
        return any(await asyncio.gather(*(upstream.probe(timeout) for upstream in self.upstreams)))

    async def answers(self) -> bool:
        """Whether any upstream answers, as it was `LOOK_SECONDS` ago at most: those who ask cause no more looks."""
        now = time.monotonic()
        if self._look is None or (self._look.done() and now - self._looked_at >= LOOK_SECONDS):
            self._look, self._looked_at = asyncio.create_task(self.probe()), now
        return await asyncio.shield(self._look)

    def expect(self, prompt_bytes: int, most_tokens: int | None = None, outputs: int = 1) -> int:
        """How many tokens outputs will take together with their prompt, as far as can be told before.

        Args:
            prompt_bytes: the length of the conversation, as JSON or text.
            most_tokens: the bound on each output, if it has one.
            outputs: how many there are.
        """
        output = self._mean if most_tokens is None else min(self._mean, most_tokens)
        return prompt_bytes // BYTES_PER_TOKEN + round(output) * outputs

    def learn(self, output_tokens: int) -> None:
        """Take into account how long an output was, thought and response."""
        self._mean += (output_tokens - self._mean) * MEAN_STEP

    def pick(
        self, tried: set[Upstream], *, prefix: str = "", needs_structural_tags: bool = False
    ) -> Upstream | None:
        """The upstream to ask next, or None where none is left.

        Args:
            tried: those that are not to be asked again.
            prefix: the conversation's key; "" leaves the choice to the load alone.
            needs_structural_tags: pass over those that cannot bind a response and leave its thought free.
        """
        for upstream in self.upstreams:
            self._eject_if_failing(upstream)
        left = [
            upstream
            for upstream in self.upstreams
            if upstream not in tried and (upstream.structural_tags or not needs_structural_tags)
        ]
        if not left:
            return None
        best = min(map(_doubt, left))
        left = [upstream for upstream in left if _doubt(upstream) == best]
        least = min(left, key=lambda upstream: (upstream.outstanding, upstream.last_taken))
        if not prefix:
            return least
        most = MOST_LOAD * least.outstanding + SPARE_OUTPUTS * self._mean
        allowed = [upstream for upstream in left if upstream.outstanding <= most]
        return max(allowed, key=lambda upstream: _affinity(prefix, upstream.name))

    @property
    def structural_tags(self) -> bool:
        """Whether an upstream can bind a response by a grammar that leaves the thought free, or may turn out to."""
        return any(upstream.structural_tags or not upstream.known for upstream in self.upstreams)

    async def _watch(self, upstream: Upstream) -> None:
        """Check one upstream's health for ever, eject it and let it return."""
        health, past = self._health, self._past[upstream]
        while True:
            doubtful = upstream.ejected or not upstream.healthy
            await asyncio.sleep(
                min(health.first_pause, health.check_every) if doubtful else health.check_every
            )
            if not upstream.ejected or time.monotonic() >= past.paused_until:
                past.misses = 0 if await upstream.probe(health.check_timeout) else past.misses + 1
                if upstream.ejected:
                    self._return_or_pause(upstream)
                else:
                    self._eject_if_failing(upstream)
            if upstream.ejected:
                upstream.give_up_silent(health.silent_seconds)

    def _eject_if_failing(self, upstream: Upstream) -> None:
        """Eject an upstream that failed often enough, if there is another to take its work."""
        health, past = self._health, self._past[upstream]
        if upstream.ejected or (
            upstream.failures < health.most_failures and past.misses < health.most_misses
        ):
            return
        others = (other for other in self.upstreams if other is not upstream)
        if any(other.healthy and not other.ejected for other in others):
            if time.monotonic() - past.returned >= health.stable_after:
                past.pause = 0.0
            upstream.ejected = True
            self._pause(upstream)
            self.on_eject(upstream)
            logger.warning(
                "engine %s is ejected: %d outputs and %d health checks failed in a row",
                upstream.name,
                upstream.failures,
                past.misses,
            )

    def _return_or_pause(self, upstream: Upstream) -> None:
        """After a health check of an ejected upstream: it may return, or is left alone for longer."""
        past = self._past[upstream]
        if past.misses:
            self._pause(upstream)
            return
        upstream.ejected = False
        # The next output decides: if that fails too, it is ejected again at once.
        upstream.failures = min(upstream.failures, self._health.most_failures - 1)
        past.returned = time.monotonic()
        logger.warning("engine %s is back", upstream.name)

    def _pause(self, upstream: Upstream) -> None:
        past, health = self._past[upstream], self._health
        past.pause = min(past.pause * 2, health.longest_pause) or health.first_pause
        past.paused_until = time.monotonic() + past.pause


def _doubt(upstream: Upstream) -> tuple[bool, bool]:
    """How doubtful an upstream is: a larger one is asked only where there is no smaller."""
    return upstream.ejected, not upstream.healthy


def _affinity(prefix: str, name: str) -> bytes:
    """Rendezvous hashing: the engine with the largest value gets the conversation, whichever others there are."""
    return hashlib.blake2b(f"{prefix} {name}".encode(), digest_size=8).digest()
