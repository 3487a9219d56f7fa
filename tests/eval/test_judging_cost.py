"""What judging will cost is known before the first call, and asked about above a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.scripted_judge import Say, scripted_judge
from tests.eval.two_games import TEMPLATE, TwoGames, pairs
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.bench import Estimate
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.cost import confirm, estimate, in_words, price_of, together
from thinkserve.eval.judging.judge import ApiJudge
from thinkserve.eval.judging.stage import PlannedGame, plan_matches, play
from thinkserve.eval.judging.store import JudgmentStore


async def test_only_games_without_a_verdict_cost_something(tmp_path: Path) -> None:
    """Ten pairs, one forfeited: 18 games of two; a prompt has the template (60 characters less its three places, 34) and
    `What is 1 + 1?` (14), `It is 2, I think.` (17), `2` (1).
    """
    protocol = TwoGames()
    everything = pairs(10, unanswered=[3])
    async with (
        scripted_judge(Say()) as server,
        ChatClient(server.url, "gpt-4.1", concurrency=4) as client,
    ):
        judge = ApiJudge(client, protocol)
        with JudgmentStore(tmp_path / "j.jsonl") as store:
            plan = plan_matches("bench", everything, judge, protocol, store)
            before = estimate(plan.pending, protocol, client.model)
            await play(plan, judge, store)
            after = estimate(
                plan_matches("bench", everything, judge, protocol, store).pending, protocol, "gpt-4.1"
            )
    characters = len(TEMPLATE) - len("{instruction}{output_1}{output_2}") + 14 + 17 + 1
    each = 4 + round(characters / 4)
    assert (before.calls, before.completion_tokens) == (18, 18 * 64)
    assert abs(before.prompt_tokens - 18 * each) <= 18  # the last pair's numbers have two digits
    assert before.dollars == pytest.approx((before.prompt_tokens * 2 + before.completion_tokens * 8) / 1e6)
    assert after == Estimate(0, 0, 0, 0.0)
    assert len(server.requests) == 18


def test_a_judge_that_may_write_a_lot_is_expected_to_write_a_judgment() -> None:
    """Not its limit of 16,000 tokens, but 600 for each of the two games."""
    protocol = TwoGames(settings={"max_tokens": 16000})
    games = [PlannedGame(pair, game, "") for pair in pairs(1) for game in protocol.games(pair.instruction)]
    assert estimate(games, protocol, "x").completion_tokens == 1200


@pytest.mark.parametrize(
    ("model", "dollars"),
    [("gpt-4-1106-preview", 10), ("gpt-4.1", 2), ("gpt-4.1-2025-04-14", 2)],
)
def test_the_official_judges_have_a_price(model: str, dollars: float) -> None:
    price = price_of(model)
    assert price is not None
    assert price.prompt == dollars


@pytest.mark.parametrize("model", ["gpt-4.1-mini", "gpt-4", "my-gpt-4.1", "llama"])
def test_no_other_price_is_guessed_at(model: str) -> None:
    assert price_of(model) is None


def test_estimates_add_up() -> None:
    both = [Estimate(1, 2, 3, 4.0), Estimate(10, 20, 30, None)]
    assert together(both) == Estimate(11, 22, 33, 4.0)
    assert together(both[1:]) == Estimate(10, 20, 30, None)


def test_in_words() -> None:
    assert in_words(Estimate(1000, 1_530_000, 64_000, 1234.5)) == (
        "1,000 calls, about 1.5 M prompt and 64,000 completion tokens, about $1,234.50"
    )
    assert in_words(Estimate(1, 10, 1, None)) == "1 call, about 10 prompt and 1 completion tokens"
    assert in_words(Estimate(0, 0, 0, None)) == "no calls: every verdict is there"


def test_nobody_is_asked_within_the_limit_or_where_the_price_is_not_known_or_after_yes() -> None:
    def never(question: str) -> bool:
        raise AssertionError(question)

    confirm(Estimate(1, 1, 1, 5.0), 5.0, yes=False, ask=never)
    confirm(Estimate(1, 1, 1, None), 0.0, yes=False, ask=never)
    confirm(Estimate(1, 1, 1, 500.0), 5.0, yes=True, ask=None)


def test_above_the_limit_the_user_decides() -> None:
    asked: list[str] = []

    def agree(question: str) -> bool:
        asked.append(question)
        return True

    confirm(Estimate(7, 1, 1, 5.01), 5.0, yes=False, ask=agree)
    assert "7 calls" in asked[0]
    assert "$5.01" in asked[0]
    with pytest.raises(ThinkserveError, match="nothing was spent"):
        confirm(Estimate(7, 1, 1, 5.01), 5.0, yes=False, ask=lambda question: False)


def test_above_the_limit_with_nobody_there_says_what_to_add() -> None:
    with pytest.raises(UsageError, match=r"7 calls.*\$5\.01, which is more than \$5\.00.*add --yes"):
        confirm(Estimate(7, 1, 1, 5.01), 5.0, yes=False, ask=None)
