"""Histograms with round edges, which several groups of values share so that they can be compared."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import fmean
from typing import Any

BINS = 20
"""About so many."""
TAIL = 0.005
"""The share of values at each end that may lie beyond the edges: one huge value must not flatten all others."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins of equal width. The first and the last one also count what lies beyond."""

    edges: tuple[float, ...]

    def counted(self, values: Sequence[float]) -> dict[str, Any]:
        """How many of some values are in each bin, for a file; `mean` is None without values."""
        counts = [0] * (len(self.edges) - 1)
        for value in values:
            counts[min(max(bisect_right(self.edges, value) - 1, 0), len(counts) - 1)] += 1
        return {"n": len(values), "mean": fmean(values) if values else None, "counts": counts}


def bins_of(values: Sequence[float]) -> Bins:
    """Bins that hold all values but the outermost.

    Args:
        values: finite; whole numbers get bins round whole numbers.
    """
    if not values:
        return Bins((0.0, 1.0))
    ordered = sorted(values)
    low, high = ordered[floor(TAIL * len(ordered))], ordered[-1 - floor(TAIL * len(ordered))]
    if low == high:
        half = max(0.5, abs(low) / 10)
        return Bins((low - half, low + half))
    whole = all(float(value).is_integer() for value in values)
    step = _round_step((high - low) / BINS)
    if whole and step <= 1:
        return Bins(tuple(number - 0.5 for number in range(int(low), int(high) + 2)))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return Bins(tuple(float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)))


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** floor(log10(rough))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * 0.99)
