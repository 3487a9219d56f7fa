"""Style control: scores with what length and markdown do to the judge taken out, as far as a regression can.

A logistic regression of the battles on who fought and on how much the two responses differ in style. All models that
are given are fitted together, so a score depends on them a little. Like its authors', a model's score is its chance
where the styles differ as much as they do on average over all battles, since they subtract that average; it is not the
chance at equal style, except where the average is 0.

Source: lm-sys/arena-hard-auto@efc012e utils_math.py (v0.1), lmarena/arena-hard-auto@196f6b8 show_result.py and
utils/math_utils.py (v2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thinkserve.eval.answer import Answer, Style
from thinkserve.eval.arena.battle import Battles, Floats
from thinkserve.eval.arena.bootstrap import interval, resamples
from thinkserve.eval.arena.logistic import Regression, lbfgs, newton
from thinkserve.eval.arena.version import EDITIONS, Version
from thinkserve.eval.bench import Compat

StyleOf = Callable[[Answer], Style]
STYLE = ("length", "headers", "lists", "bold")
LENGTH, MARKDOWN = STYLE[:1], STYLE[1:]
# Elo's scale: 400 points are a factor of ten.
V01_SCALE = math.log(10)


@dataclass(frozen=True, slots=True)
class StyleControlled:
    """The style-controlled scores of models, in percent, by model."""

    scores: dict[str, float]
    coefficients: dict[str, float]
    """Of the standardised differences in style, by feature: above 0 where more of it wins."""
    cis: dict[str, tuple[float, float]]
    """Empty without bootstraps."""


def style_control(
    version: Version,
    battles: Battles,
    style_of: StyleOf,
    *,
    compat: Compat,
    seed: int = 0,
    bootstraps: int = 0,
    features: Sequence[str] = STYLE,
) -> StyleControlled:
    """Fit the regression to all battles and to those of each round of a bootstrap.

    v0.1 is a ridge regression (C = 1) over battles that are counted twice. v2.0 has no penalty; `official` stops where
    the authors' optimiser does (up to 0.25 points from the optimum), `aligned` goes on to the optimum.
    """
    regression = _regression(version, battles, _differences(version, battles, style_of)[:, _chosen(features)])

    def fit(counts: Floats, points: Floats) -> tuple[Floats, Floats]:
        if version == "v0.1":
            strengths, coefficients = newton(regression, 2 * counts, 2 * points)
            return V01_SCALE * (strengths - coefficients[:, -1:]), coefficients[:, :-1]
        if compat == "official":
            return lbfgs(regression, counts, points, rate=0.1, steps=50, start=0.5, tolerance=1e-9)
        return newton(regression, counts, points)

    counts, points = battles.counts[None], battles.points[None]
    if bootstraps:
        drawn = resamples(version, battles, compat, bootstraps, seed, joint=True)
        counts, points = np.concatenate([counts, drawn[0]]), np.concatenate([points, drawn[1]])
    strengths, coefficients = fit(counts, points)
    percent = 50 * (1 + np.tanh(strengths / 2))
    level = EDITIONS[version].ci_level if compat == "official" else 0.95
    cis = {name: interval(percent[1:, at], level) for at, name in enumerate(battles.models)}
    return StyleControlled(
        dict(zip(battles.models, percent[0].tolist(), strict=True)),
        dict(zip(features, coefficients[0].tolist(), strict=True)),
        {name: ci for name, ci in cis.items() if ci},
    )


def _chosen(features: Sequence[str]) -> list[int]:
    return [STYLE.index(name) for name in features]


def _regression(version: Version, battles: Battles, differences: Floats) -> Regression:
    counts = battles.counts
    mean = counts @ differences / counts.sum()
    spread = counts @ (differences - mean) ** 2
    # v0.1 divides by the number of battles (each counted twice), v2.0 by one less.
    deviation = np.sqrt(spread / max(1.0, counts.sum() - (0 if version == "v0.1" else 1)))
    # A feature in which no two responses differ says nothing.
    standardised = np.divide(
        differences - mean, deviation, out=np.zeros_like(differences), where=deviation > 1e-12
    )
    if version == "v2.0":
        return Regression(battles, standardised)
    # The ridge is on the baseline's strength as well, so that is a parameter of its own.
    baseline = np.full((len(differences), 1), -V01_SCALE)
    return Regression(battles, np.concatenate([standardised, baseline], axis=1), scale=V01_SCALE, ridge=1.0)


def _differences(version: Version, battles: Battles, style_of: StyleOf) -> Floats:
    """How the styles of the two responses differ, from -1 to 1, (rows, features)."""
    model = _counts([style_of(match.answer) for match in battles.matches])
    baseline = _counts([style_of(match.baseline) for match in battles.matches])
    if version == "v0.1":
        ratios: Floats = (model - baseline) / (model + baseline + 1)
        return ratios
    tokens, theirs = model[:, :1], baseline[:, :1]
    total = tokens + theirs
    length = np.divide(tokens - theirs, total, out=np.zeros_like(total), where=total > 0)
    density, other = model[:, 1:] / (tokens + 1), baseline[:, 1:] / (theirs + 1)
    return np.concatenate([length, (density - other) / (density + other + 1)], axis=1)


def _counts(styles: Sequence[Style]) -> Floats:
    return np.array([(s.token_len, s.headers, s.lists, s.bold) for s in styles], dtype=np.float64)
