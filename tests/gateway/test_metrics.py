"""Metrics: their names, and that several processes of one gateway tell one sum."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from thinkserve.gateway.metrics import Metrics

# Renamed, a metric is lost to the dashboards and alerts of those who run a gateway.
NAMES = {
    "thinkserve_requests_total": ("endpoint", "status"),
    "thinkserve_requests_running": (),
    "thinkserve_requests_waiting": (),
    "thinkserve_queue_seconds": (),
    "thinkserve_busy_total": (),
    "thinkserve_rate_limited_total": ("limit",),
    "thinkserve_clients_lost_total": ("how",),
    "thinkserve_time_to_first_response_seconds": (),
    "thinkserve_request_seconds": (),
    "thinkserve_choices_total": ("finish_reason",),
    "thinkserve_responses_lost_total": ("reason",),
    "thinkserve_malformed_outputs_total": ("kind",),
    "thinkserve_format_retries_total": (),
    "thinkserve_thought_seconds": (),
    "thinkserve_prompt_tokens_total": (),
    "thinkserve_thought_tokens": (),
    "thinkserve_response_tokens": (),
    "thinkserve_tool_calls_total": (),
    "thinkserve_echo_share": (),
    "thinkserve_echo_repeats_total": (),
    "thinkserve_sealed_thoughts_total": ("outcome",),
    "thinkserve_failovers_total": (),
    "thinkserve_engine_restarts": (),
    "thinkserve_upstream_healthy": ("upstream",),
    "thinkserve_upstream_running": ("upstream",),
    "thinkserve_upstream_outstanding_tokens": ("upstream",),
    "thinkserve_upstream_ejections_total": ("upstream",),
}

USE = """
import os, sys
from prometheus_client.multiprocess import mark_process_dead

from thinkserve.gateway.metrics import Metrics
metrics = Metrics()
metrics.requests.labels("/v1/chat/completions", "200").inc(2)
metrics.requests.labels("/v1/chat/completions", sys.argv[1]).inc()
metrics.running.inc(3)
metrics.upstream_healthy.labels("a").set(int(sys.argv[2]))
metrics.upstream_running.labels("a").set(4)
metrics.engine_restarts.set(int(sys.argv[3]))
metrics.thought_seconds.observe(2.0)
metrics.echo_share.observe(0.04)
print("ready", flush=True)
for line in sys.stdin:
    if line.startswith("dead"):
        mark_process_dead(int(line.split()[1]))
    print(metrics.exposition().decode() + "END", flush=True)
"""


def samples(exposition: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What an exposition says, by name and labels; read by Prometheus's own parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_the_names_and_labels_are_these() -> None:
    """And no other: a label that clients could fill would grow without bound."""
    found = {}
    for family in Metrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = family
    assert set(found) == set(NAMES)
    metrics = Metrics()
    labels = {
        child._name + ("_total" if child._type == "counter" else ""): tuple(child._labelnames)
        for child in vars(metrics).values()
        if hasattr(child, "_labelnames")
    }
    assert labels == NAMES


def test_every_metric_has_a_help_text_and_its_unit_in_its_name() -> None:
    """Seconds and tokens, as Prometheus asks."""
    for family in Metrics().registry.collect():
        assert family.documentation and not family.documentation.endswith(".")
        if re.search(r"\b[Tt]ime\b", family.documentation):
            assert family.name.endswith("_seconds")


def test_the_exposition_can_be_read_by_prometheus() -> None:
    """Counters and histograms as they were counted."""
    metrics = Metrics()
    metrics.requests.labels("/v1/messages", "429").inc()
    metrics.rate_limited.labels("tokens").inc()
    metrics.first_response.observe(0.3)
    metrics.echo_share.observe(1.0)
    told = samples(metrics.exposition().decode())
    assert told[key("thinkserve_requests_total", endpoint="/v1/messages", status="429")] == 1
    assert told[key("thinkserve_rate_limited_total", limit="tokens")] == 1
    assert told[key("thinkserve_time_to_first_response_seconds_bucket", le="0.25")] == 0
    assert told[key("thinkserve_time_to_first_response_seconds_bucket", le="0.5")] == 1
    assert told[key("thinkserve_echo_share_bucket", le="1.0")] == 1


def test_gateways_of_one_process_count_apart() -> None:
    """Each has a registry of its own."""
    first, second = Metrics(), Metrics()
    first.retries.inc()
    assert samples(second.exposition().decode())[key("thinkserve_format_retries_total")] == 0


class Worker:
    """A process of a gateway that counts, and tells the exposition when it is asked."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USE, *args],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def ask(self, line: str = "") -> dict[Any, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        lines: list[str] = []
        while not lines or lines[-1] != "END\n":
            lines.append(self.process.stdout.readline())
            assert lines[-1]
        return samples("".join(lines[:-1]))

    def end(self) -> None:
        self.process.communicate(timeout=20)


def test_several_processes_tell_one_sum_and_the_dead_only_what_they_did(tmp_path: Path) -> None:
    """Counters and histograms add up, also those of a process that has died; what it was just doing is gone with it."""
    first, second = Worker(tmp_path, "200", "1", "0"), Worker(tmp_path, "500", "0", "2")
    try:
        told = first.ask()
        assert told == second.ask()
        chat = "/v1/chat/completions"
        assert told[key("thinkserve_requests_total", endpoint=chat, status="200")] == 5
        assert told[key("thinkserve_requests_total", endpoint=chat, status="500")] == 1
        assert told[key("thinkserve_requests_running")] == 6
        assert told[key("thinkserve_upstream_running", upstream="a")] == 8
        assert told[key("thinkserve_upstream_healthy", upstream="a")] == 0
        assert told[key("thinkserve_engine_restarts")] == 2
        assert told[key("thinkserve_thought_seconds_count")] == 2
        assert told[key("thinkserve_thought_seconds_sum")] == 4
        assert told[key("thinkserve_thought_seconds_bucket", le="2.5")] == 2
        assert told[key("thinkserve_echo_share_bucket", le="0.02")] == 0
        assert told[key("thinkserve_format_retries_total")] == 0
        second.end()
        told = first.ask(f"dead {second.process.pid}")
        assert told[key("thinkserve_requests_total", endpoint=chat, status="200")] == 5
        assert told[key("thinkserve_thought_seconds_count")] == 2
        assert told[key("thinkserve_requests_running")] == 3
        assert told[key("thinkserve_upstream_running", upstream="a")] == 4
        assert told[key("thinkserve_upstream_healthy", upstream="a")] == 1
        assert told[key("thinkserve_engine_restarts")] == 2
    finally:
        for worker in (first, second):
            if worker.process.poll() is None:
                worker.end()
