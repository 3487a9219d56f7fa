"""A bench of the user's own: a file of instructions, judged pairwise.

A row (of JSON lines, of one JSON array, or of CSV with a header) has

    instruction   or `prompt`, or `messages` or `turns` with the one turn of a user
    id            optional; else it is made from the text
    category, subcategory, cluster, dataset, topic     optional; the scores are broken down by them
    reference     or `output`; optional, but for all rows or for none: the answer that models are judged against
    generator     optional: which model the references are by
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.bench import Compat
from thinkserve.eval.benches.pairwise import PairwiseProtocol, score_pairwise
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.match import Match
from thinkserve.eval.records import Record, read_bytes, read_records
from thinkserve.eval.scores import Scores
from thinkserve.thoughts import Response

SCHEMES = ("category", "subcategory", "cluster", "dataset", "topic")
TEXTS = ("instruction", "prompt", "messages", "turns")
IDS = ("id", "uid", "question_id")
REFERENCES = ("reference", "output")
REFERENCE = "reference"
# Nothing is published for a file; this is Arena-Hard v2.0's judge.
DEFAULT_JUDGE = "gpt-4.1"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the file."""

    instruction: Instruction
    where: str
    reference: str | None
    generator: str | None


class FileBench:
    """The instructions of a file.

    Args:
        path: of the file.
        games: of each match: 2 in both orders, or 1 in a drawn one.
        seed: of the order.

    Raises:
        UsageError: the file is malformed; names the line and the field.
    """

    official_judge = DEFAULT_JUDGE
    ensembles = True

    def __init__(self, path: Path, *, games: Literal[1, 2] = 2, seed: int = 0) -> None:
        rows = read_rows(path)
        self.path = path
        self.name = path.name.removesuffix(".gz").rpartition(".")[0]
        self._protocol = PairwiseProtocol(games, seed=seed)
        self.instructions: Sequence[Instruction] = tuple(row.instruction for row in rows)
        self._references = _references(rows)

    def protocol_of(self, judge: str) -> PairwiseProtocol:
        """The same for every judge."""
        return self._protocol

    def baseline_of(self, instruction: Instruction) -> str | None:
        """Whoever the references are by; None where there are none."""
        return None if self._references is None else self._references.model

    def baseline_answers(self, instructions: Sequence[Instruction]) -> Mapping[str, Answers]:
        """The references, all of them."""
        return {} if self._references is None else {self._references.model: self._references}

    def score(self, matches: Mapping[str, Sequence[Match]], *, compat: Compat, seed: int) -> Scores:
        """Make scores of verdicts."""
        return score_pairwise(self.name, matches, seed=seed, compat=compat)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of instructions (`.jsonl`, `.json` or `.csv`, also with `.gz`).

    Raises:
        UsageError: the file is malformed or empty, or has an instruction twice; names the line and the field.
    """
    rows = [_row(record, position) for position, record in enumerate(read_table(path))]
    _refuse_duplicates(rows)
    return rows


def read_table(path: Path) -> list[Record]:
    """The records of a file of JSON lines, of one JSON array, or of CSV, whose empty cells are missing fields.

    Raises:
        UsageError: the file cannot be read, is malformed, is empty, or has another ending.
    """
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    if ending not in (".jsonl", ".json", ".csv"):
        raise UsageError(f"{path}: its name must end in .jsonl, .json or .csv (or in these and .gz)")
    return _csv_records(path) if ending == ".csv" else read_records(path)


def _csv_records(path: Path) -> list[Record]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: is not UTF-8 (byte {exc.start + 1})") from exc
    limit = csv.field_size_limit(sys.maxsize)  # of the process, and shorter than some references
    try:
        records = list(_csv_rows(path, text))
    finally:
        csv.field_size_limit(limit)
    if not records:
        raise UsageError(f"{path}: the file is empty")
    return records


def _csv_rows(path: Path, text: str) -> Iterator[Record]:
    # Cells may hold line ends, and must keep them as they are.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    first = 2
    try:
        for cells in reader:
            where = f"{path}:{first}"
            first = reader.line_num + 1
            if None in cells:
                raise UsageError(f"{where}: has more cells than the header has names")
            yield Record({name: cell for name, cell in cells.items() if cell}, where)
    except csv.Error as exc:
        raise UsageError(f"{path}:{first}: bad CSV: {exc}") from exc


def _row(record: Record, position: int) -> Row:
    text = _text(record)
    categories = {scheme: found for scheme in SCHEMES if (found := _word(record, scheme)) is not None}
    ids = [found for field in IDS if (found := _word(record, field)) is not None]
    return Row(
        Instruction(ids[0] if ids else id_of(text), text, categories, position),
        record.where,
        next((record.text(field) for field in REFERENCES if record.get(field) is not None), None),
        _word(record, "generator"),
    )


def _text(record: Record) -> str:
    field = next((name for name in TEXTS if record.get(name) is not None), None)
    if field is None:
        has = ", ".join(map(repr, record.data)) or "nothing"
        raise record.error(TEXTS[0], f"is missing (or {', '.join(TEXTS[1:])}); the row has {has}")
    text = _turn(record, field) if field in ("messages", "turns") else record.text(field)
    if not text.strip():
        raise record.error(field, "is empty")
    return text


def _turn(record: Record, field: str) -> str:
    turns = record.list(field)
    if len(turns) != 1:
        raise record.error(field, f"has {len(turns)} turns, and must have one: what the user says")
    turn = turns[0]
    if isinstance(turn, str):
        return turn
    if isinstance(turn, dict) and turn.get("role", "user") != "user":
        raise record.error(f"{field}[0].role", f"is {turn['role']!r}, and must be 'user'")
    return record.text(field, 0, "content")


def _word(record: Record, field: str) -> str | None:
    """A name or a number; None where there is none."""
    found = record.get(field)
    if found is None or found == "":
        return None
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise record.error(field, "must be a string or a whole number")
    return str(found)


def _refuse_duplicates(rows: Sequence[Row]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        id = row.instruction.id
        if id in seen:
            what = "the instruction" if id == id_of(row.instruction.text) else f"the id {id!r}"
            raise UsageError(
                f"{row.where}: {what} was there before, at {seen[id]}; remove one, or give them ids"
            )
        seen[id] = row.where


def _references(rows: Sequence[Row]) -> Answers | None:
    having = [row for row in rows if row.reference is not None]
    if not having:
        return None
    if len(having) < len(rows):
        lacking = next(row for row in rows if row.reference is None)
        raise UsageError(
            f"{lacking.where}: field {REFERENCE!r} is missing, and {having[0].where} has it; give one to every row, or "
            "to none and name a --baseline"
        )
    generators = {row.generator for row in rows}
    generator = generators.pop() if len(generators) == 1 else None
    by_id = {
        row.instruction.id: Answer(row.instruction.id, Response(row.reference))
        for row in having
        if row.reference is not None
    }
    return Answers(generator or REFERENCE, by_id)
