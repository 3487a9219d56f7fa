"""The user's own file of instructions as a bench."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer
from thinkserve.eval.bench import Bench
from thinkserve.eval.benches.file import FileBench
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict
from thinkserve.thoughts import Response

ROWS = [
    {"id": "a", "instruction": "Say hi.", "category": "small talk", "reference": "Hi!"},
    {"id": "b", "instruction": 'Add, "1" and\n2.', "category": "maths", "reference": "3"},
]


def written(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CSV = 'id,instruction,category,reference\r\na,Say hi.,small talk,Hi!\r\nb,"Add, ""1"" and\n2.",maths,3\r\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("my.bench.jsonl", lines(*ROWS)),
        ("my.bench.jsonl.gz", lines(*ROWS)),
        ("my.bench.json", json.dumps(ROWS, indent=2)),
        ("my.bench.json.gz", json.dumps(ROWS)),
        ("my.bench.csv", CSV),
        ("my.bench.csv", "\ufeff" + CSV),
        ("my.bench.csv.gz", CSV),
    ],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, content: str) -> None:
    bench: Bench = FileBench(written(tmp_path / name, content))
    assert bench.name == "my.bench"
    assert list(bench.instructions) == [
        Instruction("a", "Say hi.", {"category": "small talk"}, 0),
        Instruction("b", 'Add, "1" and\n2.', {"category": "maths"}, 1),
    ]
    assert [bench.baseline_of(one) for one in bench.instructions] == ["reference", "reference"]
    answers = bench.baseline_answers(bench.instructions)["reference"]
    assert {id: str(answer.response) for id, answer in answers.by_id.items()} == {"a": "Hi!", "b": "3"}
    assert bench.official_judge == "gpt-4.1"
    assert len(bench.protocol_of("judge").games(bench.instructions[0])) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hi"},
        {"prompt": "Hi"},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"turns": [{"content": "Hi"}]},
        {"turns": ["Hi"]},
        {"instruction": None, "prompt": "Hi"},
    ],
)
def test_an_instruction_may_be_written_in_the_ways_of_the_field(tmp_path: Path, row: object) -> None:
    bench = FileBench(written(tmp_path / "x.jsonl", lines(row)))
    assert bench.instructions == (Instruction(id_of("Hi"), "Hi"),)
    assert bench.baseline_of(bench.instructions[0]) is None
    assert bench.baseline_answers(bench.instructions) == {}


def test_ids_and_categories_may_be_numbers_and_other_fields_are_passed_over(tmp_path: Path) -> None:
    row = {
        "question_id": 81,
        "prompt": "Hi",
        "topic": "Travel and Leisure",
        "cluster": 3,
        "x": {"y": []},
        "dataset": "",
    }
    bench = FileBench(written(tmp_path / "x.jsonl", lines(row)))
    assert bench.instructions == (Instruction("81", "Hi", {"topic": "Travel and Leisure", "cluster": "3"}),)


def test_references_are_by_their_generator_where_the_file_names_one(tmp_path: Path) -> None:
    rows = [{"instruction": str(n), "output": "", "generator": "gpt-4"} for n in range(2)]
    bench = FileBench(written(tmp_path / "x.json", json.dumps(rows)))
    assert bench.baseline_of(bench.instructions[0]) == "gpt-4"
    assert list(bench.baseline_answers(bench.instructions)) == ["gpt-4"]
    rows[1]["generator"] = "claude"
    bench = FileBench(written(tmp_path / "x.json", json.dumps(rows)))
    assert list(bench.baseline_answers(bench.instructions)) == ["reference"]


def test_a_long_cell_of_csv_is_read(tmp_path: Path) -> None:
    bench = FileBench(written(tmp_path / "x.csv", f"instruction,output\nHi,{'x' * 300_000}\n"))
    answer = bench.baseline_answers(bench.instructions)["reference"].by_id[id_of("Hi")]
    assert len(answer.response) == 300_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "Hi", "x.txt: its name must end in .jsonl, .json or .csv"),
        ("x.jsonl", "", "x.jsonl: the file is empty"),
        ("x.csv", "instruction\n", "x.csv: the file is empty"),
        ("x.csv", "", "x.csv: the file is empty"),
        ("x.json", "[]", "x.json: the file is empty"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": \n', "x.jsonl:2: bad JSON"),
        ("x.jsonl", '{"prompt": "a"}\n["b"]\n', "x.jsonl:2: is a list, and must be an object"),
        ("x.jsonl", lines({"text": "a"}), r"x.jsonl:1: field 'instruction' is missing .*the row has 'text'"),
        ("x.jsonl", lines({"prompt": "a"}, {"prompt": 5}), "x.jsonl:2: field 'prompt' is a number"),
        ("x.jsonl", lines({"prompt": " \n"}), "x.jsonl:1: field 'prompt' is empty"),
        ("x.jsonl", lines({"messages": []}), "x.jsonl:1: field 'messages' has 0 turns, and must have one"),
        ("x.jsonl", lines({"turns": ["a", "b"]}), "x.jsonl:1: field 'turns' has 2 turns"),
        ("x.jsonl", lines({"messages": "Hi"}), "x.jsonl:1: field 'messages' is a string, and must be a list"),
        (
            "x.jsonl",
            lines({"messages": [{"role": "system", "content": "a"}]}),
            r"x.jsonl:1: field 'messages\[0\].role' is 'system', and must be 'user'",
        ),
        ("x.jsonl", lines({"messages": [{"role": "user"}]}), r"field 'messages\[0\].content' is missing"),
        ("x.jsonl", lines({"prompt": "a", "id": ["b"]}), "x.jsonl:1: field 'id' must be a string"),
        ("x.jsonl", lines({"prompt": "a", "topic": 0.5}), "x.jsonl:1: field 'topic' must be a string"),
        ("x.jsonl", lines({"prompt": "a", "reference": 1}), "x.jsonl:1: field 'reference' is a number"),
        (
            "x.jsonl",
            lines({"prompt": "a", "reference": "b"}, {"prompt": "c"}),
            r"x.jsonl:2: field 'reference' is missing, and .*x.jsonl:1 has it",
        ),
        (
            "x.jsonl",
            lines({"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}),
            "x.jsonl:2: the id '1' was there before",
        ),
        (
            "x.jsonl",
            lines({"prompt": "a"}, {"prompt": "a"}),
            "x.jsonl:2: the instruction was there before, at .*:1",
        ),
        ("x.json", '[{"prompt": "a"}, {"prompt": ""}]', "x.json: item 2: field 'prompt' is empty"),
        ("x.csv", 'instruction\n"a\nb"\nc,d\n', "x.csv:4: has more cells than the header"),
        ("x.csv", 'instruction\n"a" b\n', "x.csv:2: bad CSV"),
        ("x.csv", 'instruction\na\n"b', "x.csv:3: bad CSV"),
        ("x.csv", "instruction,id\na,1\n,2\n", "x.csv:3: field 'instruction' is missing"),
        ("x.csv", b"instruction\n\xff\n", "x.csv: is not UTF-8"),
    ],
)
def test_a_wrong_file_is_an_error_with_line_and_field(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(UsageError, match=message) as caught:
        FileBench(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none.jsonl: there is no such file"):
        FileBench(tmp_path / "none.jsonl")


def test_scores_are_broken_down_by_the_files_categories(tmp_path: Path) -> None:
    bench = FileBench(written(tmp_path / "x.jsonl", lines(*ROWS)))
    references = bench.baseline_answers(bench.instructions)["reference"].by_id
    matches = [
        Match(
            one,
            Answer(one.id, Response("mine")),
            references[one.id],
            "reference",
            (PlayedGame(Game(0, True), "judge", Verdict("A", float(one.position))),),
        )
        for one in bench.instructions
    ]
    scores = bench.score({"model": matches}, compat="aligned", seed=0)
    assert (scores.bench, scores.judge, scores.baseline) == ("x", "judge", "reference")
    rates = {name: group.win_rate for name, group in scores.models["model"].categories["category"].items()}
    assert rates == {"small talk": 0.0, "maths": 100.0}
