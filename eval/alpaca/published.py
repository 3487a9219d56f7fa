"""The leaderboard that the `alpaca-eval` package carries: whether these very judgments were published there."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from thinkserve.eval.alpaca import package
from thinkserve.eval.alpaca.glm import HeadToHead

CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class Published:
    """An entry of the leaderboard, in percent."""

    model: str
    """As the leaderboard calls it, which need not be what the files do (`NullModel` is `example` in its own)."""
    win_rate: float
    length_controlled_win_rate: float
    wins: int
    draws: int
    losses: int


def published(found: HeadToHead) -> Published | None:
    """The entry that was made of the same judgments: with the same wins, draws, losses and win rate, to 1e-6."""
    for entry in _entries():
        counts = (entry.wins, entry.draws, entry.losses) == (found.wins, found.draws, found.losses)
        if counts and abs(entry.win_rate - found.win_rate) < CLOSE:
            return entry
    return None


@cache
def _entries() -> tuple[Published, ...]:
    with package.leaderboard().open(newline="", encoding="utf-8") as file:
        return tuple(
            Published(
                row[""],
                float(row["win_rate"]),
                float(row["length_controlled_winrate"]),
                int(row["n_wins"]),
                int(row["n_draws"]),
                int(row["n_wins_base"]),
            )
            for row in csv.DictReader(file)
        )
