"""Axes: from values to percent of a chart's width or height, and round numbers for their ticks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

# What is left free at both ends, so that a mark or the number under a tick is not cut off.
MARGIN = 4.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies, in percent from the low end; values beyond an end lie on it."""
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(MARGIN + part * (100 - 2 * MARGIN), 2)


def axis(
    values: Iterable[float],
    *,
    bounds: tuple[float, float] | None = None,
    through: float = 0.0,
    wanted: int = 5,
) -> Axis:
    """An axis that holds all values.

    Args:
        values: at least one, or the axis goes from 0 to 100.
        bounds: what the quantity can be at all; the axis never goes beyond.
        through: a value that has a tick if it is on the axis.
        wanted: about how many ticks.
    """
    found = list(values) or [0.0, 100.0]
    low, high = min(found), max(found)
    if high - low < 1e-9:
        low, high = low - 5, high + 5
    step = _round_step((high - low) / wanted, through)
    low, high = floor(low / step) * step, ceil(high / step) * step
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    count = floor((high - low) / step + 1e-9)
    ticks = tuple(round(low + number * step, 10) for number in range(count + 1))
    return Axis(low, high, ticks)


def _round_step(rough: float, through: float) -> float:
    magnitude: float = 10 ** floor(log10(rough))
    # 25 is as round as 20; 2.5 is not as round as 2.
    factors = (1.0, 2.0, 2.5, 5.0, 10.0) if magnitude >= 10 else (1.0, 2.0, 5.0, 10.0, 25.0)
    steps = [factor * magnitude for factor in (*factors, 50.0)]
    return next(
        step for step in steps if step >= rough * 0.99 and abs(through / step - round(through / step)) < 1e-9
    )


def with_reference(values: Iterable[float], reference: float, reach: float) -> list[float]:
    """The values, and a reference (a draw, no difference) where it is near enough to be worth its room."""
    found = list(values)
    near = not found or min(found) - reach <= reference <= max(found) + reach
    return [*found, reference] if near else found
