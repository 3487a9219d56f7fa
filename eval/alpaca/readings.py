"""The two readings of one model's judgments, each with its fits of the GLM.

The package takes an instruction's difficulty from the position of its row, so one missing row shifts all later ones.
`official` does the same with the rows as they lie in the file, and reproduces what was published; `aligned` gives each
instruction its own difficulty, whatever the file lacks and however it is ordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinkserve.errors import UsageError
from thinkserve.eval.alpaca.folds import Folds
from thinkserve.eval.alpaca.glm import LengthControl, head_to_head, length_control
from thinkserve.eval.alpaca.published import CLOSE, published
from thinkserve.eval.bench import Compat
from thinkserve.eval.comparison import preference_of
from thinkserve.eval.match import Match

FOLDS: tuple[Folds, ...] = ("official", "stable")
SAME = 1e-9


class Readings:
    """A model's matches as both readings have them.

    Args:
        model: its name, for errors.
        matches: in the order of the file.
        folds: None: `official`, but where these very judgments were published, and only in the official reading, the
            folds that give the published number.
        gamed: `df_gamed.csv`.

    Raises:
        UsageError: no match has a verdict.
    """

    def __init__(self, model: str, matches: Sequence[Match], folds: Folds | None, gamed: Path) -> None:
        self.matches = matches
        self.scored = [match for match in matches if preference_of(match) is not None]
        if not self.scored:
            raise UsageError(
                f"{model}: none of its {len(matches)} judgments has a verdict, so there is no score"
            )
        self.raw = head_to_head(self.scored)
        self._published = published(self.raw)
        self._moved = sum(match.instruction.position != row for row, match in enumerate(matches))
        self._gamed = gamed
        self._fits: dict[tuple[Compat, Folds], LengthControl | None] = {}
        self._folds: dict[Compat, Folds] = {
            "aligned": folds or "official",
            "official": folds or self._published_folds(),
        }

    def fit(self, compat: Compat) -> LengthControl | None:
        """The fit that counts in a reading; None where there is nothing to control for."""
        return self._fit(compat, self._folds[compat])

    def other(self, compat: Compat) -> LengthControl | None:
        """The fit of the other reading, where its number is another."""
        fit, other = self.fit(compat), self.fit("aligned" if compat == "official" else "official")
        if fit is None or other is None or abs(fit.win_rate - other.win_rate) < SAME:
            return None
        return other

    def difference(self) -> str | None:
        """Both numbers where they differ, and why they do."""
        official, aligned = self.fit("official"), self.fit("aligned")
        if official is None or aligned is None or self.other("official") is None:
            return None
        why = []
        if self._moved:
            why.append(
                f"the official code takes difficulties by row, and {self._moved} of {len(self.matches)} rows are not "
                "at their instruction's place (rows are missing or in another order)"
            )
        if len(self.scored) < len(self.matches):
            why.append("the official code predicts rows without a verdict too")
        if self._folds["official"] != self._folds["aligned"]:
            why.append(f"the published number was computed with the {self._folds['official']} folds")
        return (
            f"the length-controlled win rate is {official.win_rate:.2f} official and {aligned.win_rate:.2f} aligned: "
            + " and ".join(why)
        )

    def details(self, compat: Compat) -> dict[str, Any]:
        """What the GLM found, what it finds over other folds, and what was published of these judgments."""
        found: dict[str, Any] = {}
        if fit := self.fit(compat):
            found = {
                "folds": self._folds[compat],
                "C": fit.c,
                "weights": dict(fit.weights),
                "length_controlled_win_rate_by_folds": {
                    folds: other.win_rate for folds in FOLDS if (other := self._fit(compat, folds))
                },
            }
        if entry := self._published:
            found["published"] = {
                "model": entry.model,
                "win_rate": entry.win_rate,
                "length_controlled_win_rate": entry.length_controlled_win_rate,
            }
        return found

    def _fit(self, compat: Compat, folds: Folds) -> LengthControl | None:
        """A fit takes 0.15 s, so none is made twice, nor one that nobody asks for."""
        unlike = self._moved or len(self.scored) < len(self.matches)
        key: tuple[Compat, Folds] = (compat if unlike else "aligned", folds)
        if key not in self._fits:
            rows, positions = self._rows(key[0])
            self._fits[key] = length_control(rows, positions, folds=folds, gamed=self._gamed)
        return self._fits[key]

    def _rows(self, compat: Compat) -> tuple[Sequence[Match], Sequence[int]]:
        if compat == "official":
            return self.matches, range(len(self.matches))
        rows = sorted(self.scored, key=lambda match: match.instruction.position)
        return rows, [match.instruction.position for match in rows]

    def _published_folds(self) -> Folds:
        """The folds that a published number was computed with, which nothing else records.

        The number decides between two fits and is never taken for one. The official folds where both give it, or
        neither.
        """
        if self._published is not None:
            for folds in FOLDS:
                fit = self._fit("official", folds)
                published = self._published.length_controlled_win_rate
                if fit is not None and abs(fit.win_rate - published) < CLOSE:
                    return folds
        return "official"
