"""Verdicts as single battles, in arrays: what scores, bootstraps and style control count.

A game is one battle, or three where a response was called much better. The battles of one match share a row; rows are
sorted by model, so that sums by model are sums over stretches (`by_model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thinkserve.eval.arena.version import Version
from thinkserve.eval.match import Match, Verdict

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def scored_verdicts(version: Version, match: Match) -> list[Verdict]:
    """The verdicts of a match that count.

    v0.1 leaves out a game without a verdict; v2.0 both games of its judge, since one alone favours a side.
    """
    verdicts = [played.verdict for played in match.games if played.verdict]
    if version == "v0.1" or len(verdicts) == len(match.games):
        return verdicts
    null = {played.judge for played in match.games if played.verdict is None}
    return [played.verdict for played in match.games if played.verdict and played.judge not in null]


@dataclass(frozen=True, slots=True)
class Battles:
    """The battles of some models; matches without any have no row."""

    models: tuple[str, ...]
    """Those with battles."""
    matches: tuple[Match, ...]
    """One a row."""
    model: Indices
    """(rows,) positions in `models`, ascending."""
    question: Indices
    """(rows,) numbers of the instructions, the same for all models."""
    row: Indices
    """(battles,) of each battle, in the order of the files."""
    outcome: Floats
    """(battles,) 1 where the model won, 0.5 for a tie, 0 where it lost."""

    @property
    def counts(self) -> Floats:
        """(rows,) battles of each row."""
        return np.bincount(self.row, minlength=len(self.matches)).astype(np.float64)

    @property
    def points(self) -> Floats:
        """(rows,) the sum of the outcomes of each row."""
        points = np.bincount(self.row, self.outcome, minlength=len(self.matches)).astype(np.float64)
        return points

    @property
    def starts(self) -> Indices:
        """(models,) the first row of each model."""
        starts: Indices = np.searchsorted(self.model, np.arange(len(self.models)))
        return starts

    def by_model(self, values: Floats) -> Floats:
        """Sums by model: (..., rows) to (..., models)."""
        return np.add.reduceat(values, self.starts, axis=-1)

    def scores(self, counts: Floats, points: Floats) -> Floats:
        """Scores in percent: (..., rows) twice to (..., models); nan where a model has no battle."""
        with np.errstate(invalid="ignore"):
            scores: Floats = 100 * self.by_model(points) / self.by_model(counts)
        return scores


def battles_of(version: Version, matches: Mapping[str, Sequence[Match]]) -> Battles | None:
    """The battles of models, by model; None where nothing was scored."""
    numbers: dict[str, int] = {}
    models: list[str] = []
    rows: list[Match] = []
    model: list[int] = []
    row: list[int] = []
    outcome: list[float] = []
    for name, found in matches.items():
        first = len(rows)
        for match in found:
            verdicts = scored_verdicts(version, match)
            if verdicts:
                for verdict in verdicts:
                    row += [len(rows)] * verdict.weight
                    outcome += [verdict.preference] * verdict.weight
                rows.append(match)
                model.append(len(models))
        if len(rows) > first:
            models.append(name)
    if not rows:
        return None
    question = [numbers.setdefault(match.instruction.id, len(numbers)) for match in rows]
    return Battles(
        tuple(models), tuple(rows), np.array(model), np.array(question), np.array(row), np.array(outcome)
    )
