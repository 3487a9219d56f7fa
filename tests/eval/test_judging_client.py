"""The client asks again where that may help, stops where it cannot, and says which was which."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import msgspec
import pytest

from tests.eval.scripted_judge import (
    Action,
    Behaviour,
    Die,
    Hang,
    NoChoices,
    Say,
    ScriptedJudge,
    Status,
    Truncated,
    scripted_judge,
)
from thinkserve.errors import ThinkserveError
from thinkserve.eval.bench import JudgeRequest
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.completion import BadBody, CompletionFailed, read_completion
from thinkserve.eval.judging.failure import retry_after

KEY = "sk-very-secret-1234567890"


@asynccontextmanager
async def asking(behaviour: Behaviour, **options: Any) -> AsyncIterator[tuple[ScriptedJudge, ChatClient]]:
    """A scripted server and a client of it that does not wait long before it retries."""
    options = {"concurrency": 4, "back_off": 0.005, "timeout": 0.3} | options
    async with scripted_judge(behaviour) as server, ChatClient(server.url, "m", KEY, **options) as client:
        yield server, client


def request(text: str = "hello", **settings: Any) -> JudgeRequest:
    return JudgeRequest(({"role": "user", "content": text},), settings)


async def test_a_completion_has_text_logprobs_lengths_and_usage() -> None:
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 34,
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    said = Say("M", "length", {"M": -0.1, "m": -2.5}, "Let me think", usage)
    async with asking(said) as (server, client):
        found = await client.complete(request("x", logprobs=True, temperature=1))
    assert found.reply.text == "M"
    assert found.reply.finish_reason == "length"
    assert found.reply.top_logprobs == {"M": -0.1, "m": -2.5}
    assert (found.prompt_tokens, found.completion_tokens, found.reasoning_tokens) == (12, 34, 30)
    assert found.reasoning_characters == len("Let me think")
    assert (found.attempts, found.failures) == (1, ())
    assert server.requests[0].body == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "logprobs": True,
        "temperature": 1,
    }
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_every_request_is_its_own() -> None:
    """Requests are made from the first one; nothing of that one's body or length stays."""
    async with asking(Say()) as (server, client):
        for text in ("a long first request " * 50, "short", "é and 中文 \ud800"):
            await client.complete(request(text, seed=len(text)))
    assert [asked.text for asked in server.requests][1:] == ["short", "é and 中文 �"]
    assert [asked.body["seed"] for asked in server.requests] == [1050, 5, len("é and 中文 \ud800")]
    assert {asked.headers["Content-Type"] for asked in server.requests} == {"application/json"}


