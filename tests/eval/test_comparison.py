"""Two models over the same instructions."""

from __future__ import annotations

import numpy as np
import pytest

from thinkserve.eval.answer import Answer
from thinkserve.eval.comparison import compare, head_to_head, preference_of
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict
from thinkserve.thoughts import Response


def match(
    number: int,
    *preferences: float | None,
    topic: str | None = None,
    weight: int = 1,
    response: str = "four",
    complete: bool = True,
) -> Match:
    """A match with a game for each preference; None is one without a verdict."""
    instruction = Instruction(f"i{number}", f"Do {number}.", {"topic": topic} if topic else {}, number)
    games = tuple(
        PlayedGame(Game(at, at == 0), "judge", None if p is None else Verdict("", p, weight))
        for at, p in enumerate(preferences)
    )
    baseline = Answer(instruction.id, Response("four"))
    return Match(instruction, Answer(instruction.id, Response(response), complete), baseline, "base", games)


def test_preference_is_the_mean_over_scored_games() -> None:
    assert preference_of(match(0, 1.0, 0.5)) == 0.75
    assert preference_of(match(0, None, 1.0)) == 1.0
    assert preference_of(match(0, None, None)) is None
    assert preference_of(match(0)) is None
    assert preference_of(match(0, 1.0, 0.0, weight=3)) == 0.5


def test_difference_is_that_of_paired_preferences_in_points() -> None:
    """Instructions 0 to 3: 1-0, 0.5-0.5, 0-1, 1-0.5: mean (1 + 0 - 1 + 0.5) / 4 = 12.5 points. The order of the second
    model's matches is another one."""
    first = [match(n, p) for n, p in enumerate((1.0, 0.5, 0.0, 1.0))]
    second = [match(n, p) for n, p in ((3, 0.5), (2, 1.0), (1, 0.5), (0, 0.0))]
    found = compare("a", "b", first, second, seed=0)
    assert (found.a, found.b, found.metric, found.ci_level) == ("a", "b", "win_rate", 0.95)
    assert found.overall.n == 4
    assert found.overall.difference == pytest.approx(12.5)
    assert found.overall.ci[0] < 12.5 < found.overall.ci[1]
    assert found.overall.note == "too few to say: 4 instructions"
    assert found.categories == {}


def test_what_is_unscored_or_missing_for_one_is_left_out_for_both_and_counted() -> None:
    first = [match(0, 1.0), match(1, None), match(2, 1.0), match(3, 0.0)]
    second = [match(0, 0.0), match(1, 1.0), match(2, None, None), match(4, 1.0)]
    overall = compare("a", "b", first, second, seed=0).overall
    assert (overall.n, overall.difference) == (1, 100.0)
    assert overall.note == (
        "too few to say: 1 instruction; 4 of 5 instructions left out: missing or unscored for one of the two"
    )


def test_with_nothing_in_common_nothing_is_known() -> None:
    overall = compare("a", "b", [match(0, 1.0)], [match(1, 0.0)], seed=0, schemes=["topic"]).overall
    assert (overall.n, overall.difference, overall.ci, overall.p) == (0, 0.0, (-100.0, 100.0), 1.0)
    assert overall.note == "2 of 2 instructions left out: missing or unscored for one of the two"


def test_a_difference_that_is_there_is_found_and_one_that_is_not_is_not() -> None:
    """300 instructions; b wins 30 %, a 60 %, and c 30 % by other coins: standard error of a difference about 4 points."""
    rng = np.random.default_rng(0)
    a, b, c = ([match(n, float(rng.random() < rate)) for n in range(300)] for rate in (0.6, 0.3, 0.3))
    better, same = compare("a", "b", a, b, seed=0).overall, compare("c", "b", c, b, seed=0).overall
    assert better.p < 0.001
    assert better.ci[0] > 0
    assert better.note is None
    assert same.p > 0.05
    assert same.ci[0] < 0 < same.ci[1]


