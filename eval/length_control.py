"""Length control for benches without an official one: what a model would win if its responses were as long as the others.

The model is that of AlpacaEval's `length_controlled_minimal`, with one addition, categories:

    logit(preference) = theta + u[category] + phi * tanh(d / std(d)),    d = length(model) - length(baseline)

The length-controlled win rate is the mean of the preferences it predicts for d = 0. Only lengths of responses come in
here. AlpacaEval itself is scored by the package's own function (`alpaca/`), Arena-Hard by its style control (`arena/`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thinkserve.eval.match import Match

Floats = NDArray[np.float64]

# Ridge on theta and phi: hardly anything (a hundredth of an instruction), so that all wins, or wins that length alone
# decides, have a finite answer.
WEAK = 0.01
# Ridge on each u: draws a category of 3 instructions 10 to 20 % of the way to the mean of the categories, in logits, and
# one of 25 by 2 to 6 %. Little on purpose: with 1 (scikit-learn's default) a category with 6 % wins of 25 got 13 %, and beside its win
# rate that reads like an effect of length. What is too small to stand on its own has a note.
POOLING = 0.1

STEPS = 100
TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A win rate at equal length."""

    win_rate: float
    """In percent."""
    standard_error: float
    """In points; at most 50, which a single instruction has."""
    by_group: Mapping[str, float]
    """Of each category, drawn towards their mean where it is small; in the order in which they come."""
    error_by_group: Mapping[str, float]
    """In points; of all wins or all losses it says too little, as every such error does."""
    coefficient: float
    """phi, in logits: above 0 where the judge prefers the longer response; 0 where lengths tell nothing."""


def length_difference(match: Match) -> int:
    """How many characters longer the model's response is than the baseline's.

    0 where one of them never ended its thought: that is lost at any length, and must not be excused as too short.
    """
    if not (match.answer.complete and match.baseline.complete):
        return 0
    return len(match.answer.response) - len(match.baseline.response)


def length_controlled(
    preferences: Sequence[float] | Floats,
    length_differences: Sequence[float] | Floats,
    groups: Sequence[str] | None = None,
) -> LengthControlled:
    """Estimate the win rate that is left at equal length.

    Against AlpacaEval: no difficulties (they are known for its own instructions only), a ridge where it cross-validates
    an L1 penalty (its folds move the result by 0.1 points), and a standard error that knows that theta and phi were
    estimated; without length and categories it is the ordinary one of the mean.

    Source: Dubois et al., arXiv 2404.04475, section 3; standard error: Papke and Wooldridge, Journal of Applied
    Econometrics 11 (1996), whose "robust" variance is right for preferences between 0 and 1 too.

    Args:
        preferences: 0.0 (the baseline is better) to 1.0, one a scored instruction.
        length_differences: length of the model's response minus that of the baseline's, in any unit.
        groups: the category of each instruction.

    Raises:
        ValueError: there is nothing, the arguments differ in length, or a number is not finite or no preference.
    """
    wins = _checked(preferences, length_differences, groups)
    length = _length_feature(np.asarray(length_differences, dtype=np.float64))
    names = list(dict.fromkeys(groups or ()))
    member = np.array([[group == name for name in names] for group in groups or ()], dtype=np.float64)
    if len(names) < 2:
        member = np.zeros((wins.size, 0))  # one category is the whole
    design = np.column_stack([np.ones_like(length), length, member])
    ridge = np.array([WEAK, WEAK, *[POOLING] * member.shape[1]])
    weights = _fit(design, wins, ridge)

    level = design.copy()
    level[:, 1] = 0.0
    predicted = _sigmoid(level @ weights)
    of_group = {name: level[[list(groups or ()).index(name)]] for name in names}
    by_group = {name: 100 * float(_sigmoid(row @ weights)[0]) for name, row in of_group.items()}
    errors = {
        name: 100 * _standard_error(design, row, wins, ridge, weights) for name, row in of_group.items()
    }
    error = _standard_error(design, level, wins, ridge, weights)
    return LengthControlled(100 * float(predicted.mean()), 100 * error, by_group, errors, float(weights[1]))


