"""How long thoughts and responses were, and what they cost. Nothing else reads the files of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from thinkserve.eval.answer import OutputLength
from thinkserve.eval.folder import read_lengths


@dataclass(frozen=True, slots=True)
class Cost:
    """What an instruction costs a model, in the mean over those for which it is known."""

    thought_tokens: float | None
    response_tokens: float | None
    seconds: float | None


def mean_thought_tokens(path: Path) -> float | None:
    """The mean length of a model's thoughts in tokens; an output without a thought counts 0.

    None where no length is known: there is no such file, or the engine did not say.

    Raises:
        UsageError: the file is malformed.
    """
    return cost(read_lengths(path)).thought_tokens


def cost(lengths: Mapping[str, OutputLength]) -> Cost:
    """The mean cost of an instruction."""
    return Cost(
        _mean(length.thought_tokens for length in lengths.values()),
        _mean(length.response_tokens for length in lengths.values()),
        _mean(length.seconds for length in lengths.values()),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
