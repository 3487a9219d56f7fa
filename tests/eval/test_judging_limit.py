"""How many calls run at once adapts to what the server bears."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.eval.scripted_judge import Action, Asked, Say, ScriptedJudge, Status, scripted_judge
from thinkserve.eval.bench import JudgeRequest
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.limit import AdaptiveLimit


async def test_no_more_than_the_limit_run_at_once() -> None:
    limit = AdaptiveLimit(3)
    most = 0

    async def call() -> None:
        nonlocal most
        async with limit.slot():
            most = max(most, limit.running)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(call() for _ in range(20)))
    assert (most, limit.running) == (3, 0)


async def test_a_burst_of_refusals_halves_the_limit_once() -> None:
    limit = AdaptiveLimit(64)
    began = time.monotonic()
    for _ in range(64):
        limit.refused(began, None)
    assert limit.current == 32
    limit.refused(time.monotonic(), None)
    assert limit.current == 16


async def test_a_round_of_successes_adds_one_and_never_more_than_allowed() -> None:
    """From 4: 1/4 + 1/4.25 + 1/4.49 + 1/4.71 = 0.92, and a fifth success makes it 5."""
    limit = AdaptiveLimit(8)
    limit.refused(time.monotonic(), None)
    for _ in range(4):
        limit.succeeded()
    assert limit.current == 4
    limit.succeeded()
    assert limit.current == 5
    for _ in range(1000):
        limit.succeeded()
    assert limit.current == 8


async def test_a_rare_failure_of_the_server_is_not_taken_for_load() -> None:
    limit = AdaptiveLimit(64)
    for number in range(2000):
        if number % 10:
            limit.succeeded()
        else:
            limit.failed(time.monotonic())
    assert limit.current == 64


async def test_a_server_that_only_fails_is_asked_by_one_at_a_time() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(1000):
        limit.failed(time.monotonic())
    assert limit.current == 1


async def test_nothing_begins_in_a_pause() -> None:
    limit = AdaptiveLimit(4)
    limit.refused(time.monotonic(), 0.1)
    asked = time.monotonic()
    async with limit.slot() as began:
        assert began - asked >= 0.1


@pytest.mark.parametrize("same_moment", [False, True])
async def test_a_slot_is_not_lost_when_who_waits_for_it_is_cancelled(same_moment: bool) -> None:
    limit = AdaptiveLimit(1)

    async def call() -> None:
        async with limit.slot():
            pass

    async with limit.slot():
        waiting = asyncio.create_task(call())
        await asyncio.sleep(0)
        if not same_moment:
            waiting.cancel()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert limit.running == 0
    await asyncio.wait_for(call(), 1)


async def test_a_client_finds_out_how_much_a_server_bears() -> None:
    """A server that takes eight calls at once and refuses more: 600 calls at up to 64 meet some refusals, and settle near 8."""
    server: ScriptedJudge

    def eight_at_once(asked: Asked) -> Action:
        return Status(429, retry_after="0.01") if server.running > 8 else Say()

    async with (
        scripted_judge(eight_at_once, latency=0.005) as server,
        ChatClient(server.url, "m", concurrency=64, back_off=0.01) as client,
    ):
        await asyncio.gather(*(client.complete(_asked(number)) for number in range(600)))
        refused = len(server.requests) - 600
        assert 64 - 8 <= refused < 300
        assert 3 <= client.limit.current <= 10


def _asked(number: int) -> JudgeRequest:
    return JudgeRequest(({"role": "user", "content": str(number)},))
