"""Traces: what a span says and does not say, whose child it is, and that they cost nothing where nobody asked for them."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
from aiohttp import web

from thinkserve.errors import UsageError
from thinkserve.gateway.tracing import NO_TRACING, RequestSpan, Tracing, find_tracing

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from thinkserve.gateway.spans import SdkTracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[SdkTracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = SdkTracing(provider)
    yield tracing
    tracing.close()


def attributes(span: ReadableSpan) -> Mapping[str, object]:
    """What a span says."""
    return dict(span.attributes or {})


def begin(tracing: Tracing, model: str = "thinker", traceparent: str | None = None) -> RequestSpan:
    """A request, of which a test says what matters."""
    return tracing.request("chat", model, route="/v1/chat/completions", traceparent=traceparent)


def test_a_request_is_a_span_by_the_conventions(tracing: SdkTracing, exporter: InMemorySpanExporter) -> None:
    """With the names that OpenTelemetry has for generative AI, and ours for what it has no name for."""
    span = tracing.request(
        "chat",
        "thinker",
        route="/v1/chat/completions",
        caller="billing",
        n=2,
        max_tokens=100,
        stream=True,
    )
    span.event("thought_end", choice=0, tokens=30)
    span.event("retry", choice=1, kind="unclosed_thought")
    span.end(
        200,
        response_id="chatcmpl-1",
        finish_reasons=("stop", "length"),
        prompt_tokens=10,
        thought_tokens=30,
        response_tokens=12,
    )
    [read] = exporter.get_finished_spans()
    assert (read.name, read.kind, read.parent) == ("chat thinker", SpanKind.SERVER, None)
    assert read.status.status_code is StatusCode.UNSET
    assert attributes(read) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "thinkserve",
        "gen_ai.request.model": "thinker",
        "gen_ai.request.stream": True,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop", "length"),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 42,
        "gen_ai.usage.reasoning.output_tokens": 30,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "thinkserve.caller": "billing",
        "thinkserve.thought_tokens": 30,
        "thinkserve.response_tokens": 12,
    }
    assert [(event.name, dict(event.attributes or {})) for event in read.events] == [
        ("thought_end", {"thinkserve.choice": 0, "thinkserve.tokens": 30}),
        ("retry", {"thinkserve.choice": 1, "thinkserve.kind": "unclosed_thought"}),
    ]


def test_an_attempt_is_a_child_whose_context_the_engine_gets(
    tracing: SdkTracing, exporter: InMemorySpanExporter
) -> None:
    """Each output that an engine was asked for, also those that failed."""
    span = begin(tracing)
    first = span.attempt("http://a:1", choice=0, attempt=0)
    first.end(error="UpstreamFailed")
    span.event("failover", upstream="http://a:1")
    second = span.attempt("http://b:1", choice=0, attempt=1)
    header = second.headers()["traceparent"]
    second.end()
    span.end(200)
    a, b, request = exporter.get_finished_spans()
    assert request.context is not None and b.context is not None
    for child in (a, b):
        assert child.parent is not None and child.context is not None
        assert child.parent.span_id == request.context.span_id
        assert child.context.trace_id == request.context.trace_id and child.kind is SpanKind.CLIENT
    assert attributes(a) == {
        "thinkserve.upstream": "http://a:1",
        "thinkserve.choice": 0,
        "thinkserve.attempt": 0,
        "error.type": "UpstreamFailed",
    }
    assert a.status.status_code is StatusCode.ERROR and b.status.status_code is StatusCode.UNSET
    flags = b.context.trace_flags
    assert flags.sampled
    assert header == f"00-{b.context.trace_id:032x}-{b.context.span_id:016x}-{flags:02x}"


def test_a_client_may_name_the_span_that_a_request_is_below(
    tracing: SdkTracing, exporter: InMemorySpanExporter
) -> None:
    """By W3C's header; the engine gets the same trace."""
    span = begin(tracing, traceparent=TRACEPARENT)
    attempt = span.attempt("a", choice=0, attempt=0)
    assert attempt.headers()["traceparent"].startswith(f"00-{TRACE}-")
    attempt.end()
    span.end(200)
    request = exporter.get_finished_spans()[-1]
    assert request.parent is not None and request.parent.is_remote
    assert f"{request.parent.span_id:016x}" == PARENT


def test_a_client_may_leave_its_request_out_of_the_traces(
    tracing: SdkTracing, exporter: InMemorySpanExporter
) -> None:
    """The engine is told so too."""
    span = begin(tracing, traceparent=f"00-{TRACE}-{PARENT}-00")
    attempt = span.attempt("a", choice=0, attempt=0)
    assert attempt.headers()["traceparent"].startswith(f"00-{TRACE}-")
    assert attempt.headers()["traceparent"].endswith("-00")
    attempt.end()
    span.event("retry", choice=0)
    span.end(200)
    assert not exporter.get_finished_spans()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "junk",
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
        TRACEPARENT + "\n",
        f"01-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        "x" * 100_000,
    ],
)
def test_a_header_that_is_none_begins_a_new_trace(
    header: str | None, tracing: SdkTracing, exporter: InMemorySpanExporter
) -> None:
    """Neither an error nor a part of it."""
    begin(tracing, traceparent=header).end(200)
    [read] = exporter.get_finished_spans()
    assert read.parent is None and read.context is not None
    assert f"{read.context.trace_id:032x}" not in (TRACE, "0" * 32)


