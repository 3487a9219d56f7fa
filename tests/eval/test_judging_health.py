"""The health of a judge, counted from its matches and judgments."""

from __future__ import annotations

from tests.eval.two_games import pairs
from thinkserve.eval.judging.health import health_of
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict

GAMES = (Game(0, True), Game(1, False))


def match(*preferences: float | None, judge: str = "judge", complete: bool = True) -> Match:
    """A match of two games with these preferences for the model, which is shown first in the first one."""
    pair = pairs(1, unanswered=() if complete else [0])[0]
    verdicts = [None if value is None else Verdict("x", value) for value in preferences]
    games = [PlayedGame(game, judge, verdict) for game, verdict in zip(GAMES, verdicts, strict=False)]
    return Match(pair.instruction, pair.answer, pair.baseline, pair.baseline_model, tuple(games))


def judgment(failure: str | None = None, failures: tuple[str, ...] = (), attempts: int = 1) -> Judgment:
    return Judgment(
        "k", "0", 0, True, "m", "b", "j", "", failure=failure, failures=failures, attempts=attempts
    )


def test_verdicts_are_counted_by_order() -> None:
    """The model is first in game 0: (1, 1) the model twice; (1, 0) and (0.9, 0.2) the first response twice, so a flip;
    (0, 1) the second response twice, a flip too; (0.5, 1) a tie and the model; (1, -) one game; a forfeit counts for
    nothing. Decided: 2 + 2 + 2 + 2 + 1 + 1 = 10, of which the first response won 1 + 2 + 2 + 0 + 0 + 1 = 6.
    """
    matches = [
        match(1.0, 1.0),
        match(1.0, 0.0),
        match(0.9, 0.2),
        match(0.0, 1.0),
        match(0.5, 1.0),
        match(1.0, None),
        match(0.0, 0.0, complete=False),
    ]
    assert health_of(matches, []) == {
        "games": 14,
        "forfeits": 2,
        "judged": 11,
        "unscored": 1,
        "order_pairs": 5,
        "order_flips": 3,
        "decided": 10,
        "first_preferred": 6,
    }


def test_two_judges_are_no_order_pair_of_one() -> None:
    one, other = match(1.0, None), match(None, 0.0, judge="other")
    both = Match(one.instruction, one.answer, one.baseline, one.baseline_model, one.games + other.games)
    assert health_of([both], [])["order_pairs"] == 0


def test_calls_are_counted_by_what_became_of_them() -> None:
    judgments = [
        judgment(),
        judgment(failures=("http 429", "no verdict"), attempts=3),
        judgment("no verdict", ("no verdict", "no verdict"), 2),
        judgment("timeout", ("http 500", "timeout"), 2),
        judgment(attempts=2),  # asked further
    ]
    health = health_of([match(1.0, None)], judgments)
    assert health["unreadable"] == {"no verdict": 1, "timeout": 1}
    assert health["failures"] == {"http 429": 1, "http 500": 1, "no verdict": 3, "timeout": 1}
    assert (health["attempts"], health["retried"]) == (10, 3)