def _checked(
    preferences: Sequence[float] | Floats,
    length_differences: Sequence[float] | Floats,
    groups: Sequence[str] | None,
) -> Floats:
    wins = np.asarray(preferences, dtype=np.float64)
    if not wins.size or not ((wins >= 0) & (wins <= 1)).all():
        raise ValueError("length control needs preferences from 0 to 1: leave out what is unscored")
    if not np.isfinite(np.asarray(length_differences, dtype=np.float64)).all():
        raise ValueError("a length difference is not finite")
    counts = {wins.size, len(length_differences), wins.size if groups is None else len(groups)}
    if len(counts) > 1:
        raise ValueError(f"preferences, length differences and groups differ in length: {sorted(counts)}")
    return wins


def _length_feature(differences: Floats) -> Floats:
    """tanh(d / std(d)), or zeros where all differences are the same: from those nothing can be learned of length."""
    deviation = float(differences.std(ddof=1)) if differences.size > 1 else 0.0
    # Differences are whole characters; what is left of the deviation of equal ones is rounding.
    if deviation <= 1e-9 * float(np.abs(differences).max()):
        return np.zeros_like(differences)
    return np.tanh(differences / deviation)


def _fit(design: Floats, wins: Floats, ridge: Floats) -> Floats:
    """Newton's method for the logistic regression with soft labels and a ridge of its own for each weight.

    scikit-learn has neither (labels would be doubled rows, ridges scaled columns); with at most a few hundred columns
    this is a handful of small solves, and what it inverts is what the standard error needs.
    """
    weights = np.zeros(design.shape[1])
    loss = _loss(design, wins, ridge, weights)
    for _ in range(STEPS):
        predicted = _sigmoid(design @ weights)
        slope = design.T @ (predicted - wins) + ridge * weights
        if np.abs(slope).max() <= TOLERANCE * wins.size:
            break
        step = np.linalg.solve(_curvature(design, predicted, ridge), slope)
        # The loss is convex: a step that overshoots is halved until it goes down.
        size = 1.0
        while (moved := _loss(design, wins, ridge, weights - size * step)) > loss and size > 1e-6:
            size /= 2
        weights, loss = weights - size * step, moved
    return weights


def _loss(design: Floats, wins: Floats, ridge: Floats, weights: Floats) -> float:
    logits = design @ weights
    return float((np.logaddexp(0, logits) - wins * logits).sum() + (ridge * weights**2).sum() / 2)


def _curvature(design: Floats, predicted: Floats, ridge: Floats) -> Floats:
    curvature: Floats = (design * (predicted * (1 - predicted))[:, None]).T @ design + np.diag(ridge)
    return curvature


def _standard_error(design: Floats, level: Floats, wins: Floats, ridge: Floats, weights: Floats) -> float:
    """By how much the mean prediction would move with each row (infinitesimal jackknife, which is the robust variance).

    Args:
        design: (rows, weights).
        level: (rows, weights) at equal length, or the one row of a category.
        wins: (rows,).
        ridge: (weights,).
        weights: as fitted.
    """
    rows = wins.size
    if rows == 1:
        return 0.5
    predicted, at_level = _sigmoid(design @ weights), _sigmoid(level @ weights)
    gradient = level.T @ (at_level * (1 - at_level)) / len(level)
    reach = np.linalg.solve(_curvature(design, predicted, ridge), gradient)
    moves = (design @ reach) * (wins - predicted)
    if len(level) == rows:  # of another draw of rows, the mean over them moves too
        moves = moves + (at_level - at_level.mean()) / rows
    error = float(np.sqrt(((moves - moves.mean()) ** 2).sum() * rows / (rows - 1)))
    # What moves linearly with a handful of rows may leave 0 to 1; no rate errs by more than half.
    return min(error, 0.5)


def _sigmoid(logits: Floats) -> Floats:
    result: Floats = np.exp(-np.logaddexp(0, -logits))
    return result
