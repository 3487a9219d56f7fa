"""What a comparison's models cost: tokens of thought and of response, and seconds, an instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thinkserve.eval.report.elements import Html, join, tag
from thinkserve.eval.report.evidence import Evidence
from thinkserve.eval.report.lengths import cost
from thinkserve.eval.report.numerals import MINUS, MISSING, gain, points, seconds, whole
from thinkserve.eval.report.svg import stacked
from thinkserve.eval.scores import Comparison


def _cost(comparison: Comparison, model: str, evidence: Sequence[Evidence]) -> Mapping[str, float]:
    """As the scores have it, else from the lengths of the run."""
    if model in comparison.cost:
        return comparison.cost[model]
    for item in evidence:
        if item.name == model:
            known = cost(item.lengths)
            names = ("thought_tokens", "response_tokens", "seconds")
            return {name: found for name in names if (found := getattr(known, name)) is not None}
    return {}


def costs_of(comparison: Comparison, evidence: Sequence[Evidence], *, priced: bool) -> Html | None:
    """The costs drawn; None where none is known.

    Args:
        comparison: of two models.
        evidence: of all models of its ranking.
        priced: whether the difference is to be divided by its cost, which means something for one checkpoint alone.
    """
    models = (comparison.a, comparison.b)
    costs = {model: _cost(comparison, model, evidence) for model in models}
    if not any(costs.values()):
        return None
    most = max(c.get("thought_tokens", 0.0) + c.get("response_tokens", 0.0) for c in costs.values())
    series = {item.name: item.series for item in evidence}
    rows = [_cost_row(model, costs[model], most, series.get(model, at)) for at, model in enumerate(models)]
    key = tag(
        "p",
        tag("span", tag("i", class_="key thought"), "thought"),
        tag("span", tag("i", class_="key response"), "response"),
        tag("span", "tokens an instruction, and how long it took"),
        class_="legend",
    )
    price = _price(comparison, costs) if priced else None
    return join(tag("h4", "Cost"), key, tag("ul", rows, class_="rows costs"), price)


def _cost_row(model: str, costs: Mapping[str, float], most: float, series: int) -> Html:
    thought, response = costs.get("thought_tokens"), costs.get("response_tokens")
    took = seconds(costs.get("seconds"))
    spoken = f"{model}: {whole(thought)} thought and {whole(response)} response tokens, {took} an instruction"
    bar = stacked([("thought", thought or 0.0), ("response", response or 0.0)], most, spoken, series)
    shown = f"{whole(thought)} + {whole(response)} tokens" + ("" if took == MISSING else f", {took}")
    return tag(
        "li",
        tag("span", tag("span", model, class_="name"), class_="label"),
        bar,
        tag("span", shown, class_="values"),
        class_="row",
    )


def _price(comparison: Comparison, costs: Mapping[str, Mapping[str, float]]) -> Html | None:
    a, b = costs[comparison.a], costs[comparison.b]
    more = {
        name: a[name] - b[name]
        for name in ("thought_tokens", "response_tokens", "seconds")
        if name in a and name in b
    }
    tokens = [more[name] for name in ("thought_tokens", "response_tokens") if name in more]
    parts = [f"{sum(tokens):+,.0f} tokens".replace("-", MINUS)] if tokens else []
    parts += [f"{more['seconds']:+.2f} seconds".replace("-", MINUS)] if "seconds" in more else []
    if not parts or comparison.overall.n == 0:
        return None
    price = f"{comparison.a} minus {comparison.b}: {gain(comparison.overall.difference)} points for {' and '.join(parts)} an instruction."
    if tokens and sum(tokens) > 0 and comparison.overall.ci[0] > 0:
        each = 1000 * comparison.overall.difference / sum(tokens)
        price += f" That is {points(each)} points for each 1,000 tokens more."
    return tag("p", price, class_="finding")
