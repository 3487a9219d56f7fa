"""`results.json` as the report reads it: what each iteration's model measured, and thought mode against direct mode.

Rates and differences are shares from 0 to 1 in the file; the report shows percent and points.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.records import read_bytes
from thinkserve.training.folder import Decoding
from thinkserve.training.recipe import Arm

SCHEMA = "thinkserve.train/1"
# Sampled outputs first: the greedy one of a model that has several ways to begin is only its most frequent way.
DECODINGS: tuple[Decoding, ...] = ("sampled", "greedy")
Ends = tuple[float, float]


class CategoryMeasure(msgspec.Struct, frozen=True, kw_only=True):
    """One model's numbers over some instructions."""

    n: int
    accuracy: float | None = None
    win_rate: float | None = None
    score: float | None = None
    """The judge's, in its own unit."""
    ci: Ends | None = None
    """Of accuracy or win rate."""

    @property
    def rate(self) -> float | None:
        """Accuracy or win rate, in percent."""
        found = self.win_rate if self.accuracy is None else self.accuracy
        return None if found is None else 100 * found

    @property
    def ends(self) -> Ends | None:
        """Of the rate's interval, in percent."""
        return None if self.ci is None else (100 * self.ci[0], 100 * self.ci[1])


class Measure(CategoryMeasure, frozen=True, kw_only=True):
    """One model's numbers over all instructions."""

    parse_failures: float | None = None
    """Share of outputs without a readable response."""
    mean_thought_tokens: float | None = None
    mean_response_tokens: float | None = None
    categories: Mapping[str, CategoryMeasure] = {}


class CategoryDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Thought mode minus direct mode, over the same instructions."""

    difference: float
    ci: Ends
    n: int | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def gain(self) -> float:
        """In points."""
        return 100 * self.difference

    @property
    def ends(self) -> Ends:
        """Of its 95 % interval, in points."""
        return 100 * self.ci[0], 100 * self.ci[1]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.ci[0] > 0 or self.ci[1] < 0


class Difference(CategoryDifference, frozen=True, kw_only=True):
    """The same over all instructions, and by category."""

    categories: Mapping[str, CategoryDifference] = {}


class IterationResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured after an iteration; 0 is the start model. An arm that was not run is empty."""

    iteration: int
    thought: Mapping[Decoding, Measure] = {}
    direct: Mapping[Decoding, Measure] = {}
    paired: Mapping[Decoding, Difference] = {}

    def of(self, arm: Arm) -> Mapping[Decoding, Measure]:
        """The measures of an arm."""
        return self.thought if arm == "thought" else self.direct


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    schema: str = SCHEMA
    metric: Literal["accuracy", "win_rate"] = "win_rate"
    iterations: tuple[IterationResult, ...] = ()

    @property
    def ordered(self) -> tuple[IterationResult, ...]:
        """By iteration, only those with a measure."""
        told = [found for found in self.iterations if found.thought or found.direct]
        return tuple(sorted(told, key=lambda found: found.iteration))

    def measure(self, arm: Arm, decoding: Decoding, iteration: int) -> Measure | None:
        """One measure; None where it was not taken."""
        for found in self.iterations:
            if found.iteration == iteration:
                return found.of(arm).get(decoding)
        return None

    def last_paired(self, decoding: Decoding) -> tuple[int, Difference] | None:
        """The latest comparison of the two arms, and its iteration."""
        found = [(r.iteration, r.paired[decoding]) for r in self.ordered if decoding in r.paired]
        return found[-1] if found else None


def read_results(path: Path) -> Results | None:
    """Read `results.json`; None where there is none yet.

    Raises:
        UsageError: it is malformed or of another version; names the field.
    """
    if not path.exists():
        return None
    try:
        data = msgspec.json.decode(read_bytes(path), type=dict[str, Any])
        for iteration in data.get("iterations", ()):
            # Two arms without an instruction that both have a value for: there is no difference.
            paired = iteration.get("paired", {})
            iteration["paired"] = {name: one for name, one in paired.items() if one["difference"] is not None}
        found = msgspec.convert(data, Results)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as exc:
        raise UsageError(f"{path}: these are no results of a training run: {exc}") from exc
    if found.schema != SCHEMA:
        raise UsageError(f"{path}: its schema is {found.schema!r}, and must be {SCHEMA!r}")
    return found
