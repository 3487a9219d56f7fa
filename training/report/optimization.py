"""How training went: reward margin and accuracy over the steps of DPO, and how the epochs did in validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeGuard

from thinkserve.eval.report.axis import Axis, axis
from thinkserve.eval.report.elements import Child, Html, folded, join, tag
from thinkserve.eval.report.numerals import MISSING, points, whole
from thinkserve.eval.report.tables import plain_table
from thinkserve.training.recipe import Arm
from thinkserve.training.report.arms import NAMES, SERIES, SHORT, arms_legend
from thinkserve.training.report.lines import NARROW, Line, Point, figure, lines, whole_axis
from thinkserve.training.report.loading import IterationView, TrainRun, Validation

MOST_POINTS = 60
"""Of a line; more log lines than this are averaged in groups of neighbours."""
CURVES = (("rewards/margins", "Reward margin"), ("rewards/accuracies", "Reward accuracy, %"))
Log = Sequence[Mapping[str, Any]]


def optimization_section(run: TrainRun) -> Html | None:
    """Both; None before any training."""
    views = {arm: run.begun(arm) for arm in run.arms}
    logs = {
        (view.arm, view.number): log for arm in views for view in views[arm] if (log := view.training_log)
    }
    validations = [(v, found) for arm in views for v in views[arm] if (found := v.validation) is not None]
    if not logs and not validations:
        return None
    arms = [
        arm
        for arm in run.arms
        if any(arm == key[0] for key in logs) or any(arm == v.arm for v, _ in validations)
    ]
    return join(
        arms_legend(arms) if len(arms) > 1 else None,
        _curves(logs) if logs else None,
        _validation(run, validations) if validations else None,
    )


def _curves(logs: Mapping[tuple[Arm, int], Log]) -> Html | None:
    parts = []
    for key, title in CURVES:
        scale = 100 if title.endswith("%") else 1
        told = {place: found for place, log in logs.items() if (found := _series(log, key, scale))}
        if not told:
            continue
        values = [y for found in told.values() for _, y in found]
        y = axis([*values, 50.0], bounds=(0, 100)) if scale == 100 else axis([*values, 0.0])
        unit = "epoch" if any("epoch" in line for log in logs.values() for line in log) else "step"
        x = axis([0.0, *(x for found in told.values() for x, _ in found)], wanted=4)
        numbers = sorted({number for _, number in told})
        figures = [
            _curve(told, number, x, y, title, unit, 50.0 if scale == 100 else 0.0) for number in numbers
        ]
        parts.append(join(tag("h4", title), tag("div", figures, class_="multiples small")))
    if not parts:
        return None
    how = (
        "The implicit reward of an output is beta times how much more likely it has become than under the start model of "
        "the iteration. Margin: chosen minus rejected. Accuracy: how often that is above zero."
    )
    return join(tag("p", how, class_="how"), parts)


def _series(log: Log, key: str, scale: float) -> list[tuple[float, float]]:
    found = []
    for number, entry in enumerate(log):
        value, x = entry.get(key), entry.get("epoch", entry.get("step", number))
        if _is_number(value) and _is_number(x):
            found.append((float(x), scale * float(value)))
    size = math.ceil(len(found) / MOST_POINTS) or 1
    blocks = [found[start : start + size] for start in range(0, len(found), size)]
    return [(block[-1][0], fmean(y for _, y in block)) for block in blocks]


def _is_number(value: object) -> TypeGuard[float]:
    """A loss that came to nothing is logged as NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def _curve(
    told: Mapping[tuple[Arm, int], list[tuple[float, float]]],
    number: int,
    x: Axis,
    y: Axis,
    title: str,
    unit: str,
    reference: float,
) -> Html:
    drawn, words = [], []
    for (arm, iteration), found in told.items():
        if iteration == number:
            drawn.append(Line(SERIES[arm], [Point(a, b, "") for a, b in found], marked=len(found) < 2))
            words.append(f"{NAMES[arm]}: {title} from {found[0][1]:.3g} to {found[-1][1]:.3g}")
    label = f"Iteration {number}. {'; '.join(words)}"
    return figure(f"Iteration {number}", lines(drawn, x, y, label, reference=reference, margin=NARROW), unit)


def _validation(run: TrainRun, found: Sequence[tuple[IterationView, Validation]]) -> Html:
    scores = [c.mean_score for _, one in found for c in one.candidates if c.mean_score is not None]
    y = axis(scores)
    numbers = sorted({view.number for view, _ in found})
    last = max((c.epoch for _, one in found for c in one.candidates), default=0)
    figures = []
    for number in numbers:
        here = [(view.arm, one) for view, one in found if view.number == number]
        figures.append(_epochs(number, here, whole_axis(last), y))
    what = "Mean judge score of the responses to validation instructions."
    if run.recipe.judge.kind == "pairwise":
        what = (
            "How often the judge prefers the response to a validation instruction to that of epoch 0, from 0 to 1; ties count "
            "half."
        )
    how = f"{what} Filled: the epoch that was chosen; 0 is the model that the iteration started from."
    return join(
        tag("h4", "Validation by epoch"),
        tag("p", how, class_="how"),
        tag("div", figures, class_="multiples small"),
        folded("Validation as a table", _validation_table(found)),
    )


def _epochs(number: int, here: Sequence[tuple[Arm, Validation]], x: Axis, y: Axis) -> Html:
    drawn, words = [], []
    for arm, found in here:
        told = []
        for one in found.candidates:
            if one.mean_score is None:
                continue
            chosen = one.epoch == found.chosen
            said = f"{NAMES[arm]}, epoch {one.epoch}: {one.mean_score:.4g}{', chosen' if chosen else ''}"
            told.append(Point(one.epoch, one.mean_score, said, hollow=not chosen))
        if told:
            drawn.append(Line(SERIES[arm], told))
            words += [point.label for point in told]
    label = f"Iteration {number}. {'; '.join(words)}"
    return figure(f"Iteration {number}", lines(drawn, x, y, label, margin=NARROW) if drawn else None, "epoch")


def _validation_table(found: Sequence[tuple[IterationView, Validation]]) -> Html:
    head = ["Iteration", "Epoch", "Mean score", "No readable response, %", "n", "Remark"]
    rows: list[list[Child]] = []
    for view, one in found:
        for candidate in one.candidates:
            chosen = candidate.epoch == one.chosen
            remark = f"chosen: {one.reason or 'best'}" if chosen else ""
            score = (
                MISSING
                if candidate.mean_score is None
                else f"{candidate.mean_score:.4g}".replace("-", "\u2212")
            )
            rows.append(
                [
                    f"{SHORT[view.arm]} {view.number}",
                    whole(candidate.epoch),
                    score,
                    points(None if candidate.broken is None else 100 * candidate.broken),
                    whole(candidate.n),
                    tag("td", remark, class_="remark"),
                ]
            )
    return plain_table("Validation by epoch", head, rows)
