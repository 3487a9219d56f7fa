"""Arena-Hard as a bench: its instructions and baselines from a data folder, its protocol, its scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answers
from thinkserve.eval.arena.files import read_answers, read_questions
from thinkserve.eval.arena.protocol import ArenaProtocol
from thinkserve.eval.arena.scoring import score_arena
from thinkserve.eval.arena.version import EDITIONS, Version
from thinkserve.eval.bench import Compat
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Scores

logger = logging.getLogger(__name__)


class OfficialFiles(Protocol):
    """Where official files are found."""

    def find(self, name: str) -> Path:
        """The file of a name such as `arena_hard_v2.0/question`, with whatever ending it has.

        Raises:
            UsageError: it is not there; the message says where to put it.
        """


class ArenaHardBench:
    """Arena-Hard v0.1 or v2.0."""

    ensembles = True

    def __init__(self, version: Version, data: OfficialFiles) -> None:
        """Set up the bench; nothing is read yet.

        Args:
            version: of the bench.
            data: where its files are.
        """
        self.edition = EDITIONS[version]
        self._data = data

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.edition.bench

    @cached_property
    def all_instructions(self) -> tuple[Instruction, ...]:
        """Those of the official file, read once.

        Raises:
            UsageError: it is not there or malformed.
        """
        return read_questions(self.edition.version, self._data.find(f"{self.edition.folder}/question"))

    @property
    def instructions(self) -> Sequence[Instruction]:
        """In the official order."""
        return self.all_instructions

    def protocol_of(self, judge: str) -> ArenaProtocol:
        """How its games are judged by a judge of that name: its authors sample Gemini otherwise than the others."""
        return ArenaProtocol(self.edition.version, judge)

    @property
    def official_judge(self) -> str:
        """The authors' judge at OpenAI."""
        return self.edition.judges[0]

    def baseline_of(self, instruction: Instruction) -> str:
        """The model that others are judged against on an instruction."""
        return self.edition.baseline_of(instruction)

    def baseline_answers(self, instructions: Sequence[Instruction]) -> Mapping[str, Answers]:
        """The official answers of the baselines that these instructions need.

        Raises:
            UsageError: a file is not there, or lacks an answer.
        """
        found: dict[str, Answers] = {}
        for instruction in instructions:
            model = self.baseline_of(instruction)
            if model not in found:
                found[model] = read_answers(self._file_of(model), self.all_instructions)
            if instruction.id not in found[model].by_id:
                raise UsageError(f"the baseline {model} has no answer to {instruction.id}; complete its file")
        return found

    def baseline_files(self) -> tuple[Path, ...]:
        """The files of the baselines' answers, as far as they are at hand."""
        found = []
        for model in dict.fromkeys(self.edition.baselines.values()):
            try:
                found.append(self._file_of(model))
            except UsageError as exc:
                logger.info("scoring without a baseline's answers: %s", exc)
        return tuple(found)

    def _file_of(self, model: str) -> Path:
        name = f"{self.edition.folder}/model_answer/{model}"
        try:
            return self._data.find(name)
        except UsageError as exc:
            (category,) = (category for category, of in self.edition.baselines.items() if of == model)
            raise UsageError(
                f"the answers of the baseline {model} are missing{f' for {category}' if category else ''}: bring the "
                f"authors' file as {name}.jsonl in --data ({exc})"
            ) from exc

    def score(self, matches: Mapping[str, Sequence[Match]], *, compat: Compat, seed: int) -> Scores:
        """Make scores of verdicts."""
        return score_arena(self.edition.version, matches, compat=compat, seed=seed)
