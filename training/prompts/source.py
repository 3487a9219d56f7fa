"""Where instructions come from: a file, or a dataset on the Hub. (The pocket world has a module of its own.)"""

from __future__ import annotations

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.records import Record, read_bytes, read_records
from thinkserve.training.prompts.row import read_rows
from thinkserve.training.recipe import PromptsRecipe

JSON_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
PARQUET = ".parquet"
ENDINGS = (*JSON_ENDINGS, PARQUET)


@dataclass(frozen=True, slots=True)
class Source:
    """Instructions as they were found, and how to find the same again."""

    description: Mapping[str, Any]
    """`kind`, `name`, and the `sha256` of a file or the `commit` and `split` of a dataset."""
    instructions: tuple[Instruction, ...]
    bad: tuple[str, ...] = ()
    """The places of lines that were left out, and why."""


def read_source(
    name: str, recipe: PromptsRecipe, *, key: str = "source", commit: str | None = None
) -> Source:
    """Read all instructions of a file or of a dataset on the Hub.

    Args:
        name: a path, or a name on the Hub as `hub.py` reads it.
        recipe: says which fields count, and what becomes of bad lines.
        key: of the recipe's `prompts`, for errors.
        commit: the one to read again; None: whichever the dataset's revision is now. Files have none.

    Raises:
        UsageError: it is not there, cannot be read, or has bad lines.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _read_file(path, recipe)
    if path.is_dir():
        raise UsageError(f"prompts.{key} {name!r} is a folder; name a file in it")
    if name.endswith(ENDINGS) or name.startswith(("/", ".", "~")):
        raise UsageError(f"prompts.{key} {name!r}: there is no such file")
    from thinkserve.training.prompts.hub import DatasetName, read_dataset

    dataset = DatasetName.parse(name, recipe, key)
    columns, found = read_dataset(dataset, _columns(recipe), commit)
    where = f"{dataset.name}@{found[:12]} {dataset.split}"
    rows = read_rows(_column_rows(columns, where, recipe), recipe)
    description = {"kind": "hub", "name": dataset.name, "revision": dataset.revision, "commit": found}
    return Source({**description, "split": dataset.split}, rows.instructions, rows.bad)


def _read_file(path: Path, recipe: PromptsRecipe) -> Source:
    if path.name.endswith(JSON_ENDINGS):
        rows = read_rows(_json_rows(path), recipe)
    elif path.suffix == PARQUET:
        rows = read_rows(_column_rows(_parquet_columns(path, recipe), str(path), recipe), recipe)
    else:
        raise UsageError(f"{path}: its name must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source({"kind": "file", "name": str(path), "sha256": digest}, rows.instructions, rows.bad)


def _json_rows(path: Path) -> Iterator[Record | UsageError]:
    """The rows of JSON lines or of one array, going on after a bad one."""
    raw = read_bytes(path).removeprefix(BOM_UTF8)
    if not raw.strip():
        raise UsageError(f"{path}: the file is empty")
    if raw.lstrip()[:1] == b"[":
        yield from _array_rows(path, raw)
        return
    decode = msgspec.json.Decoder().decode
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield _row(decode(line), where)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                yield UsageError(f"{where}: bad JSON: {exc}")


def _array_rows(path: Path, raw: bytes) -> Iterator[Record | UsageError]:
    try:
        items = msgspec.json.decode(raw, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        read_records(path)  # names the line; nothing of an array can be read that is broken somewhere
        raise
    for number, item in enumerate(items, 1):
        yield _row(item, f"{path}: item {number}")


def _row(item: Any, where: str) -> Record | UsageError:
    return (
        Record(item, where)
        if isinstance(item, dict)
        else UsageError(f"{where}: is no object with fields: {str(item)[:60]!r}")
    )


def _columns(recipe: PromptsRecipe) -> list[str]:
    fields = (recipe.field, recipe.category_field)
    return list(dict.fromkeys(field for field in fields if field is not None))


def _parquet_columns(path: Path, recipe: PromptsRecipe) -> dict[str, list[Any]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            if missing := [name for name in _columns(recipe) if name not in file.schema_arrow.names]:
                raise _no_column(str(path), missing[0], file.schema_arrow.names)
            found: dict[str, list[Any]] = file.read(_columns(recipe)).to_pydict()
            return found
    except (OSError, ValueError, ArrowException) as exc:
        raise UsageError(f"{path}: is no parquet file: {' '.join(str(exc).split())[:200]}") from exc


def _no_column(where: str, name: str, names: list[str]) -> UsageError:
    return UsageError(
        f"{where}: has no column {name!r}, which `prompts.field` or `prompts.category_field` names; it has "
        f"{', '.join(map(repr, names))}"
    )


def _column_rows(
    columns: Mapping[str, list[Any]], where: str, recipe: PromptsRecipe
) -> Iterator[Record | UsageError]:
    for number, values in enumerate(zip(*columns.values(), strict=True), 1):
        yield Record(dict(zip(columns, values, strict=True)), f"{where}: row {number}")
