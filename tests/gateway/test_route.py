"""What all endpoints that generate have in common: ids, limits, the queue, and ends that nobody is to miss."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import StartGateway, content
from tests.gateway.scripted import JSON, Recorded, Script, ScriptedUpstream, Wait
from thinkserve.engines.engine import Endpoint
from thinkserve.errors import UsageError
from thinkserve.gateway.app import Gateway
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.keys import Keys, read_keys
from thinkserve.gateway.pool import Pool
from thinkserve.thoughts import ThoughtFormat, get_format

ASK: Any = [{"role": "user", "content": "Hi"}]
BODY: JSON = {"messages": ASK}
OUTPUT = "Here is my thought process:\nHm.\nHere is my response:\nHello!"
PATHS = {
    "/v1/chat/completions": BODY,
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": ASK, "max_tokens": 100},
}


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_the_id_that_the_log_has(
    path: str, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Refusals too: that is when people ask for it."""
    log = tmp_path / "access.jsonl"
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url, access_log=log)
        ids = []
        for body in (PATHS[path], {**PATHS[path], "stream": True}, {**PATHS[path], "nothing": 1}):
            async with running.http.post(running.url + path, json=body) as answer:
                await answer.read()
                ids.append(answer.headers["X-Request-Id"])
        assert len(set(ids)) == 3
        lines = log.read_text().splitlines()
        assert all(f'"{id}"' in line for id, line in zip(ids, lines, strict=True))


@pytest.mark.parametrize(
    ("path", "field", "asked"),
    [
        ("/v1/chat/completions", "response_format", {"response_format": {"type": "json_object"}}),
        ("/v1/completions", "response_format", {"response_format": {"type": "json_object"}}),
        ("/v1/completions", "structured_outputs", {"structured_outputs": {"regex": "a+"}}),
        ("/v1/responses", "text.format", {"text": {"format": {"type": "json_object"}}}),
        (
            "/v1/messages",
            "output_config.format",
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        ("/v1/responses", "reasoning.effort", {"reasoning": {"effort": "none"}}),
        ("/v1/messages", "thinking.budget_tokens", {"thinking": {"type": "enabled", "budget_tokens": 64}}),
    ],
)
async def test_refusals_name_the_field_as_its_endpoint_does(
    path: str, field: str, asked: JSON, start_gateway: StartGateway
) -> None:
    """What one engine or one format cannot do, in the words of the API that was called."""
    markers = ThoughtFormat("own", ("<R>",))
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url, format=markers)
        running.gateway.pool.upstreams[0].structural_tags = False
        async with running.http.post(running.url + path, json={**PATHS[path], **asked}) as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
        assert field in error["message"] and error.get("param", field) == field


async def test_whoever_asks_whether_it_is_ready_makes_it_look_no_more_often(
    start_gateway: StartGateway,
) -> None:
    """The endpoint is open to all; it must not be a way to keep the engine busy."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        looks = upstream.probes

        async def ready() -> int:
            async with running.http.get(f"{running.url}/ready") as answer:
                return answer.status

        assert set(await asyncio.gather(*(ready() for _ in range(50)))) == {200}
        assert upstream.probes == looks + 1


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waits_in_the_queue_when_the_gateway_is_cut_is_told_so(
    stream: bool, start_gateway: StartGateway
) -> None:
    """Never a connection that just ends."""
    never = asyncio.Event()
    async with ScriptedUpstream(Script([Wait(never)])) as upstream:
        running = await start_gateway(upstream.url, max_concurrency=1)

        async def ask() -> bytes:
            async with running.http.post(
                f"{running.url}/v1/chat/completions", json={**BODY, "stream": stream}
            ) as answer:
                return await answer.read()

        asked = [asyncio.ensure_future(ask()) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert running.gateway.running == 3 and len(upstream.requests) == 1
        running.gateway.cut()
        for told in await asyncio.gather(*asked):
            assert b"shutting down" in told


async def test_a_stream_that_waits_in_the_queue_is_kept_alive(start_gateway: StartGateway) -> None:
    """Proxies cut connections that are silent."""
    hold = asyncio.Event()
    scripts = [Script([Wait(hold), OUTPUT]), Script([OUTPUT])]
    async with ScriptedUpstream(scripts) as upstream:
        running = await start_gateway(upstream.url, max_concurrency=1, keepalive_seconds=0.1)
        first = asyncio.ensure_future(running.stream(BODY))
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(running.stream(BODY))
        await asyncio.sleep(0.8)
        assert len(upstream.requests) == 1
        hold.set()
        assert content(await first) == content(await second) == "Hello!"
        assert (await second).count(": thinking") >= 2


async def test_tokens_are_charged_by_all_choices_and_by_who_leaves_early(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Neither n nor leaving before the first chunk gets round a limit."""
    file = tmp_path / "keys.toml"
    file.write_text('[[keys]]\nkey = "sk-a"\ntokens_per_minute = 5000\n')
    hold = asyncio.Event()

    def script(request: Recorded) -> Script:
        return Script([Wait(hold)]) if "long" in str(request.body["messages"]) else Script([OUTPUT])

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url)
        running.gateway._keys = Keys({}, file)
        key = {"Authorization": "Bearer sk-a"}
        long: JSON = {"messages": [{"role": "user", "content": "long " * 3000}]}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running.post(long, **key), 0.3)
        await asyncio.sleep(0.1)
        status, told = await running.post(long, **key)
        assert (status, told["error"]["code"]) == (429, "rate_limit_exceeded")
        file.write_text('[[keys]]\nkey = "sk-b"\ntokens_per_minute = 5000\n')
        running.gateway.reload()
        many = {**BODY, "n": 12, "max_completion_tokens": 400}
        key = {"Authorization": "Bearer sk-b"}
        asked = [asyncio.ensure_future(running.post({**many, "messages": long["messages"]}, **key))]
        await asyncio.sleep(0.3)
        assert (await running.post(many, **key))[0] == 429
        hold.set()
        await asyncio.gather(*asked)


