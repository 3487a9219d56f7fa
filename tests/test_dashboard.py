"""The Grafana dashboard asks for metrics that the gateway has, all of them, and is laid out as Grafana wants it."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from thinkserve.gateway.metrics import Metrics

JSON = dict[str, Any]
GRAFANA = Path(__file__).parents[1] / "deploy" / "grafana"
DASHBOARD: JSON = msgspec.json.decode((GRAFANA / "dashboard.json").read_bytes())
PANELS: list[JSON] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    pytest.param(target["expr"], id=f"{panel['id']}{target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# What Prometheus adds by itself.
TARGET_LABELS = {"job", "instance"}
# Units of Grafana's @grafana/data that are used here.
UNITS = {"reqps", "ops", "s", "short", "percentunit"}


def exposed() -> dict[str, set[str]]:
    """The names of all series that the gateway exposes, with their labels."""
    series = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            for suffix in SUFFIXES[str(metric._type)]:
                labels = {*metric._labelnames, *TARGET_LABELS}
                series[metric._name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return series


SERIES = exposed()


def words(expression: str) -> set[str]:
    """The names in a PromQL expression that can only be metrics: no functions, labels, durations or texts."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)
    bare = re.sub(r"\b(by|without)\s*\([^)]*\)", "", bare)
    return {word for word in re.findall(r"[A-Za-z_:][\w:]*(?!\w*\s*\()", bare)}


def used(expression: str) -> list[tuple[str, set[str]]]:
    """The series of a PromQL expression, each with the labels that it is asked by."""
    return [
        (name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers or "")))
        for name, matchers in re.findall(r"\b(thinkserve_\w+)(?:\{([^}]*)\})?", expression)
    ]


def test_the_names_are_read_out_of_an_expression() -> None:
    """Else the tests below would find nothing wrong."""
    expression = 'sum by (le) (rate(a_b{c="d e"}[5m])) / on(x) f + thinkserve_x{y=~"z", w!="v"}'
    assert words(expression) >= {"a_b", "f", "thinkserve_x"}
    assert not words(expression) & {"sum", "by", "le", "rate", "c", "d", "e", "m"}
    assert used(expression) == [("thinkserve_x", {"y", "w"})]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_series_and_labels_that_there_are(expression: str) -> None:
    """In matchers and in groups; and only of gateways that were chosen above."""
    assert words(expression) <= set(SERIES)
    series = used(expression)
    assert series
    for name, labels in series:
        assert labels <= SERIES[name] and labels >= TARGET_LABELS
    for group in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        for name, _ in series:
            assert {label.strip() for label in group.split(",")} <= SERIES[name]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_are_asked_for_their_rate(expression: str) -> None:
    """And gauges are not; over a window that Grafana fits to the scrape interval. Brackets are closed."""
    for name, _ in used(expression):
        rated = re.search(rf"\b(rate|increase)\({name}\{{[^}}]*\}}\[\$__rate_interval\]\)", expression)
        assert bool(rated) == name.endswith(("_total", "_bucket", "_sum", "_count"))
    if "histogram_quantile" in expression:
        assert "sum by (le)" in expression and "_bucket" in expression
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_every_metric_is_shown() -> None:
    """A new one is not forgotten here."""
    shown = {name for expression in EXPRESSIONS for name, _ in used(str(expression.values[0]))}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            assert shown & {metric._name + suffix for suffix in SUFFIXES[str(metric._type)]}, metric._name


def test_legends_name_labels_that_their_expression_leaves() -> None:
    """Else a legend is empty."""
    for panel in PANELS:
        for target in panel["targets"]:
            groups = {
                label.strip()
                for group in re.findall(r"\bby\s*\(([^)]*)\)", target["expr"])
                for label in group.split(",")
            }
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= groups


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    """Unique ids, a source that the viewer chooses, known units, a title for each, nothing under something else."""
    assert DASHBOARD["uid"] == "thinkserve" and DASHBOARD["id"] is None and DASHBOARD["schemaVersion"] >= 36
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [(panel["title"]) for panel in DASHBOARD["panels"]]
    assert all(titles)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(re.findall(r"\$\{?(\w+)", str(DASHBOARD))) <= {*variables, "__rate_interval", "__all"}
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["type"] in ("timeseries", "stat", "heatmap")
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)
        options = (
            panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
        )
        assert options["unit"] in UNITS
    for variable in ("job", "instance"):
        assert re.search(r"label_values\((\w+)", variables[variable]["definition"])[1] in SERIES  # type: ignore[index]


def test_panels_do_not_overlap() -> None:
    """On Grafana's grid of 24 columns."""
    places = [(panel["title"], panel["gridPos"]) for panel in DASHBOARD["panels"]]
    for title, place in places:
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, title
    for (title, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{title} lies over {other}"


def test_seconds_are_shown_as_seconds() -> None:
    """By the names of the metrics."""
    for panel in PANELS:
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        quantiles = [target["expr"] for target in panel["targets"] if "_seconds_" in target["expr"]]
        assert bool(quantiles) == (unit == "s"), panel["title"]


def test_grafana_is_told_of_the_source_and_the_dashboard() -> None:
    """By files that it reads at its start."""
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/thinkserve.yaml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file" and provider["options"]["path"]
