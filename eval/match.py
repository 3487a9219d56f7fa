"""A match: one instruction, answered by a model and its baseline, with the verdicts of its games."""

from __future__ import annotations

from dataclasses import dataclass

from thinkserve.eval.answer import Answer
from thinkserve.eval.instruction import Instruction


@dataclass(frozen=True, slots=True)
class Game:
    """One way to show a match to a judge."""

    number: int
    """From 0."""
    model_first: bool
    """Whether the model's response is shown first (as A), and the baseline's second (as B)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judgment says, seen from the model."""

    label: str
    """As the bench spells it: `A>>B` ... `B>>A` in the order that was shown; `m` or `M` for AlpacaEval."""
    preference: float
    """How far the judge prefers the model: 0.0 (the baseline is better) to 1.0 (the model is), 0.5 a tie."""
    weight: int = 1
    """How often the game counts: 3 where Arena-Hard calls one response much better."""


@dataclass(frozen=True, slots=True)
class PlayedGame:
    """A game that was played."""

    game: Game
    judge: str
    verdict: Verdict | None
    """None: the judgment could not be read or had; it is unscored, never a loss or a tie."""


@dataclass(frozen=True, slots=True)
class Match:
    """One instruction, answered by a model and its baseline."""

    instruction: Instruction
    answer: Answer
    baseline: Answer
    baseline_model: str
    games: tuple[PlayedGame, ...]
    """In the order in which they were played; with several judges, judge by judge."""
