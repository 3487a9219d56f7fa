"""How much a caller may ask: requests and tokens a minute, by its key, with the headers that OpenAI's clients read.

Both are token buckets that drain all the time, so a limit of 60 a minute lets 60 through at once and then one a second.
Tokens are charged before a request runs, as an estimate, and settled by what it really used: whoever used more than was
estimated waits the longer for the next request, and never loses an answer that has begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from thinkserve.gateway.buckets import Buckets, OwnBuckets, Used
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.keys import Caller
from thinkserve.gateway.metrics import Metrics

MINUTE = 60.0


class Charge:
    """What one request was charged; `settle` it once it is over, however it ended. Only the first call counts.

    Args:
        tokens: the estimate.
        add: adds tokens and requests to what the caller has used; None for a caller without limits.
    """

    __slots__ = ("_add", "_tokens")

    def __init__(self, tokens: int, add: Callable[[int, int], None] | None) -> None:
        self._tokens = tokens
        self._add = add

    def settle(self, tokens: int) -> None:
        """Put what was really used in the place of the estimate.

        Args:
            tokens: of prompt, thoughts and responses, those of outputs that were thrown away too.
        """
        self._once(tokens - self._tokens, 0)

    def cancel(self) -> None:
        """The request was not even begun (the queue was full): it counts as never sent."""
        self._once(-self._tokens, -1)

    def _once(self, tokens: int, requests: int) -> None:
        if self._add is not None:
            self._add(tokens, requests)
            self._add = None


NO_CHARGE = Charge(0, None)


class Limits:
    """The limits of all callers.

    Args:
        metrics: where refusals are counted.
        buckets: what was used; shared by the processes of one gateway.
        clock: the time in seconds, the same for all processes of a machine.
    """

    def __init__(
        self,
        metrics: Metrics,
        buckets: Buckets | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._buckets = buckets if buckets is not None else OwnBuckets()
        self._clock = clock

    def take(self, caller: Caller, tokens: int) -> Charge:
        """Charge a request before it runs.

        A request that is estimated at more than a whole minute's tokens may run when nothing else was used: what
        clients ask at most says little about what they get.

        Args:
            caller: who asks.
            tokens: what it may use, as far as can be told: the prompt's, and the most that was asked for.

        Raises:
            ApiError: 429, one of the limits is reached; nothing is charged.
        """
        if caller.requests_per_minute is None and caller.tokens_per_minute is None:
            return NO_CHARGE
        charged = min(tokens, caller.tokens_per_minute or 0)

        def change(used: Used) -> tuple[str, int, float] | None:
            self._drain(used, caller)
            for what, limit, level, wanted in (
                ("requests", caller.requests_per_minute, used.requests, 1),
                ("tokens", caller.tokens_per_minute, used.tokens, charged),
            ):
                # A thousandth is what the sums of floats may be wrong by, over years.
                if limit is not None and level + wanted > limit + 1e-3:
                    return what, limit, (level + wanted - limit) * MINUTE / limit
            # What has no limit is not counted: it would never drain, and count at once if a reload set one.
            used.requests += 1 if caller.requests_per_minute is not None else 0
            used.tokens += charged
            return None

        refused = self._buckets.update(caller.id, change)
        if refused is not None:
            self._metrics.rate_limited.labels(refused[0]).inc()
            raise self._refusal(caller, *refused)
        return Charge(charged, partial(self._add, caller))

    def headers(self, caller: Caller) -> dict[str, str]:
        """The headers that tell a caller where it stands, for every answer; none for one without limits."""
        if caller.requests_per_minute is None and caller.tokens_per_minute is None:
            return {}
        used = self._buckets.update(caller.id, lambda used: self._drain(used, caller))
        headers: dict[str, str] = {}
        for what, limit, level in (
            ("requests", caller.requests_per_minute, used.requests),
            ("tokens", caller.tokens_per_minute, used.tokens),
        ):
            if limit is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(limit)
                headers[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(limit - level + 1e-3)))
                headers[f"x-ratelimit-reset-{what}"] = duration(level * MINUTE / limit)
        return headers

    def _add(self, caller: Caller, tokens: int, requests: int) -> None:
        def change(used: Used) -> None:
            self._drain(used, caller)
            used.requests += requests
            if caller.tokens_per_minute is not None:
                used.tokens += tokens

        self._buckets.update(caller.id, change)

    def _drain(self, used: Used, caller: Caller) -> Used:
        now = self._clock()
        minutes = max(0.0, now - used.at) / MINUTE
        used.at = max(now, used.at)
        # Never below nothing: what has drained before it was given back is not gained.
        used.requests = max(0.0, used.requests - minutes * (caller.requests_per_minute or 0))
        used.tokens = max(0.0, used.tokens - minutes * (caller.tokens_per_minute or 0))
        return used

    def _refusal(self, caller: Caller, what: str, limit: int, seconds: float) -> ApiError:
        return ApiError(
            429,
            f"your key may use {limit} {what} a minute, and has; try again in {duration(seconds)}",
            type=what,
            code="rate_limit_exceeded",
            headers={
                # OpenAI's clients read the finer one first.
                "Retry-After": str(max(1, math.ceil(_milliseconds(seconds) / 1000))),
                "retry-after-ms": str(max(1, _milliseconds(seconds))),
                **self.headers(caller),
            },
        )


def _milliseconds(seconds: float) -> int:
    """Rounded up, but for what is only a float's error."""
    return math.ceil(seconds * 1000 - 1e-6)


def duration(seconds: float) -> str:
    """A time as OpenAI's headers write it: `0s`, `12ms`, `1.2s`, `6m0s`, `1h2m3s`."""
    milliseconds = _milliseconds(seconds)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
