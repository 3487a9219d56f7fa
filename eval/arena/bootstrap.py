"""Bootstraps of battles: over questions, which is sound, and over single battles, as Arena-Hard's authors do it.

The two games of a question and the three battles of a strong verdict hang together, so drawing them one by one makes
intervals too narrow; drawing questions keeps them together, for all models at once.

The authors draw 100 times, which leaves the ends of an interval uncertain by 0.3 points (one standard deviation): they
move by up to 0.9 with the order of the files, and with which other models are scored beside. `battle_intervals` is what
their bootstrap tends to with more rounds, and hangs on nothing but a model's own battles.
"""

from __future__ import annotations

import numpy as np

from thinkserve.eval.arena.battle import Battles, Floats, Indices
from thinkserve.eval.arena.version import Version
from thinkserve.eval.bench import Compat

OFFICIAL_SEED = 42
"""Of v0.1's `np.random.seed`; v2.0 has none."""
BATTLE_ROUNDS = 20_000
"""The ends are then good to 0.03 points."""


def resamples(
    version: Version, battles: Battles, compat: Compat, rounds: int, seed: int, *, joint: bool = False
) -> tuple[Floats, Floats]:
    """Draw battles again: counts and points of each row, (rounds, rows) both.

    Args:
        version: of the bench.
        battles: to draw from.
        compat: `official` draws single battles, `aligned` questions.
        rounds: how often.
        seed: for the draws, except those of v0.1's own.
        joint: whether v2.0's own draws are over all models together (style control), or model by model.
    """
    if compat == "aligned":
        drawn = _questions(battles, rounds, np.random.default_rng(seed))
        return drawn * battles.counts, drawn * battles.points
    if version == "v0.1":
        legacy = np.random.RandomState(OFFICIAL_SEED)
        total = len(battles.row)
        return _counted(battles, np.stack([legacy.choice(total, size=total) for _ in range(rounds)]))
    rng = np.random.default_rng(seed)
    if joint:
        return _counted(battles, rng.integers(len(battles.row), size=(rounds, len(battles.row))))
    # A model's battles are next to each other, as its rows are.
    starts = np.searchsorted(battles.row, battles.starts)
    ends = np.append(starts[1:], len(battles.row))
    drawn_by_model = [
        rng.integers(start, end, size=(rounds, end - start)) for start, end in zip(starts, ends, strict=True)
    ]
    return _counted(battles, np.concatenate(drawn_by_model, axis=1))


def _questions(battles: Battles, rounds: int, rng: np.random.Generator) -> Floats:
    """How often each row's question was drawn, (rounds, rows)."""
    # Numbered by their ids, so that the draws do not depend on the order of a file.
    ids = np.array([match.instruction.id for match in battles.matches])
    _, question = np.unique(ids, return_inverse=True)
    total = int(question.max()) + 1
    drawn = rng.integers(total, size=(rounds, total)) + total * np.arange(rounds)[:, None]
    times = np.bincount(drawn.ravel(), minlength=rounds * total).reshape(rounds, total)
    return times[:, question].astype(np.float64)


def _counted(battles: Battles, drawn: Indices) -> tuple[Floats, Floats]:
    rounds, rows = len(drawn), len(battles.matches)
    at = (battles.row[drawn] + rows * np.arange(rounds)[:, None]).ravel()
    points = battles.outcome[drawn].ravel()
    shape = (rounds, rows)
    return (
        np.bincount(at, minlength=rounds * rows).reshape(shape).astype(np.float64),
        np.bincount(at, points, minlength=rounds * rows).reshape(shape).astype(np.float64),
    )


def battle_intervals(battles: Battles, level: float, seed: int) -> dict[str, tuple[float, float]]:
    """The interval of each model's score over its single battles, by model.

    A battle is lost, a tie or won, so all that a round draws is how many of each there are.
    """
    found = {}
    of_model = battles.model[battles.row]
    for at, name in enumerate(battles.models):
        outcomes = battles.outcome[of_model == at]
        share = np.bincount((2 * outcomes).astype(np.int64), minlength=3) / len(outcomes)
        drawn = np.random.default_rng(seed).multinomial(len(outcomes), share, size=BATTLE_ROUNDS)
        if ci := interval(100 * (drawn[:, 1] / 2 + drawn[:, 2]) / len(outcomes), level):
            found[name] = ci
    return found


def interval(values: Floats, level: float) -> tuple[float, float] | None:
    """The percentile interval of (rounds,) values; those of rounds without a battle (nan) are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
