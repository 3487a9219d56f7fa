"""How the two arms, the ways of decoding and the metric are called, and which colour each arm has in every chart."""

from __future__ import annotations

from collections.abc import Sequence

from thinkserve.eval.report.categories import legend
from thinkserve.eval.report.elements import Html
from thinkserve.eval.report.metrics import Interval
from thinkserve.training.folder import Decoding
from thinkserve.training.recipe import Arm, Recipe
from thinkserve.training.report.measures import CategoryMeasure

SERIES: dict[Arm, int] = {"thought": 0, "direct": 1}
NAMES: dict[Arm, str] = {"thought": "Thought mode (TPO)", "direct": "Direct baseline"}
SHORT: dict[Arm, str] = {"thought": "Thought", "direct": "Direct"}
METRICS = {"accuracy": "Accuracy", "win_rate": "Win rate"}
LEVEL = 0.95
"""Of all intervals in `results.json`."""


def decoding_title(decoding: Decoding, recipe: Recipe) -> str:
    """As a heading: Sampled at temperature 1."""
    return "Greedy" if decoding == "greedy" else f"Sampled at temperature {recipe.evaluate.temperature:g}"


def metric_of(recipe: Recipe) -> str:
    """As a heading: Accuracy."""
    return METRICS[recipe.evaluate.metric]


def arms_legend(arms: Sequence[Arm]) -> Html:
    """Which mark is whose."""
    return legend([(SERIES[arm], NAMES[arm]) for arm in arms])


def interval_of(measure: CategoryMeasure) -> Interval | None:
    """Of a measure's rate, in percent."""
    return None if measure.ends is None else Interval(*measure.ends, LEVEL)
