"""A judge plays one game: it asks, asks further, asks again, and keeps what went wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.eval.scripted_judge import Action, Asked, Behaviour, Say, ScriptedJudge, Status, scripted_judge
from tests.eval.two_games import TwoGames
from thinkserve.errors import ThinkserveError
from thinkserve.eval.bench import JudgeRequest, Reply, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.judge import ApiJudge, ByRule, Decision
from thinkserve.eval.match import Game, Verdict
from thinkserve.thoughts import Response

FIRST, SECOND = Game(0, True), Game(1, False)
QUESTION = Instruction("q", "2 + 2?")


@asynccontextmanager
async def judging(
    behaviour: Behaviour, protocol: TwoGames | None = None, **options: Any
) -> AsyncIterator[tuple[ScriptedJudge, ApiJudge]]:
    """A judge at a scripted server."""
    async with (
        scripted_judge(behaviour) as server,
        ChatClient(server.url, "m", concurrency=2, back_off=0.001, retries=2) as client,
    ):
        yield server, ApiJudge(client, protocol or TwoGames(), **options)


async def decide(judge: ApiJudge, game: Game = FIRST) -> Decision:
    return await judge.decide(QUESTION, game, Response("4"), Response("5"))


@pytest.mark.parametrize(
    ("label", "game", "verdict"),
    [
        ("[[A]]", FIRST, Verdict("A", 1.0)),
        ("[[A]]", SECOND, Verdict("A", 0.0)),
        ("[[B]]", SECOND, Verdict("B", 1.0)),
        ("[[A>> B]]", FIRST, Verdict("A>>B", 1.0, 3)),
    ],
)
async def test_a_verdict_with_what_it_took(label: str, game: Game, verdict: Verdict) -> None:
    async with judging(Say(f"So: {label}")) as (_, judge):
        found = await decide(judge, game)
    assert (found.verdict, found.raw, found.failures, found.attempts) == (verdict, f"So: {label}", (), 1)
    assert (found.prompt_tokens, found.completion_tokens) == (100, 10)
    assert len(found.request_sha256) == 64


async def test_identical_responses_are_decided_without_a_call() -> None:
    async with judging(Say()) as (server, judge):
        found = await judge.decide(QUESTION, FIRST, Response("4"), Response("4"))
    assert found == Decision(Verdict("A=B", 0.5))
    assert server.requests == []


async def test_an_unreadable_reply_is_asked_for_once_more() -> None:
    async with judging([Say("Hm."), Say("[[B]]")]) as (server, judge):
        found = await decide(judge)
    assert (found.verdict, found.raw) == (Verdict("B", 0.0), "[[B]]")
    assert (found.failures, found.attempts, found.prompt_tokens) == (("no verdict",), 2, 200)
    assert server.requests[0].body == server.requests[1].body


async def test_what_stays_unreadable_has_no_verdict_and_keeps_the_text() -> None:
    async with judging([Say(""), Say("[[A]] no, [[B]]")]) as (_, judge):
        found = await decide(judge)
    assert (found.verdict, found.raw) == (None, "[[A]] no, [[B]]")
    assert (found.failures, found.attempts) == (("empty", "two verdicts"), 2)


async def test_no_reply_has_no_verdict_and_no_text() -> None:
    async with judging([Say("Hm."), Status(500), Status(502), Status(503)]) as (_, judge):
        found = await decide(judge)
    assert (found.verdict, found.attempts) == (None, 4)
    assert found.failures == ("no verdict", "http 500", "http 502", "http 503")


async def test_a_judge_that_is_asked_further_is_read_as_one_text() -> None:
    protocol = TwoGames(asks_further=True)
    async with judging([Say("Both are fine."), Say("[[B]]")], protocol) as (server, judge):
        found = await decide(judge)
    assert (found.verdict, found.raw) == (Verdict("B", 0.0), "Both are fine.\n[[B]]")
    assert (found.failures, found.attempts, found.completion_tokens) == ((), 2, 20)
    messages = server.requests[1].body["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "Both are fine."


async def test_a_protocol_that_always_asks_further_comes_to_an_end() -> None:
    class Endless(TwoGames):
        def follow_up(self, request: JudgeRequest, reply: Reply, unreadable: Unreadable) -> JudgeRequest:
            return request

    async with judging(Say("Hm."), Endless(), reasks=0) as (server, judge):
        assert (await decide(judge)).failures == ("no verdict",)
    assert len(server.requests) == 8


class FromLogprobs(TwoGames):
    """Reads the log probability of `A`."""

    def __init__(self) -> None:
        super().__init__(settings={"max_tokens": 1, "logprobs": True, "top_logprobs": 5})

    def read(self, instruction: Instruction, game: Game, reply: Reply) -> Verdict | Unreadable:
        """A verdict for whoever is A, where there are log probabilities."""
        if reply.top_logprobs is None:
            return Unreadable("no logprobs")
        return Verdict("A", float("A" in reply.top_logprobs))


async def test_log_probabilities_are_kept() -> None:
    async with judging(Say("A", logprobs={"A": -0.1, "B": -3.0}), FromLogprobs()) as (_, judge):
        found = await decide(judge)
    assert (found.verdict, found.top_logprobs) == (Verdict("A", 1.0), {"A": -0.1, "B": -3.0})


async def test_a_judge_that_ignores_logprobs_is_not_paid_for_every_game() -> None:
    async with judging(Say("A"), FromLogprobs()) as (server, judge):
        for _ in range(9):
            assert (await decide(judge)).failures == ("no logprobs",)
        with pytest.raises(ThinkserveError, match="gives no log probabilities .*--verdicts text"):
            await decide(judge)
    assert len(server.requests) == 10


async def test_one_reply_with_log_probabilities_shows_that_the_judge_has_them() -> None:
    def seldom(asked: Asked) -> Action:
        return Say("A", logprobs={"A": -0.1} if asked.number == 5 else None)

    async with judging(seldom, FromLogprobs()) as (_, judge):
        verdicts = [(await decide(judge)).verdict for _ in range(30)]
    assert sum(verdict is not None for verdict in verdicts) == 1


async def test_a_judge_sees_nothing_but_responses() -> None:
    output: Any = "<think>secret</think>4"
    async with judging(Say()) as (server, judge):
        with pytest.raises(TypeError, match="only see a Response, and not a str"):
            await judge.decide(QUESTION, FIRST, output, Response("5"))
        with pytest.raises(TypeError, match="only see a Response, and not a str"):
            await ByRule(TwoGames(), "rule").decide(QUESTION, FIRST, Response("5"), output)
    assert server.requests == []


async def test_a_rule_decides_by_the_protocol_and_has_no_other_way() -> None:
    rule = ByRule(TwoGames(), "rule")
    assert (await rule.decide(QUESTION, FIRST, Response("4"), Response("4"))).verdict == Verdict("A=B", 0.5)
    with pytest.raises(ThinkserveError, match="instruction q needs a judge, and 'rule' is a rule"):
        await rule.decide(QUESTION, FIRST, Response("4"), Response("5"))