@pytest.mark.parametrize(
    ("status", "error", "is_error"),
    [
        (200, None, False),
        (200, "engine_unavailable", True),
        (400, "context_length_exceeded", False),
        (429, "rate_limit_exceeded", False),
        (499, "client_left", False),
        (500, "server_error", True),
        (503, "server_busy", True),
    ],
)
def test_errors_are_told_by_their_code(
    status: int, error: str | None, is_error: bool, tracing: SdkTracing, exporter: InMemorySpanExporter
) -> None:
    """What a client did wrong is no error of the server; a stream that broke off is."""
    begin(tracing).end(status, error=error)
    [read] = exporter.get_finished_spans()
    assert attributes(read).get("error.type") == error
    assert (read.status.status_code is StatusCode.ERROR) == is_error
    assert read.status.description is None and not read.events


def test_a_models_name_is_made_printable(tracing: SdkTracing, exporter: InMemorySpanExporter) -> None:
    """A client wrote it."""
    begin(tracing, model="m\n\x1b\udce9" + "x" * 1000).end(200)
    [read] = exporter.get_finished_spans()
    assert read.name == "chat m???" + "x" * 96 and attributes(read)["gen_ai.request.model"] == read.name[5:]


def test_spans_of_requests_side_by_side_do_not_mix(
    tracing: SdkTracing, exporter: InMemorySpanExporter
) -> None:
    """Each is its own trace: none is the current one of the process."""
    first, second = begin(tracing), begin(tracing)
    for span in (second, first):
        span.attempt("a", choice=0, attempt=0).end()
        span.end(200)
    traces = [read.context.trace_id for read in exporter.get_finished_spans() if read.context is not None]
    assert traces[0] == traces[1] != traces[2] == traces[3]


def test_a_request_is_below_no_span_of_its_process(
    tracing: SdkTracing, exporter: InMemorySpanExporter
) -> None:
    """Whatever else is instrumented there: the client's header alone says what it belongs to."""
    with TracerProvider(shutdown_on_exit=False).get_tracer("other").start_as_current_span("other"):
        for traceparent in (None, TRACEPARENT):
            span = begin(tracing, traceparent=traceparent)
            span.attempt("a", choice=0, attempt=0).end()
            span.end(200)
    child, request, _, second = exporter.get_finished_spans()
    assert request.parent is None and second.parent is not None and second.parent.is_remote
    assert child.parent is not None and child.parent == request.context


# Whether there are any


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    ],
)
def test_there_are_none_unless_they_are_asked_for(environ: dict[str, str]) -> None:
    """By OpenTelemetry's own variables; and what stands in for them does nothing."""
    tracing = find_tracing(environ)
    assert tracing is NO_TRACING
    span = begin(tracing, traceparent=TRACEPARENT)
    attempt = span.attempt("a", choice=0, attempt=0)
    assert attempt.headers() == {}
    attempt.end(error="x")
    span.event("retry", choice=0)
    span.end(200, error="x", prompt_tokens=1)
    tracing.close()


def test_without_them_opentelemetry_is_not_imported() -> None:
    """Its import takes longer than a gateway's start."""
    code = (
        "import sys; from thinkserve.gateway.tracing import find_tracing; find_tracing({})\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert told.stdout == "[]\n"


def test_asked_for_and_not_installed_they_are_told_to_be_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs them; the variables are often set for a whole cluster, so it is no error."""
    monkeypatch.setattr("thinkserve.gateway.tracing.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert find_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) is NO_TRACING
    assert "pip install 'thinkserve[otel]'" in caplog.text


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_TRACES_EXPORTER": "console,jaeger"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    ],
)
def test_an_exporter_that_is_not_there_is_refused(environ: dict[str, str]) -> None:
    """Before the gateway serves anything."""
    with pytest.raises(UsageError, match=r"(zipkin|jaeger) is not installed|http/json"):
        find_tracing(environ)


async def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one on a socket, by OTLP over HTTP, named by the variables alone."""
    bodies: list[tuple[str, bytes]] = []

    async def collect(http: web.Request) -> web.Response:
        bodies.append((http.path, await http.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/{path:.*}", collect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{runner.addresses[0][1]}"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)  # the exporter reads it for itself
    tracing = find_tracing(environ)
    span = begin(tracing, traceparent=TRACEPARENT)
    span.end(200)
    await asyncio.to_thread(tracing.close)
    await runner.cleanup()
    [(path, body)] = bodies
    assert path == "/v1/traces"
    assert b"chat thinker" in body and bytes.fromhex(TRACE) in body and b"\x0cservice.name" in body
    assert b"unknown_service" not in body
