"""Instructions of the pocket world: fresh where they are held out, balanced, and the same for any number."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import id_of
from thinkserve.training.pocket.bench import PocketBench
from thinkserve.training.pocket.seed import EVALUATION_SEED, SeedRecipe
from thinkserve.training.pocket.world import CATEGORIES, draw_distinct, is_held_out, solve
from thinkserve.training.prompts.pocket import (
    CARD_SEED,
    CARD_TASKS,
    TUNING_SEED,
    TUNING_TASKS,
    deal_pocket,
    draw_evaluation,
    seen_before,
)
from thinkserve.training.recipe import PromptsRecipe, Recipe

RECIPE = Recipe(
    name="pocket",
    iterations=2,
    prompts=PromptsRecipe(source="pocket", per_iteration=40, validation=120, evaluation=200),
)


def test_what_the_model_card_was_measured_on_is_known_here() -> None:
    assert (EVALUATION_SEED, SeedRecipe().evaluation_tasks) == (CARD_SEED, CARD_TASKS)


def test_held_out_parts_are_fresh_and_no_part_shares_an_instruction_with_another() -> None:
    parts = deal_pocket(RECIPE)
    assert {part: len(some) for part, some in parts.items()} == {
        "validation": 120,
        "evaluation": 200,
        1: 40,
        2: 40,
    }
    for part, some in parts.items():
        assert all(is_held_out(one.text) == (part in ("validation", "evaluation")) for one in some)
    texts = [one.text for some in parts.values() for one in some]
    assert len(set(texts)) == len(texts)
    card = {task.instruction for task in draw_distinct(EVALUATION_SEED, 800, held_out=True)}
    bench = {one.text for one in PocketBench().instructions}
    assert len(card) == 800
    tuning = {task.instruction for task in draw_distinct(TUNING_SEED, TUNING_TASKS, held_out=True)}
    assert card | bench | tuning == seen_before()
    assert not seen_before() & set(texts)


def test_without_care_held_out_parts_would_have_seen_instructions() -> None:
    """The world is small: among 2000 others that are held out, some are in the bench or behind the card."""
    assert seen_before() & {task.instruction for task in draw_distinct(5, 2000, held_out=True)}


def test_categories_come_in_turn_in_every_part() -> None:
    for some in deal_pocket(RECIPE).values():
        assert set(Counter(one.categories["category"] for one in some).values()) == {
            len(some) // len(CATEGORIES)
        }
        for one in some:
            task = solve(one.text)
            assert task is not None
            assert (one.categories, one.id) == ({"category": task.category}, id_of(one.text))


def test_more_iterations_and_larger_parts_begin_alike() -> None:
    parts = deal_pocket(RECIPE)
    longer = deal_pocket(replace(RECIPE, iterations=5))
    assert {part: longer[part] for part in parts} == parts
    larger = draw_evaluation(replace(RECIPE, prompts=replace(RECIPE.prompts, evaluation=1000)))
    assert larger[:200] == parts["evaluation"]


def test_another_seed_gives_others() -> None:
    first, second = deal_pocket(RECIPE), deal_pocket(replace(RECIPE, seed=1))
    for part in first:
        assert len({one.id for one in first[part]} & {one.id for one in second[part]}) < len(first[part]) / 4


def test_what_is_measured_on_is_not_trained_on_whatever_side_it_is_of() -> None:
    usual = deal_pocket(RECIPE)
    given = [*usual[1][:7], *usual["validation"][:3]]
    parts = deal_pocket(RECIPE, evaluation=given)
    assert parts["evaluation"] == given
    others = {one.text for part in ("validation", 1, 2) for one in parts[part]}
    assert not others & {one.text for one in given}
    assert len(others) == 200


def test_more_than_the_world_has_is_refused_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every eighth instruction is a trace, and of these 2,700 are held out; fewer tries end the search for them sooner."""
    monkeypatch.setattr("thinkserve.training.pocket.world.MOST_TRIES", 4)
    recipe = replace(RECIPE, prompts=replace(RECIPE.prompts, evaluation=15_000))
    with pytest.raises(UsageError, match=r"too few instructions for prompts\.evaluation: category trace"):
        draw_evaluation(recipe)


def test_empty_parts_are_empty() -> None:
    parts = deal_pocket(replace(RECIPE, prompts=replace(RECIPE.prompts, validation=0, evaluation=0)))
    assert (parts["validation"], parts["evaluation"]) == ((), ())
