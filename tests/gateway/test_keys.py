"""Who may call and who may see thoughts: API keys, the operator's reveal, the thought log, the engine's cache."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from dataclasses import replace
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
from thinkserve.gateway.keys import Keys, read_keys
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


def sha256(key: str) -> str:
    """As `sha256sum` prints it."""
    return hashlib.sha256(key.encode()).hexdigest()


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


def test_a_toml_file_says_more_about_each_key(tmp_path: Path) -> None:
    """By the key itself or by its SHA-256, which is one caller to us; what is left out has no bound."""
    path = tmp_path / "keys.toml"
    path.write_text(
        f"""
        [[keys]]
        sha256 = "{sha256("sk-a").upper()}"
        name = "billing"
        role = "operator"
        models = ["thinker", "other"]
        requests_per_minute = 60
        tokens_per_minute = 1000

        [[keys]]
        key = "sk-b"
        """
    )
    keys = read_keys("sk-c", path)
    a, b, c = (keys.caller(f"Bearer {key}") for key in ("sk-a", "sk-b", "sk-c"))
    assert (a.id, a.role) == ("billing", "operator")
    assert a.models == frozenset({"thinker", "other"})
    assert (a.requests_per_minute, a.tokens_per_minute) == (60, 1000)
    assert (b.id, b.role, b.models) == (f"key-{sha256('sk-b')[:8]}", "client", None)
    assert (b.requests_per_minute, b.tokens_per_minute) == (None, None)
    assert c.id == f"key-{sha256('sk-c')[:8]}"
    assert a.cache_salt == Keys({"sk-a": "client"}).caller("Bearer sk-a").cache_salt
    assert len({a.cache_salt, b.cache_salt, c.cache_salt}) == 3 and len(keys) == 3
    for unknown in (sha256("sk-a"), sha256("sk-a").upper(), "billing", a.cache_salt):
        with pytest.raises(ApiError):
            keys.caller(f"Bearer {unknown}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        ("keys = []", "holds no key"),
        ("[keys]\nkey = 'sk-secret'", "[[keys]] tables"),
        ("keys = ['sk-secret']", "[[keys]] tables"),
        ("sk-secret = 'client'", "[[keys]] tables"),
        ("[[keys]]\nkey = 'sk-secret'\n[other]", "[[keys]] tables"),
        ("[[keys]]\nkey = sk-secret", "line 2, column 7"),
        ("[sk-secret]\n[sk-secret]", "line 2, column 11"),
        (f"[[keys]]\nkey = 1{'0' * 5000}", "is no TOML"),
        ("keys = " + "[" * 3000, "is no TOML"),
        ("[[keys]]", "entry 1: give the key itself or its sha256"),
        (f"[[keys]]\nkey = 'sk-secret'\nsha256 = '{'0' * 64}'", "entry 1: give the key itself or"),
        (
            "[[keys]]\nkey = 'a'\n[[keys]]\nname = 'b'\nkey = 'sk-secret'\nrpm = 1",
            "entry 2 (b): there is a field 'rpm'",
        ),
        ("[[keys]]\nkey = 'a'\nsk-secret = 1", "entry 1: there is an unknown field"),
        ("[[keys]]\nkey = ''", "entry 1: key must be a text without spaces"),
        ("[[keys]]\nkey = 'sk-secret x'", "entry 1: key must be a text without spaces"),
        ("[[keys]]\nkey = ' sk-secret'", "entry 1: key must be a text without spaces"),
        ("[[keys]]\nkey = 7", "entry 1: key must be a text without spaces"),
        ("[[keys]]\nsha256 = 'sk-secret'", "entry 1: sha256 must be the 64"),
        ("[[keys]]\nkey = 'a'\nname = 'sk secret'", "entry 1: name must be"),
        ("[[keys]]\nkey = 'a'\nname = 5", "entry 1: name must be"),
        ("[[keys]]\nkey = 'a'\nname = ''", "entry 1: name must be"),
        (f"[[keys]]\nkey = 'a'\nname = '{'n' * 65}'", "entry 1: name must be"),
        ("[[keys]]\nkey = 'a'\nname = 'b'\nrole = 'sk-secret'", "entry 1 (b): role must be"),
        ("[[keys]]\nkey = 'a'\nrole = ['client']", "entry 1: role must be"),
        ("[[keys]]\nkey = 'a'\nmodels = 'sk-secret'", "entry 1: models must be"),
        ("[[keys]]\nkey = 'a'\nmodels = []", "entry 1: models must be"),
        ("[[keys]]\nkey = 'a'\nmodels = [1]", "entry 1: models must be"),
        ("[[keys]]\nkey = 'a'\nrequests_per_minute = 0", "entry 1: requests_per_minute must be"),
        ("[[keys]]\nkey = 'a'\nrequests_per_minute = true", "entry 1: requests_per_minute must be"),
        ("[[keys]]\nkey = 'a'\nrequests_per_minute = 1.5", "entry 1: requests_per_minute must be"),
        ("[[keys]]\nkey = 'a'\ntokens_per_minute = '5'", "entry 1: tokens_per_minute must be"),
        ("[[keys]]\nkey = 'a'\ntokens_per_minute = -5", "entry 1: tokens_per_minute must be"),
        ("[[keys]]\nkey = 'sk-secret'\n[[keys]]\nname = 'b'\nkey = 'sk-secret'", "entry 2 (b): the same key"),
        ("[[keys]]\nkey = 'a'\nname = 'n'\n[[keys]]\nkey = 'b'\nname = 'n'", "two keys have the name n;"),
        ("[[keys]]\nkey = 'sk-secret'\nname = 'sk-secret'", "a name is itself a key"),
        ("[[keys]]\nkey = 'sk-secret'\nname = 'sk-secret'\nrole = ''", "entry 1: role must be"),
        ("[[keys]]\nkey = 'sk-secret'\n[[keys]]\nkey = 'b'\nname = 'sk-secret'", "a name is itself a key"),
    ],
)
def test_a_toml_file_that_is_wrong_is_refused_where_it_is(text: str, told: str, tmp_path: Path) -> None:
    """With the entry and what to do, and never with a value: each may be a key in the wrong place."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_keys(None, path)
    message = str(refused.value)
    assert told in message and str(path) in message
    assert "sk-secret" not in message and "\n" not in message


