"""The numbers of a model that can be ranked: what they are called, what they say, and their intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thinkserve.eval.scores import Comparison, Group

# Of the standard normal distribution: half of a 95 % interval, in standard errors.
Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Metric:
    """One key of `Group` that is a rate or a score, in percent."""

    key: str
    title: str
    words: str
    """How it is made, in a sentence or two."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, in points."""

    low: float
    high: float
    level: float


METRICS = (
    Metric(
        "length_controlled_win_rate",
        "LC win rate",
        "What the win rate would be if the model's responses were as long as the baseline's. A logistic regression "
        "explains each preference by the model and by the difference in length (tanh of the standardised difference), in "
        "AlpacaEval also by how hard the instruction is; the difference in length is then set to zero and the "
        "predictions are averaged.",
    ),
    Metric(
        "style_controlled_score",
        "Style-controlled score",
        "A Bradley-Terry model of the games with four more features: the differences in length, headers, lists and bold "
        "text. The score is the chance to beat the baseline if both wrote in the same style. The features are "
        "standardised over all models of the run, so it depends on which models were scored together.",
    ),
    Metric(
        "score",
        "Score",
        "The share of the games that the model wins against the baseline. Each question is played twice with the order "
        "swapped; a much better response (A>>B) counts three times, a tie half.",
    ),
    Metric(
        "win_rate",
        "Win rate",
        "The mean preference of the judge for the model over the baseline, over all scored instructions: 50 is a draw.",
    ),
    Metric(
        "length_controlled_score",
        "Length-controlled score",
        "As the style-controlled score, with control for length alone.",
    ),
    Metric(
        "markdown_controlled_score",
        "Markdown-controlled score",
        "As the style-controlled score, with control for headers, lists and bold text alone.",
    ),
    Metric(
        "discrete_win_rate",
        "Discrete win rate",
        "Whole wins over all scored instructions; a draw counts half.",
    ),
)
BY_KEY = {metric.key: metric for metric in METRICS}


def title_of(key: str) -> str:
    """The name of a metric, also of one that is not known here."""
    return BY_KEY[key].title if key in BY_KEY else key.replace("_", " ")


def spoken(key: str) -> str:
    """The name of a metric inside a sentence."""
    title = title_of(key)
    return title if title.startswith("LC") else title[:1].lower() + title[1:]


def value(group: Group, key: str) -> float | None:
    """The number of a metric."""
    found = getattr(group, key, None)
    return float(found) if isinstance(found, int | float) else None


def interval(group: Group, key: str) -> Interval | None:
    """The interval of a metric: the bootstrap's where there is one, else 1.96 standard errors."""
    centre = value(group, key)
    if centre is None:
        return None
    if key == "style_controlled_score":
        return _given(group.style_controlled_ci, group.ci_level)
    if key == "score" or (key == "win_rate" and group.score is None and group.ci is not None):
        return _given(group.ci, group.ci_level)
    errors = {"win_rate": group.standard_error, "length_controlled_win_rate": group.lc_standard_error}
    error = errors.get(key)
    # Where all preferences are the same (or there is only one) the standard error says nothing.
    return (
        None
        if not error
        else Interval(max(0.0, centre - Z95 * error), min(100.0, centre + Z95 * error), 0.95)
    )


def _given(ci: tuple[float, float] | None, level: float | None) -> Interval | None:
    return None if ci is None else Interval(ci[0], ci[1], level or 0.95)


def headline_metric(bench: str, groups: Iterable[Group]) -> str:
    """The metric that models of a bench are ranked by; one that all of them have, where there is one.

    The length-controlled win rate comes first, and for Arena-Hard the style-controlled score.
    """
    arena = ("style_controlled_score", "score", "win_rate", "length_controlled_win_rate")
    other = ("length_controlled_win_rate", "style_controlled_score", "win_rate", "score", "discrete_win_rate")
    order = arena if bench.startswith("arena-hard") else other
    found = list(groups)
    for some in (all, any):
        for key in order:
            if found and some(value(group, key) is not None for group in found):
                return key
    return "win_rate"


def columns(groups: Iterable[Group], first: str) -> tuple[str, ...]:
    """The metrics that at least one model has, the headline first."""
    found = list(groups)
    there = [m.key for m in METRICS if any(value(group, m.key) is not None for group in found)]
    return tuple(sorted(there, key=lambda key: key != first))


def too_few(group: Group) -> bool:
    """Whether a group is too small to say anything about."""
    return group.n == 0 or (group.note or "").startswith("too few")


def apart(comparison: Comparison) -> bool:
    """Whether the interval of a difference leaves out zero."""
    low, high = comparison.overall.ci
    return low > 0 or high < 0
