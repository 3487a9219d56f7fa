"""Files of records: JSON lines or one JSON array, plain or gzip, read with the place of every mistake.

What is appended is safe against `kill -9`: each record is one write of one line, and a last line that was cut short is
dropped when the file is opened again.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from thinkserve.errors import UsageError


class Record:
    """One object of a file, whose fields are read with an error that names file, line and field."""

    __slots__ = ("data", "where")

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where
        """`FILE:LINE`, or `FILE: item N` in a JSON array (N from 1)."""

    def text(self, *path: str | int) -> str:
        """The string at a path of fields and positions.

        Raises:
            UsageError: it is missing or is no string.
        """
        found = self._at(path)
        if not isinstance(found, str):
            raise self.error(_spelled(path), f"is {_kind(found)}, and must be a string")
        return found

    def number(self, *path: str | int) -> float:
        """The number at a path.

        Raises:
            UsageError: it is missing or is no number.
        """
        found = self._at(path)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.error(_spelled(path), f"is {_kind(found)}, and must be a number")
        return found

    def list(self, *path: str | int) -> list[Any]:
        """The list at a path.

        Raises:
            UsageError: it is missing or is no list.
        """
        found = self._at(path)
        if not isinstance(found, list):
            raise self.error(_spelled(path), f"is {_kind(found)}, and must be a list")
        return found

    def get(self, field: str, default: Any = None) -> Any:
        """A field that may be missing."""
        return self.data.get(field, default)

    def error(self, field: str, problem: str) -> UsageError:
        """The error to raise about a field."""
        return UsageError(f"{self.where}: field {field!r} {problem}")

    def _at(self, path: tuple[str | int, ...]) -> Any:
        found: Any = self.data
        for depth, step in enumerate(path):
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                raise self.error(_spelled(path[: depth + 1]), "is missing") from None
        return found


def _spelled(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def read_bytes(path: Path) -> bytes:
    """All of a file, unpacked if its name ends in `.gz`.

    Raises:
        UsageError: it is not there, cannot be read, or is no gzip.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except (OSError, EOFError, ValueError, zlib.error) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise UsageError(f"{path}: cannot be read: {reason}") from exc


def read_records(path: Path) -> list[Record]:
    """The objects of a file: one a line, or those of one JSON array.

    Raises:
        UsageError: the file cannot be read, is empty, or has something else in it; names the line.
    """
    raw = read_bytes(path).removeprefix(BOM_UTF8)
    if raw.lstrip()[:1] == b"[":
        found = [(f"{path}: item {number}", item) for number, item in enumerate(_array(path, raw), 1)]
    else:
        found = list(_lines(path, raw))
    if not found:
        raise UsageError(f"{path}: the file is empty")
    for where, item in found:
        if not isinstance(item, dict):
            raise UsageError(f"{where}: is {_kind(item)}, and must be an object with fields")
    return [Record(item, where) for where, item in found]


def first_record(path: Path) -> Record:
    """The first object of a file, for which the rest of JSON lines is not decoded.

    Raises:
        UsageError: as `read_records` does.
    """
    raw = read_bytes(path).removeprefix(BOM_UTF8)
    line = raw[: raw.find(b"\n") + 1]
    try:
        item = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        item = None
    return Record(item, f"{path}:1") if isinstance(item, dict) else read_records(path)[0]


def _array(path: Path, raw: bytes) -> list[Any]:
    try:
        return msgspec.json.decode(raw, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UsageError(f"{path}{_line_of_error(raw)}: bad JSON: {exc}") from exc


def _line_of_error(raw: bytes) -> str:
    """`:LINE` where an array breaks off or goes wrong, which msgspec does not tell; "" where that is not known."""
    try:
        json.loads(raw)
    except json.JSONDecodeError as exc:
        return f":{exc.lineno}"
    except (UnicodeDecodeError, RecursionError):
        pass
    return ""


def _lines(path: Path, raw: bytes) -> Iterator[tuple[str, Any]]:
    decode = msgspec.json.Decoder().decode
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                raise UsageError(f"{path}:{number}: bad JSON: {exc}") from exc


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines as a whole: it is there with all its lines, or as it was before."""
    encode = msgspec.json.Encoder().encode
    write_whole(path, b"".join(encode(record) + b"\n" for record in records))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a kill in between leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class RecordLog:
    """A file of JSON lines that is appended to, by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open it, and drop a last line that was cut short.

        Raises:
            UsageError: somebody else has it open; with two runs in one folder, both would pay for the same verdicts.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            # Goes with the process, however that ends. Some network file systems have no locks; there it is the user's
            # affair.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(
                f"{path}: another run writes to this file now; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass
        self._drop_cut_line()

    def _drop_cut_line(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(0)
            whole = self._file.read().rfind(b"\n") + 1
            if whole != size:
                self._file.truncate(whole)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record, in one write."""
        self._file.write(msgspec.json.encode(record) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