def test_categories_are_compared_each_and_corrected_within_their_scheme() -> None:
    """Three topics of 30 instructions: a wins all in x, 20 to 10 in y, 15 to 15 in z. Holm's by hand: 3 p_x, 2 p_y, p_z;
    p_x is the least there is, 1/10001, and z with p = 1 stays. An instruction without a topic is in none."""
    wins = {"x": 30, "y": 20, "z": 15}
    first = [
        match(100 * at + n, float(n < wins[topic]), topic=topic)
        for at, topic in enumerate("xyz")
        for n in range(30)
    ]
    second = [
        match(100 * at + n, float(n >= wins[topic]), topic=topic)
        for at, topic in enumerate("xyz")
        for n in range(30)
    ]
    topics = compare(
        "a", "b", [*first, match(999, 1.0)], [*second, match(999, 1.0)], seed=0, schemes=["topic", "no"]
    )
    assert list(topics.categories) == ["topic"]
    found = topics.categories["topic"]
    assert {name: (one.n, round(one.difference, 6)) for name, one in found.items()} == {
        "x": (30, 100.0),
        "y": (30, 33.333333),
        "z": (30, 0.0),
    }
    assert found["x"].p == pytest.approx(1 / 10001)
    assert found["x"].p_holm == pytest.approx(3 / 10001)
    assert found["y"].p == pytest.approx(0.099, abs=0.012)  # binomial: 10 or fewer of 30, both sides
    assert found["y"].p_holm == pytest.approx(2 * found["y"].p)
    assert found["z"].p_holm == found["z"].p == 1.0
    assert found["y"].note == found["z"].note
    assert (found["x"].note, "points wide" in str(found["y"].note)) == (None, True)
    assert topics.overall.n == 91


def test_comparison_does_not_hang_on_the_order_of_matches() -> None:
    rng = np.random.default_rng(1)
    first, second = (
        [match(n, float(rng.integers(3)) / 2, topic="ab"[n % 2]) for n in range(60)] for _ in range(2)
    )
    one = compare("a", "b", first, second, seed=5, schemes=["topic"])
    other = compare("a", "b", first[::-1], second, seed=5, schemes=["topic"])
    assert one.overall == other.overall
    assert one.categories == other.categories
    assert one != compare("a", "b", first, second, seed=6, schemes=["topic"])


def test_head_to_head_by_hand() -> None:
    """Preferences 1, 0.75 (two games), 0.5, 0 (no response) and one unscored: mean 2.25/4; 2 wins, 1 draw, 1 loss, which
    is 2.5/4 in whole wins; standard deviation of 100, 75, 50, 0: squares 43.75^2 + 18.75^2 + 6.25^2 + 56.25^2 = 5468.75,
    / 3 = 1822.9, root 42.7, / 2 = 21.35; lengths 4, 8, 4, 0."""
    matches = [
        match(0, 1.0),
        match(1, 1.0, 0.5, response="eight..."),
        match(2, 0.5),
        match(3, 0.0, response="", complete=False),
        match(4, None, response="not counted"),
    ]
    found = head_to_head(matches, seed=0)
    assert (found.n, found.unscored, found.forfeits) == (4, 1, 1)
    assert (found.wins, found.draws, found.losses) == (2, 1, 1)
    assert found.win_rate == pytest.approx(56.25)
    assert found.discrete_win_rate == pytest.approx(62.5)
    assert found.standard_error == pytest.approx(21.35, abs=0.01)
    assert found.mean_length == 4
    assert found.ci is not None
    assert found.ci[0] < 56.25 < found.ci[1]
    assert found.ci_level == 0.95
    assert found.note == "too few to say: 4 instructions"
    assert found.length_controlled_win_rate is not None
    assert found.lc_standard_error is not None


def test_head_to_head_takes_length_out() -> None:
    """The longer response wins four times in five, whoever's it is. Of 20 instructions a's is longer in 15 (it wins all
    but 1, 6 and 11) and as much shorter in 5 (it wins 8 alone): 13 of 20 are 65 %, and half at equal length. Odd ones
    are all longer: 80 %."""
    shorter = [n % 4 == 0 for n in range(200)]
    matches = [
        match(
            n,
            float(short == (n % 20 in (1, 6, 8, 11))),
            topic="ab"[n % 2],
            response="x" * (1 if short else 7),
        )
        for n, short in enumerate(shorter)
    ]
    found = head_to_head(matches, seed=0, schemes=["topic", "no"])
    assert found.win_rate == 65
    assert found.length_controlled_win_rate == pytest.approx(50, abs=0.2)
    assert list(found.categories) == ["topic"]
    topics = found.categories["topic"]
    assert [(topics[name].n, topics[name].win_rate) for name in "ab"] == [(100, 50.0), (100, 80.0)]
    assert [topics[name].length_controlled_win_rate for name in "ab"] == pytest.approx([50, 50], abs=0.5)


def test_head_to_head_with_nothing_scored_has_no_numbers() -> None:
    found = head_to_head([match(0, None, topic="a")], seed=0, schemes=["topic"])
    assert (found.n, found.unscored, found.win_rate, found.length_controlled_win_rate) == (0, 1, None, None)
    assert found.note == "too few to say: 0 instructions"
