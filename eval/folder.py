"""The folder of a run: which file is where.

run.json                              what was asked (never a key)
answers/MODEL.jsonl                   {"id", "model", "response", "complete"}, a line an instruction
lengths/MODEL.jsonl                   how long each output and its thought were; the report alone reads it
judgments/JUDGE/MODEL.jsonl           a line a call of a judge, only ever appended to
judgments/JUDGE/MODEL.vs.OTHER.jsonl  the same where a model was judged against another one than the baseline
instructions.jsonl                    {"id", "text", "categories"}, a line an instruction; for the report
topics.jsonl                          the topic of each instruction, where one was asked for
official/                             the same answers and judgments in the bench's official formats
scores.json report.html report.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers, OutputLength, Style
from thinkserve.eval.records import Record, read_records
from thinkserve.thoughts import Response


def file_name(name: str) -> str:
    """A model's or judge's name as that of a file; two names never share one."""
    plain = re.sub(r"[^\w.@+-]", "_", name).strip(".") or "_"
    return plain if plain == name else f"{plain[:80]}-{sha256(name.encode()).hexdigest()[:8]}"


class RunFolder:
    """Where a run's files are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run.json"
        self.scores = path / "scores.json"
        self.report_html = path / "report.html"
        self.report_md = path / "report.md"
        self.instructions = path / "instructions.jsonl"
        self.topics = path / "topics.jsonl"
        self.official = path / "official"

    def answers(self, model: str) -> Path:
        """The answers of a model."""
        return self.path / "answers" / f"{file_name(model)}.jsonl"

    def lengths(self, model: str) -> Path:
        """The lengths of a model's outputs."""
        return self.path / "lengths" / f"{file_name(model)}.jsonl"

    def judgments(self, judge: str, model: str, baseline: str | None = None) -> Path:
        """The judgments of a judge about a model, against the bench's baseline or another model."""
        name = file_name(model) if baseline is None else f"{file_name(model)}.vs.{file_name(baseline)}"
        return self.path / "judgments" / file_name(judge) / f"{name}.jsonl"


def read_answers(path: Path, model: str) -> Answers:
    """Read a file of a run's answers; where an instruction was asked anew, the later line replaces the earlier one.

    Raises:
        UsageError: the file is malformed, or has an instruction twice without having been asked; names line and field.
    """
    return answers_in(read_records(path), model)


def answers_in(records: Iterable[Record], model: str) -> Answers:
    """The answers in records of such a file; as `read_answers`."""
    answers: dict[str, Answer] = {}
    for record in records:
        complete = record.get("complete", True)
        answer = Answer(
            record.text("id"), Response(record.text("response")), complete is not False, _style(record)
        )
        if answer.id in answers and "configuration_sha256" not in record.data:
            raise record.error("id", f"is {answer.id!r} a second time")
        answers[answer.id] = answer
    return Answers(model, answers)


def _style(record: Record) -> Style | None:
    try:
        return msgspec.convert(record.get("style"), Style | None)
    except msgspec.ValidationError as exc:
        raise record.error("style", f"is malformed: {exc}") from exc


def answer_json(answer: Answer, model: str) -> dict[str, object]:
    """An answer as a line of its file."""
    return {
        "id": answer.id,
        "model": model,
        "response": str(answer.response),
        "complete": answer.complete,
        **({} if answer.style is None else {"style": asdict(answer.style)}),
    }


def read_lengths(path: Path) -> dict[str, OutputLength]:
    """Read a file of output lengths, by instruction; empty where there is none.

    Raises:
        UsageError: the file is malformed.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    return {length.id: length for length in map(_length, read_records(path))}


def _length(record: Record) -> OutputLength:
    try:
        return msgspec.convert(record.data, OutputLength)
    except msgspec.ValidationError as exc:
        raise UsageError(f"{record.where}: {exc}") from exc
