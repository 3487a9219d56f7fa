"""What the report reads of a run's folder: scores, instructions, answers, judgments, lengths.

Only `scores.json` must be there; each other file that is missing leaves out what is drawn of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, OutputLength
from thinkserve.eval.folder import RunFolder, read_answers, read_lengths
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.records import read_bytes, read_records
from thinkserve.eval.scores import Scores, read_scores


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has scores."""

    folder: RunFolder
    scores: Scores
    instructions: Mapping[str, Instruction]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.path.resolve().name

    def answers(self, model: str) -> Mapping[str, Answer]:
        """The answers of a model or a baseline; empty where its file is not there."""
        path = self.folder.answers(model)
        return read_answers(path, model).by_id if _has_content(path) else {}

    def lengths(self, model: str) -> Mapping[str, OutputLength]:
        """The lengths of a model's outputs."""
        return read_lengths(self.folder.lengths(model))

    def judgments(self, model: str, other: str | None = None) -> tuple[Judgment, ...]:
        """The judgments about a model by the judges of the scores: of each game the last one.

        Args:
            model: of the run.
            other: the model that it was judged against, where that is not the bench's baseline.
        """
        last: dict[tuple[str, str, int], Judgment] = {}
        for path in self._judgment_files(model, other):
            for judgment in read_judgments(path):
                last[judgment.judge, judgment.id, judgment.game] = judgment
        return tuple(last.values())

    def _judgment_files(self, model: str, other: str | None) -> list[Path]:
        """Other judges may have files here too; they are not what the scores are made of."""
        judges = dict.fromkeys([self.scores.judge, *self.scores.judge.split("+")])
        paths = [self.folder.judgments(judge, model, other) for judge in judges]
        return [path for path in paths if _has_content(path)]


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """The runs in some folders.

    Raises:
        UsageError: none was named, a folder is no run's, or a file is malformed.
    """
    if not folders:
        raise UsageError("name the folder of at least one run")
    return tuple(_run(RunFolder(path)) for path in dict.fromkeys(folders))


def _run(folder: RunFolder) -> Run:
    if not folder.scores.is_file():
        raise UsageError(
            f"{folder.path}: there is no scores.json: name a folder that `thinkserve eval` or `thinkserve score` wrote"
        )
    scores = read_scores(folder.scores)
    if not scores.models:
        raise UsageError(f"{folder.scores}: it has the scores of no model")
    return Run(folder, scores, _instructions(folder.instructions))


def _instructions(path: Path) -> dict[str, Instruction]:
    if not _has_content(path):
        return {}
    found = {}
    for position, record in enumerate(read_records(path)):
        categories = record.get("categories") or {}
        if not isinstance(categories, dict):
            raise record.error("categories", "must be an object")
        named = {str(scheme): str(category) for scheme, category in categories.items()}
        found[record.text("id")] = Instruction(record.text("id"), record.text("text"), named, position)
    return found


def read_judgments(path: Path) -> list[Judgment]:
    """A file of judgments. A last line that a kill cut short is passed over: the run is free to go on.

    Raises:
        UsageError: another line is malformed.
    """
    raw = read_bytes(path)
    decode = msgspec.json.Decoder(Judgment).decode
    found = []
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].split(b"\n"), 1):
        if line.strip():
            try:
                found.append(decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:  # a ValidationError is a DecodeError
                raise UsageError(f"{path}:{number}: no judgment: {exc}") from exc
    return found
