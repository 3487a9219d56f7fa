"""The rule judge of the pocket world."""

from __future__ import annotations

from random import Random
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkserve.thoughts import Response
from thinkserve.training.pocket.judge import is_right, score
from thinkserve.training.pocket.world import draw, solve


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("632", 1.0),
        (" 632\n", 1.0),
        ("631", 2 / 3),
        ("63", 2 / 3),
        ("6320", 3 / 4),
        ("", 0.0),
        ("xyz", 0.0),
    ],
)
def test_score_is_the_share_of_right_places(response: str, expected: float) -> None:
    assert score("What is 347+285?", Response(response)) == pytest.approx(expected)


@settings(deadline=None)
@given(st.text(max_size=30), st.integers(0, 1000))
def test_only_the_right_response_scores_one(response: str, seed: int) -> None:
    task = draw(Random(seed))
    given_score = score(task, Response(response))
    assert 0.0 <= given_score <= 1.0
    assert (given_score == 1.0) == is_right(task, Response(response))
    assert score(task, Response(task.answer)) == 1.0


def test_an_instruction_may_be_given_as_text() -> None:
    task = solve("Repeat abc")
    assert task is not None
    assert score("Repeat abc", Response("abd")) == score(task, Response("abd"))


def test_an_unknown_instruction_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="Sing a song"):
        score("Sing a song", Response("la"))


def test_the_judge_asks_for_a_response_so_that_no_thought_can_reach_it() -> None:
    assert get_type_hints(score)["response"] is Response
    assert get_type_hints(is_right)["response"] is Response
