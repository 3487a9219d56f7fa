"""What a file holds, told by the fields of its first record: so that one in the wrong place is called what it is.

The readers of each format name the field that they miss; nobody learns from "field 'generator_2' is missing" that the
answers and the judgments were swapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinkserve.eval.records import first_record

Role = Literal["answers", "judgments", "instructions"]
Format = Literal["alpaca-eval", "arena-hard", "run"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file."""

    format: Format
    role: Role
    fields: tuple[str, ...]
    """Files of this kind have all of them; the first tells it from kinds further down."""

    @property
    def name(self) -> str:
        """In a sentence."""
        owner = {"alpaca-eval": "AlpacaEval's", "arena-hard": "Arena-Hard's", "run": "a run's own"}
        return f"{owner[self.format]} {self.role}"


KINDS = (
    Kind("run", "judgments", ("key", "game")),
    Kind("alpaca-eval", "judgments", ("generator_2", "instruction")),
    Kind("alpaca-eval", "judgments", ("preference", "instruction")),
    Kind("alpaca-eval", "answers", ("output", "instruction")),
    Kind("alpaca-eval", "instructions", ("instruction",)),
    Kind("arena-hard", "judgments", ("games",)),
    Kind("arena-hard", "answers", ("choices",)),
    Kind("arena-hard", "answers", ("messages",)),
    Kind("arena-hard", "instructions", ("turns",)),
    Kind("arena-hard", "instructions", ("prompt",)),
    Kind("run", "answers", ("response", "id")),
    Kind("run", "instructions", ("text", "id")),
)
OPTIONS = {"answers": "--answers", "judgments": "--judgments"}


def format_of(path: Path, role: Role, option: str, bench: str, formats: tuple[Format, ...]) -> Format:
    """The format of a file of answers or judgments; the first of `formats` where no field tells.

    Args:
        path: of the file.
        role: what it is given as.
        option: that it is given with.
        bench: its name.
        formats: those that can be read here.

    Raises:
        UsageError: it cannot be read, or is of another kind; names the line and the field that tells.
    """
    record = first_record(path)
    kind = next((kind for kind in KINDS if all(field in record.data for field in kind.fields)), None)
    if kind is None:
        return formats[0]
    if kind.role != role:
        right = OPTIONS.get(kind.role)
        hint = f"give them with {right}" if right else f"{option} takes {role}"
        raise record.error(kind.fields[0], f"says that these are {kind.name}: {hint}")
    if kind.format not in formats:
        raise record.error(
            kind.fields[0], f"says that these are {kind.name}, {_wanted(kind, bench, formats)}"
        )
    return kind.format


def _wanted(kind: Kind, bench: str, formats: tuple[Format, ...]) -> str:
    if formats == ("run",):
        place = "answers/MODEL.jsonl" if kind.role == "answers" else "judgments/JUDGE/MODEL.jsonl"
        return f"and {bench} reads those that a run wrote ({place} in its folder)"
    if kind.format == "run":
        return f"and the judgments are official ones: give official {kind.role} (a run has them in its folder official)"
    return f"and the bench is {bench}"
