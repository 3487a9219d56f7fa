"""Instructions of benchmarks are found among those to train on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.training.prompts.contamination import (
    DATA_VARIABLE,
    bench_instructions,
    counts_of,
    find_contaminated,
)

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get(DATA_VARIABLE, ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the official data at {DATA}")


def sentence(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def bench(*texts: str) -> list[Instruction]:
    return [Instruction(f"q{number}", text) for number, text in enumerate(texts)]


def found(texts: list[str], benches: dict[str, list[Instruction]], threshold: float = 0.8) -> list[object]:
    return [
        (one.number, one.bench, one.instruction.id, one.kind)
        for one in find_contaminated(texts, benches, threshold)
    ]


def test_an_equal_instruction_is_found_whatever_its_case_and_width() -> None:
    benches = {"b": bench("What is tea?", "Who  are YOU?")}
    assert found(["ｗho are you?", "what is coffee?"], benches) == [(0, "b", "q1", "exact")]


def test_a_nearly_equal_one_is_found_and_its_threshold_is_the_recipes() -> None:
    """11 words and one changed at the end: 7 shingles each, 6 common, J = 6/8; no 13 words in a row."""
    benches = {"b": bench(sentence(*range(11)))}
    changed = sentence(*range(10), 99)
    assert found([changed], benches, 0.75) == [(0, "b", "q0", "near")]
    assert found([changed], benches, 0.76) == []
    assert found([changed, sentence(*range(11))], benches, 1.0) == [(1, "b", "q0", "exact")]


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not() -> None:
    benches = {"b": bench("unlike", sentence(*range(100)))}
    around = sentence(*range(500, 540))
    thirteen, twelve = sentence(*range(40, 53)), sentence(*range(40, 52))
    texts = [f"{around} {twelve} {around}", f"{around} ({thirteen}) {around}", thirteen, twelve]
    assert found(texts, benches) == [(1, "b", "q1", "passage"), (2, "b", "q1", "passage")]


@pytest.mark.parametrize(("length", "matches"), [(7, False), (8, True), (12, True)])
def test_a_shorter_instruction_must_be_in_it_as_a_whole_and_have_eight_words(
    length: int, matches: bool
) -> None:
    benches = {"b": bench(sentence(*range(length)))}
    around = sentence(*range(500, 540))
    assert bool(found([f"{around} {sentence(*range(length))} {around}"], benches)) == matches
    assert not found([f"{around} {sentence(*range(length - 1))} {around}"], benches)


def test_passages_of_different_lengths_may_begin_alike() -> None:
    """Both begin with the same five words; the text has the shorter one, which was put in last."""
    benches = {"b": bench(sentence(*range(30)), sentence(*range(5), 70, 71, 72))}
    text = f"{sentence(*range(300, 340))} {sentence(*range(5), 70, 71, 72)}"
    assert found([text], benches) == [(0, "b", "q1", "passage")]


def test_one_in_two_benches_counts_in_both_and_each_bench_has_its_counts() -> None:
    long = sentence(*range(30))
    benches = {"a": bench("What is tea?", long), "b": bench(long), "empty": bench()}
    matches = find_contaminated([long, "what is tea?", f"{sentence(*range(400, 450))} {long}"], benches, 0.8)
    assert [(one.number, one.bench) for one in matches] == [(0, "a"), (0, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert counts_of(matches, benches) == {
        "a": {"instructions": 2, "removed": 3, "exact": 2, "near": 0, "passage": 1},
        "b": {"instructions": 1, "removed": 2, "exact": 1, "near": 0, "passage": 1},
        "empty": {"instructions": 0, "removed": 0, "exact": 0, "near": 0, "passage": 0},
    }


def test_of_two_equal_instructions_of_a_bench_the_first_is_named() -> None:
    assert found(["tea"], {"b": bench("tea", "TEA")}) == [(0, "b", "q0", "exact")]


def test_nothing_to_compare_is_no_error() -> None:
    assert found([], {"b": bench("tea")}) == found(["tea"], {}) == found([], {}) == []


def test_a_file_may_be_a_bench(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"instruction": "What is tea?"}\n')
    assert [one.text for one in bench_instructions([str(path)])[str(path)]] == ["What is tea?"]


def test_topics_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench of categories has no instructions before a model has sorted them; here the unsorted ones count."""
    (tmp_path / "categories").mkdir()
    (tmp_path / "categories" / "instructions.jsonl").write_text('{"instruction": "What is tea?"}\n')
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert [one.id for one in bench_instructions(["categories"])["categories"]] == [id_of("What is tea?")]


@pytest.mark.parametrize("name", ["alpaca-eval", "arena-hard", "arena-hard-v0.1"])
def test_a_bench_without_data_is_named_with_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(UsageError) as caught:
        bench_instructions([name])
    message = str(caught.value)
    assert f"the instructions of {name!r} cannot be had: {tmp_path}" in message
    assert f"set {DATA_VARIABLE}" in message
    assert "leave the bench out of prompts.decontaminate" in message
    assert "\n" not in message


def test_an_unknown_bench_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"prompts\.decontaminate.*'alpacaeval'.*choose alpaca-eval, arena-hard"
    ):
        bench_instructions(["alpacaeval"])


@needs_data
def test_the_official_instructions_are_found_in_whatever_they_are_wrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every tenth one: as it is, in capitals, and (where it has 8 words) in the middle of something else."""
    monkeypatch.setenv(DATA_VARIABLE, str(DATA))
    benches = bench_instructions(["alpaca-eval", "arena-hard", "arena-hard-v0.1"])
    assert {name: len(instructions) for name, instructions in benches.items()} == {
        "alpaca-eval": 805,
        "arena-hard": 750,
        "arena-hard-v0.1": 500,
    }
    some = [one.text for instructions in benches.values() for one in instructions[::10]]
    wrapped = [
        f"Please think about this first. {text} Answer in a poem." for text in some if len(text.split()) > 8
    ]
    own = [
        "Name three rivers of Portugal and the towns that they flow through.",
        "Why is the sky dark at night?",
    ]
    texts = [*some, *(text.upper() for text in some), *wrapped, *own]
    numbers = {one.number for one in find_contaminated(texts, benches, 0.8)}
    assert numbers == set(range(len(texts) - len(own)))
