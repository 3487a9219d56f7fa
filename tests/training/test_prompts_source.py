"""Instructions are read from files, and every mistake in them has a place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.training.prompts.source import Source, read_source
from thinkserve.training.recipe import PromptsRecipe

RECIPE = PromptsRecipe()
SKIP = replace(RECIPE, bad_lines="skip")
ROWS: list[dict[str, Any]] = [
    {"instruction": "What is tea?", "topic": "drinks"},
    {"instruction": " Why\nnot? ", "topic": None},
]


def read(path: Path, recipe: PromptsRecipe = RECIPE) -> Source:
    return read_source(str(path), recipe)


def texts(source: Source) -> list[str]:
    return [one.text for one in source.instructions]


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("ending", "written"),
    [
        (".jsonl", lines),
        (".json", as_array),
        (".json", lines),
        (".jsonl.gz", lambda rows: gzip.compress(lines(rows))),
        (".json.gz", lambda rows: gzip.compress(as_array(rows))),
        (".jsonl", lambda rows: b"\xef\xbb\xbf\n" + lines(rows).replace(b"\n", b"\r\n\n")),
    ],
)
def test_json_in_every_form_gives_the_same(
    tmp_path: Path, ending: str, written: Callable[[list[Any]], bytes]
) -> None:
    path = tmp_path / f"prompts{ending}"
    path.write_bytes(written(ROWS))
    source = read(path, replace(RECIPE, category_field="topic"))
    assert source.instructions == (
        Instruction(id_of("What is tea?"), "What is tea?", {"category": "drinks"}, 0),
        Instruction(id_of(" Why\nnot? "), " Why\nnot? ", {}, 1),
    )
    assert source.description == {
        "kind": "file",
        "name": str(path),
        "sha256": sha256(path.read_bytes()).hexdigest(),
    }


def test_parquet_gives_the_same(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "prompts.parquet", ROWS)
    source = read(path, replace(RECIPE, category_field="topic"))
    assert texts(source) == ["What is tea?", " Why\nnot? "]
    assert [one.categories for one in source.instructions] == [{"category": "drinks"}, {}]
    assert source.description["sha256"] == sha256(path.read_bytes()).hexdigest()


def test_chat_messages_count_by_their_first_user_message(tmp_path: Path) -> None:
    user, system = {"role": "user", "content": "Hello"}, {"role": "system", "content": "Be kind"}
    more = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]
    conversations = [[user], [system, user], [user, *more], [system, user, *more]]
    rows: list[dict[str, Any]] = [{"chat": messages} for messages in conversations]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    recipe = replace(RECIPE, field="chat")
    assert texts(read(tmp_path / "a.jsonl", recipe)) == ["Hello"] * 4
    assert texts(read(as_parquet(tmp_path / "a.parquet", rows), recipe)) == ["Hello"] * 4


BAD = [
    (b'{"instruction": "cut', "bad JSON"),
    (b'{"instruction": "half a pair \\ud800"}', "bad JSON"),
    (b'{"instruction": "\xff"}', "bad JSON"),
    (b"[" * 5000, "bad JSON"),
    (b'"text"', "is no object with fields: 'text'"),
    (
        b'{"prompt": "What?", "id": 1}',
        r"field 'instruction' is missing \(the line has 'prompt', 'id'; `prompts.field`",
    ),
    (b"{}", "field 'instruction' is missing .the line has nothing"),
    (b'{"instruction": 7}', "field 'instruction' is a number, and must be a string"),
    (b'{"instruction": null}', "field 'instruction' is null, and must be a string"),
    (b'{"instruction": " \\n"}', "field 'instruction' is blank"),
    (b'{"instruction": []}', "field 'instruction' has no message of a user"),
    (b'{"instruction": ["Hello"]}', r"field 'instruction\[0\].role' is missing"),
    (
        b'{"instruction": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "?"}]}',
        r"field 'instruction\[0\].role' is 'assistant', and a user must speak first",
    ),
    (b'{"instruction": [{"role": "user", "content": [1]}]}', r"field 'instruction\[0\].content' is a list"),
    (b'{"instruction": [{"role": "user"}]}', r"field 'instruction\[0\].content' is missing"),
    (b'{"instruction": "x", "topic": {}}', "field 'topic' must be a string or a whole number"),
]


@pytest.mark.parametrize(("line", "problem"), BAD)
def test_a_bad_line_is_refused_with_its_place_and_how_to_go_on(
    tmp_path: Path, line: bytes, problem: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"instruction": "fine"}\n\n' + line + b'\n{"instruction": "fine too"}\n')
    recipe = replace(RECIPE, category_field="topic")
    with pytest.raises(UsageError, match=f"^{path}:3: {problem}.*; `prompts.bad_lines: skip` leaves such"):
        read(path, recipe)
    skipped = read(path, replace(recipe, bad_lines="skip"))
    assert texts(skipped) == ["fine", "fine too"]
    assert [one.position for one in skipped.instructions] == [0, 1]
    (told,) = skipped.bad
    assert told.startswith(f"{path}:3: ")


def test_a_bad_item_of_an_array_is_skipped_but_a_broken_array_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"instruction": "fine"},\n7, {"instruction": ""}]')
    with pytest.raises(UsageError, match=f"{path}: item 2: is no object"):
        read(path)
    assert read(path, SKIP).bad == (
        f"{path}: item 2: is no object with fields: '7'",
        f"{path}: item 3: field 'instruction' is blank",
    )
    path.write_text('[{"instruction": "fine"},\n{"instruction": "cut')
    for recipe in (RECIPE, SKIP):
        with pytest.raises(UsageError, match=f"{path}:2: bad JSON"):
            read(path, recipe)


def test_bad_rows_of_parquet_have_numbers(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "a.parquet", [{"instruction": "fine"}, {"instruction": None}])
    with pytest.raises(UsageError, match=f"{path}: row 2: field 'instruction' is null"):
        read(path)
    assert texts(read(path, SKIP)) == ["fine"]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "a.parquet", [{"prompt": "x", "id": 1}])
    with pytest.raises(UsageError, match=f"{path}: has no column 'instruction'.*it has 'prompt', 'id'"):
        read(path)
    with pytest.raises(UsageError, match="no column 'topic'"):
        read(path, replace(RECIPE, field="prompt", category_field="topic"))


@pytest.mark.parametrize("content", [b"", b" \n", b"PAR1 and no more"])
def test_an_empty_or_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    for ending, problem in ((".jsonl", "empty|bad JSON"), (".parquet", "is no parquet file")):
        path = tmp_path / f"a{ending}"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"{path}.*({problem})"):
            read(path)


@pytest.mark.parametrize("name", ["none.jsonl", "data/none.parquet", "/none", "./none", "~/none.json.gz"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(UsageError, match=r"prompts\.source '.*none.*': there is no such file"):
        read_source(name, RECIPE)
    with pytest.raises(UsageError, match=r"prompts\.evaluation_source"):
        read_source(name, RECIPE, key="evaluation_source")


def test_a_folder_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("instruction\nx\n")
    with pytest.raises(UsageError, match=r"a\.csv: its name must end in \.jsonl, .* or \.parquet"):
        read(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"is no file, and no dataset on the Hub, whose form is"):
        read_source("two words", RECIPE)
