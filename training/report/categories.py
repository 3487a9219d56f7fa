"""By category: thought against direct mode after the last iteration, and both since the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinkserve.eval.report.axis import Axis, axis, with_reference
from thinkserve.eval.report.categories import MOST_DRAWN, few_row, legend
from thinkserve.eval.report.elements import Child, Html, folded, join, tabs, tag
from thinkserve.eval.report.metrics import Interval
from thinkserve.eval.report.numerals import MISSING, between, count, gain, p_value, points, whole
from thinkserve.eval.report.svg import COLOURS, Dot, dots, tick_row
from thinkserve.eval.report.tables import plain_table
from thinkserve.eval.statistics import FEW, bootstrap_mean_ci
from thinkserve.training.folder import Decoding
from thinkserve.training.recipe import Arm
from thinkserve.training.report.arms import (
    LEVEL,
    NAMES,
    SERIES,
    SHORT,
    decoding_title,
    interval_of,
    metric_of,
)
from thinkserve.training.report.iterations import measured, rate_cell
from thinkserve.training.report.loading import TrainRun
from thinkserve.training.report.measures import CategoryDifference, CategoryMeasure, Results

SIGNIFICANT = 0.05
"""Below this a Holm-corrected p-value is drawn filled."""


@dataclass(frozen=True, slots=True)
class Stand:
    """Where an arm stands in a way of decoding: its first and its last measured iteration, by category."""

    arm: Arm
    first: int
    last: int
    before: dict[str, CategoryMeasure]
    after: dict[str, CategoryMeasure]


def categories_section(run: TrainRun) -> Html | None:
    """A panel for each way of decoding; None where instructions have no categories."""
    results = run.results
    if results is None:
        return None
    arms, decodings = measured(results)
    panels = []
    for decoding in decodings:
        stands = [stand for arm in arms if (stand := _stand(results, arm, decoding)) is not None]
        if any(stand.after for stand in stands):
            panels.append((decoding_title(decoding, run.recipe), _panel(run, results, decoding, stands)))
    return tabs("Decoding", panels) if panels else None


def _stand(results: Results, arm: Arm, decoding: Decoding) -> Stand | None:
    told = [(f.iteration, f.of(arm)[decoding].categories) for f in results.ordered if decoding in f.of(arm)]
    if not told:
        return None
    (first, before), (last, after) = told[0], told[-1]
    return Stand(arm, first, last, dict(before) if first != last else {}, dict(after))


def _panel(run: TrainRun, results: Results, decoding: Decoding, stands: Sequence[Stand]) -> Html:
    last = results.last_paired(decoding)
    differences = None if last is None or not last[1].categories else _differences(results, decoding)
    # In a box of their own: of a panel's own headings the tabs hide the first level.
    return tag("div", differences, _levels(run, stands), _table(run, results, decoding, stands))


def _differences(results: Results, decoding: Decoding) -> Html:
    last = results.last_paired(decoding)
    assert last is not None
    iteration, overall = last
    found = overall.categories
    telling = {name: one for name, one in found.items() if not _few(one.n)}
    if len(telling) > MOST_DRAWN:
        telling = {}
    ends = [end for one in (overall, *telling.values()) for end in one.ends]
    across = axis(with_reference(ends, 0, 1000), bounds=(-100, 100))
    head = tag("li", tag("span", "points", class_="axis-name"), tick_row(across, 0), class_="row head")
    ordered = sorted(telling, key=lambda name: (-telling[name].difference, name))
    rows = [_row("All instructions", overall, across, overall=True)]
    rows += [_row(name, telling[name], across) for name in ordered]
    few = [(name, one.n or 0) for name, one in found.items() if _few(one.n)]
    how = "Filled: p below 0.05, over the categories after Holm's correction. Hollow: could be chance."
    return join(
        tag("h4", f"Thought mode minus direct baseline, iteration {iteration}"),
        legend([(SERIES["thought"], "thought mode better"), (SERIES["direct"], "direct baseline better")]),
        tag("p", how, class_="how"),
        tag("ul", head, rows, few_row(few), class_="rows"),
    )


def _few(n: int | None) -> bool:
    return n is not None and n < FEW


def _row(name: str, one: CategoryDifference, across: Axis, *, overall: bool = False) -> Html:
    corrected = one.p if one.p_holm is None else one.p_holm
    sure = one.clear if corrected is None else corrected < SIGNIFICANT
    shown = gain(one.gain)
    low, high = one.ends
    p = "" if corrected is None else f", {p_value(corrected)}{'' if one.p_holm is None else ' (Holm)'}"
    series = SERIES["thought"] if one.difference >= 0 else SERIES["direct"]
    words = f"{name}: thought minus direct {shown} points, interval {gain(low)} to {gain(high)}{p}"
    dot = Dot(one.gain, Interval(low, high, LEVEL), words, series, hollow=not sure)
    colour = f"t{series % COLOURS}" if sure else None
    return tag(
        "li",
        _name(name, one.n),
        dots([dot], across, 0),
        tag("span", tag("span", shown, class_=colour), class_="values"),
        class_="row overall" if overall else "row",
    )


def _name(name: str, n: int | None) -> Html:
    size = None if n is None else tag("small", count(n))
    return tag("span", tag("span", name, class_="name"), " ", size, class_="label")


def _names(stands: Sequence[Stand]) -> list[str]:
    """The categories, where thought mode does best first."""
    names = dict.fromkeys(name for stand in stands for name in (*stand.after, *stand.before))

    def key(name: str) -> tuple[float, str]:
        found = stands[0].after.get(name)
        return (-((found.rate if found else None) or 0.0), name)

    return sorted(names, key=key)


def _levels(run: TrainRun, stands: Sequence[Stand]) -> Html | None:
    names = _names(stands)
    sizes = {name: _size(stands, name) for name in names}
    telling = [name for name in names if sizes[name] >= FEW]
    if not telling or len(telling) > MOST_DRAWN:
        return None
    ends = [
        end
        for stand in stands
        for group in (stand.before, stand.after)
        for name in telling
        if (measure := group.get(name)) is not None and measure.rate is not None
        for end in (measure.rate, *(measure.ends or ()))
    ]
    across = axis(ends, bounds=(0, 100))
    title = f"{metric_of(run.recipe)} by category, since the start"
    head = tag("li", tag("span", "percent", class_="axis-name"), tick_row(across), class_="row head")
    rows = [_level(name, sizes[name], stands, across) for name in telling]
    few = [(name, sizes[name]) for name in names if sizes[name] < FEW]
    hollow = any(stand.before for stand in stands)
    how = "Hollow: iteration 0. Filled: the last iteration." if hollow else None
    return join(
        tag("h4", title),
        legend([(SERIES[stand.arm], f"{NAMES[stand.arm]}, iteration {stand.last}") for stand in stands]),
        None if how is None else tag("p", how, class_="how"),
        tag("ul", head, rows, few_row(few), class_="rows"),
    )


def _size(stands: Sequence[Stand], name: str) -> int:
    return max(group[name].n for stand in stands for group in (stand.before, stand.after) if name in group)


def _level(name: str, n: int, stands: Sequence[Stand], across: Axis) -> Html:
    marks: list[Dot | None] = []
    values = []
    for stand in stands:
        if stand.before:
            marks.append(_dot(stand.arm, stand.first, name, stand.before.get(name), hollow=True))
            values.append(tag("span", points(_rate(stand.before.get(name)))))
        marks.append(_dot(stand.arm, stand.last, name, stand.after.get(name)))
        values.append(tag("span", points(_rate(stand.after.get(name))), class_=f"t{SERIES[stand.arm]}"))
    return tag(
        "li", _name(name, n), dots(marks, across, None), tag("span", values, class_="values"), class_="row"
    )


def _rate(measure: CategoryMeasure | None) -> float | None:
    return None if measure is None else measure.rate


def _dot(
    arm: Arm, iteration: int, name: str, measure: CategoryMeasure | None, *, hollow: bool = False
) -> Dot | None:
    if measure is None or measure.rate is None:
        return None
    span = "" if measure.ends is None else f" ({between(*measure.ends)})"
    words = f"{name}, {NAMES[arm]}, iteration {iteration}: {points(measure.rate)} %{span}"
    return Dot(measure.rate, interval_of(measure), words, SERIES[arm], hollow=hollow)


def _table(run: TrainRun, results: Results, decoding: Decoding, stands: Sequence[Stand]) -> Html:
    last = results.last_paired(decoding)
    paired = {} if last is None else last[1].categories
    head = ["Category", "n"]
    for stand in stands:
        head += [f"{SHORT[stand.arm]} {number}" for number in dict.fromkeys((stand.first, stand.last))]
        head += [f"{SHORT[stand.arm]}: change"] if stand.before else []
    head += ["Thought \u2212 direct", "p (Holm)"] if paired else []
    changes = {stand.arm: _changes(run, stand, decoding) for stand in stands if stand.before}
    rows: list[list[Child]] = []
    for name in _names(stands):
        row: list[Child] = [name, whole(_size(stands, name))]
        for stand in stands:
            row += [rate_cell(stand.before.get(name))] if stand.before else []
            row.append(rate_cell(stand.after.get(name)))
            row += [changes[stand.arm].get(name, MISSING)] if stand.before else []
        row += _paired_cells(paired.get(name)) if paired else []
        rows.append(row)
    title = "All numbers by category"
    how = tag(
        "p",
        "In percent and points; intervals are 95 % bootstrap intervals, of changes over pairs.",
        class_="how",
    )
    return folded(title, how, plain_table(title, head, rows, class_="tall" if len(rows) > 60 else ""))


def _paired_cells(one: CategoryDifference | None) -> list[Child]:
    if one is None:
        return [None, None]
    low, high = one.ends
    corrected = one.p if one.p_holm is None else one.p_holm
    span = tag("span", f"{gain(low)} to {gain(high)}", class_="interval")
    return [
        tag("td", gain(one.gain), " ", span, class_="number", data_value=one.gain),
        None if corrected is None else tag("td", p_value(corrected), class_="number", data_value=corrected),
    ]


def _changes(run: TrainRun, stand: Stand, decoding: Decoding) -> dict[str, Html]:
    """How much better the last iteration does than the first one on the same instructions, with intervals."""
    before, after = (
        run.iteration(stand.arm, number).evaluation(decoding) for number in (stand.first, stand.last)
    )
    found = {}
    for name in stand.after:
        differences = [
            100 * (new.value - old.value)
            for id, new in after.items()
            if name in new.categories.values()
            and (old := before.get(id)) is not None
            and new.value is not None
            and old.value is not None
        ]
        if differences:
            low, high = bootstrap_mean_ci(differences, seed=run.recipe.seed)
            mean = sum(differences) / len(differences)
            span = tag("span", f"{gain(low)} to {gain(high)}", class_="interval")
            found[name] = tag("td", gain(mean), " ", span, class_="number", data_value=mean)
    return found