def test_a_name_that_another_key_has_by_itself_is_refused(tmp_path: Path) -> None:
    """Names tell callers apart, in logs and for their limits."""
    path = tmp_path / "keys.toml"
    path.write_text(f"[[keys]]\nkey = 'a'\n[[keys]]\nkey = 'b'\nname = 'key-{sha256('a')[:8]}'")
    with pytest.raises(UsageError, match="two keys have the name key-"):
        read_keys(None, path)


def test_the_keys_are_read_again(tmp_path: Path) -> None:
    """New ones may call, old ones may not; a name is one caller under any key; those given outright stay."""
    path = tmp_path / "keys.toml"
    path.write_text("[[keys]]\nkey = 'sk-a'\nname = 'a'\n[[keys]]\nkey = 'sk-b'\nname = 'b'")
    keys = read_keys("sk-given", path)
    path.write_text("[[keys]]\nkey = 'sk-a2'\nname = 'a'\nrequests_per_minute = 5\n[[keys]]\nkey = 'sk-c'")
    keys.reload()
    assert (keys.caller("Bearer sk-a2").id, keys.caller("Bearer sk-a2").requests_per_minute) == ("a", 5)
    assert keys.caller("Bearer sk-c").role == keys.caller("Bearer sk-given").role == "client"
    for gone in ("sk-a", "sk-b"):
        with pytest.raises(ApiError):
            keys.caller(f"Bearer {gone}")


@pytest.mark.parametrize("broken", ["[[keys]]\nkey = 5", "", None])
def test_a_file_that_broke_keeps_the_keys_that_were(broken: str | None, tmp_path: Path) -> None:
    """A slip of the operator's must not lock everybody out, nor let anybody in; even when the file is gone."""
    path = tmp_path / "keys.toml"
    path.write_text("[[keys]]\nkey = 'sk-a'")
    keys = read_keys(None, path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    with pytest.raises(UsageError):
        keys.reload()
    assert keys.required and keys.caller("Bearer sk-a").role == "client"
    with pytest.raises(ApiError):
        keys.caller("Bearer 5")


def test_a_key_may_come_in_the_header_of_anthropics_clients() -> None:
    """One known key is enough, wherever it is: a client may send along one that is for another server."""
    keys = Keys({"sk-a": "client", "sk-b": "operator"})
    assert keys.caller(None, "sk-b").role == "operator"
    assert keys.caller("", " sk-b ").role == "operator"
    assert keys.caller("Bearer sk-a", "sk-wrong").role == "client"
    assert keys.caller("Bearer sk-wrong", "sk-b").role == "operator"
    assert keys.caller("Basic sk-a", "sk-b").role == "operator"
    assert keys.caller("Bearer sk-a", "sk-b").role == "client"
    for authorization, x_api_key in (
        (None, "sk-wrong"),
        ("Basic sk-a", None),
        ("sk-a", ""),
        (None, "Bearer sk-a"),
    ):
        with pytest.raises(ApiError) as refused:
            keys.caller(authorization, x_api_key)
        assert refused.value.status == 401 and "sk-" not in refused.value.message
    assert Keys({}).caller(None, "sk-wrong").id == "anyone"


def test_a_caller_may_be_kept_to_some_models() -> None:
    """And is told the same of one that is not there at all."""
    anyone = Keys({}).caller(None)
    anyone.require_model("thinker")
    caller = replace(anyone, models=frozenset({"thinker", "small"}))
    caller.require_model("thinker")
    with pytest.raises(ApiError) as refused:
        caller.require_model("large" * 50)
    error = refused.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert "small, thinker" in error.message and "large" * 50 not in error.message


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

    async def stream(self, *args: Any, **kwargs: Any) -> NoReturn:
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
