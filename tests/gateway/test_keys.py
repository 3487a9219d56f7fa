"""Who may call and who may see thoughts: API keys, the operator's reveal, the thought log, the engine's cache."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import openai
import pytest

from tests.gateway.conftest import Connect, Running, StartGateway, content, gathered, streamed
from tests.gateway.scripted import JSON, Finish, Script, ScriptedUpstream, chunked
from thinkserve.engines.engine import Endpoint
from thinkserve.errors import UsageError
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.keys import read_keys
from thinkserve.gateway.sinks import HEAD_SECONDS
from thinkserve.gateway.upstream import Upstream
from thinkserve.thoughts import split

ASK: Any = [{"role": "user", "content": "Hi"}]
BODY: JSON = {"messages": ASK}
TEXT = "Here is my thought process:\nSECRET one.\nSECRET two.\nHere is my response:\nHello!"
THOUGHT = split(TEXT).thought
SCRIPT = Script(chunked(TEXT, 5))
KEYS = {"sk-client": "client", "sk-other": "client", "sk-operator": "operator"}
OPERATOR = {"Authorization": "Bearer sk-operator"}
CLIENT = {"Authorization": "Bearer sk-client"}
REVEAL = {"thinkserve-reveal": "1"}


def revealed(events: list[JSON | str]) -> str:
    """The thought that a stream shows."""
    return "".join(
        choice["delta"].get("reasoning_content", "")
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", [])
    )


# Keys


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer sk-wrong",
        "Bearer sk-clien",
        "Bearer sk-client2",
        "Bearer SK-CLIENT",
        "sk-client",
        "Basic sk-client",
        "Token sk-client",
        "Bearer sk-client sk-operator",
        "Bearer \u00e9\u00ff",
        "Bearer " + "x" * 5000,
    ],
)
async def test_without_a_known_key_there_is_a_401_and_the_engine_hears_nothing(
    authorization: str | None, start_gateway: StartGateway
) -> None:
    """With the header that HTTP asks for, on every endpoint that is about the model."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/thinker"),
        ):
            async with running.http.request(
                method, running.url + path, json=BODY, headers={**headers, **REVEAL}
            ) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (401, "invalid_api_key")
                assert error["type"] == "authentication_error"
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert authorization is None or len(authorization) < 8 or authorization not in str(error)
        assert not upstream.requests


