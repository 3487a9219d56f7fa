"""Preferences against a length: in bins of equally many instructions, with the mean of each and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from thinkserve.eval.report.metrics import Z95

# Fewer instructions than this say nothing about a bin.
LEAST = 15
MOST_BINS = 8


@dataclass(frozen=True, slots=True)
class Bin:
    """Instructions of similar length."""

    n: int
    low: float
    high: float
    x: float
    """The mean length."""
    mean: float
    """Of the preferences, in percent."""
    error: float
    """Half of the 95 % interval, in points."""


def binned(pairs: Sequence[tuple[float, float]]) -> tuple[Bin, ...]:
    """Bin pairs of a length and a preference (0.0 to 1.0).

    The bins are quantiles of the length; equal lengths are never cut apart. Fewer than two bins' worth of pairs: none.
    """
    ordered = sorted(pairs)
    wanted = min(MOST_BINS, len(ordered) // LEAST)
    if wanted < 2:
        return ()
    bins = []
    start = 0
    for number in range(1, wanted + 1):
        end = round(number * len(ordered) / wanted)
        while 0 < end < len(ordered) and ordered[end][0] == ordered[end - 1][0]:
            end += 1
        # What is too short for a bin of its own (after many equal lengths) goes to the last one.
        if len(ordered) - end < LEAST:
            end = len(ordered)
        if end - start >= LEAST:
            bins.append(_bin(ordered[start:end]))
            start = end
    return tuple(bins) if len(bins) > 1 else ()


def _bin(pairs: Sequence[tuple[float, float]]) -> Bin:
    lengths = [length for length, _ in pairs]
    preferences = [100 * preference for _, preference in pairs]
    error = Z95 * stdev(preferences) / sqrt(len(preferences))
    return Bin(len(pairs), lengths[0], lengths[-1], fmean(lengths), fmean(preferences), error)


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where either side is constant."""
    if len(pairs) < LEAST:
        return None
    first, second = _ranks([a for a, _ in pairs]), _ranks([b for _, b in pairs])
    spread = sqrt(_products(first, first) * _products(second, second))
    return _products(first, second) / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for at in order[start:end]:
            ranks[at] = (start + end - 1) / 2
        start = end
    return ranks


def _products(first: Sequence[float], second: Sequence[float]) -> float:
    mean = (len(first) - 1) / 2
    return sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
