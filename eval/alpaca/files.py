"""AlpacaEval's own files: model outputs and annotations, read and written.

Both are JSON arrays (`.json`) or JSON lines (`.jsonl`), plain or with `.gz`. Rows belong to an instruction by its text.
In annotations the baseline is `output_1` by `generator_1`, the model `output_2` by `generator_2`, and `preference` goes
from 1 (the baseline is better) to 2 (the model is); a draw is 1.5, in old files 0, and null is a judgment that failed.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.eval.alpaca.protocol import AlpacaProtocol, verdict_of
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.match import Match, PlayedGame
from thinkserve.eval.records import Record, read_records, write_whole
from thinkserve.thoughts import Response


@dataclass(frozen=True, slots=True)
class Annotations:
    """One file of annotations: the judgments of one judge about one model."""

    path: Path
    model: str
    baseline: str
    judge: str
    matches: tuple[Match, ...]
    """In the order of the file."""
    where: tuple[str, ...]
    """Of each match's row."""


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of AlpacaEval in their order: their own file, or any official file of outputs to all of them.

    Raises:
        UsageError: the file is malformed, or has an instruction twice.
    """
    rows = _by_instruction(read_records(path))
    return [
        Instruction(
            id_of(text),
            text,
            {"dataset": record.text("dataset")} if record.get("dataset") is not None else {},
            position,
        )
        for position, (text, record) in enumerate(rows.items())
    ]


def read_answers(path: Path, instructions: Sequence[Instruction]) -> Answers:
    """Model outputs, all by one model.

    Raises:
        UsageError: a row is malformed, double, or answers no instruction of the bench; names its line.
    """
    known = {instruction.text: instruction for instruction in instructions}
    records = read_records(path)
    model = _one(records, "generator")
    answers = {}
    for text, record in _by_instruction(records).items():
        instruction = _known(known, text, record)
        answers[instruction.id] = Answer(instruction.id, Response(record.text("output")))
    return Answers(model, answers)


def read_annotations(path: Path, instructions: Sequence[Instruction]) -> Annotations:
    """The judgments about one model.

    Raises:
        UsageError: a row is malformed, double, or about no instruction of the bench; the file mixes models or judges,
            or has a model judged against itself. Names the line.
    """
    known = {instruction.text: instruction for instruction in instructions}
    records = read_records(path)
    model, baseline = _one(records, "generator_2"), _one(records, "generator_1")
    judge = _one(records, "annotator")
    if model == baseline:
        raise records[0].error(
            "generator_2", f"is {model!r}, and so is generator_1: a model judged against itself"
        )
    rows = _by_instruction(records)
    matches = [_match(_known(known, text, record), record, baseline, judge) for text, record in rows.items()]
    return Annotations(
        path, model, baseline, judge, tuple(matches), tuple(record.where for record in rows.values())
    )


def write_answers(path: Path, answers: Answers, instructions: Sequence[Instruction]) -> None:
    """Write model outputs as alpaca_eval reads them; a thought that never ended is an empty output."""
    rows = [
        {
            **_dataset(instruction),
            "instruction": instruction.text,
            "output": str(answers.by_id[instruction.id].response),
            "generator": answers.model,
        }
        for instruction in instructions
        if instruction.id in answers.by_id
    ]
    _write(path, rows)


def write_annotations(
    path: Path,
    model: str,
    judge: str,
    matches: Iterable[Match],
    top_logprobs: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Write annotations as alpaca_eval reads them.

    A match without a verdict is a row with a null preference: left out, as alpaca_eval itself does, it would shift the
    difficulties of all later rows.

    Args:
        top_logprobs: from an instruction's id to what the judge gave for it, where it did.
    """
    rows = []
    for match in matches:
        verdict = match.games[0].verdict if match.games else None
        logprobs = (top_logprobs or {}).get(match.instruction.id)
        rows.append(
            {
                **_dataset(match.instruction),
                "instruction": match.instruction.text,
                "output_1": str(match.baseline.response),
                "generator_1": match.baseline_model,
                "output_2": str(match.answer.response),
                "generator_2": model,
                "annotator": judge,
                "preference": None if verdict is None else 1 + verdict.preference,
                **({"top_logprobs": dict(logprobs)} if logprobs else {}),
            }
        )
    _write(path, rows)


def _dataset(instruction: Instruction) -> dict[str, str]:
    dataset = instruction.categories.get("dataset")
    return {"dataset": dataset} if dataset else {}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    lines = [msgspec.json.encode(row) for row in rows]
    content = b"\n".join(lines) if plain.suffix == ".jsonl" else b"[" + b",\n".join(lines) + b"]"
    write_whole(path, gzip.compress(content + b"\n", mtime=0) if path.suffix == ".gz" else content + b"\n")


def _by_instruction(records: Sequence[Record]) -> dict[str, Record]:
    rows: dict[str, Record] = {}
    for record in records:
        text = record.text("instruction")
        if text in rows:
            raise record.error("instruction", f"is the same as in {rows[text].where}: {_short(text)}")
        rows[text] = record
    return rows


def _known(known: Mapping[str, Instruction], text: str, record: Record) -> Instruction:
    if text not in known:
        raise record.error(
            "instruction", f"is none of the {len(known)} of this bench (a file of another?): {_short(text)}"
        )
    return known[text]


def _one(records: Sequence[Record], field: str) -> str:
    first = records[0].text(field)
    for record in records:
        if record.text(field) != first:
            raise record.error(
                field, f"is {record.text(field)!r}, and {first!r} in {records[0].where}: one a file"
            )
    return first


def _match(instruction: Instruction, record: Record, baseline: str, judge: str) -> Match:
    (game,) = AlpacaProtocol().games(instruction)
    preference = _preference(record)
    verdict = None if preference is None else verdict_of(game, preference)
    return Match(
        instruction,
        Answer(instruction.id, Response(record.text("output_2"))),
        Answer(instruction.id, Response(record.text("output_1"))),
        baseline,
        (PlayedGame(game, judge, verdict),),
    )


def _preference(record: Record) -> float | None:
    if record.get("preference", 0) is None:
        return None
    preference = record.number("preference")
    if preference == 0:
        return 0.5
    if not 1 <= preference <= 2:
        raise record.error("preference", f"is {preference}, and must be 1 to 2, 0 for a draw, or null")
    return preference - 1


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
