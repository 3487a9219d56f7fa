"""Length control: N(score) - rho * N(length), with numbers derived by hand."""

from __future__ import annotations

from math import isfinite, sqrt

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from thinkserve.training.pairs.length_control import controlled, normalized

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def test_values_are_scores_less_rho_times_lengths_both_in_standard_deviations() -> None:
    """Scores 1, 2, 3: mean 2, population variance 2/3, so N = -sqrt(3/2), 0, sqrt(3/2), with sqrt(3/2) = 1.224745.

    Lengths 10, 20, 60: mean 30, variance (400 + 100 + 900) / 3 = 1400/3, deviation 21.602469, so
    N = -0.925820, -0.462910, 1.388730. With rho = 0.5: -1.224745 + 0.462910 = -0.761835; 0 + 0.231455;
    1.224745 - 0.694365 = 0.530380.
    """
    scores, lengths = normalized([1, 2, 3]), normalized([10, 20, 60])
    assert scores == pytest.approx([-sqrt(3 / 2), 0, sqrt(3 / 2)])
    assert lengths == pytest.approx([-0.925820, -0.462910, 1.388730], abs=1e-6)
    assert controlled(scores, lengths, 0.5) == pytest.approx([-0.761835, 0.231455, 0.530380], abs=1e-6)
    assert controlled(scores, lengths, 0.0) == scores


@pytest.mark.parametrize("values", [[0.1] * 3, [0.7] * 8, [1e300] * 2, [5.0], [0.0, 0.0]])
def test_equal_values_are_zero_even_where_their_mean_is_rounded(values: list[float]) -> None:
    """The mean of three times 0.1 is 0.10000000000000002 in floats: the deviation is not 0 then, and N would be -1."""
    assert normalized(values) == (0.0,) * len(values)


def test_no_values_have_no_normal_values() -> None:
    assert normalized([]) == ()


@given(st.lists(FLOATS, min_size=1, max_size=10))
@example([-1.7e308, 0.0, 1.7e308])
@example([0.0, 1e-310, 2e-310])
def test_normal_values_are_finite_whatever_the_scores_are(values: list[float]) -> None:
    """From the smallest to the largest floats; their order is kept, and mean and deviation are 0 and 1."""
    found = normalized(values)
    assert all(map(isfinite, found))
    ranked = sorted(range(len(values)), key=values.__getitem__)
    assert [found[at] for at in ranked] == sorted(found)
    assert sum(found) == pytest.approx(0, abs=1e-6)
    if any(found):
        assert sum(value**2 for value in found) / len(found) == pytest.approx(1)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=8), st.integers(1, 50), st.integers(-500, 500))
def test_scale_and_shift_of_a_judge_make_no_difference(scores: list[int], scale: int, shift: int) -> None:
    moved = normalized([scale * score + shift for score in scores])
    assert moved == pytest.approx(normalized(scores), abs=1e-9)
