"""`scores.json`: what a run found, in one versioned schema for every bench.

A key that does not apply to a bench is absent. Rates and scores are in percent (0 to 100), lengths in characters,
thought lengths in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.records import read_bytes, write_whole

SCHEMA = "thinkserve.scores/1"
DIRECT = "-direct"
"""What the name of a model ends in that answered without a thought, where it answered with one too."""


@dataclass(frozen=True, slots=True)
class Group:
    """The numbers of one model over all instructions, or over those of one category."""

    n: int
    """Instructions with at least one scored game."""
    unscored: int = 0
    """Instructions without: their judgments could not be had or read."""
    forfeits: int | None = None
    """Of `n`: lost without a judge, because the thought never ended and there was no response."""
    win_rate: float | None = None
    standard_error: float | None = None
    length_controlled_win_rate: float | None = None
    lc_standard_error: float | None = None
    wins: int | None = None
    draws: int | None = None
    losses: int | None = None
    discrete_win_rate: float | None = None
    """Of whole wins, draws counting half."""
    score: float | None = None
    """Arena-Hard."""
    ci: tuple[float, float] | None = None
    """Of `score` where there is one, else of `win_rate`."""
    ci_level: float | None = None
    """0.95, or 0.9 where Arena-Hard v2.0 is computed as its authors do."""
    style_controlled_score: float | None = None
    style_controlled_ci: tuple[float, float] | None = None
    length_controlled_score: float | None = None
    """Arena-Hard with control for length alone."""
    markdown_controlled_score: float | None = None
    mean_length: float | None = None
    """Of the responses, in characters."""
    mean_tokens: float | None = None
    """Of the responses, as the bench counts them."""
    mean_thought_tokens: float | None = None
    note: str | None = None
    """What a reader must know: too few instructions to say anything, a number that is not comparable ..."""
    categories: Mapping[str, Mapping[str, Group]] = field(default_factory=dict)
    """From scheme (`category`, `subcategory`, `cluster`, `dataset`, `topic`) to category to its numbers."""
    compat: Mapping[str, float] = field(default_factory=dict)
    """The numbers that come out otherwise under the other `compat`, by key, where they differ; `note` says why."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one model is than another over the same instructions, in points of `metric`."""

    n: int
    difference: float
    """Of the first minus the second."""
    ci: tuple[float, float]
    p: float
    """Two-sided, of random sign flips of the paired differences."""
    p_holm: float | None = None
    """After Holm's correction over the categories of a scheme."""
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models over the same instructions."""

    a: str
    b: str
    metric: str
    """The key of `Group` that is compared."""
    overall: Difference
    categories: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    head_to_head: Group | None = None
    """Where the two were judged against each other: `a` as the model, `b` as its baseline."""
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """From model to `thought_tokens`, `response_tokens` and `seconds` an instruction, where known."""
    ci_level: float = 0.95


@dataclass(frozen=True, slots=True)
class Scores:
    """All of a run."""

    bench: str
    judge: str
    """Several judges that were put together: joined by `+`."""
    baseline: str
    """Several baselines (Arena-Hard v2.0 has one a category): joined by `+`."""
    compat: str
    models: Mapping[str, Group]
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    """About the whole run: a judge that is not the official one, a subset of the instructions ..."""
    health: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """From model to `games`, `unreadable` (kind to count), `retried`, `order_flips`, `order_pairs` ..."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What belongs to one bench alone: the GLM's weights and C, style coefficients ..."""


def to_json(scores: Scores) -> dict[str, Any]:
    """As in `scores.json`."""
    return {"schema": SCHEMA, **_plain(scores)}


def _plain(value: Any) -> Any:
    """Dataclasses to objects without what is None, empty or no finite number; `models` and `comparisons` are always there."""
    if hasattr(value, "__dataclass_fields__"):
        found = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        keep = ("models", "comparisons")
        return {key: item for key, item in found.items() if key in keep or item not in (None, {}, [])}
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    number = value.item() if hasattr(value, "item") else value  # numpy's numbers
    return None if isinstance(number, float) and not math.isfinite(number) else number


def from_json(data: Any, where: str) -> Scores:
    """Read what `to_json` wrote; keys that are not known are passed over.

    Raises:
        UsageError: it is not of this schema, or malformed; names `where`.
    """
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise UsageError(f"{where}: its schema is {found!r}, and this version reads {SCHEMA!r}")
    try:
        return msgspec.convert(data, Scores)
    except msgspec.ValidationError as exc:
        raise UsageError(f"{where}: {exc}") from exc


def write_scores(path: Path, scores: Scores) -> None:
    """Write `scores.json`, whole or not at all."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(to_json(scores)), indent=2) + b"\n")


def read_scores(path: Path) -> Scores:
    """Read `scores.json`.

    Raises:
        UsageError: it is not there, or not of this schema.
    """
    try:
        data = msgspec.json.decode(read_bytes(path))
    except msgspec.DecodeError as exc:
        raise UsageError(f"{path}: bad JSON: {exc}") from exc
    return from_json(data, str(path))
