"""Durations as people say them."""

from __future__ import annotations

from thinkserve.eval.report.numerals import MISSING, SPACE


def duration(seconds: float | None, space: str = SPACE) -> str:
    """A duration in at most two units: 8.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds is None:
        return MISSING
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}{space}s"
    if (whole := round(seconds)) < 60:
        return f"{whole}{space}s"
    if whole < 3600:
        return _two(divmod(whole, 60), ("min", "s"), space)
    if (minutes := round(seconds / 60)) < 24 * 60:
        return _two(divmod(minutes, 60), ("h", "min"), space)
    return _two(divmod(round(seconds / 3600), 24), ("d", "h"), space)


def _two(parts: tuple[int, int], units: tuple[str, str], space: str) -> str:
    shown = [f"{part:,}{space}{unit}" for part, unit in zip(parts, units, strict=True) if part]
    return space.join(shown)
