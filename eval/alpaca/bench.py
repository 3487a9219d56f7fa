"""AlpacaEval 2 as a bench: 805 instructions, each judged once against GPT-4 Turbo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from thinkserve.eval.alpaca.files import read_answers, read_instructions
from thinkserve.eval.alpaca.folds import Folds
from thinkserve.eval.alpaca.protocol import AlpacaProtocol, Verdicts
from thinkserve.eval.alpaca.scoring import BASELINE, NAME, OFFICIAL_JUDGE, score_alpaca
from thinkserve.eval.answer import Answers
from thinkserve.eval.bench import Compat
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Scores

INSTRUCTIONS = "alpaca_eval/instructions"
REFERENCE = f"alpaca_eval/reference_outputs/{BASELINE}"
GAMED = "alpaca_eval/glm/df_gamed"


class Data(Protocol):
    """Where the official files are (`eval/data.py`)."""

    def find(self, name: str) -> Path:
        """The file of a name.

        Raises:
            UsageError: it is not there and cannot be fetched.
        """


class AlpacaEvalBench:
    """AlpacaEval 2.

    Args:
        data: where the official files are.
        verdicts: how they are read from the judge's reply.
        folds: of the GLM, as `score_alpaca` takes them.

    Raises:
        UsageError: an official file is missing. All are looked for here, so that nobody pays a judge and then learns
            that there can be no score.
    """

    name = NAME
    official_judge = OFFICIAL_JUDGE
    ensembles = False

    def __init__(self, data: Data, *, verdicts: Verdicts = "logprobs", folds: Folds | None = None) -> None:
        self._protocol = AlpacaProtocol(verdicts)
        self._folds = folds
        self._instructions_file = data.find(INSTRUCTIONS)
        self._reference_file = data.find(REFERENCE)
        self._gamed = data.find(GAMED)

    @cached_property
    def instructions(self) -> Sequence[Instruction]:
        """In the official order."""
        return tuple(read_instructions(self._instructions_file))

    def baseline_of(self, instruction: Instruction) -> str | None:
        """GPT-4 Turbo of November 2023, for every instruction."""
        return BASELINE

    def protocol_of(self, judge: str) -> AlpacaProtocol:
        """The same for every judge."""
        return self._protocol

    def baseline_answers(self, instructions: Sequence[Instruction]) -> Mapping[str, Answers]:
        """The reference outputs."""
        answers = read_answers(self._reference_file, self.instructions)
        return {answers.model: answers}

    def score(self, matches: Mapping[str, Sequence[Match]], *, compat: Compat, seed: int) -> Scores:
        """Make scores of verdicts, as `score_alpaca` does."""
        note = self._protocol.note
        return score_alpaca(
            matches,
            compat=compat,
            seed=seed,
            gamed=self._gamed,
            folds=self._folds,
            notes=[note] if note else [],
        )
