"""Length control: a judge's liking for long responses, taken out of its scores.

Source: Wu et al., arXiv 2410.10630: `s <- N(s) - rho * N(l)`, where N(x) = (x - mean) / std over the outputs to one
instruction and l is the length of the response; the length of a thought never counts. What the paper leaves open: the
standard deviation is the population's, and where all values are equal N is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt

SAME = 1e-9
"""Values (in standard deviations) that differ by no more are equal but for rounding."""


def normalized(values: Sequence[float]) -> tuple[float, ...]:
    """(x - mean) / std of each value, in their order; zeros where all are equal.

    Args:
        values: finite numbers.
    """
    if not values:
        return ()
    low, high = min(values), max(values)
    # Equal values whose mean is rounded have a standard deviation just beside 0, and would come out as -1 or 1.
    # Halved, so that not even the largest floats overflow.
    spread = high / 2 - low / 2
    if not spread:
        return (0.0,) * len(values)
    # N does not change with shift and scale; from 0 to 1 no square can overflow or vanish.
    scaled = [(value / 2 - low / 2) / spread for value in values]
    mean = fsum(scaled) / len(scaled)
    deviation = sqrt(fsum((value - mean) ** 2 for value in scaled) / len(scaled))
    return tuple((value - mean) / deviation for value in scaled)


def controlled(
    normal_scores: Sequence[float], normal_lengths: Sequence[float], rho: float
) -> tuple[float, ...]:
    """N(score) - rho * N(length) of each output.

    Args:
        normal_scores: N of the scores.
        normal_lengths: N of the lengths of the responses.
        rho: weight of length; 0 leaves the scores as they are.
    """
    return tuple(score - rho * length for score, length in zip(normal_scores, normal_lengths, strict=True))
