"""Traces, if the operator wants them and OpenTelemetry is installed; else nothing of it is imported or paid for.

A request is a span `chat MODEL` with OpenTelemetry's names for generative AI, and each output that an engine is asked
for is one below it, whose context goes to the engine. What a model thought or said is in no attribute, event or status;
nor is an error's message, which may quote it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol

logger = logging.getLogger(__name__)

# Any of these says that traces are wanted, and where they are to go.
WANTED = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class AttemptSpan(Protocol):
    """One output of one engine."""

    def headers(self) -> dict[str, str]:
        """What to send to the engine, so that its own spans come below this one."""

    def end(self, *, error: str | None = None) -> None:
        """The output is over.

        Args:
            error: what went wrong, in a word of ours: the kind of a broken format, the name of an exception.
        """


class RequestSpan(Protocol):
    """One request."""

    def attempt(self, upstream: str, *, choice: int, attempt: int) -> AttemptSpan:
        """An engine is asked for an output of a choice; `attempt` counts those of this choice, from 0."""

    def event(self, name: str, **attributes: str | float) -> None:
        """Something happened: `retry`, `failover`. Attributes are never text of a model or a client."""

    def end(
        self,
        status: int,
        *,
        error: str | None = None,
        response_id: str | None = None,
        finish_reasons: tuple[str, ...] = (),
        prompt_tokens: int = 0,
        thought_tokens: int = 0,
        response_tokens: int = 0,
    ) -> None:
        """The request is over.

        Args:
            status: the answer's HTTP status; 499 where the client left.
            error: the error's code, or its type where it has none.
            response_id: what the answer is called.
            finish_reasons: of its choices.
            prompt_tokens: as usage tells them, like the next two.
            thought_tokens: hidden ones.
            response_tokens: visible ones.
        """


class Tracing(Protocol):
    """Where spans begin."""

    def request(
        self,
        operation: str,
        model: str,
        *,
        route: str,
        caller: str | None = None,
        traceparent: str | None = None,
        n: int = 1,
        max_tokens: int | None = None,
        stream: bool = False,
    ) -> RequestSpan:
        """A request has come.

        Args:
            operation: OpenTelemetry's word for it: `chat`, or `text_completion`.
            model: as the client called it.
            route: the path, as a route of ours.
            caller: the public name of the key.
            traceparent: the header of that name.
            n: how many choices were asked for.
            max_tokens: how many tokens were asked for at most.
            stream: whether the answer is streamed.
        """

    def close(self) -> None:
        """Send what is left; may take some seconds, so not in the event loop."""


class NoSpan:
    """A span that is none; one for all, since it keeps nothing."""

    __slots__ = ()

    def attempt(self, upstream: str, *, choice: int, attempt: int) -> NoSpan:
        return self

    def event(self, name: str, **attributes: str | float) -> None:
        pass

    def headers(self) -> dict[str, str]:
        return {}

    def end(self, status: int = 0, **told: object) -> None:
        pass


class NoTracing:
    """No traces."""

    __slots__ = ()

    def request(self, operation: str, model: str, **told: object) -> NoSpan:
        return NO_SPAN

    def close(self) -> None:
        pass


NO_SPAN = NoSpan()
NO_TRACING = NoTracing()


def find_tracing(environ: Mapping[str, str]) -> Tracing:
    """Traces as OpenTelemetry's environment variables ask for them; for each process after it was started.

    Raises:
        UsageError: they ask for an exporter that is not installed.
    """
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    off = off or environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none"
    if off or not any(environ.get(name, "").strip() for name in WANTED):
        return NO_TRACING
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        logger.warning("traces are asked for, but there are none: run: pip install 'thinkserve[otel]'")
        return NO_TRACING
    from thinkserve.gateway.spans import make_tracing  # here, so that nobody else pays for the import

    return make_tracing(environ)