@pytest.mark.parametrize(
    ("failing", "kind"),
    [
        (Status(429), "http 429"),
        (Status(500), "http 500"),
        (Status(503, retry_after="0"), "http 503"),
        (Hang(), "timeout"),
        (Truncated(), "bad json"),
        (NoChoices(), "empty"),
        (Die(), "connection"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_may_pass_is_asked_again_and_named(failing: Action, kind: str) -> None:
    async with asking([Say("first"), failing, failing, Say("at last")]) as (server, client):
        await client.complete(request())
        found = await client.complete(request())
    assert (found.reply.text, found.attempts, found.failures) == ("at last", 3, (kind, kind))
    assert len(server.requests) == 4


async def test_retries_end_and_the_failure_has_all_kinds() -> None:
    async with asking([Status(500), Truncated(), Status(502, "out of order")], retries=2) as (server, client):
        with pytest.raises(
            CompletionFailed, match="3 attempts failed, the last one with http 502: out of order"
        ) as e:
            await client.complete(request())
    assert e.value.failures == ("http 500", "bad json", "http 502")
    assert len(server.requests) == 3


async def test_a_retry_that_would_begin_too_late_is_not_made() -> None:
    async with asking(Status(500), back_off=10, max_retry_seconds=1) as (server, client):
        with pytest.raises(CompletionFailed):
            await client.complete(request())
    assert len(server.requests) == 1


async def test_refusals_do_not_use_up_the_retries() -> None:
    async with asking([Status(429)] * 5 + [Say()], retries=1) as (_, client):
        assert (await client.complete(request())).failures == ("http 429",) * 5


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_server_that_says_when_to_come_back_is_left_alone_until_then(as_date: bool) -> None:
    """A date has whole seconds: two from now is between one and two seconds away."""
    after = formatdate(time.time() + 2, usegmt=True) if as_date else "0.4"
    async with asking([Status(429, retry_after=after), Say()]) as (server, client):
        began = time.monotonic()
        first = asyncio.create_task(client.complete(request("refused")))
        await asyncio.sleep(0.1)
        await client.complete(request("another, which has to wait as well"))
        await first
        waited = time.monotonic() - began
    assert len(server.requests) == 3
    assert 0.9 < waited < 2.6 if as_date else 0.4 < waited < 1.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


async def test_a_wait_of_hours_stops_the_run() -> None:
    async with asking(Status(429, "daily limit", "7200"), max_retry_seconds=60) as (server, client):
        with pytest.raises(ThinkserveError, match="wants no call for 7,200 s .*daily limit.*run again then"):
            await client.complete(request())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (Status(401, f"Incorrect API key provided: {KEY}"), "refused the API key (HTTP 401)"),
        (Status(403), "the API key may not use 'm' (HTTP 403)"),
        (Status(404, "The model `m` does not exist"), "has no model 'm', or is not the base URL of an API"),
        (Status(402, "Payment required"), "has no credit left"),
        (Status(429, "You exceeded your quota", error_code="insufficient_quota"), "has no credit left"),
        (Status(400, "This model does not support logprobs", param="logprobs"), "gives no logprobs"),
        (Status(400, "Unsupported value: 'temperature' does not support 0"), "does not take 'temperature'"),
        (Status(422, "temperature: extra inputs are not permitted"), "does not take 'temperature'"),
    ],
    ids=lambda value: str(value.code) if isinstance(value, Status) else "",
)
async def test_an_error_that_no_retry_mends_stops_everything_at_once(status: Status, says: str) -> None:
    """Of 50 requests at 4 at once, no more than the first four are made."""
    async with asking(status) as (server, client):
        asked = (client.complete(request(str(n), temperature=0, logprobs=True)) for n in range(50))
        found = await asyncio.gather(*asked, return_exceptions=True)
    assert len(server.requests) <= 4
    for error in found:
        assert type(error) is ThinkserveError
        message = str(error)
        assert says in message
        assert "\n" not in message
        assert KEY not in message


async def test_an_error_about_one_request_is_not_retried_and_stops_no_other() -> None:
    long = Status(400, "This model's maximum context length is 8192 tokens; max_tokens is too large")
    async with asking([long, Say()]) as (server, client):
        with pytest.raises(CompletionFailed, match="http 400: This model's maximum context length"):
            await client.complete(request("long", max_tokens=4096))
        assert (await client.complete(request("short"))).failures == ()
    assert len(server.requests) == 2


async def test_a_model_that_wants_max_completion_tokens_gets_them_from_then_on() -> None:
    def new_model(asked: Any) -> Action:
        if "max_tokens" in asked.body:
            advice = (
                "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            )
            return Status(400, advice, param="max_tokens", error_code="unsupported_parameter")
        return Say(str(asked.body["max_completion_tokens"]))

    async with asking(new_model) as (server, client):
        found = [await client.complete(request(max_tokens=7)) for _ in range(3)]
    assert [(each.reply.text, each.failures) for each in found] == [("7", ())] * 3
    assert len(server.requests) == 4


async def test_nobody_there_is_said_before_long() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        async with ChatClient(url, "m", back_off=0.005, concurrency=2) as client:
            with pytest.raises(ThinkserveError, match="cannot be reached .*is the server running") as e:
                await asyncio.gather(*(client.complete(request(str(n))) for n in range(20)))
    assert type(e.value) is ThinkserveError
    assert url in str(e.value)


async def test_a_server_that_fails_every_request_is_given_up() -> None:
    """After 20 requests in a row that got nothing, with two attempts each: not after all 200."""
    errors: list[ThinkserveError] = []
    async with asking(Status(500, "boiler broken"), retries=1, concurrency=2) as (server, client):
        waiting = iter(range(200))

        async def work() -> None:
            for number in waiting:
                try:
                    await client.complete(request(str(number)))
                except ThinkserveError as exc:
                    errors.append(exc)

        await asyncio.gather(*(work() for _ in range(4)))
    assert sum(isinstance(error, CompletionFailed) for error in errors) == 19
    assert "the last 20 requests failed, the last one with http 500: boiler broken" in str(errors[-1])
    assert len(errors) == 200
    assert 40 <= len(server.requests) <= 40 + 4


async def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with scripted_judge(Status(401)) as server, ChatClient(server.url, "m") as client:
        with pytest.raises(ThinkserveError, match="wants an API key .*THINKSERVE_JUDGE_API_KEY"):
            await client.complete(request())
    assert KEY not in str(dict(server.requests[0].headers))


async def test_nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with asking([Status(500, f"key {KEY}"), Say("the secret verdict")]) as (_, client):
        await client.complete(request("the secret question"))
    assert "http 500" in caplog.text
    assert KEY not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": [{"type": "text", "text": "[["}, {"type": "text", "text": "A]]"}]}, "[[A]]"),
        ({"content": "", "reasoning": "hm"}, ""),
    ],
)
def test_a_message_in_other_forms(message: dict[str, Any], text: str) -> None:
    assert read_completion(msgspec.json.encode({"choices": [{"message": message}]})).reply.text == text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"choices": [{"mess', "bad json"),
        (b"<html>502</html>", "bad json"),
        (b'{"choices": "none"}', "bad json"),
        (b"\xff", "bad json"),
        (b"", "bad json"),
        (b'{"choices": []}', "empty"),
        (b"{}", "empty"),
        (b'{"error": {"code": 502, "message": "upstream"}}', "http 502"),
    ],
)
def test_a_body_that_is_no_completion_is_named(body: bytes, kind: str) -> None:
    with pytest.raises(BadBody, match=kind):
        read_completion(body)


def test_of_two_tokens_with_one_text_the_likelier_counts() -> None:
    top = [{"token": "m", "logprob": -3.0}, {"token": "M", "logprob": -0.2}, {"token": "m", "logprob": -1.0}]
    logprobs = {"content": [{"token": "M", "logprob": -0.2, "top_logprobs": top}]}
    body = msgspec.json.encode({"choices": [{"message": {"content": "M"}, "logprobs": logprobs}]})
    assert read_completion(body).reply.top_logprobs == {"m": -1.0, "M": -0.2}


async def test_what_the_environment_has_for_openai_goes_to_openai_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-of-openai")
    async with scripted_judge(Say("[[A]]")) as judge, ChatClient(judge.url, "m") as client:
        await client.complete(JudgeRequest(({"role": "user", "content": "x"},)))
    assert "secret-of-openai" not in str(dict(judge.requests[0].headers))
