"""What went in: the instructions and what was left out of them, and the recipe with all its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from thinkserve.eval.report.elements import Child, Html, folded, join, tag
from thinkserve.eval.report.tables import plain_table
from thinkserve.training.report.costs import leaves, shown
from thinkserve.training.report.loading import TrainRun

LONGEST = 400
"""Characters that are shown of one value of the report of instructions."""


def inputs_section(run: TrainRun) -> Html:
    """The report of instructions, and the recipe."""
    keys: list[list[Child]] = [[key, tag("td", shown(value))] for key, value in _keys(run.recipe)]
    recipe = folded(
        "The recipe, with all its keys",
        plain_table("The recipe", ["Key", "Value"], keys, class_="facts-table"),
    )
    return join(_instructions(run.prompts_report), recipe)


def _instructions(report: Mapping[str, Any] | None) -> Html | None:
    """Numbers as a table; examples of what was left out, folded below it."""
    if report is None:
        return None
    # Under `prompts` it has that part of the recipe, as it was when the instructions were dealt.
    told = list(leaves({key: value for key, value in report.items() if key != "prompts"}))
    lists = [(key, value) for key, value in told if _has_rows(value)]
    rows: list[list[Child]] = [
        [_words(key), tag("td", _cut(shown(value)))]
        for key, value in told
        if value is not None and not _has_rows(value)
    ]
    title = "Instructions: where they came from, and what was left out"
    tables = [folded(f"{_words(key)} ({len(found)} shown)", _rows_table(key, found)) for key, found in lists]
    return join(tag("h3", title), plain_table(title, ["What", "Value"], rows, class_="facts-table"), tables)


def _has_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _rows_table(key: str, found: Sequence[Mapping[str, Any]]) -> Html:
    names = list(dict.fromkeys(name for one in found for name in one))
    rows: list[list[Child]] = [
        [
            _cut(shown(one.get(names[0]))),
            *[tag("td", _cut(shown(one.get(name))), class_="remark") for name in names[1:]],
        ]
        for one in found
    ]
    return plain_table(_words(key), [_words(name) for name in names], rows)


def _words(key: str) -> str:
    *before, last = key.replace("_", " ").split(".")
    return ": ".join([*before, f"iteration {last}" if last.isdigit() else last])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} \u2026"


def _keys(part: Any, before: str = "") -> list[tuple[str, Any]]:
    """Dotted keys, in the order of the recipe's page."""
    found = []
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            found += _keys(value, f"{before}{field.name}.")
        elif field.name == "notes":
            found += list(leaves(value, "notes."))
        else:
            found.append((f"{before}{field.name}", value))
    return found
