"""How long thoughts and responses are by iteration, and how often an output has no readable response."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thinkserve.eval.report.axis import axis
from thinkserve.eval.report.elements import Child, Html, folded, join, tabs, tag
from thinkserve.eval.report.numerals import MISSING, points, whole
from thinkserve.eval.report.tables import plain_table
from thinkserve.training.folder import Decoding
from thinkserve.training.recipe import Arm
from thinkserve.training.report.arms import NAMES, SHORT, arms_legend, decoding_title
from thinkserve.training.report.iterations import by_iteration, measured
from thinkserve.training.report.lines import NARROW
from thinkserve.training.report.loading import Sampled, TrainRun
from thinkserve.training.report.measures import Measure, Results

THOUGHT, RESPONSE, FAILURES = "Thought, tokens", "Response, tokens", "No readable response, %"
Value = Callable[[Measure], float | None]


def lengths_section(run: TrainRun) -> Html | None:
    """Charts of thought length, response length and parse failures; None before anything was measured."""
    results = run.results
    if results is None or not results.ordered:
        return None
    arms, decodings = measured(results)
    panels = [
        (decoding_title(decoding, run.recipe), _panel(run, results, arms, decoding)) for decoding in decodings
    ]
    how = (
        "Of the held-out instructions; lengths are means over outputs with a readable response, and the marker between "
        "thought and response counts as thought. An output has no readable response if its thought never ends, if it "
        "runs into the token limit, or if nothing follows the thought."
    )
    return join(tag("p", how, class_="how"), arms_legend(arms), tabs("Decoding", panels), _samples(run))


def _panel(run: TrainRun, results: Results, arms: Sequence[Arm], decoding: Decoding) -> Html:
    thinking: list[Arm] = [arm for arm in arms if arm == "thought"]
    charts = [
        _chart(run, results, thinking, decoding, lambda measure: measure.mean_thought_tokens, THOUGHT),
        _chart(run, results, arms, decoding, lambda measure: measure.mean_response_tokens, RESPONSE),
        _chart(run, results, arms, decoding, _failures, FAILURES),
    ]
    return tag("div", [chart for chart in charts if chart is not None], class_="multiples small")


def _failures(measure: Measure) -> float | None:
    return None if measure.parse_failures is None else 100 * measure.parse_failures


def _chart(
    run: TrainRun, results: Results, arms: Sequence[Arm], decoding: Decoding, value: Value, title: str
) -> Html | None:
    # Over both ways of decoding, so that the axis stays as it is when the other one is looked at.
    found = [
        known
        for iteration in results.ordered
        for arm in arms
        for measure in iteration.of(arm).values()
        if (known := value(measure)) is not None
    ]
    if not found:
        return None

    def said(arm: Arm, number: int, measure: Measure) -> str:
        return f"{NAMES[arm]}, iteration {number}: {title} {points(value(measure))}"

    # From 0, so that a line that is half as high is half as long.
    y = axis([0.0, max(*found, 4.0)], bounds=(0, 100) if title == FAILURES else None, wanted=4)
    return by_iteration(run, arms, decoding, value, y, said, title, margin=NARROW)


def _samples(run: TrainRun) -> Html | None:
    """The same of the outputs that were sampled for training."""
    rows: list[list[Child]] = []
    for arm in run.arms:
        for view in run.begun(arm):
            if (sampled := view.sampled) is not None:
                rows.append([f"{SHORT[arm]} {view.number}", *_sampled_cells(sampled)])
    if not rows:
        return None
    head = ["Iteration", "Outputs", "Thought, tokens", "Response, tokens", "No readable response", "Why"]
    title = "The same of the outputs that were sampled for training"
    return folded(title, plain_table(title, head, rows))


def _sampled_cells(sampled: Sampled) -> list[Child]:
    why = ", ".join(
        f"{problem} {n:,}" for problem, n in sorted(sampled.problems.items(), key=lambda one: -one[1])
    )
    share = MISSING if sampled.parse_failures is None else f"{points(100 * sampled.parse_failures)}\u00a0%"
    return [
        whole(sampled.outputs),
        points(sampled.mean_thought_tokens),
        points(sampled.mean_response_tokens),
        share,
        tag("td", why or MISSING, class_="remark"),
    ]
