"""Bradley-Terry strengths, against values derived by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkserve.training.judges.bradley_terry import bradley_terry

Matrix = list[list[float]]


def difference(wins: Matrix, prior: float = 0.0) -> float:
    one, other = bradley_terry(wins, prior)
    assert one == pytest.approx(-other)
    return float(one - other)


def test_two_players_differ_by_the_log_of_their_odds() -> None:
    """3 log sigma(d) + log sigma(-d) has the derivative 3 sigma(-d) - sigma(d), which is 0 where
    sigma(d) / sigma(-d) = e^d = 3.
    """
    assert difference([[0, 3], [1, 0]]) == pytest.approx(log(3), abs=1e-9)


def test_the_prior_is_that_many_wins_each_way() -> None:
    """With a prior of 0.5 the wins are 3.5 and 1.5; d = ln(3.5 / 1.5)."""
    assert difference([[0, 3], [1, 0]], 0.5) == pytest.approx(log(3.5 / 1.5), abs=1e-9)


def test_an_undefeated_player_is_finite_with_a_prior() -> None:
    """Both orders won, prior 0.1: d = ln(2.1 / 0.1) = ln 21."""
    assert difference([[0, 2], [0, 0]], 0.1) == pytest.approx(log(21), abs=1e-9)


def test_a_tiny_prior_is_no_trouble() -> None:
    """d = ln((2 + 1e-6) / 1e-6)."""
    assert difference([[0, 2], [0, 0]], 1e-6) == pytest.approx(log(2e6 + 1), abs=1e-6)


def test_halves_are_ties() -> None:
    """A win and a tie: 1.5 against 0.5, so d = ln 3."""
    assert difference([[0, 1.5], [0.5, 0]]) == pytest.approx(log(3), abs=1e-9)


def test_a_circle_has_no_best() -> None:
    """Each beat the next one once: by symmetry all are equal, and their mean is 0."""
    circle = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert bradley_terry(circle) == pytest.approx([0, 0, 0], abs=1e-9)
    assert bradley_terry(circle, 0.1) == pytest.approx([0, 0, 0], abs=1e-9)


def test_three_players_whose_wins_are_as_their_strengths_say() -> None:
    """Strengths ln 4, ln 2, ln 1 say that of m and n m wins e_m / (e_m + e_n): 4:2, 2:1 and 4:1. With just these wins
    each player has as many as expected, which is the condition of the maximum. The mean of the logs is ln 2.
    """
    wins = [[0, 4, 4], [2, 0, 2], [1, 1, 0]]
    assert bradley_terry(wins) == pytest.approx([log(2), 0, -log(2)], abs=1e-9)


def test_more_of_the_same_players_in_a_row() -> None:
    """A beat B and B beat C, both 3:1, A never met C: the wins of A and C hang on B alone, so each step is ln 3."""
    wins = [[0, 3, 0], [1, 0, 3], [0, 1, 0]]
    assert bradley_terry(wins) == pytest.approx([log(3), 0, -log(3)], abs=1e-9)


def test_players_that_never_met_are_finite_with_a_prior() -> None:
    """Two pairs, each 3:1, with nothing in between but the prior: by symmetry the winners are equal, and so are the losers."""
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 3
    wins[1, 0] = wins[3, 2] = 1
    found = bradley_terry(wins, 0.1)
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(found[2]) and found[1] == pytest.approx(found[3])
    assert found[0] > 0 > found[1]


@pytest.mark.parametrize(
    "wins", [[[0, 2], [0, 0]], [[0, 0], [0, 0]], [[0, 1, 0], [1, 0, 0], [0, 0, 0]]], ids=str
)
def test_without_a_finite_maximum_there_is_an_error_and_no_large_number(wins: Matrix) -> None:
    with pytest.raises(ValueError, match="give a prior"):
        bradley_terry(wins)


@pytest.mark.parametrize("wins", [[[0, 1]], [[0, -1], [1, 0]], [[0, float("nan")], [1, 0]]], ids=str)
def test_what_is_no_table_of_wins_is_refused(wins: Matrix) -> None:
    with pytest.raises(ValueError, match="wins"):
        bradley_terry(wins, 0.1)


def test_nobody_and_one_alone() -> None:
    assert bradley_terry(np.zeros((0, 0))).tolist() == []
    assert bradley_terry([[5]]).tolist() == [0.0]


def test_what_is_given_stays_as_it_is() -> None:
    wins = np.array([[7.0, 2.0], [1.0, 7.0]])
    bradley_terry(wins, 0.5)
    assert wins.tolist() == [[7, 2], [1, 7]]


tables = st.integers(2, 8).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=n, max_size=n), min_size=n, max_size=n
    )
)


@settings(deadline=None)
@given(tables, st.floats(1e-3, 2.0), st.randoms(use_true_random=False))
def test_players_may_be_named_in_any_order(wins: Matrix, prior: float, random: object) -> None:
    order = list(range(len(wins)))
    random.shuffle(order)  # type: ignore[attr-defined]
    table = np.array(wins)
    assert bradley_terry(table[np.ix_(order, order)], prior) == pytest.approx(
        bradley_terry(table, prior)[order], abs=1e-7
    )


@settings(deadline=None)
@given(tables, st.floats(1e-3, 2.0))
def test_at_the_maximum_everybody_won_as_often_as_expected(wins: Matrix, prior: float) -> None:
    """The derivative by e_m is `sum_n B_mn - (B_mn + B_nm) sigma(e_m - e_n)`."""
    found = bradley_terry(wins, prior)
    won = np.array(wins) + prior
    np.fill_diagonal(won, 0)
    expected = (won + won.T) / (1 + np.exp(found[None, :] - found[:, None]))
    assert expected.sum(axis=1) == pytest.approx(won.sum(axis=1), abs=1e-7)
    assert found.mean() == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(tables, st.floats(1e-3, 2.0))
def test_the_same_wins_give_the_same_bits(wins: Matrix, prior: float) -> None:
    assert bradley_terry(wins, prior).tobytes() == bradley_terry(wins, prior).tobytes()
