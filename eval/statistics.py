"""The statistics of scores: standard errors, bootstrap intervals, paired differences, Holm's correction.

All of it is seeded and depends on the values alone, not on the order in which files or dictionaries give them. Nothing
here knows of matches or models; `comparison.py` and the benches do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEW = 20
WIDE = 30.0

# Numbers that one block of resamples holds at most (32 MiB).
BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class PairedResult:
    """The mean of paired differences, with its interval and its p-value."""

    difference: float
    ci: tuple[float, float]
    p: float
    """Two-sided; at least 1/(rounds + 1)."""


def standard_error(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The standard error of the mean, from the sample's standard deviation (n - 1); nan for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / np.sqrt(array.size)) if array.size > 1 else float("nan")


def bootstrap_mean_ci(
    values: Sequence[float] | NDArray[np.float64], *, seed: int, level: float = 0.95, rounds: int = 2000
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean: the values are drawn again, with replacement, `rounds` times.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. Where all values are the same
    it has no width, however few they are: `small_group_note` speaks up for those.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    array = _sorted(values)
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [
            array[rng.integers(array.size, size=(size, array.size))].mean(axis=1)
            for size in _blocks(rounds, array)
        ]
    )
    tail = (1 - level) / 2
    # A mean may be rounded to just beside the values that it is the mean of: preferences would leave 0 to 1.
    low, high = np.clip(np.quantile(means, (tail, 1 - tail)), array[0], array[-1])
    return float(low), float(high)


def paired_bootstrap(
    differences: Sequence[float] | NDArray[np.float64],
    *,
    seed: int,
    level: float = 0.95,
    rounds: int = 10000,
) -> PairedResult:
    """Whether paired differences have another mean than 0.

    The interval is the bootstrap's, over pairs. The p-value is that of random sign flips: if the two models are as
    good as each other, which of the two a preference belongs to is chance. Unlike a bootstrap moved to mean 0 this
    holds its level for few pairs too (five differences of the same sign give 2/32; moved to 0 all of them vanish, and
    so would the p-value), and Holm's correction is asked about the smallest groups.

    Source: sign flips: Fisher, The Design of Experiments (1935), section 21; asymptotically valid for the mean without
    symmetry too: Canay, Romano and Shaikh, Econometrica 85 (2017). The 1 that is added: Phipson and Smyth,
    Stat. Appl. Genet. Mol. Biol. 9 (2010), article 39.

    Raises:
        ValueError: there are no differences, or one is not finite.
    """
    array = _sorted(differences)
    ci = bootstrap_mean_ci(array, seed=seed, level=level, rounds=rounds)
    return PairedResult(float(array.mean()), ci, _sign_flip_p(array, seed, rounds))


def _sign_flip_p(differences: NDArray[np.float64], seed: int, rounds: int) -> float:
    nonzero = differences[differences != 0]
    total = nonzero.sum()
    # Preferences are halves and wholes, so flipped sums often equal the observed one but for rounding.
    reached = abs(total) - 1e-9 * np.abs(nonzero).sum()
    # Another stream than the interval's, which has the same seed.
    rng = np.random.default_rng((seed, 1))
    extreme = 0
    for size in _blocks(rounds, nonzero):
        kept = rng.integers(2, size=(size, nonzero.size), dtype=np.int8)
        extreme += int((np.abs(2 * (kept @ nonzero) - total) >= reached).sum())
    return (extreme + 1) / (rounds + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: the k-th smallest of m times (m - k + 1), never less than a smaller one's, at most 1.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), pages 65-70.
    """
    corrected: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


def small_group_note(n: int, ci: tuple[float, float] | None) -> str | None:
    """What to say of a group that is too small to say anything about, or None.

    Args:
        n: scored instructions.
        ci: of its win rate, score or difference, in points (0 to 100).
    """
    if n < FEW:
        return f"too few to say: {n} instruction{'' if n == 1 else 's'}"
    if ci is not None and ci[1] - ci[0] > WIDE:
        return f"too few to say: the interval is {ci[1] - ci[0]:.0f} points wide"
    return None


def _sorted(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Sorted, so that the resamples of a seed do not depend on the order of a file."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    if not array.size or not np.isfinite(array).all():
        raise ValueError("a mean needs values, and all of them finite: leave out what is unscored")
    return array


def _blocks(rounds: int, values: NDArray[np.float64]) -> Iterator[int]:
    """The rounds in blocks that fit into memory."""
    most = max(1, BLOCK // max(1, values.size))
    for start in range(0, rounds, most):
        yield min(most, rounds - start)