@pytest.mark.parametrize("path", PATHS)
async def test_a_deep_value_in_any_endpoint_is_refused(path: str, start_gateway: StartGateway) -> None:
    """Before anything of it is written back."""
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    choice = {"type": "function", "name": "x", "function": {"name": "x"}, "z": deep}
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        body = {**PATHS[path], "stream": True, "tool_choice": choice}
        async with running.http.post(running.url + path, json=body) as answer:
            assert answer.status == 400
        assert not upstream.requests


async def test_the_echo_guard_redacts_beside_tools_too(start_gateway: StartGateway) -> None:
    """A client cannot switch it off by offering a tool."""
    words = " ".join(f"word{at}" for at in range(40))
    output = f"Here is my thought process:\n{words}\nHere is my response:\n{words}!"
    tools = [{"type": "function", "function": {"name": "look"}}]
    async with ScriptedUpstream(Script([output])) as upstream:
        running = await start_gateway(upstream.url, echo_guard="redact", echo_words=8)
        for more in ({}, {"tools": tools}, {"tools": tools, "tool_choice": "none"}):
            _, answer = await running.post({**BODY, **more})
            assert answer["choices"][0]["message"]["content"] == "[redacted]!"
        async with running.http.get(f"{running.url}/metrics") as metrics:
            text = await metrics.text()
        assert "thinkserve_echo_repeats_total 3.0" in text and "thinkserve_echo_share_count 3.0" in text


@pytest.mark.parametrize("stream", [False, True])
async def test_the_echo_guard_gives_no_text_behind_a_call_that_it_stood_before(
    stream: bool, start_gateway: StartGateway
) -> None:
    """What it holds back while a run is growing goes out in front of the call."""
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    output = f"Here is my thought process:\none two three four five\nHere is my response:\none two three {call} done"
    asked = {**PATHS["/v1/messages"], "tools": [{"name": "look", "input_schema": {"type": "object"}}]}
    async with ScriptedUpstream(Script(re.findall(r"\s*\S+", output))) as upstream:
        running = await start_gateway(upstream.url, echo_guard="redact", echo_words=8)
        async with running.http.post(
            f"{running.url}/v1/messages", json={**asked, "stream": stream}
        ) as answer:
            body = await answer.text()
    places = [body.index(part) for part in ("two", "three", '"tool_use","id"', "done")]
    assert places == sorted(places), body


@pytest.mark.parametrize("together", [1, 1000])
async def test_the_echo_guard_does_not_redact_what_a_later_thought_repeats(
    together: int, start_gateway: StartGateway
) -> None:
    """The same, however many events came in a read."""
    words = "one two three four five six seven eight"
    pieces = [
        "<think>Hm </think>",
        *(f" {word}" for word in words.split()),
        ". ",
        f"<think>{words}",
        "</think>",
        "bye",
    ]
    async with ScriptedUpstream(Script(pieces, events_per_write=together)) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", echo_guard="redact", echo_words=8)
        _, answer = await running.post(BODY)
        assert answer["choices"][0]["message"]["content"] == f"{words}. bye"


def test_an_empty_key_is_no_key(tmp_path: Path) -> None:
    """A variable that is not set must not open the server to everybody."""
    for empty in ("", " \n"):
        with pytest.raises(UsageError, match="--api-key is empty"):
            read_keys(empty, None)
    assert read_keys("sk-a\n", None).caller("Bearer sk-a").role == "client"
    config = GatewayConfig(get_format("tpo-generic"), "m", thought_log=tmp_path / "no" / "log")
    with pytest.raises(UsageError, match="thought log"):
        Gateway(config, Pool([]), Keys({}))


