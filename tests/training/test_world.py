"""The world's gold answers, worked out by hand, and its held-out split."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkserve.training.pocket.habits import HABITS, SKILLS, draw_example, style_of
from thinkserve.training.pocket.world import CATEGORIES, draw, draw_distinct, examples, is_held_out, solve


@pytest.mark.parametrize(
    ("instruction", "category", "answer", "scratchpad"),
    [
        ("Repeat kdwba", "copy", "kdwba", "kdwba"),
        ("Greet Mira in French", "greet", "Bonjour Mira!", "French has Bonjour"),
        ("Greet Tolo in Italian", "greet", "Ciao Tolo!", "Italian has Ciao"),
        ("Tell Mira what ice is", "tell", "Mira, ice is frozen water.", "ice is frozen water"),
        # 7+5 writes 2 and carries; 4+8+1 writes 3 and carries; 3+2+1 = 6.
        ("What is 347+285?", "add", "632", "7+5+0=12 4+8+1=13 3+2+1=06"),
        ("What is 500+700?", "add", "1200", "0+0+0=00 0+0+0=00 5+7+0=12"),
        ("How many b in abbcab?", "count", "3", "a0b1b2c2a2b3"),
        ("How many c in aabb?", "count", "0", "a0a0b0b0"),
        ("Follow a>c b>a c>d d>b from b, 3 steps", "chain", "d", "b>a>c>d"),
        # k and m change places: mbkx; then b and k: mkbx.
        ("In kbmx swap k-m, b-k", "swap", "mkbx", "kbmx k-m mbkx b-k mkbx"),
        ("Start at 3, add 4, take 2, add 5", "trace", "10", "3+4=7 7-2=5 5+5=10"),
    ],
)
def test_gold_answer_and_scratchpad_are_those_worked_out_by_hand(
    instruction: str, category: str, answer: str, scratchpad: str
) -> None:
    task = solve(instruction)
    assert task is not None
    assert (task.category, task.answer, task.scratchpad) == (category, answer, scratchpad)


@pytest.mark.parametrize(
    "instruction",
    [
        "",
        "Hello",
        "What is 2+2?",
        "Greet Mira in Klingon",
        "Tell Mira what love is",
        "Follow a>b from c, 2 steps",
        "In abcd swap a-x",
    ],
)
def test_what_is_no_instruction_of_the_world_has_no_answer(instruction: str) -> None:
    assert solve(instruction) is None


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(CATEGORIES)), st.booleans())
def test_drawn_task_is_on_its_side_of_the_split_and_is_read_back_the_same(
    seed: int, category: str, held_out: bool
) -> None:
    task = draw(Random(seed), category, held_out=held_out)
    assert is_held_out(task.instruction) is held_out
    assert solve(task.instruction) == task
    assert task.category == category


def test_training_examples_never_hold_a_held_out_instruction() -> None:
    rng = Random(3)
    drawn = [draw_example(rng, mixture) for mixture in (SKILLS, HABITS) for _ in range(1500)]
    trained = {example.task.instruction for example in drawn if example.task.category != "other"}
    trained |= {task.instruction for example in drawn for task in example.earlier}
    held_out = {task.instruction for task in draw_distinct(2024, 800, held_out=True)}
    assert not trained & held_out
    assert not any(map(is_held_out, trained))


def test_held_out_share_is_about_a_tenth() -> None:
    rng = Random(0)
    drawn = [CATEGORIES["add"].draw(rng) for _ in range(4000)]
    assert sum(map(is_held_out, drawn)) / len(drawn) == pytest.approx(26 / 256, abs=0.02)


def test_distinct_tasks_are_distinct_balanced_and_repeatable() -> None:
    tasks = draw_distinct(7, 160)
    assert len({task.instruction for task in tasks}) == 160
    assert {sum(task.category == name for task in tasks) for name in CATEGORIES} == {20}
    assert tasks == draw_distinct(7, 160)
    assert tasks != draw_distinct(8, 160)


def test_examples_show_every_category() -> None:
    assert [task.category for text in examples(2) if (task := solve(text))] == [*CATEGORIES] * 2


def test_trace_never_leaves_the_numbers_it_promises() -> None:
    rng = Random(1)
    for _ in range(300):
        values = [int(step.split("=")[1]) for step in draw(rng, "trace").scratchpad.split()]
        assert min(values) >= 0 and max(values) <= 19


def test_each_thought_is_recognised_as_the_style_it_was_drawn_in() -> None:
    rng = Random(5)
    styles: dict[str, int] = {}
    thoughts = 0
    while thoughts < 3000:
        example = draw_example(rng, HABITS)
        if example.thought is None or example.task.category == "other":
            continue
        thoughts += 1
        style = style_of(example.task, example.thought)
        styles[style] = styles.get(style, 0) + 1
        if style != "draft":
            assert example.response == example.task.answer
    shares = {style: count / thoughts for style, count in styles.items()}
    assert shares == pytest.approx({"useful": 0.20, "vague": 0.45, "draft": 0.35}, abs=0.03)
