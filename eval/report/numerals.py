"""Numbers as people read them: one decimal for points, a true minus sign, grouped thousands."""

from __future__ import annotations

MINUS = "\u2212"
MISSING = "\u2013"
SPACE = "\u00a0"
"""That no line is broken at."""


def points(value: float | None) -> str:
    """Percent and points, to one decimal."""
    return MISSING if value is None else _signs(f"{value:.1f}")


def gain(value: float) -> str:
    """A difference, always with its sign."""
    shown = f"{value:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else _signs(shown)


def whole(value: float | None) -> str:
    """A count or a mean length, with thousands grouped."""
    return MISSING if value is None else _signs(f"{value:,.0f}")


def seconds(value: float | None) -> str:
    """A duration in seconds."""
    return MISSING if value is None else f"{value:.2f} s" if value < 10 else f"{value:,.1f} s"


def short(value: float) -> str:
    """A number as a tick of an axis says it: 1.2k."""
    if abs(value) >= 1000:
        thousands = f"{value / 1000:.1f}".removesuffix(".0")
        return _signs(f"{thousands}k")
    return _signs(f"{value:g}")


def count(n: int) -> str:
    """A number of instructions: n = 1,234."""
    return f"n{SPACE}={SPACE}{n:,}"


def between(low: float, high: float) -> str:
    """An interval in points."""
    return f"{points(low)} to {points(high)}"


def p_value(p: float) -> str:
    """A p-value with its relation."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def share(part: float, total: float) -> str:
    """A part in percent of the total."""
    return MISSING if not total else f"{100 * part / total:.1f}{SPACE}%"


def level_name(level: float) -> str:
    """A confidence level, in percent."""
    return f"{100 * level:g}{SPACE}%"


def _signs(shown: str) -> str:
    return shown.replace("-", MINUS)
