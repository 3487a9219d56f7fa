"""What the gateway counts, for Prometheus. Observed once a request, never once an event."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "thinkserve_requests", "Requests answered, by HTTP status", ["status"], registry=registry
        )
        self.running = Gauge("thinkserve_requests_running", "Requests being answered", registry=registry)
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
        self.failovers = Counter(
            "thinkserve_failovers", "Choices that went on to another engine", registry=registry
        )
        self.engine_restarts = Gauge(
            "thinkserve_engine_restarts", "How often the engine died and was started again", registry=registry
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
        self.thought_tokens = Histogram(
            "thinkserve_thought_tokens", "Hidden tokens of a choice", buckets=TOKENS, registry=registry
        )
        self.response_tokens = Histogram(
            "thinkserve_response_tokens", "Visible tokens of a choice", buckets=TOKENS, registry=registry
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
