"""What the models were trained on: how many pairs, why some instructions gave none, and what length control did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinkserve.eval.report.elements import Child, Html, folded, join, tag
from thinkserve.eval.report.numerals import MISSING, points, share, whole
from thinkserve.eval.report.tables import plain_table
from thinkserve.training.report.arms import SHORT
from thinkserve.training.report.loading import IterationView, TrainRun
from thinkserve.training.report.pair_audit import REASONS, pair_audit


def pairs_section(run: TrainRun) -> Html | None:
    """The statistics of all iterations; None before there are pairs."""
    found = [
        (view, statistics)
        for arm in run.arms
        for view in run.begun(arm)
        if (statistics := view.pair_statistics) is not None
    ]
    if not found:
        return None
    how = (
        "From the K outputs of an instruction the best and the worst make a pair. Margins and lengths are means over the "
        f"pairs whose rejected output is readable; lengths are those of responses, in {run.recipe.pairs.length}. Rho is "
        "the weight of length; with \u201cauto\u201d the smallest at which chosen responses are not longer than rejected ones."
    )
    return join(
        tag("p", how, class_="how"),
        _pairs_table(found),
        _reasons_table(found),
        _warnings(found),
        [
            folded(f"Audit of the pairs: {_name(view)}", Html(pair_audit(statistics)))
            for view, statistics in found
        ],
    )


Found = list[tuple[IterationView, Mapping[str, Any]]]


def _name(view: IterationView) -> str:
    return f"{SHORT[view.arm]} {view.number}"


def _pairs_table(found: Found) -> Html:
    head = ["Iteration", "Instructions", "Pairs", "Rejected without response", "Rho", "Score margin"]
    head += ["Chosen length", "Rejected length"]
    rows: list[list[Child]] = []
    for view, statistics in found:
        counts, means = _part(statistics, "counts"), _part(statistics, "means")
        instructions, pairs = counts.get("instructions"), counts.get("pairs")
        rows.append(
            [
                _name(view),
                whole(instructions),
                f"{whole(pairs)} ({share(pairs or 0, instructions or 0)})",
                f"{whole(counts.get('broken_pairs'))} ({share(counts.get('broken_pairs') or 0, pairs or 0)})",
                _digits(statistics.get("rho")),
                _digits(means.get("score_margin")),
                points(means.get("chosen_length")),
                points(means.get("rejected_length")),
            ]
        )
    return plain_table("Pairs by iteration", head, rows)


def _part(statistics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = statistics.get(name)
    return found if isinstance(found, Mapping) else {}


def _digits(value: Any) -> str:
    return MISSING if value is None else f"{value:.3g}".replace("-", "\u2212")


def _reasons_table(found: Found) -> Html | None:
    reasons = dict.fromkeys(reason for _, statistics in found for reason in _part(statistics, "no_pair"))
    if not reasons:
        return None
    rows: list[list[Child]] = [
        [str(REASONS.get(reason, reason)), *[whole(_part(one, "no_pair").get(reason, 0)) for _, one in found]]
        for reason in reasons
    ]
    title = "Why instructions gave no pair"
    return join(
        tag("h4", title), plain_table(title, ["Instructions", *[_name(view) for view, _ in found]], rows)
    )


def _warnings(found: Found) -> Html | None:
    told = [
        tag("li", tag("b", _name(view)), f": {warning}")
        for view, statistics in found
        for warning in statistics.get("warnings") or ()
    ]
    return tag("ul", told, class_="warnings") if told else None
