"""Every category of every bench has a win rate; Arena-Hard's own number is another one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from thinkserve.eval.answer import Answer
from thinkserve.eval.arena.scoring import score_arena
from thinkserve.eval.arena.unseen import UnseenAnswer
from thinkserve.eval.arena.verdict import verdict_of
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Game, Match, PlayedGame
from thinkserve.eval.scores import Group
from thinkserve.eval.win_rates import with_win_rates
from thinkserve.thoughts import Response


def match(number: int, first: str, second: str) -> Match:
    """Game 1 shows the baseline as A, game 2 the model."""
    instruction = Instruction(
        str(number), "x", {"category": "hard_prompt", "subcategory": "math" if number % 2 else "coding"}
    )
    games = (
        PlayedGame(Game(0, model_first=False), "j", verdict_of(first, False)),
        PlayedGame(Game(1, model_first=True), "j", verdict_of(second, True)),
    )
    answer, baseline = Answer(str(number), Response("a" * number)), Answer(str(number), Response("b"))
    return Match(instruction, answer, baseline, "o3-mini-2025-01-31", games)


MATCHES = {
    "m": [match(number, "B>>A", "A>B") for number in range(6)]
    + [match(6, "A>B", "B>>A"), match(7, "A=B", "A>B")]
}


def test_arena_hard_has_win_rates_beside_its_score_also_in_its_categories() -> None:
    """Six of eight are won twice, one is lost twice, one is a tie and a win: (6 + 0 + 0.75) / 8 = 84.375.

    The score counts battles: 6 * (3 + 1) won, 1 + 3 lost, a tie and one won: (24 + 1.5) / 30 = 85.
    """
    scores = score_arena("v2.0", MATCHES, compat="aligned", seed=0)
    group = with_win_rates(scores.models, MATCHES, 0)["m"]
    assert group.score == pytest.approx(85)
    assert group.win_rate == pytest.approx(84.375)
    assert (group.wins, group.draws, group.losses) == (7, 0, 1)
    assert group.ci == scores.models["m"].ci
    assert group.length_controlled_win_rate is not None
    math = group.categories["subcategory"]["math"]
    assert math.win_rate == pytest.approx(100 * 3.75 / 4)
    assert math.length_controlled_win_rate is not None


def test_without_responses_there_is_no_length_control() -> None:
    unseen = {"m": [replace(one, answer=UnseenAnswer.to(one.answer.id)) for one in MATCHES["m"]]}
    group = with_win_rates({"m": Group(8, score=85.0)}, unseen, 0)["m"]
    assert group.win_rate == pytest.approx(84.375)
    assert group.length_controlled_win_rate is None


def test_a_bench_with_win_rates_keeps_its_own() -> None:
    own = {"m": Group(8, win_rate=1.0, length_controlled_win_rate=2.0)}
    assert with_win_rates(own, MATCHES, 0) == own
