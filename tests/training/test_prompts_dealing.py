"""Instructions are dealt out: nothing twice, and every part the same however many iterations follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.training.prompts.dealing import deal, deal_evaluation, shuffled
from thinkserve.training.recipe import PromptsRecipe, Recipe

RECIPE = Recipe(
    name="r",
    iterations=2,
    prompts=PromptsRecipe(source="a.jsonl", per_iteration=10, validation=5, evaluation=4),
)


def instructions(count: int) -> list[Instruction]:
    return [Instruction(id_of(f"text {number}"), f"text {number}") for number in range(count)]


def test_parts_have_their_sizes_and_nothing_in_common() -> None:
    parts = deal(instructions(100), RECIPE)
    assert {part: len(some) for part, some in parts.items()} == {
        "validation": 5,
        "evaluation": 4,
        1: 10,
        2: 10,
    }
    assert list(parts)[-1] == 2
    assert len({one.id for some in parts.values() for one in some}) == 29


def test_more_iterations_leave_the_others_as_they_are() -> None:
    fewer, more = (deal(instructions(100), replace(RECIPE, iterations=count)) for count in (1, 7))
    assert {part: more[part] for part in fewer} == fewer
    assert len(more) == 9


def test_the_seed_decides_and_the_order_of_the_source_does_not() -> None:
    parts = deal(instructions(100), RECIPE)
    assert deal(instructions(100)[::-1], RECIPE) == parts
    assert deal(instructions(100), replace(RECIPE, seed=1)) != parts
    assert [one.text for one in parts[1]] != sorted(one.text for one in parts[1])


def test_the_order_is_the_same_on_every_machine() -> None:
    """By sha256 of `0:ID`: written down once, so that a change of it is seen."""
    assert [one.text for one in shuffled(instructions(6), 0)] == [f"text {number}" for number in ORDER]


ORDER = (4, 3, 1, 2, 0, 5)


def test_evaluation_from_elsewhere_leaves_more_to_the_others() -> None:
    other = instructions(120)[100:104]
    parts = deal(instructions(25), RECIPE, evaluation=other)
    assert parts["evaluation"] == other
    assert [len(parts[part]) for part in ("validation", 1, 2)] == [5, 10, 10]


def test_exactly_enough_is_enough_and_one_less_is_not() -> None:
    deal(instructions(29), RECIPE)
    with pytest.raises(UsageError) as caught:
        deal(instructions(28), RECIPE, counted="40 less 12 duplicates")
    assert str(caught.value) == (
        "prompts.source 'a.jsonl' has 28 instructions left (40 less 12 duplicates), and the recipe wants 29 "
        "(prompts.validation 5 + prompts.evaluation 4 + 2 iterations x prompts.per_iteration 10); lower "
        "prompts.per_iteration to 9 or less, or give more instructions"
    )
    deal(instructions(28), replace(RECIPE, prompts=replace(RECIPE.prompts, per_iteration=9)))


def test_where_the_held_out_parts_alone_are_too_many_they_are_named() -> None:
    with pytest.raises(UsageError, match=r"lower prompts\.validation, prompts\.evaluation as well, or give"):
        deal(instructions(10), RECIPE)
    with pytest.raises(UsageError, match=r"lower prompts\.validation as well"):
        deal(instructions(6), RECIPE, evaluation=())


def test_an_evaluation_source_that_is_too_small_is_named() -> None:
    recipe = replace(RECIPE, prompts=replace(RECIPE.prompts, evaluation_source="b.jsonl"))
    assert len(deal_evaluation(instructions(9), recipe)) == 4
    with pytest.raises(
        UsageError, match=r"evaluation_source 'b\.jsonl' has 3 .*\(few\).*wants 4; lower it to 3"
    ):
        deal_evaluation(instructions(3), recipe, "few")
