"""The lines of a run's files. Each file has one kind; its marker names the version of all of them.

What a judge may see is made of an `OutputRecord`'s `response` alone, as a `Response` (`judges/judge.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.records import read_records, write_records

VERSION = "thinkserve.train-files/1"

Problem = Literal["unclosed", "truncated", "empty"]
"""Why an output has no readable response: its format was broken (no closing marker, or an opening one inside the
response), it ran into the token limit, or nothing follows the thought."""


class Sampled(msgspec.Struct, frozen=True):
    """One raw output of a model, special tokens left out."""

    text: str
    finish_reason: str
    """`stop` or `length`."""
    tokens: int


class SampleRecord(msgspec.Struct, frozen=True):
    """The outputs to one instruction."""

    id: str
    outputs: tuple[Sampled, ...]


class CutOutput(msgspec.Struct, frozen=True):
    """One output, cut."""

    thought: str
    response: str
    problem: Problem | None
    thought_tokens: int
    response_tokens: int
    """The marker's tokens count as the thought's."""


class OutputRecord(msgspec.Struct, frozen=True):
    """The cut outputs to one instruction, in the order in which they were sampled."""

    id: str
    outputs: tuple[CutOutput, ...]


class ScoreRecord(msgspec.Struct, frozen=True):
    """The scores of the outputs to one instruction; None where there is no readable response or no score."""

    id: str
    scores: tuple[float | None, ...]
    details: Mapping[str, Any] = {}


class PairRecord(msgspec.Struct, frozen=True):
    """A pair to train on. Texts are raw outputs, thought included, exactly as they were sampled."""

    id: str
    prompt: str
    """The user message: the instruction in the thought prompt, or as it is."""
    chosen: str
    rejected: str
    chosen_index: int
    rejected_index: int
    """Among the K outputs."""
    chosen_score: float
    rejected_score: float | None
    """As the judge gave it; None: the rejected output is broken."""
    chosen_value: float
    rejected_value: float | None
    """After length control."""
    chosen_length: int
    rejected_length: int
    """Of the response, in the recipe's unit; a broken output's is 0."""


class EvaluationRecord(msgspec.Struct, frozen=True):
    """One measured output."""

    id: str
    thought: str
    response: str
    problem: Problem | None
    thought_tokens: int
    response_tokens: int
    score: float | None
    """Of the judge."""
    value: float | None
    """What the metric counts, from 0 to 1: right or not, or the preference over the baseline; None: unscored."""
    categories: Mapping[str, str] = {}


R = TypeVar("R", bound=msgspec.Struct)


def read(path: Path, kind: type[R]) -> list[R]:
    """Read a file of such lines; a file without lines is an empty list.

    Raises:
        UsageError: it is not there, or a line is malformed; names file, line and field.
    """
    if path.exists() and not path.stat().st_size:
        return []
    return [_convert(record.data, record.where, kind) for record in read_records(path)]


def _convert(data: Mapping[str, Any], where: str, kind: type[R]) -> R:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as exc:
        raise UsageError(f"{where}: {exc}") from exc


def write(path: Path, records: Iterable[msgspec.Struct]) -> None:
    """Write a file as a whole: it is there with all its lines, or as it was before."""
    write_records(path, (to_json(record) for record in records))


def to_json(record: msgspec.Struct) -> dict[str, Any]:
    """A line as a dictionary, for a `RecordLog`."""
    found: dict[str, Any] = msgspec.to_builtins(record)
    return found


def by_id(records: Iterable[R]) -> dict[str, R]:
    """Records by their instruction; of two with the same the later one counts."""
    return {record.id: record for record in records}  # type: ignore[attr-defined]


def in_order(records: Mapping[str, R], ids: Iterable[str], path: Path) -> Iterator[R]:
    """The records of some instructions, in their order.

    Raises:
        UsageError: one has none, so the file belongs to other instructions.
    """
    for id in ids:
        if id not in records:
            raise UsageError(f"{path}: has no line for instruction {id}; the file is not of this run")
        yield records[id]
