"""Sampling from a server: all outputs in one request, each with a seed of its own, and nothing lost when it fails."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.training.sampling_world import Reply, ScriptedServer, asks_of, completion, sample, scripted_server
from thinkserve.errors import EngineError, ThinkserveError, UsageError
from thinkserve.eval.bench import Reply as JudgeReply
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.completion import Choice, Completion
from thinkserve.training.records import Sampled
from thinkserve.training.sampling.generator import Ask, Sampling
from thinkserve.training.sampling.server import ServedModel, ServerGenerator, token_counts

SAMPLING = Sampling(k=3, temperature=0.8, top_p=0.95, max_tokens=100)
VLLM = ServedModel("vllm 0", extensions=True)


@asynccontextmanager
async def asking(
    answer: Callable[[dict[str, Any]], Reply] = completion,
    model: ServedModel = VLLM,
    *,
    uds: Path | None = None,
    failed: Callable[[], str | None] = lambda: None,
    **options: Any,
) -> AsyncIterator[tuple[ScriptedServer, ServerGenerator]]:
    """A scripted server and a generator over it that does not wait long before it retries."""
    options = {"concurrency": 4, "back_off": 0.005, "retries": 2} | options
    async with (
        scripted_server(answer, uds=uds) as server,
        ChatClient(server.url, "m", uds=uds, **options) as chat,
    ):
        yield server, ServerGenerator(chat, model, failed)


async def test_all_outputs_of_an_ask_are_one_request_with_a_seed() -> None:
    """Outputs of 1, 2 and 3 tokens for each of 7 asks with 5 tokens: 42 and 35."""
    asks = asks_of(7)
    async with asking() as (server, generator):
        found = await sample(generator, asks, SAMPLING)
    assert found["i2"].outputs == tuple(
        Sampled(f"hm<R>{2000 + place}", "stop", place + 1) for place in range(3)
    )
    assert set(found) == {ask.id for ask in asks} and len(server.asked) == 7
    assert server.asked[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": asks[0].message}],
        "n": 3,
        "seed": 0,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_tokens": 100,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
        "skip_special_tokens": True,
    }
    numbers = dict(generator.numbers)
    assert numbers.pop("seconds") > 0
    assert numbers == {"prompt_tokens": 35, "output_tokens": 42, "prompts_too_long": 0}


async def test_it_speaks_over_a_unix_socket_whatever_proxy_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with asking(uds=tmp_path / "s") as (server, generator):
        assert len(await sample(generator, asks_of(5), SAMPLING)) == 5
    assert len(server.asked) == 5


async def test_a_server_that_is_not_vllm_is_asked_in_openais_words_alone() -> None:
    async with asking(model=ServedModel("elsewhere")) as (server, generator):
        await sample(generator, asks_of(1), SAMPLING)
    assert set(server.asked[0]) == {"model", "messages", "n", "seed", "temperature", "top_p", "max_tokens"}


async def test_no_more_requests_run_at_once_than_the_recipe_allows() -> None:
    async with asking(concurrency=3) as (server, generator):
        assert len(await sample(generator, asks_of(12), SAMPLING)) == 12
    assert (len(server.asked), server.most_running) == (12, 3)


async def test_a_server_that_ignores_n_is_asked_until_all_are_there() -> None:
    """The second request has the seed that vLLM would have given to the second output."""

    def one(body: dict[str, Any]) -> Reply:
        return completion(body | {"n": 1})

    async with asking(one) as (server, generator):
        found = await sample(generator, [Ask("a", "x", 40)], SAMPLING)
    assert [output.text for output in found["a"].outputs] == ["hm<R>40", "hm<R>41", "hm<R>42"]
    assert [(body["n"], body["seed"]) for body in server.asked] == [(3, 40), (2, 41), (1, 42)]


async def test_greedy_is_asked_for_once() -> None:
    """vLLM refuses several greedy outputs, which would all be the same."""
    async with asking() as (server, generator):
        found = await sample(generator, [Ask("a", "x", 40)], Sampling(3, 0.0, 1.0, 100))
    assert found["a"].outputs == (Sampled("hm<R>40", "stop", 1),) * 3
    assert [body["n"] for body in server.asked] == [1]


def test_tokens_that_are_not_told_one_by_one_are_shared_out_by_characters() -> None:
    """Texts of 3, 7 and 0 characters and their ends: 12 tokens come to 4/13, 8/13 and 1/13 of it.

    Running sums 12 * 4/13 = 3.69 -> 4, 12 * 12/13 = 11.08 -> 11, 12: so 4, 7 and 1.
    """
    choices = tuple(Choice(text, "stop", None) for text in ("abc", "abcdefg", ""))
    found = Completion(JudgeReply("abc"), completion_tokens=12, choices=choices)
    assert token_counts(found) == [4, 7, 1]


def short_of_room(prompt: int) -> Callable[[dict[str, Any]], Reply]:
    """A server with 50 tokens of context, as vLLM puts it."""

    def answer(body: dict[str, Any]) -> Reply:
        if prompt + body.get("max_tokens", 1) > 50:
            return 400, "This model's maximum context length is 50 tokens. However, you requested more."
        return completion(body)

    return answer


async def test_an_output_may_fill_what_the_prompt_leaves_of_the_context() -> None:
    async with asking(short_of_room(30)) as (server, generator):
        found = await sample(generator, [Ask("a", "x", 0)], SAMPLING)
        assert [output.tokens for output in found["a"].outputs] == [1, 2, 3]
        assert ["max_tokens" in body for body in server.asked] == [True, False]
    known = ServedModel("vllm 0", extensions=True, context=50)
    async with asking(short_of_room(30), known) as (server, generator):
        await sample(generator, [Ask("a", "x", 0)], SAMPLING)
        assert ["max_tokens" in body for body in server.asked] == [False]


async def test_a_prompt_without_room_for_an_output_has_truncated_ones() -> None:
    async with asking(short_of_room(50)) as (_, generator):
        found = await sample(generator, [Ask("a", "x", 0)], SAMPLING)
    assert found["a"].outputs == (Sampled("", "length", 0),) * 3
    assert generator.numbers["prompts_too_long"] == 1


async def test_what_fails_once_is_asked_again() -> None:
    failed: set[int] = set()

    def flaky(body: dict[str, Any]) -> Reply:
        if body["seed"] in failed:
            return completion(body)
        failed.add(body["seed"])
        return 500, "a bad moment"

    async with asking(flaky) as (_, generator):
        assert len(await sample(generator, asks_of(9), SAMPLING)) == 9


async def test_when_some_asks_fail_the_others_are_given_first() -> None:
    def partly(body: dict[str, Any]) -> Reply:
        return (500, "out of order") if body["seed"] in (1000, 3000) else completion(body)

    given = []
    async with asking(partly) as (_, generator):
        with pytest.raises(
            EngineError, match=r"2 of 8 instructions could not be sampled; run again: .*out of order"
        ):
            async for record in generator.generate(asks_of(8), SAMPLING):
                given.append(record.id)
    assert sorted(given) == ["i0", "i2", "i4", "i5", "i6", "i7"]


async def test_a_refusal_that_is_not_about_room_is_no_truncated_output() -> None:
    """Else a tokenizer without a chat template would make a file of nothing but broken outputs."""

    def refuse(_: dict[str, Any]) -> Reply:
        return 400, "you must provide a chat template"

    async with asking(refuse) as (_, generator):
        with pytest.raises(EngineError, match="3 of 3 instructions .* you must provide a chat template"):
            await sample(generator, asks_of(3), SAMPLING)


async def test_what_no_request_can_mend_ends_it_at_once() -> None:
    async with asking(lambda _: (404, "no such model")) as (server, generator):
        with pytest.raises(ThinkserveError, match="has no model 'm'"):
            await sample(generator, asks_of(50), SAMPLING)
    assert len(server.asked) <= 8


async def test_a_server_that_keeps_thoughts_apart_is_refused() -> None:
    def parsed(body: dict[str, Any]) -> Reply:
        message = {"content": "response", "reasoning_content": "thought"}
        return completion(body, choices=[{"message": message, "finish_reason": "stop"}])

    async with asking(parsed) as (_, generator):
        with pytest.raises(
            UsageError, match="keeps thoughts apart from its text.*without a reasoning parser"
        ):
            await sample(generator, asks_of(1), SAMPLING)


async def test_an_engine_that_is_gone_ends_the_wait_for_its_answer() -> None:
    """The request hangs; what ended the engine is told within the half second after which it is looked for."""
    gone: list[str] = []
    async with asking(failed=lambda: gone[0] if gone else None) as (server, generator):
        server.answer = lambda _: (429, "wait")  # never answered, and asked again and again
        task = asyncio.create_task(sample(generator, asks_of(2), SAMPLING))
        await asyncio.sleep(0.05)
        gone.append("killed by SIGKILL")
        with pytest.raises(EngineError, match="the engine is gone for good: killed by SIGKILL"):
            await asyncio.wait_for(task, 3)


async def test_special_tokens_beside_a_special_marker_are_cut_out_here() -> None:
    """The engine is then asked for all special tokens, since it would leave out the marker too."""

    def special(body: dict[str, Any]) -> Reply:
        message = {"content": "hm<pad> well<R>yes<eos>"}
        return completion(body, choices=[{"message": message, "finish_reason": "stop", "token_ids": [1]}])

    model = ServedModel("vllm 0", extensions=True, left_out=re.compile("<pad>|<eos>"))
    async with asking(special, model) as (server, generator):
        found = await sample(generator, asks_of(1), Sampling(1, 1.0, 1.0, 9))
    assert found["i0"].outputs == (Sampled("hm well<R>yes", "stop", 1),)
    assert server.asked[0]["skip_special_tokens"] is False
