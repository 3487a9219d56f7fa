"""Asks a server for chat completions: as many at once as it bears, again where that may help, never where it cannot.

The calls go through the `openai` package (`connection.py`), whose own retries and models are not used: here one refusal
slows down all calls (`limit.py`), and of a body only what is needed is decoded (`completion.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import aiohttp
import openai

from thinkserve.errors import ThinkserveError
from thinkserve.eval.bench import JudgeRequest
from thinkserve.eval.judging.completion import BadBody, Completion, CompletionFailed, read_completion
from thinkserve.eval.judging.connection import connect
from thinkserve.eval.judging.failure import (
    MALFORMED,
    Asked,
    Failure,
    failure_of,
    wants_max_completion_tokens,
)
from thinkserve.eval.judging.limit import AdaptiveLimit

logger = logging.getLogger(__name__)

LONGEST_BACK_OFF = 60.0
# A server that is not there at all is not waited for: the address is wrong, or it was not started.
ATTEMPTS_TO_CONNECT = 4
_TOO_MANY = ("http 429", "http 503", "http 529")


class ChatClient:
    """A model at a server that speaks OpenAI's chat completions. To be used in one event loop, and closed.

    Args:
        base_url: up to and with `/v1`.
        model: its name there.
        api_key: never logged and in no message; None where the server wants none.
        concurrency: calls at once, at most.
        timeout: seconds for one call, from the request to the last byte.
        retries: attempts after the first one; a 429 is none, and is bounded by `max_retry_seconds` alone.
        max_retry_seconds: since the first attempt; a retry that would begin later is not made.
        seed: of the jitter.
        back_off: seconds before the first retry, doubled for each further one.
        headers: sent with every call.
        uds: the Unix socket that the server listens on, where it is not reached by `base_url`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        concurrency: int = 32,
        timeout: float = 600.0,
        retries: int = 6,
        max_retry_seconds: float = 600.0,
        seed: int = 0,
        back_off: float = 1.0,
        headers: Mapping[str, str] | None = None,
        uds: Path | None = None,
    ) -> None:
        self.base_url, self.model, self.concurrency = base_url, model, concurrency
        self.limit = AdaptiveLimit(concurrency)
        self._api_key = api_key
        self._timeout, self._retries, self._max_retry_seconds = timeout, retries, max_retry_seconds
        self._back_off, self._random = back_off, Random(seed)
        self._connection = connect(base_url, api_key, concurrency, headers, uds)
        self._new_name = False
        """Whether `max_tokens` is sent as `max_completion_tokens`."""
        self._answered = False
        self._failed_in_a_row = 0
        self._stop: str | None = None

    async def complete(self, request: JudgeRequest) -> Completion:
        """Ask for one completion.

        Raises:
            CompletionFailed: no attempt at this request succeeded.
            ThinkserveError: no request can succeed (the key, the model, a setting); the message says what to do. It is
                raised for all that are asked afterwards too.
        """
        began = time.monotonic()
        failures: list[str] = []
        while True:
            outcome = await self._attempt(request)
            if isinstance(outcome, Completion):
                self._answered, self._failed_in_a_row = True, 0
                if failures:
                    return replace(outcome, attempts=len(failures) + 1, failures=tuple(failures))
                return outcome
            failures.append(outcome.kind)
            self._check(outcome, failures)
            delay = self._delay(outcome, failures)
            seconds = time.monotonic() - began
            if outcome.kind == MALFORMED:  # the model's failure, and none of the server
                self._answered, self._failed_in_a_row = True, 0
                raise CompletionFailed(outcome.detail, tuple(failures), seconds)
            if delay is None or seconds + delay > self._max_retry_seconds:
                raise self._gave_up(outcome, failures, seconds)
            logger.debug("%s: %s; again in %.1f s", self.model, outcome.kind, delay)
            await asyncio.sleep(delay)

    async def _attempt(self, request: JudgeRequest) -> Completion | Failure:
        async with self.limit.slot() as began:
            if self._stop is not None:
                raise ThinkserveError(self._stop)
            settings = self._settings(request)
            outcome = await self._call(request, settings)
            if isinstance(outcome, Failure) and wants_max_completion_tokens(outcome, settings):
                self._new_name = True
                outcome = await self._call(request, self._settings(request))
        if isinstance(outcome, Completion):
            self.limit.succeeded()
        elif outcome.kind in _TOO_MANY:
            self.limit.refused(began, outcome.retry_after)
        elif outcome.kind == "timeout" or outcome.kind.startswith("http 5"):
            self.limit.failed(began)
        return outcome

    def _settings(self, request: JudgeRequest) -> dict[str, Any]:
        settings = dict(request.settings)
        if self._new_name and "max_tokens" in settings:
            settings["max_completion_tokens"] = settings.pop("max_tokens")
        return settings

    async def _call(self, request: JudgeRequest, settings: dict[str, Any]) -> Completion | Failure:
        body = {"model": self.model, "messages": _sendable(request), **settings}
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                raw = await self._connection.ask(body)
            return replace(read_completion(raw), seconds=time.monotonic() - began)
        except BadBody as exc:
            return Failure(str(exc))
        except TimeoutError:
            return Failure("timeout", f"no answer within {self._timeout:g} s")
        except (openai.APIError, aiohttp.ClientError, OSError) as exc:
            return failure_of(exc, Asked(self.base_url, self.model, self._api_key, settings))

    def _check(self, failure: Failure, failures: list[str]) -> None:
        """Stop all requests if none can succeed."""
        asked = Asked(self.base_url, self.model, self._api_key, {})
        wait = failure.retry_after or 0.0
        if failure.stop is not None:
            self._stop = failure.stop
        elif failure.unreachable and not self._answered and len(failures) >= ATTEMPTS_TO_CONNECT:
            self._stop = f"{asked.shown_url}: cannot be reached ({failure.detail}); is the server running, and is this its address?"
        elif wait > self._max_retry_seconds:
            self._stop = (
                f"{asked.shown_url}: wants no call for {wait:,.0f} s ({failure.kind}: {failure.detail}); run again then: "
                "what was answered is kept"
            )
        if self._stop is not None:
            raise ThinkserveError(self._stop)

    def _delay(self, failure: Failure, failures: list[str]) -> float | None:
        """Seconds to the next attempt; None: there is none."""
        counted = sum(kind != "http 429" for kind in failures)
        if not failure.retry or counted > self._retries:
            return None
        jitter = self._random.uniform(0.5, 1.0)
        back_off: float = self._back_off * 2 ** min(len(failures) - 1, 10)
        if failure.retry_after is not None:
            return failure.retry_after + min(back_off, 1.0) * (1 - jitter)
        return min(back_off, LONGEST_BACK_OFF) * jitter

    def _gave_up(self, failure: Failure, failures: list[str], seconds: float) -> ThinkserveError:
        detail = f": {failure.detail}" if failure.detail else ""
        url = Asked(self.base_url, self.model, self._api_key, {}).shown_url
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(20, 2 * self.concurrency):
            self._stop = (
                f"{url}: the last {self._failed_in_a_row} requests failed, the last one with {failure.kind}{detail}; "
                "run again when that is mended: what was answered is kept"
            )
            return ThinkserveError(self._stop)
        tries = "the only attempt" if len(failures) == 1 else f"{len(failures)} attempts"
        message = f"{url}: {tries} failed{', the last one' if len(failures) > 1 else ''} with {failure.kind}{detail}"
        return CompletionFailed(message, tuple(failures), seconds)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _sendable(request: JudgeRequest) -> list[dict[str, str]]:
    """The messages, with what is no character (half of a surrogate pair) replaced: JSON cannot carry it."""
    return [{name: _characters(text) for name, text in message.items()} for message in request.messages]


def _characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