async def test_a_known_key_may_call_and_probes_need_none(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """The scheme's case does not count; the official client raises its own error for a wrong key."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        for key in KEYS:
            assert (await gathered(connect(running, key), messages=ASK))[0].content == "Hello!"
            assert (await streamed(connect(running, key), messages=ASK))[0].content == "Hello!"
            assert (await running.post(BODY, Authorization=f"bearer {key}"))[0] == 200
        with pytest.raises(openai.AuthenticationError):
            await gathered(connect(running, "sk-wrong"), messages=ASK)
        for path in ("/health", "/ready", "/metrics", "/version"):
            async with running.http.get(running.url + path) as response:
                assert response.status == 200


async def test_without_any_keys_everybody_is_a_client(start_gateway: StartGateway) -> None:
    """Whatever key they send; and no operator."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert (await running.post(BODY))[0] == 200
        assert (await running.post(BODY, **OPERATOR))[0] == 200
        assert (await running.post(BODY, **OPERATOR, **REVEAL))[0] == 403


def test_a_key_file_names_keys_and_their_roles(tmp_path: Path) -> None:
    """One a line, comments and empty lines aside; beside them the key of the command line, a client's."""
    path = tmp_path / "keys"
    path.write_text("# ours\n\nsk-a\nsk-b client\n  sk-c\toperator  \n#sk-d operator\n")
    keys = read_keys("sk-e", path)
    roles = {key: keys.caller(f"Bearer {key}").role for key in ("sk-a", "sk-b", "sk-c", "sk-e")}
    assert roles == {"sk-a": "client", "sk-b": "client", "sk-c": "operator", "sk-e": "client"}
    for unknown in ("sk-d", "#sk-d", "#", "client", "operator", ""):
        with pytest.raises(ApiError):
            keys.caller(f"Bearer {unknown}")
    assert read_keys(None, None).caller(None).role == "client"


@pytest.mark.parametrize(
    "data",
    [b"", b"# nothing\n\n", b"sk-secret admin\n", b"sk-a\nsk-secret client operator\n", b"\xff\xfesk-secret"],
)
def test_a_key_file_that_is_wrong_is_refused_without_quoting_a_key(data: bytes, tmp_path: Path) -> None:
    """An empty one too: else a gateway that was to have keys would have none."""
    path = tmp_path / "keys"
    path.write_bytes(data)
    with pytest.raises(UsageError) as refused:
        read_keys(None, path)
    assert "sk-secret" not in str(refused.value) and str(path) in str(refused.value)


def test_a_key_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """In one line that names it."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot read the key file"):
            read_keys("sk-a", path)


# The operator's reveal


async def test_an_operator_may_see_the_thought_streamed_and_gathered(start_gateway: StartGateway) -> None:
    """In `reasoning_content`, whole, beside the same response, for every choice."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        _, whole = await running.post({**BODY, "n": 2}, **OPERATOR, **REVEAL)
        for choice in whole["choices"]:
            assert choice["message"]["content"] == "Hello!"
            assert choice["message"]["reasoning_content"] == THOUGHT
        events = await running.stream(BODY, **OPERATOR, **REVEAL)
        assert content(events) == "Hello!" and revealed(events) == THOUGHT


async def test_an_operator_sees_the_thought_of_an_output_that_was_cut(start_gateway: StartGateway) -> None:
    """To the last character, by the engine or by the budget."""
    cut = "Here is my thought process:\nSECRET. Here is my resp"

    def script(request: Any) -> Script:
        if request.body.get("continue_final_message"):
            return Script(["Hello!"])
        return Script([*chunked(cut, 7), Finish("length")])

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        _, whole = await running.post(BODY, **OPERATOR, **REVEAL)
        assert whole["choices"][0]["message"]["content"] == ""
        assert whole["choices"][0]["message"]["reasoning_content"] == split(cut).thought
        assert revealed(await running.stream(BODY, **OPERATOR, **REVEAL)) == split(cut).thought
        running = await start_gateway(upstream.url, keys=KEYS, max_thought_tokens=5)
        _, whole = await running.post(BODY, **OPERATOR, **REVEAL)
        assert whole["choices"][0]["message"]["content"] == "Hello!"
        thought = whole["choices"][0]["message"]["reasoning_content"].rstrip()
        assert thought and split(cut).thought.startswith(thought)
        assert revealed(await running.stream(BODY, **OPERATOR, **REVEAL)).rstrip() == thought


async def test_nobody_else_sees_it(start_gateway: StartGateway) -> None:
    """Not a client who asks, which is told so; not an operator who does not ask."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        for stream in (False, True):
            for value in ("1", "true", "yes", "on"):
                headers = {**CLIENT, "thinkserve-reveal": value}
                status, body = await running.post({**BODY, "stream": stream}, **headers)
                assert (status, body["error"]["code"]) == (403, "operator_key_required")
        assert not upstream.requests
        for headers in (CLIENT, OPERATOR, {**OPERATOR, "thinkserve-reveal": "0"}):
            _, whole = await running.post(BODY, **headers)
            events = await running.stream(BODY, **headers)
            for shown in (str(whole), str(events)):
                assert "SECRET" not in shown and "reasoning_content" not in shown


# The thought log


async def test_the_thought_log_holds_a_line_a_choice_that_only_its_owner_can_read(
    tmp_path: Path, start_gateway: StartGateway
) -> None:
    """By the id of the response, with the thought and its length; streamed and gathered, and for choices cut short."""
    path = tmp_path / "thoughts.jsonl"
    cut = Script([TEXT[:40], Finish("length")])
    async with ScriptedUpstream([SCRIPT, SCRIPT, SCRIPT, cut]) as upstream:
        running = await start_gateway(upstream.url, thought_log=path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        _, whole = await running.post({**BODY, "n": 2})
        events = await running.stream(BODY)
        _, lost = await running.post(BODY)
        lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
        assert isinstance(events[0], dict)
        ids = [whole["id"], whole["id"], events[0]["id"], lost["id"]]
        assert [line["id"] for line in lines] == ids
        assert sorted(line["choice"] for line in lines[:2]) == [0, 1]
        assert [line["thought"] for line in lines] == [THOUGHT] * 3 + [split(TEXT[:40]).thought]
        assert [line["finish_reason"] for line in lines] == ["stop"] * 3 + ["length"]
        usage = events and whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert lines[0]["thought_tokens"] + lines[1]["thought_tokens"] == usage
        assert "SECRET" not in str((whole, events, lost))


async def test_a_thought_log_that_exists_is_appended_to(tmp_path: Path, start_gateway: StartGateway) -> None:
    """So that a restart loses nothing."""
    path = tmp_path / "thoughts.jsonl"
    async with ScriptedUpstream(SCRIPT) as upstream:
        for _ in range(2):
            running = await start_gateway(upstream.url, thought_log=path)
            await running.post(BODY)
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o606, 0o620, 0o666])
async def test_a_thought_log_that_others_can_read_is_refused(
    mode: int, tmp_path: Path, start_gateway: StartGateway
) -> None:
    """Before the gateway serves anything."""
    path = tmp_path / "thoughts.jsonl"
    path.touch()
    path.chmod(mode)
    with pytest.raises(UsageError, match="others can read"):
        await start_gateway("http://127.0.0.1:9", thought_log=path)


async def test_a_thought_log_that_cannot_be_opened_is_refused(
    tmp_path: Path, start_gateway: StartGateway
) -> None:
    """A folder, or one in a folder that is not there."""
    for path in (tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(UsageError, match="cannot open the thought log"):
            await start_gateway("http://127.0.0.1:9", thought_log=path)


async def test_a_thought_log_that_fails_loses_no_answer(
    tmp_path: Path, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipe whose reader has gone stands for a full disk; the operator is told, without the thought."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, thought_log=path)
        os.close(reader)
        assert (await running.post(BODY))[0] == 200
        assert content(await running.stream(BODY)) == "Hello!"
    assert "cannot write to the thought log" in caplog.text and "SECRET" not in caplog.text


# What the engine is told


async def test_the_cache_salt_is_one_for_each_key_and_stays(start_gateway: StartGateway) -> None:
    """So no key can probe another's prompts; the same in another process, which a prefix cache needs."""

    async def salts(running: Running) -> dict[str, str]:
        upstream.requests.clear()
        for key in KEYS:
            await running.post(BODY, Authorization=f"Bearer {key}")
            await running.stream(BODY, Authorization=f"Bearer {key}")
        sent = [request.body["cache_salt"] for request in upstream.requests]
        assert sent[::2] == sent[1::2]
        return dict(zip(KEYS, sent[::2], strict=True))

    async with ScriptedUpstream(SCRIPT) as upstream:
        first = await salts(await start_gateway(upstream.url, keys=KEYS))
        assert len(set(first.values())) == len(KEYS)
        assert await salts(await start_gateway(upstream.url, keys=dict(reversed(KEYS.items())))) == first
        assert not any(key in salt for key in KEYS for salt in first.values())
        anyone = await start_gateway(upstream.url)
        assert len(set((await salts(anyone)).values())) == 1
        assert (await anyone.post({**BODY, "cache_salt": "mine"}))[0] == 400


async def test_no_header_of_a_client_goes_to_the_engine(start_gateway: StartGateway) -> None:
    """Neither its key nor anything else; the engine's own key does."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        headers = {"X-Mine": "x", "Cookie": "a=b", "X-Request-Id": "mine", "X-Session-ID": "mine"}
        await running.post(BODY, **CLIENT, **headers)
        [request] = upstream.requests
        assert "mine" not in str(request.headers) and "sk-" not in str(request.headers)
        assert not {"X-Mine", "Cookie", "Authorization"} & set(request.headers)
        own = await start_gateway(Endpoint(upstream.url, api_key="sk-engine"), keys=KEYS)
        await own.post(BODY, **CLIENT)
        assert upstream.requests[-1].headers["Authorization"] == "Bearer sk-engine"


async def test_keys_are_never_logged(
    start_gateway: StartGateway, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Known or not, at any level; nor are they in the metrics or in errors."""
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.WARNING, name)  # those are the client's
    async with ScriptedUpstream([SCRIPT, Script(["SECRET"])]) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        shown = [await running.post(BODY, **CLIENT), await running.post(BODY, **OPERATOR)]
        shown.append(await running.post(BODY, Authorization="Bearer sk-wrong"))
        shown.append(await running.post(BODY, **CLIENT, **REVEAL))
        async with running.http.get(f"{running.url}/metrics") as response:
            metrics = await response.text()
    assert [status for status, _ in shown] == [200, 502, 401, 403]
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    for text in (logged, metrics, str(shown)):
        assert not [key for key in (*KEYS, "sk-wrong") if key in text]


# What nobody foresaw


class Faulty(Upstream):
    """An engine's other end with a fault in it, which no engine of ours is known to bring about."""

    async def stream(self, body: dict[str, Any], request_id: str) -> NoReturn:
        await asyncio.sleep(HEAD_SECONDS + 0.1)  # the client's stream has begun by then
        raise RuntimeError("a fault of our own")


async def test_an_error_of_our_own_in_a_stream_is_its_last_event(start_gateway: StartGateway) -> None:
    """Never a second HTTP answer in the middle of the first, nor a silent cut; gathered it is a plain 500."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        running.gateway.pool.upstreams[:] = [Faulty(Endpoint(upstream.url), name="faulty", idle_seconds=5)]
        status, body = await running.post(BODY)
        assert (status, body["error"]["type"]) == (500, "server_error")
        events = await running.stream(BODY)
        assert isinstance(events[-1], dict) and events[-1]["error"]["type"] == "server_error"
        assert len(events) == 2 and "HTTP/1.1" not in str(events)
