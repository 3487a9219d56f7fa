"""Strengths of players from who won against whom: the Bradley-Terry model, by maximum likelihood.

The paper's draft (App. B) calls it ELO: `argmax_e sum_{m,n} B_mn * log(sigma(e_m - e_n))`, where `B_mn` is how often m won
against n. Strengths are log-odds: m beats n with probability `sigma(e_m - e_n)`; times `400 / ln 10` they are Elo points.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TOLERANCE = 1e-10
MOST_STEPS = 200


def bradley_terry(wins: npt.ArrayLike, prior: float = 0.0) -> Array:
    """Fit the strengths.

    Args:
        wins: (n, n); `wins[m, n]` is how often m won against n, a tie being half a win for each. The diagonal does not
            count.
        prior: wins that every player gets over every other beside those. The draft has none; then a player who never
            lost, or never met the rest, has no finite strength.

    Returns:
        (n,) log-odds with mean 0.

    Raises:
        ValueError: `wins` has another shape or is no count, or there is no finite maximum; a prior above 0 makes one.
    """
    won: Array = np.array(wins, dtype=np.float64)
    if won.ndim != 2 or won.shape[0] != won.shape[1]:
        raise ValueError(f"wins must be (n, n), and are {won.shape}")
    if not (np.isfinite(won).all() and (won >= 0).all() and np.isfinite(prior) and prior >= 0):
        raise ValueError("wins and the prior must be finite and not below 0")
    won += prior
    np.fill_diagonal(won, 0.0)
    players = len(won)
    if players < 2:
        return np.zeros(players)
    if not _all_reach_all(won > 0):
        raise ValueError(
            "there is no finite maximum: some players never lost to the others, or never met them; give a prior"
        )
    return _climb(won)


def _climb(won: Array) -> Array:
    """Newton's method. The likelihood is concave, and a step that would lower it is halved."""
    players = len(won)
    met = won + won.T
    strengths = np.zeros(players)
    best = _log_likelihood(won, strengths)
    for _ in range(MOST_STEPS):
        expected = _sigma(strengths[:, None] - strengths[None, :])  # (n, n): of row against column
        gradient = (won - met * expected).sum(axis=1)
        weights = met * expected * (1 - expected)
        curvature = np.diag(weights.sum(axis=1)) - weights
        # Strengths are defined up to a constant; this fixes their sum at 0, on the scale of the rest.
        step = np.linalg.solve(curvature + weights.max() / players, gradient)
        step -= step.mean()
        while True:
            likelihood = _log_likelihood(won, strengths + step)
            if likelihood >= best - 1e-12 * abs(best) or np.abs(step).max() < TOLERANCE:
                break
            step /= 2
        strengths, best = strengths + step, max(best, likelihood)
        if np.abs(step).max() < TOLERANCE:
            centred: Array = strengths - strengths.mean()
            return centred
    raise ValueError(f"no maximum was found in {MOST_STEPS} steps; give a larger prior")


def _log_likelihood(won: Array, strengths: Array) -> float:
    # log sigma(x) = -log(1 + exp(-x))
    return float(-(won * np.logaddexp(0.0, strengths[None, :] - strengths[:, None])).sum())


def _sigma(x: Array) -> Array:
    found: Array = np.exp(-np.logaddexp(0.0, -x))
    return found


def _all_reach_all(beat: npt.NDArray[np.bool_]) -> bool:
    """Whether from each player a chain of wins leads to every other: exactly then the maximum is finite (Ford 1957)."""
    reached = beat | np.eye(len(beat), dtype=bool)
    for _ in range(len(beat).bit_length()):
        reached = reached.astype(np.float64) @ reached > 0
    return bool(reached.all())
