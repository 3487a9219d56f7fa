"""The bench of the paper's topics: where its instructions come from, and which of them are asked."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.eval.scripted_judge import Asked, Say, scripted_judge
from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer
from thinkserve.eval.bench import Bench
from thinkserve.eval.benches.categories import CategoriesBench
from thinkserve.eval.data import EvalData
from thinkserve.eval.instruction import id_of
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict
from thinkserve.eval.sources import Source
from thinkserve.eval.topics import TOPICS, classify
from thinkserve.thoughts import Response

CODE, TRAVEL = "Programming and Coding", "Travel and Leisure"


def folder(path: Path, rows: list[dict[str, Any]], topics: list[dict[str, Any]] | None = None) -> EvalData:
    where = path / "categories"
    where.mkdir(exist_ok=True)
    (where / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if topics is not None:
        (where / "topics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in topics))
    return EvalData(path)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"number {n}", "topic": TRAVEL if n % 3 else CODE} for n in range(count)]


def test_topics_of_the_file_are_used_and_up_to_so_many_of_each_are_drawn(tmp_path: Path) -> None:
    bench = CategoriesBench(folder(tmp_path, rows(60)), per_topic=15)
    assert bench.unsorted == ()
    asked = bench.instructions
    assert Counter(one.categories["topic"] for one in asked) == {CODE: 15, TRAVEL: 15}
    assert [one.position for one in asked] == sorted(one.position for one in asked)
    again = CategoriesBench(folder(tmp_path, rows(60)), per_topic=15)
    assert again.instructions == asked
    other = CategoriesBench(folder(tmp_path, rows(60)), per_topic=15, seed=1)
    assert {one.id for one in other.instructions} != {one.id for one in asked}


def test_an_instruction_more_changes_at_most_one_that_is_drawn(tmp_path: Path) -> None:
    few = CategoriesBench(folder(tmp_path, rows(60)), per_topic=15)
    before = {one.id for one in few.instructions}
    more = CategoriesBench(folder(tmp_path, rows(61)), per_topic=15)
    assert len(before - {one.id for one in more.instructions}) <= 1


def test_the_paper_asks_200_of_each_topic_in_one_game_with_nobody_as_baseline(tmp_path: Path) -> None:
    bench: Bench = CategoriesBench(folder(tmp_path, rows(900)))
    assert Counter(one.categories["topic"] for one in bench.instructions) == {CODE: 200, TRAVEL: 200}
    assert {len(bench.protocol_of("judge").games(one)) for one in bench.instructions} == {1}
    assert bench.baseline_of(bench.instructions[0]) is None
    assert bench.baseline_answers(bench.instructions) == {}
    assert (bench.name, bench.official_judge) == ("categories", "gpt-4-1106-preview")


def test_a_file_of_topics_is_read_by_id_or_by_text(tmp_path: Path) -> None:
    data = folder(
        tmp_path,
        [{"id": "x", "instruction": "a"}, {"instruction": "b"}, {"instruction": "c"}],
        [{"id": "x", "topic": "16"}, {"instruction": "b", "topic": "travel & leisure"}],
    )
    bench = CategoriesBench(data)
    assert [one.categories for one in bench.candidates] == [{"topic": CODE}, {"topic": TRAVEL}, {}]
    assert [one.text for one in bench.unsorted] == ["c"]
    assert [one.text for one in bench.instructions] == ["a", "b"]


def test_a_topic_that_is_none_is_an_error_with_line_and_field(tmp_path: Path) -> None:
    bench = CategoriesBench(folder(tmp_path, [*rows(1), {"instruction": "x", "topic": "Cooking"}]))
    with pytest.raises(
        UsageError, match=r"instructions.jsonl:2: field 'topic' is 'Cooking', and must be one of: Art"
    ):
        _ = bench.instructions
    bench = CategoriesBench(folder(tmp_path, [{"instruction": "x"}], [{"id": "x", "topic": "?"}]))
    with pytest.raises(UsageError, match=r"topics.jsonl:1: field 'topic' is '\?'"):
        _ = bench.candidates


async def test_what_has_no_topic_is_sorted_by_a_model(tmp_path: Path) -> None:
    def sorter(asked: Asked) -> Say:
        return Say("no idea" if "riddle" in asked.text else f"[[{TOPICS.index(TRAVEL) + 1}]]")

    data = folder(tmp_path, [*rows(1), {"instruction": "Where to?"}, {"instruction": "a riddle"}])
    bench = CategoriesBench(data)
    assert [one.text for one in bench.unsorted] == ["Where to?", "a riddle"]
    async with scripted_judge(sorter) as served, ChatClient(served.url, "sorter") as client:
        topics = await classify(bench.unsorted, client, tmp_path / "topics.jsonl")
    asked = bench.with_topics(topics)
    assert {one.text: one.categories["topic"] for one in asked.instructions} == {
        "number 0": CODE,
        "Where to?": TRAVEL,
    }


def test_without_any_topic_the_error_says_who_must_give_them(tmp_path: Path) -> None:
    bench = CategoriesBench(folder(tmp_path, [{"instruction": "a"}]))
    with pytest.raises(UsageError, match=r"none of the 1 instructions of --bench categories has a topic"):
        _ = bench.instructions


def test_offline_without_data_one_line_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="categories/instructions.jsonl is missing"):
        _ = CategoriesBench(EvalData(tmp_path)).instructions
    offline = EvalData(None, tmp_path, hub="http://127.0.0.1:1")
    with pytest.raises(UsageError) as caught:
        _ = CategoriesBench(offline).instructions
    message = str(caught.value)
    assert f"put that file at {tmp_path}/categories/instructions.parquet" in message
    assert (
        "ultrafeedback_binarized/resolve/3949bf5f8c17c394422ccfab0c31ea9c20bdeb85/data/test_prefs" in message
    )
    assert "\n" not in message


def ultrafeedback(path: Path, prompts: list[str], ids: list[str] | None = None) -> EvalData:
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    ids = ids or [sha256(prompt.encode()).hexdigest() for prompt in prompts]
    table = pyarrow.table({"prompt": prompts, "prompt_id": ids, "score_chosen": [1.0] * len(ids)})
    path.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path / "uf.parquet")
    return EvalData(None, path, sources=lambda name: Source("hub", "x/y", "0" * 40, "p", "uf.parquet"))


def test_the_prompts_of_ultrafeedback_are_read_each_once(tmp_path: Path) -> None:
    bench = CategoriesBench(ultrafeedback(tmp_path, ["a", "b", "a", " ", "c"]))
    assert [(one.id, one.text, one.position) for one in bench.candidates] == [
        (id_of("a"), "a", 0),
        (id_of("b"), "b", 1),
        (id_of("c"), "c", 2),
    ]
    assert bench.unsorted == bench.candidates
    topics = {id_of("a"): CODE, id_of("c"): TRAVEL}
    assert [one.text for one in bench.with_topics(topics).instructions] == ["a", "c"]


def test_an_ultrafeedback_whose_ids_are_not_the_sums_of_its_prompts_is_refused(tmp_path: Path) -> None:
    bench = CategoriesBench(ultrafeedback(tmp_path, ["a", "b"], [sha256(b"a").hexdigest(), "0" * 64]))
    with pytest.raises(
        UsageError, match="uf.parquet: row 2: field 'prompt_id' is not the sha256 of 'prompt'"
    ):
        _ = bench.candidates


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    data = ultrafeedback(tmp_path, ["a"])
    (tmp_path / "uf.parquet").write_bytes(b"<html>")
    with pytest.raises(UsageError, match="uf.parquet: is no UltraFeedback"):
        _ = CategoriesBench(data).candidates


def test_scores_are_by_topic_and_say_where_there_are_fewer_than_the_paper_has(tmp_path: Path) -> None:
    bench = CategoriesBench(folder(tmp_path, rows(60)), per_topic=20)
    matches = [
        Match(
            one,
            Answer(one.id, Response("mine")),
            Answer(one.id, Response("theirs")),
            "direct",
            (PlayedGame(Game(0, True), "judge", Verdict("A", float(one.categories["topic"] == CODE))),),
        )
        for one in bench.instructions[:-1]
    ]
    scores = bench.score({"thought": matches}, compat="aligned", seed=0)
    topics = scores.models["thought"].categories["topic"]
    assert {name: (group.n, group.win_rate) for name, group in topics.items()} == {
        CODE: (20, 100.0),
        TRAVEL: (19, 0.0),
    }
    assert "too few to say: 19" in (topics[TRAVEL].note or "")
    few, none = scores.notes
    assert few == "fewer than 20 instructions: Travel and Leisure (19)"
    assert (
        none.startswith("no instructions of 18 topics: Art and Design, Business and Finance")
        and CODE not in none
    )
