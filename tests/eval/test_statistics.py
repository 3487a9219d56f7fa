"""Standard errors, bootstrap intervals, paired differences and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkserve.eval.statistics import (
    bootstrap_mean_ci,
    holm,
    paired_bootstrap,
    small_group_note,
    standard_error,
)

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def test_standard_error_by_hand() -> None:
    """Of 0, 0, 1, 1: mean 1/2, squares 4 * 1/4 = 1, variance 1/3, so sqrt(1/3)/sqrt(4) = sqrt(1/12)."""
    assert standard_error([0, 0, 1, 1]) == pytest.approx(math.sqrt(1 / 12), abs=1e-15)


def test_one_value_has_no_standard_error() -> None:
    assert math.isnan(standard_error([1.0]))
    assert math.isnan(standard_error([]))


@settings(deadline=None, max_examples=50)
@given(numbers, st.integers(0, 10**6), st.randoms())
def test_interval_lies_within_the_values_and_does_not_hang_on_their_order(
    values: list[float], seed: int, chance: object
) -> None:
    shuffled = list(values)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    low, high = bootstrap_mean_ci(values, seed=seed, rounds=200)
    assert min(values) <= low <= high <= max(values)
    assert bootstrap_mean_ci(shuffled, seed=seed, rounds=200) == (low, high)


def test_a_higher_level_makes_a_wider_interval_and_another_seed_hardly_another_one() -> None:
    values = np.random.default_rng(3).random(200)
    low, high = bootstrap_mean_ci(values, seed=0)
    lower, higher = bootstrap_mean_ci(values, seed=0, level=0.99)
    assert lower < low < values.mean() < high < higher
    assert bootstrap_mean_ci(values, seed=1) != (low, high)
    assert bootstrap_mean_ci(values, seed=1) == pytest.approx((low, high), abs=0.01)


def test_interval_of_many_values_is_that_of_the_normal_distribution() -> None:
    """2000 preferences of 0 and 1, half of each: 0.5 +- 1.96 * sqrt(0.25/2000) = 0.5 +- 0.0219."""
    low, high = bootstrap_mean_ci([0.0, 1.0] * 1000, seed=0, rounds=10000)
    assert (low, high) == pytest.approx((0.5 - 0.0219, 0.5 + 0.0219), abs=0.001)


def test_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    """600 samples of 100 preferences. Binomial error of the coverage: sqrt(0.95 * 0.05 / 600) = 0.009; the percentile
    interval is known to be about 0.01 too short at this size."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(600):
        low, high = bootstrap_mean_ci((rng.random(100) < 0.3).astype(np.float64), seed=seed, rounds=400)
        hits += low <= 0.3 <= high
    assert 0.91 <= hits / 600 <= 0.98


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_nothing_and_unscored_values_have_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="leave out what is unscored"):
        bootstrap_mean_ci(values, seed=0)
    with pytest.raises(ValueError, match="leave out what is unscored"):
        paired_bootstrap(values, seed=0)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0] * 5, 2 / 32),  # only all + and all - are as far from 0
        ([1.0], 1.0),
        ([0.0] * 7, 1.0),
        ([1.0, 1.0, 1.0, 0.0, 0.0], 2 / 8),  # ties say nothing
        ([3.0, 1.0, -1.0], 6 / 8),  # 3, of the eight sums 5 3 3 1 -1 -3 -3 -5 six are as far
        ([0.1, 0.2, -0.3], 1.0),  # 0 but for rounding
    ],
)
def test_p_value_is_the_share_of_flips_that_go_as_far(differences: list[float], expected: float) -> None:
    """Monte Carlo error of 10000 rounds: at most 0.005."""
    assert paired_bootstrap(differences, seed=0).p == pytest.approx(expected, abs=0.015)


def test_p_value_is_never_zero() -> None:
    assert paired_bootstrap([1.0] * 200, seed=0, rounds=999).p == 1 / 1000


def test_p_value_of_many_pairs_is_that_of_the_z_test() -> None:
    """250 differences: 60 of +1, 40 of -1, 150 of 0. z = 20 / sqrt(100) = 2, two-sided 0.0455; sums are even numbers, so
    with correction for continuity z = 19/10 and p = 0.0574."""
    result = paired_bootstrap([1.0] * 60 + [-1.0] * 40 + [0.0] * 150, seed=4)
    assert result.difference == pytest.approx(20 / 250)
    assert result.p == pytest.approx(0.0574, abs=0.007)


@settings(deadline=None, max_examples=30)
@given(numbers, st.integers(0, 1000))
def test_comparing_the_other_way_round_mirrors_the_result(differences: list[float], seed: int) -> None:
    forth = paired_bootstrap(differences, seed=seed, rounds=300)
    back = paired_bootstrap([-d for d in differences], seed=seed, rounds=300)
    assert forth.difference == pytest.approx(-back.difference, abs=1e-9)
    assert 1 / 301 <= forth.p <= 1.0
    assert forth.p == pytest.approx(back.p, abs=0.2)


def test_models_that_are_as_good_as_each_other_are_told_apart_as_often_as_the_level_says() -> None:
    """800 comparisons of 15 pairs without a difference: 5 % +- 2 * 0.8 % have p <= 0.05, or fewer, as sums are coarse."""
    rng = np.random.default_rng(1)
    found = 0
    for seed in range(800):
        differences = rng.random(15) - rng.random(15)
        found += paired_bootstrap(differences, seed=seed, rounds=400).p <= 0.05
    assert 0.025 <= found / 800 <= 0.07


def test_large_inputs_are_drawn_in_blocks_to_the_same_effect() -> None:
    """100000 values make 42 rounds a block, so 100 rounds are three blocks."""
    values = np.random.default_rng(0).random(100_000)
    low, high = bootstrap_mean_ci(values, seed=0, rounds=100)
    assert values.mean() - 0.004 < low < values.mean() < high < values.mean() + 0.004


def test_holm_by_hand() -> None:
    """Smallest first: 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, 1 * 0.04 -> not below 0.06."""
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}, abs=1e-15)
    assert list(corrected) == ["a", "b", "c", "d"]


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_of_p_values_and_lies_between_them_and_bonferroni(
    p_values: dict[str, float],
) -> None:
    corrected = holm(p_values)
    for name, p in p_values.items():
        assert p <= corrected[name] <= min(1.0, max(p_values.values()) * len(p_values))
        assert all(corrected[name] <= corrected[other] for other in p_values if p < p_values[other])
    assert holm(dict(reversed(p_values.items()))) == corrected


@pytest.mark.parametrize(
    ("n", "ci", "expected"),
    [
        (19, (40.0, 60.0), "too few to say: 19 instructions"),
        (1, None, "too few to say: 1 instruction"),
        (20, (40.0, 60.0), None),
        (20, None, None),
        (25, (30.0, 70.0), "too few to say: the interval is 40 points wide"),
    ],
)
def test_small_groups_say_that_they_are_small(
    n: int, ci: tuple[float, float] | None, expected: str | None
) -> None:
    assert small_group_note(n, ci) == expected
