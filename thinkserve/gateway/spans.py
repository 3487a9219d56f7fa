"""Traces by OpenTelemetry's SDK; imported only where `tracing.py` found that they are wanted.

The SDK reads its own environment variables (sampler, batches, resource, exporter endpoint). Its exporters retry and
wait in a thread of their own, so a collector that is down costs no request anything; spans that do not fit its queue
are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points, version
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from thinkserve.errors import UsageError
from thinkserve.gateway.access_log import printable

OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# https://www.w3.org/TR/trace-context/#traceparent-header, version 00
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
CLOSE_MILLISECONDS = 3000


def make_tracing(environ: Mapping[str, str]) -> SdkTracing:
    """A tracer with the exporters that the environment names.

    Raises:
        UsageError: an exporter is not installed, or unknown.
    """
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(
        resource=Resource.create({} if named else {"service.name": "thinkserve"}), shutdown_on_exit=False
    )
    for name in (environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp").split(","):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip(), environ)))
    return SdkTracing(provider)


def _exporter(name: str, environ: Mapping[str, str]) -> Any:
    if name == "otlp":
        protocol = (
            environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        if protocol not in OTLP:
            raise UsageError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; it must be {' or '.join(OTLP)}")
        name = OTLP[protocol]
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    try:
        return found[0].load()()
    except (IndexError, ImportError) as exc:
        raise UsageError(
            f"the trace exporter {name} is not installed; run: pip install 'thinkserve[otel]' (otlp over HTTP), "
            "or choose another with OTEL_TRACES_EXPORTER"
        ) from exc


class SdkTracing:
    """Begins spans. The provider is our own: the process may have another for itself."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("thinkserve", version("thinkserve"))

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
    ) -> SdkRequestSpan:
        model = printable(model)
        attributes: dict[str, str | int | bool] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "thinkserve",
            "gen_ai.request.model": model,
            "gen_ai.request.stream": stream,
            "http.request.method": "POST",
            "http.route": route,
        }
        if n != 1:
            attributes["gen_ai.request.choice.count"] = n
        if max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = max_tokens
        if caller is not None:
            attributes["thinkserve.caller"] = caller
        span = self._tracer.start_span(
            f"{operation} {model}".strip(),
            _parent(traceparent),
            SpanKind.SERVER,
            attributes,
        )
        return SdkRequestSpan(self._tracer, span)

    def close(self) -> None:
        self._provider.force_flush(CLOSE_MILLISECONDS)
        self._provider.shutdown()


def _parent(traceparent: str | None) -> Context:
    """The client's span, if it named one. Its `tracestate` is free text, so it is not passed on."""
    match = TRACEPARENT.fullmatch(traceparent or "")
    if match is None:
        return Context()  # the root of a new trace, whatever span this process may be in
    context = SpanContext(
        int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16))
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())


class SdkRequestSpan:
    """The span of one request."""

    __slots__ = ("_context", "_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span, Context())

    def attempt(self, upstream: str, *, choice: int, attempt: int) -> SdkAttemptSpan:
        attributes: dict[str, str | int] = {
            "thinkserve.upstream": upstream,
            "thinkserve.choice": choice,
            "thinkserve.attempt": attempt,
        }
        return SdkAttemptSpan(self._tracer.start_span("engine", self._context, SpanKind.CLIENT, attributes))

    def event(self, name: str, **attributes: str | float) -> None:
        self._span.add_event(name, {f"thinkserve.{key}": value for key, value in attributes.items()})

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
        attributes: dict[str, str | int | tuple[str, ...]] = {
            "http.response.status_code": status,
            "gen_ai.usage.input_tokens": prompt_tokens,
            "gen_ai.usage.output_tokens": thought_tokens + response_tokens,
            "gen_ai.usage.reasoning.output_tokens": thought_tokens,
            "thinkserve.thought_tokens": thought_tokens,
            "thinkserve.response_tokens": response_tokens,
        }
        if finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = finish_reasons
        if response_id is not None:
            attributes["gen_ai.response.id"] = response_id
        if error is not None:
            attributes["error.type"] = error
        self._span.set_attributes(attributes)
        # By the conventions for servers, what a client did wrong is no error of the span; a stream that breaks is.
        if status >= 500 or (error is not None and status < 400):
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class SdkAttemptSpan:
    """The span of one output of one engine."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def headers(self) -> dict[str, str]:
        context = self._span.get_span_context()
        return {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}

    def end(self, *, error: str | None = None) -> None:
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
