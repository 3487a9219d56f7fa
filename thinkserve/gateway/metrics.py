"""What the gateway counts, for Prometheus. Observed once a request or an output, never once an event.

No label holds anything that a client wrote: endpoints are routes, keys are not told apart, and all else is from lists
of our own. `thinkserve_requests_total` counts answers; a stream that broke off after its head was sent counts twice,
as the 200 that it was and as `stream_error`.

A gateway of several processes counts in files: its parent sets `PROMETHEUS_MULTIPROC_DIR` to a new, private folder
before it starts them (in the environment of new processes: prometheus_client looks at it when it is imported), and
calls prometheus_client's `mark_process_dead` when one has died. Then whichever process is asked tells the sums of all.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import ValueClass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
QUEUE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._traffic()
        self._outputs()
        self._engines()

    def _traffic(self) -> None:
        registry = self.registry
        self.requests = Counter(
            "thinkserve_requests",
            "Requests answered, by route and HTTP status",
            ["endpoint", "status"],
            registry=registry,
        )
        self.running = Gauge(
            "thinkserve_requests_running",
            "Requests being answered",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.waiting = Gauge(
            "thinkserve_requests_waiting",
            "Requests that wait for their turn",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_seconds = Histogram(
            "thinkserve_queue_seconds",
            "Time that requests waited for their turn, of those that had to",
            buckets=QUEUE_SECONDS,
            registry=registry,
        )
        self.busy = Counter(
            "thinkserve_busy", "Requests refused because the queue was full", registry=registry
        )
        self.rate_limited = Counter(
            "thinkserve_rate_limited",
            "Requests refused because of their key's limits, by limit (requests, tokens)",
            ["limit"],
            registry=registry,
        )
        self.clients_lost = Counter(
            "thinkserve_clients_lost",
            "Clients that were gone before their answer was whole (disconnected, stalled)",
            ["how"],
            registry=registry,
        )
        self.first_response = Histogram(
            "thinkserve_time_to_first_response_seconds",
            "Time until the first text of a response",
            buckets=SECONDS,
            registry=registry,
        )
        self.seconds = Histogram(
            "thinkserve_request_seconds", "Time until an answer was whole", buckets=SECONDS, registry=registry
        )

    def _outputs(self) -> None:
        registry = self.registry
        self.finished = Counter(
            "thinkserve_choices", "Choices finished, by reason", ["finish_reason"], registry=registry
        )
        self.lost = Counter(
            "thinkserve_responses_lost",
            "Choices that ended before their response began, by what they ran out of",
            ["reason"],
            registry=registry,
        )
        self.malformed = Counter(
            "thinkserve_malformed_outputs",
            "Outputs that did not keep to their format",
            ["kind"],
            registry=registry,
        )
        self.retries = Counter(
            "thinkserve_format_retries", "Outputs sampled again because of their format", registry=registry
        )
        self.thought_seconds = Histogram(
            "thinkserve_thought_seconds",
            "Time from a request's start to the end of a choice's thought",
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("thinkserve_prompt_tokens", "Tokens of prompts", registry=registry)
        self.thought_tokens = Histogram(
            "thinkserve_thought_tokens", "Hidden tokens of a choice", buckets=TOKENS, registry=registry
        )
        self.response_tokens = Histogram(
            "thinkserve_response_tokens", "Visible tokens of a choice", buckets=TOKENS, registry=registry
        )
        self.tool_calls = Counter("thinkserve_tool_calls", "Tool calls in responses", registry=registry)
        self.echo_share = Histogram(
            "thinkserve_echo_share",
            "Share of a response that is its longest verbatim repeat of the thought",
            buckets=SHARES,
            registry=registry,
        )
        self.echo_repeats = Counter(
            "thinkserve_echo_repeats",
            "Verbatim repeats of a thought that the echo guard met",
            registry=registry,
        )
        self.sealed = Counter(
            "thinkserve_sealed_thoughts",
            "Encrypted thoughts, by what became of them (sealed, opened, refused)",
            ["outcome"],
            registry=registry,
        )

    def _engines(self) -> None:
        registry = self.registry
        self.failovers = Counter(
            "thinkserve_failovers", "Choices that went on to another engine", registry=registry
        )
        self.engine_restarts = Gauge(
            "thinkserve_engine_restarts",
            "How often the engine died and was started again",
            registry=registry,
            multiprocess_mode="max",  # known to the process that starts the engines
        )
        self.upstream_healthy = Gauge(
            "thinkserve_upstream_healthy",
            "Whether an engine answers (1), as the most doubtful process sees it",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.upstream_running = Gauge(
            "thinkserve_upstream_running",
            "Outputs being generated by an engine for this gateway",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.upstream_outstanding = Gauge(
            "thinkserve_upstream_outstanding_tokens",
            "Tokens that an engine is still expected to read and write for this gateway",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.ejections = Counter(
            "thinkserve_upstream_ejections",
            "How often an engine was taken out of the pool",
            ["upstream"],
            registry=registry,
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format; of all processes, where the gateway is several."""
        if not _several_processes():
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _several_processes() -> bool:
    """Whether values are kept in files, which prometheus_client decided when it was imported."""
    return bool(getattr(ValueClass, "_multiprocess", False))
