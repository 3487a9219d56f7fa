"""The weight of length: the smallest at which chosen responses are not longer than rejected ones."""

from __future__ import annotations

import pytest

from tests.training.pair_outputs import Given, group
from thinkserve.errors import UsageError
from thinkserve.training.pairs.tuning import tune
from thinkserve.training.recipe import PairsRecipe

THREE: tuple[Given, ...] = (("a" * 10, 1.0), ("b" * 20, 2.0), ("c" * 60, 3.0))
BROKEN: Given = ("thinking", None, "truncated")


def test_the_smallest_step_at_which_chosen_responses_are_not_longer_is_taken() -> None:
    """Of scores 1, 2, 3 with lengths 10, 20, 60 the pair is (3, 1) up to rho 0.5, (2, 1) at 1, (2, 3) at 2 and (1, 3)
    at 3: N(length) is -0.9258, -0.4629, 1.3887, which at 3 gives the values 1.5527, 1.3887, -2.9414."""
    tuning = tune([group("q", *THREE)], PairsRecipe(rho_steps=(3.0, 0.5, 2.0, 0.0, 1.0)), 0)
    assert [
        (step.rho, step.chosen_length, step.rejected_length, step.score_margin, step.changed, step.reached)
        for step in tuning.steps
    ] == [
        (0.0, 60, 10, 2, 0, False),
        (0.5, 60, 10, 2, 0, False),
        (1.0, 20, 10, 1, 1, False),
        (2.0, 20, 60, -1, 1, True),
        (3.0, 10, 60, -2, 1, True),
    ]
    assert (tuning.taken.rho, tuning.taken.reached, tuning.selection.rho) == (2.0, True, 2.0)
    assert tuning.uncontrolled.rho == 0.0


def test_equal_mean_lengths_are_enough() -> None:
    """Each instruction prefers the longer, and the shorter one: 2 + 1 against 1 + 2."""
    groups = [group("q", ("aa", 1.0), ("b", 0.0)), group("r", ("a", 1.0), ("bb", 0.0))]
    tuning = tune(groups, PairsRecipe(), 0)
    assert (tuning.taken.rho, tuning.taken.chosen_length, tuning.taken.rejected_length) == (0.0, 1.5, 1.5)


def test_where_no_step_reaches_it_the_last_is_taken_and_says_so() -> None:
    tuning = tune([group("q", *THREE)], PairsRecipe(rho_steps=(1.0, 0.5)), 0)
    assert (tuning.taken.rho, tuning.taken.reached) == (1.0, False)
    assert [step.rho for step in tuning.steps] == [0.0, 0.5, 1.0]


def test_a_given_weight_is_taken_and_compared_with_none() -> None:
    tuning = tune([group("q", *THREE)], PairsRecipe(rho=1), 0)
    assert [step.rho for step in tuning.steps] == [0.0, 1.0]
    assert (tuning.taken.rho, tuning.taken.reached) == (1.0, False)
    assert len(tune([group("q", *THREE)], PairsRecipe(rho=0.0), 0).steps) == 1


def test_broken_rejected_outputs_have_no_length_to_compare() -> None:
    """Counted as 0 long, they would ask for more length control in vain: `r` alone decides, 1 against 2."""
    groups = [group("q", ("aaaa", 1.0), BROKEN), group("r", ("a", 1.0), ("bb", 0.0))]
    tuning = tune(groups, PairsRecipe(max_broken=0.5), 0)
    assert (tuning.taken.rho, tuning.taken.pairs) == (0.0, 2)
    assert (tuning.taken.chosen_length, tuning.taken.rejected_length) == (1, 2)
    only_broken = tune(groups[:1], PairsRecipe(max_broken=1.0), 0)
    assert (only_broken.taken.reached, only_broken.taken.chosen_length) == (True, None)


def test_no_steps_are_an_error_that_names_the_key() -> None:
    with pytest.raises(UsageError, match=r"pairs\.rho_steps is empty"):
        tune([group("q", *THREE)], PairsRecipe(rho_steps=()), 0)
