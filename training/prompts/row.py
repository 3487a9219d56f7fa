"""One row of a source: the instruction in it, and its category."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.records import Record
from thinkserve.training.recipe import PromptsRecipe

CATEGORY = "category"
"""The scheme of categories of training prompts."""
BEFORE_THE_USER = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Rows:
    """What a source has."""

    instructions: tuple[Instruction, ...]
    bad: tuple[str, ...]
    """The places of lines that could not be read, and what is wrong there."""


def read_rows(rows: Iterable[Record | UsageError], recipe: PromptsRecipe) -> Rows:
    """Take the instructions out of rows.

    Args:
        rows: in order; an error stands for a line that is no row at all.
        recipe: says which fields count, and what becomes of bad lines.

    Raises:
        UsageError: a line is bad, and bad lines are not skipped.
    """
    instructions: list[Instruction] = []
    bad: list[str] = []
    for row in rows:
        try:
            if isinstance(row, UsageError):
                raise row
            instructions.append(_instruction(row, recipe, len(instructions)))
        except UsageError as exc:
            if recipe.bad_lines == "refuse":
                raise UsageError(f"{exc}; `prompts.bad_lines: skip` leaves such lines out") from exc
            bad.append(str(exc))
    return Rows(tuple(instructions), tuple(bad))


def _instruction(row: Record, recipe: PromptsRecipe, position: int) -> Instruction:
    text = text_of(row, recipe.field)
    category = None if recipe.category_field is None else _category(row, recipe.category_field)
    return Instruction(id_of(text), text, {} if category is None else {CATEGORY: category}, position)


def text_of(row: Record, field: str) -> str:
    """The instruction of a row.

    Of chat messages it is the first user message, if the conversation begins with that or has only a system message
    before it. The system message and later turns are left out.

    Raises:
        UsageError: there is none; names place and field.
    """
    if field not in row.data:
        has = ", ".join(map(repr, row.data)) or "nothing"
        raise row.error(field, f"is missing (the line has {has}; `prompts.field` names the instruction's)")
    text = _first_user_message(row, field) if isinstance(row.get(field), list) else row.text(field)
    if not text.strip():
        raise row.error(field, "is blank")
    return text


def _first_user_message(row: Record, field: str) -> str:
    for position in range(len(row.list(field))):
        role = row.text(field, position, "role")
        if role == "user":
            return row.text(field, position, "content")
        if role not in BEFORE_THE_USER:
            raise row.error(f"{field}[{position}].role", f"is {role!r}, and a user must speak first")
    raise row.error(field, "has no message of a user")


def _category(row: Record, field: str) -> str | None:
    found = row.get(field)
    if found is None or found == "":
        return None
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise row.error(field, "must be a string or a whole number")
    return str(found)