async def test_tokenize_is_served_where_the_operator_says_so(start_gateway: StartGateway) -> None:
    """The client's own text, bounded; elsewhere there is no such route."""
    tokenizer = Path(__file__).parents[2] / "thinkserve" / "pocket" / "checkpoint" / "tokenizer.json"
    async with ScriptedUpstream() as upstream:
        closed = await start_gateway(upstream.url, tokenizer=tokenizer)
        async with closed.http.post(f"{closed.url}/tokenize", json={"prompt": "abc"}) as answer:
            assert answer.status == 404
        running = await start_gateway(upstream.url, tokenizer=tokenizer, tokenize=True)
        async with running.http.post(f"{running.url}/tokenize", json={"prompt": "abc"}) as answer:
            told = await answer.json()
        assert told["count"] == len(told["tokens"]) == 3
        for wrong in ({}, {"prompt": 5}, {"prompt": "x" * 300_000}, {"messages": ASK}):
            async with running.http.post(f"{running.url}/tokenize", json=wrong) as answer:
                assert answer.status == 400


GOES_ON = Script([*"abcdefgh", "</think>", "SECRET", " more", "</think>", "Hello"])
"""A thought that the engine ends behind 8 tokens, and that goes on."""


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({}, {}),
        ({"format_guard": True}, {}),
        ({}, {"tools": [{"type": "function", "function": {"name": "look", "strict": True}}]}),
        ({}, {"structured_outputs": {"regex": r"[\s\S]*"}}),
        ({}, {"structured_outputs": {"grammar": "root ::= [^x]*"}}),
    ],
    ids=["free", "guarded", "strict tools", "regex", "grammar"],
)
async def test_a_free_response_is_watched_for_a_thought_that_goes_on_also_under_a_grammar(
    config: Any, asked: JSON, start_gateway: StartGateway
) -> None:
    """A grammar that lets the response be any text leaves room for a thought in it."""
    async with ScriptedUpstream(GOES_ON) as upstream:
        endpoint = Endpoint(upstream.url, thinking_budgets=True)
        running = await start_gateway(endpoint, format="think-tags", format_retries=0, **config)
        status, answer = await running.post({**BODY, "thinking_token_budget": 6, **asked})
        assert (status, answer["error"]["code"]) == (502, "malformed_output")
        assert ("structured_outputs" in upstream.requests[0].body) == bool(config or asked)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "asked", [{"regex": r"[\s\S]*"}, {"grammar": "root ::= [^x]*"}], ids=["regex", "grammar"]
)
async def test_a_clients_regex_or_grammar_leaves_no_room_for_a_thought(
    asked: JSON, stream: bool, start_gateway: StartGateway
) -> None:
    """It may allow any text: behind a thought that the gateway cut, and in a second one."""

    def cut(request: Recorded) -> Script:
        if request.body.get("continue_final_message"):
            return Script(["SECRET", " more", "</think>", "Hello"])
        return Script(["<think>", *"abcdefgh" * 20])

    body = {**BODY, "structured_outputs": asked, "stream": stream}
    async with ScriptedUpstream(cut) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", format_retries=0)
        async with running.http.post(
            f"{running.url}/v1/chat/completions", json={**body, "thinking_token_budget": 6}
        ) as answer:
            assert b"malformed_output" in await answer.read()
        assert len(upstream.requests) == 2
        upstream.script = Script(["<think>Hm</think>Hi <think>", "SECRET", "</think>there"])
        async with running.http.post(f"{running.url}/v1/chat/completions", json=body) as answer:
            shown = await answer.read()
        assert (
            answer.status == 200 and b"SECRET" not in shown and b"think>" not in shown and b"there" in shown
        )


@pytest.mark.parametrize("by_engine", [False, True])
async def test_a_bound_response_may_hold_a_marker_behind_a_thought_that_was_cut(
    by_engine: bool, start_gateway: StartGateway
) -> None:
    """Its grammar has no room for a thought, but a string of it may say anything."""
    json = '{"a": "b </think> c"}'

    def script(request: Recorded) -> Script:
        if request.body.get("continue_final_message"):
            return Script([json])
        return Script(
            [*"abcdefgh" * 20, "</think>", json] if not by_engine else [*"abcdef", "</think>", json]
        )

    async with ScriptedUpstream(script) as upstream:
        endpoint = Endpoint(upstream.url, thinking_budgets=by_engine)
        running = await start_gateway(endpoint, format="think-tags", format_retries=0)
        asked = {"response_format": {"type": "json_object"}, "thinking_token_budget": 6}
        status, answer = await running.post({**BODY, **asked})
        assert (status, answer["choices"][0]["message"]["content"]) == (200, json)
        assert len(upstream.requests) == (1 if by_engine else 2)


async def test_the_access_log_tells_of_a_client_that_left_its_stream(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Though its answer had begun well."""
    log = tmp_path / "access.jsonl"
    never = asyncio.Event()
    async with ScriptedUpstream(Script([OUTPUT, Wait(never)])) as upstream:
        running = await start_gateway(upstream.url, access_log=log)
        async with running.http.post(
            f"{running.url}/v1/chat/completions", json={**BODY, "stream": True}
        ) as answer:
            await answer.content.readuntil(b"Hello")
        for _ in range(100):
            if log.read_text():
                break
            await asyncio.sleep(0.02)
        assert '"status":499' in log.read_text()
