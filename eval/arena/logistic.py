"""Logistic regressions, many at once: the same rows, weighted otherwise in each (one for each round of a bootstrap).

A row's logit is `scale * (the strength of its model) + features @ coefficients`. Battles of a row enter as how many
there were and how many points they gave, which is all that the likelihood hangs on. `newton` finds the optimum;
`lbfgs` stops where the optimiser of Arena-Hard v2.0 does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thinkserve.eval.arena.battle import Battles, Floats

TOLERANCE = 1e-10
NEWTON_STEPS = 100
# A model that lost all its battles has no finite strength; steps are bounded, and the ridge stops them.
LARGEST_STEP = 4.0


@dataclass(frozen=True, slots=True)
class Regression:
    """The rows of a regression."""

    battles: Battles
    features: Floats
    """(rows, features)"""
    scale: float = 1.0
    ridge: float = 1e-9

    def logits(self, strengths: Floats, coefficients: Floats) -> Floats:
        """(rounds, models) and (rounds, features) to (rounds, rows)."""
        logits: Floats = self.scale * strengths[:, self.battles.model] + coefficients @ self.features.T
        return logits


def newton(rows: Regression, counts: Floats, points: Floats) -> tuple[Floats, Floats]:
    """The strengths (rounds, models) and coefficients (rounds, features) that maximise the penalised likelihood.

    Args:
        rows: what is regressed.
        counts: (rounds, rows) battles.
        points: (rounds, rows) of them that were won, ties as halves.
    """
    strengths = np.zeros((len(counts), len(rows.battles.models)))
    coefficients = np.zeros((len(counts), rows.features.shape[1]))
    for _ in range(NEWTON_STEPS):
        for_models, for_features = _newton_step(rows, counts, points, strengths, coefficients)
        strengths += for_models
        coefficients += for_features
        if max(np.abs(for_models).max(), np.abs(for_features).max(initial=0)) < TOLERANCE:
            break
    return strengths, coefficients


def _newton_step(
    rows: Regression, counts: Floats, points: Floats, strengths: Floats, coefficients: Floats
) -> tuple[Floats, Floats]:
    """The step of each round; the Hessian of the strengths is diagonal, so only a small system is solved."""
    x, scale, by_model = rows.features, rows.scale, rows.battles.by_model
    expected = _sigmoid(rows.logits(strengths, coefficients))
    residual = points - counts * expected
    weight = counts * expected * (1 - expected)
    slope_m = scale * by_model(residual) - rows.ridge * strengths
    slope_f = residual @ x - rows.ridge * coefficients
    bend_m = scale**2 * by_model(weight) + rows.ridge
    bend_mf = np.stack([scale * by_model(weight * column) for column in x.T], axis=-1)
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    bend_f = (weight @ products).reshape(-1, x.shape[1], x.shape[1]) + rows.ridge * np.eye(x.shape[1])
    left = bend_f - np.einsum("bmk,bml->bkl", bend_mf, bend_mf / bend_m[:, :, None])
    right = slope_f - np.einsum("bmk,bm->bk", bend_mf, slope_m / bend_m)
    step_f = np.linalg.solve(left, right[:, :, None])[:, :, 0]
    step_m = (slope_m - np.einsum("bmk,bk->bm", bend_mf, step_f)) / bend_m
    return np.clip(step_m, -LARGEST_STEP, LARGEST_STEP), np.clip(step_f, -LARGEST_STEP, LARGEST_STEP)


def _sigmoid(logits: Floats) -> Floats:
    # In this form nothing overflows.
    return 0.5 * (1 + np.tanh(0.5 * logits))


def lbfgs(
    rows: Regression,
    counts: Floats,
    points: Floats,
    *,
    rate: float,
    steps: int,
    start: float,
    tolerance: float,
) -> tuple[Floats, Floats]:
    """What `torch.optim.LBFGS` without line search arrives at, which may be far from the optimum.

    The baseline is one more model here, on the other side of every battle: it makes no difference to the optimum, but
    does to the path. There is no ridge.

    Source: PyTorch v2.0 torch/optim/lbfgs.py; lmarena/arena-hard-auto@196f6b8 `fit_pairwise_model` of
    utils/math_utils.py.

    Args:
        rows: what is regressed.
        counts: (rounds, rows) battles.
        points: (rounds, rows) of them that were won.
        rate: by which steps are shortened.
        steps: how many at most.
        start: of all parameters.
        tolerance: of slopes and of steps.
    """
    models = len(rows.battles.models)
    place = np.full((len(counts), models + 1 + rows.features.shape[1]), start)
    slope = _slope(rows, counts, points, place)
    steepness = np.abs(slope)
    length = np.minimum(1.0, 1.0 / np.maximum(steepness.sum(axis=1), tolerance))[:, None] * rate
    step = -length * slope
    memory = _Memory()
    running = steepness.max(axis=1) > tolerance
    for _ in range(steps - 1):
        place = place + step * running[:, None]
        before, slope = slope, _slope(rows, counts, points, place)
        running = running & (np.abs(slope).max(axis=1) > tolerance) & (np.abs(step).max(axis=1) > tolerance)
        if not running.any():
            break
        memory.add(step, slope - before)
        direction = -memory.times(slope)
        running = running & ((direction * slope).sum(axis=1) <= -tolerance)
        step = rate * direction
    else:
        place = place + step * running[:, None]
    strengths = place[:, :models] - place[:, models : models + 1]
    return strengths, place[:, models + 1 :]


def _slope(rows: Regression, counts: Floats, points: Floats, place: Floats) -> Floats:
    models = len(rows.battles.models)
    strengths = place[:, :models] - place[:, models : models + 1]
    residual = counts * _sigmoid(rows.logits(strengths, place[:, models + 1 :])) - points
    of_models = rows.scale * rows.battles.by_model(residual)
    return np.concatenate(
        [of_models, -of_models.sum(axis=1, keepdims=True), residual @ rows.features], axis=1
    )


class _Memory:
    """The steps of L-BFGS and how they changed the slopes: an estimate of the inverse Hessian, for each round."""

    def __init__(self) -> None:
        self.steps: list[Floats] = []
        self.changes: list[Floats] = []
        self.inverse: list[Floats] = []
        self.diagonal: Floats | float = 1.0

    def add(self, step: Floats, change: Floats) -> None:
        """Learn from a step; rounds in which it tells nothing keep what they have."""
        product = (step * change).sum(axis=1, keepdims=True)
        tells = product > 1e-10
        safe = np.where(tells, product, 1.0)
        self.steps.append(np.where(tells, step, 0.0))
        self.changes.append(np.where(tells, change, 0.0))
        self.inverse.append(np.where(tells, 1.0 / safe, 0.0))
        squares = np.where(tells, (change * change).sum(axis=1, keepdims=True), 1.0)
        self.diagonal = np.where(tells, safe / squares, self.diagonal)

    def times(self, slope: Floats) -> Floats:
        """The estimate times a slope (Nocedal and Wright, Numerical Optimization, algorithm 7.4)."""
        known = list(zip(self.steps, self.changes, self.inverse, strict=True))
        parts = []
        for step, change, inverse in reversed(known):
            part = (step * slope).sum(axis=1, keepdims=True) * inverse
            parts.append(part)
            slope = slope - part * change
        slope = slope * self.diagonal
        for (step, change, inverse), part in zip(known, reversed(parts), strict=True):
            slope = slope + step * (part - (change * slope).sum(axis=1, keepdims=True) * inverse)
        return slope
