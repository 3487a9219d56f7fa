"""Accuracy or win rate by iteration, of both arms and both ways of decoding: drawn, and as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thinkserve.eval.report.axis import Axis, axis, with_reference
from thinkserve.eval.report.elements import Child, Html, folded, join, tag
from thinkserve.eval.report.numerals import MISSING, between, gain, p_value, points, whole
from thinkserve.eval.report.tables import plain_table
from thinkserve.training.folder import Decoding
from thinkserve.training.recipe import Arm, JudgeRecipe
from thinkserve.training.report.arms import (
    NAMES,
    SERIES,
    SHORT,
    arms_legend,
    decoding_title,
    interval_of,
    metric_of,
)
from thinkserve.training.report.lines import WIDE, Line, Point, figure, lines, whole_axis
from thinkserve.training.report.loading import TrainRun
from thinkserve.training.report.measures import DECODINGS, CategoryMeasure, Difference, Measure, Results

DRAW = 50.0
NOTHING = "No iteration has been measured yet."


def measured(results: Results) -> tuple[list[Arm], list[Decoding]]:
    """The arms and ways of decoding that have any measure."""
    arms: tuple[Arm, ...] = ("thought", "direct")
    told = results.ordered
    return (
        [arm for arm in arms if any(found.of(arm) for found in told)],
        [d for d in DECODINGS if any(d in found.of(arm) for found in told for arm in arms)],
    )


def iterations_section(run: TrainRun) -> Html:
    """Charts and tables."""
    results = run.results
    if results is None or not results.ordered:
        return tag("p", NOTHING, class_="empty")
    arms, decodings = measured(results)
    rates = [_rate_chart(run, results, arms, decoding, _rate_axis(run, results)) for decoding in decodings]
    how = _how(run)
    tables = [_table(run, results, arms, decoding) for decoding in decodings]
    return join(
        arms_legend(arms),
        tag("div", rates, class_="multiples"),
        tag("p", how, class_="how under"),
        tables,
        folded("Mean judge scores", _scores(run, results, arms, decodings)) if _has_scores(results) else None,
    )


def _how(run: TrainRun) -> str:
    if run.recipe.evaluate.metric == "accuracy":
        what = (
            f"Accuracy: the share of responses that the judge scores {run.recipe.evaluate.right_score:g} or better; "
            "no readable response counts as wrong."
        )
    else:
        what = (
            "Win rate: how often the judge prefers the response to the direct response of the start model; 50 is a draw, "
            "ties count half, and no readable response is a loss."
        )
    return (
        f"{what} Lines through the marks are 95 % bootstrap intervals over the instructions. Iteration 0 is the start "
        "model. Whether two marks differ is told by the paired differences below, not by whether their intervals overlap."
    )


def _rate_axis(run: TrainRun, results: Results) -> Axis:
    ends: list[float] = []
    for found in results.ordered:
        for measure in (*found.thought.values(), *found.direct.values()):
            ends += [] if measure.rate is None else [measure.rate, *(measure.ends or ())]
    if run.recipe.evaluate.metric == "win_rate":
        return axis(with_reference(ends, DRAW, 25), bounds=(0, 100), through=DRAW)
    return axis(ends, bounds=(0, 100))


def _rate_chart(run: TrainRun, results: Results, arms: Sequence[Arm], decoding: Decoding, y: Axis) -> Html:
    reference = DRAW if run.recipe.evaluate.metric == "win_rate" else None

    def said(arm: Arm, number: int, measure: Measure) -> str:
        span = "" if measure.ends is None else f" ({between(*measure.ends)})"
        return f"{NAMES[arm]}, iteration {number}: {points(measure.rate)} %{span}, {measure.n:,} instructions"

    return by_iteration(
        run,
        arms,
        decoding,
        lambda measure: measure.rate,
        y,
        said,
        decoding_title(decoding, run.recipe),
        small=f"{metric_of(run.recipe)}, %",
        reference=reference,
        intervals=True,
    )


def by_iteration(
    run: TrainRun,
    arms: Sequence[Arm],
    decoding: Decoding,
    value: Callable[[Measure], float | None],
    y: Axis,
    said: Callable[[Arm, int, Measure], str],
    title: str,
    *,
    small: str = "",
    reference: float | None = None,
    intervals: bool = False,
    margin: float = WIDE,
) -> Html:
    """A chart of something that was measured after each iteration.

    Args:
        run: whose.
        arms: a line each.
        decoding: of which outputs.
        value: what is drawn of a measure; None: nothing.
        y: its axis.
        said: it in words.
        title: of the chart.
        small: more of its title.
        reference: a value that gets a line.
        intervals: whether to draw those of the rate.
        margin: as in `lines`.
    """
    told = () if run.results is None else run.results.ordered
    drawn = []
    for arm in arms:
        points_of = [
            Point(
                found.iteration,
                centre,
                said(arm, found.iteration, measure),
                interval_of(measure) if intervals else None,
            )
            for found in told
            if (measure := found.of(arm).get(decoding)) is not None and (centre := value(measure)) is not None
        ]
        if points_of:
            drawn.append(Line(SERIES[arm], points_of))
    x = whole_axis(max((found.iteration for found in told), default=0))
    words = "; ".join(point.label for one in drawn for point in one.points)
    chart = lines(drawn, x, y, words, reference=reference, margin=margin) if drawn else None
    return figure(title, chart, "iteration", small=small)


def _table(run: TrainRun, results: Results, arms: Sequence[Arm], decoding: Decoding) -> Html:
    compared = len(arms) == 2
    head = ["Iteration", *[f"{SHORT[arm]}, %" for arm in arms]]
    head += ["Difference", "p"] if compared else []
    head.append("n")
    rows: list[list[Child]] = []
    for found in results.ordered:
        measures = [found.of(arm).get(decoding) for arm in arms]
        row: list[Child] = [_iteration_name(found.iteration), *map(rate_cell, measures)]
        if compared:
            row += _difference_cells(found.paired.get(decoding))
        sizes = sorted({measure.n for measure in measures if measure is not None})
        row.append(" / ".join(whole(n) for n in sizes) or MISSING)
        rows.append(row)
    title = f"{decoding_title(decoding, run.recipe)}: {metric_of(run.recipe).lower()} by iteration"
    return join(tag("h4", title), plain_table(title, head, rows))


def _iteration_name(number: int) -> str:
    return "0 (start)" if number == 0 else str(number)


def rate_cell(measure: CategoryMeasure | None) -> Html:
    """A cell of a table with a rate and its interval."""
    if measure is None or measure.rate is None:
        return tag("td", MISSING, class_="number")
    span = None if measure.ends is None else tag("span", between(*measure.ends), class_="interval")
    return tag(
        "td", points(measure.rate), " " if span else None, span, class_="number", data_value=measure.rate
    )


def _difference_cells(difference: Difference | None) -> list[Child]:
    if difference is None:
        return [None, None]
    low, high = difference.ends
    shown = gain(difference.gain)
    cell = tag(
        "td",
        tag("b", shown) if difference.clear else shown,
        " ",
        tag("span", f"{gain(low)} to {gain(high)}", class_="interval"),
        class_="number",
        data_value=difference.gain,
    )
    p = (
        None
        if difference.p is None
        else tag("td", p_value(difference.p), class_="number", data_value=difference.p)
    )
    return [cell, p]


def _has_scores(results: Results) -> bool:
    return any(
        measure.score is not None
        for found in results.ordered
        for measure in (*found.thought.values(), *found.direct.values())
    )


def _scores(run: TrainRun, results: Results, arms: Sequence[Arm], decodings: Sequence[Decoding]) -> Html:
    """In the judge's own unit, so with more digits than percent need."""
    head = ["Iteration"]
    head += [f"{SHORT[arm]}, {'greedy' if d == 'greedy' else 'sampled'}" for d in decodings for arm in arms]
    rows: list[list[Child]] = [
        [
            _iteration_name(found.iteration),
            *[_score(found.of(arm).get(decoding)) for decoding in decodings for arm in arms],
        ]
        for found in results.ordered
    ]
    how = f"As {judge_name(run.recipe.evaluate.judge or run.recipe.judge)} gives them, the mean over responses that could be read and scored."
    return join(tag("p", how, class_="how"), plain_table("Mean judge scores by iteration", head, rows))


def _score(measure: Measure | None) -> str | None:
    return None if measure is None or measure.score is None else f"{measure.score:.4g}".replace("-", "\u2212")


def judge_name(judge: JudgeRecipe) -> str:
    """A judge, as a reader knows it."""
    if judge.kind == "function":
        return judge.function or "a function"
    return f"{judge.model} ({judge.kind})"
