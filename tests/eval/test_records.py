"""Files of records: every mistake is named with its place, and a kill loses no line that was written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.records import RecordLog, first_record, read_records, write_records, write_whole


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    "content",
    [b'{"a": 1}\n\n{"a": 2}\n', b' [{"a": 1}, {"a": 2}]', b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}'],
)
def test_lines_and_arrays_are_read_alike(tmp_path: Path, content: bytes, pack: bool) -> None:
    path = tmp_path / ("x.jsonl.gz" if pack else "x.jsonl")
    path.write_bytes(gzip.compress(content) if pack else content)
    assert [record.data for record in read_records(path)] == [{"a": 1}, {"a": 2}]
    first = first_record(path)
    assert (first.data, first.where) == ({"a": 1}, read_records(path)[0].where)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"[]", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b'{"a": 1}\n{"a": \n', ":2: bad JSON"),
        (b'[{"a": 1}, {"a": ', ":1: bad JSON"),
        (b'[{"a": 1},\n {"a": 2},\n {"a" 3}]', ":3: bad JSON"),
        (b'[{"a": "\xff"}]', "bad JSON"),
        (b'{"a": ' + b"[" * 100_000, ":1: bad JSON"),
        (b"[" * 100_000, "bad JSON"),
        (b'{"a": 1}\n17\n', ":2: is a number, and must be an object"),
        (b'{"a": 1}\nnull\n', ":2: is null, and must be an object"),
        (b'[{"a": 1}, "b"]', "item 2: is a string, and must be an object"),
        (b'{"a": "\xff"}\n', ":1: bad JSON"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError) as failure:
        read_records(path)
    assert str(failure.value).startswith(f"{path}:") and message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path)
    (tmp_path / "x.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path / "x.jsonl.gz")
    (tmp_path / "y.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}' * 1000)[:-20])
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path / "y.jsonl.gz")
    packed = bytearray(gzip.compress(bytes(range(256)) * 20))
    packed[10] = 0xFF  # no kind of block
    (tmp_path / "z.jsonl.gz").write_bytes(packed)
    with pytest.raises(UsageError, match="z.jsonl.gz: cannot be read: Error -3 while decompressing"):
        read_records(tmp_path / "z.jsonl.gz")


def test_a_field_that_is_not_as_it_must_be_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"turns": [{"content": 7}], "n": true, "list": "x"}\n')
    (record,) = read_records(path)
    wrong: list[tuple[Callable[[], object], str]] = [
        (
            lambda: record.text("turns", 0, "content"),
            "field 'turns[0].content' is a number, and must be a string",
        ),
        (lambda: record.text("turns", 1, "content"), "field 'turns[1]' is missing"),
        (lambda: record.text("id"), "field 'id' is missing"),
        (lambda: record.number("n"), "field 'n' is true or false, and must be a number"),
        (lambda: record.list("list"), "field 'list' is a string, and must be a list"),
    ]
    for read, message in wrong:
        with pytest.raises(UsageError) as failure:
            read()
        assert str(failure.value) == f"{path}:1: {message}"


def test_a_line_that_was_cut_short_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RecordLog(path) as log:
        log.append({"n": 1})
        log.append({"n": 2})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with RecordLog(path) as log:
            log.append({"n": 3})
        found = [record.data["n"] for record in read_records(path)]
        assert found == [n for n, end in ((1, 8), (2, 16)) if cut >= end] + [3]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_records(path, [{"a": 1}, {"a": object()}])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RecordLog(path) as log:
        with pytest.raises(UsageError, match=r"log.jsonl: another run writes to this file now"):
            RecordLog(path)
        log.append({"n": 1})
    with RecordLog(path) as log:
        log.append({"n": 2})
    assert [record.data["n"] for record in read_records(path)] == [1, 2]
