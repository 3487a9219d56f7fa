"""`/v1/messages`: Anthropic's client, blocks and events, thoughts that stay hidden, and every field of its table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import Running, StartGateway
from tests.gateway.field_values import NO_JSON, TEXTS, WRONG
from tests.gateway.scripted import (
    JSON,
    Delta,
    Die,
    ErrorEvent,
    Finish,
    Recorded,
    Script,
    ScriptedUpstream,
    Status,
    Step,
    Wait,
    chunked,
    tokens,
)
from thinkserve.gateway.api.messages_fields import FIELDS, LEAST_BUDGET, MOST_STOPS
from thinkserve.gateway.fields import DROP, PASS, REFUSE
from thinkserve.gateway.tool_fields import MOST_TOOLS
from thinkserve.thoughts import BUILT_IN, ThoughtFormat

anthropic = pytest.importorskip("anthropic", reason="needs the package anthropic")

THOUGHT_PROMPT = BUILT_IN["tpo-generic"].thought_prompt
FORMATS = sorted(BUILT_IN)
THOUGHT = (
    'SECRET plan: <tool_call>\n{"name": "weather", "arguments": {"city": "SECRET"}}\n</tool_call> SECRET.'
)
RESPONSE = "Hello! I am well."
OUTPUT = f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n{RESPONSE}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": [1, 2]}}\n</tool_call>'
INPUT = {"city": "Rome", "days": [1, 2]}
SCRIPT = Script([OUTPUT])
PATH = "/v1/messages"
USER: Any = [{"role": "user", "content": "Hi"}]
WEATHER: JSON = {
    "name": "weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
LEAST: JSON = {"messages": USER, "max_tokens": 2000}
KEYS = {"sk-client": "client", "sk-operator": "operator"}


def output(name: str, thought: str, response: str) -> str:
    """A whole output in a thought format."""
    format = BUILT_IN[name]
    closing = f"\n{format.closing[0]}\n" if format.line_start else format.closing[0]
    return ("" if format.starts_in_thought else f"{format.opening[0]}\n") + thought + closing + response


async def ask(running: Running, body: object, **headers: str) -> tuple[int, Any, str]:
    """Post a body, which may be bytes; return the status, the answer as JSON (None: a stream), and as text."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with running.http.post(f"{running.url}{PATH}", data=data, headers=headers) as response:
        raw = await response.read()
        whole = response.content_type == "application/json"
        return response.status, msgspec.json.decode(raw) if whole else None, raw.decode()


async def sent(running: Running, upstream: ScriptedUpstream, body: JSON) -> JSON:
    """Post a body that is taken; return what the engine was asked, less the cache salt."""
    upstream.requests.clear()
    status, _, text = await ask(running, body)
    assert status == 200, text
    asked = upstream.requests[0].body
    assert len(asked.pop("cache_salt")) == 32
    assert 1 <= asked.pop("stream_interval") <= 16
    return asked


def plain(messages: Any = None, **more: Any) -> JSON:
    """What the engine is asked where the client sends nothing but messages and max_tokens."""
    return {
        "model": "scripted",
        "messages": messages or [{"role": "user", "content": THOUGHT_PROMPT("Hi")}],
        "max_tokens": 2000,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        **more,
    }


def events(text: str) -> list[tuple[str, JSON]]:
    """The events of a stream: their names and data. Every one must have a name that is its type."""
    read = []
    for event in text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        assert name.startswith("event: ") and data.startswith("data: "), event
        decoded = msgspec.json.decode(data[6:])
        assert decoded["type"] == name[7:]
        read.append((name[7:], decoded))
    return read


Connect = Callable[..., Any]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes official clients: `connect(running, api_key="...")`. They do not retry, so that errors are seen."""
    async with AsyncExitStack() as stack:

        def connect(running: Running, api_key: str = "none") -> Any:
            client = anthropic.AsyncAnthropic(
                base_url=running.url, api_key=api_key, max_retries=0, timeout=30
            )
            stack.push_async_callback(client.close)
            return client

        yield connect


def shown(message: Any) -> JSON:
    """What a message of the official client says, less its id and those of its calls."""
    said: JSON = message.model_dump(mode="json", exclude_none=True, exclude={"id"})
    for block in said["content"]:
        block.pop("id", None)
    return said


async def both(client: Any, **request: Any) -> JSON:
    """Ask for a whole message and for a stream; they must say the same. Returns it."""
    request = {"model": "thinker", "max_tokens": 2000, "messages": USER, **request}
    whole = await client.messages.create(**request)
    async with client.messages.stream(**request) as stream:
        streamed = await stream.get_final_message()
    assert shown(whole) == shown(streamed)
    return shown(whole)


# Answers


@pytest.mark.parametrize("name", FORMATS)
async def test_a_thought_is_hidden_at_any_chunking_and_a_stream_says_what_a_whole_message_says(
    name: str, start_gateway: StartGateway
) -> None:
    """Every byte that is sent is looked at, for chunks of 1 to 7 characters."""
    text = output(name, THOUGHT, f"{RESPONSE}\n{CALL}")
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, format=name)
        for size in range(1, 8):
            upstream.script = Script(chunked(text, size))
            _, whole, raw = await ask(running, {**LEAST, "tools": [WEATHER]})
            _, _, stream = await ask(running, {**LEAST, "tools": [WEATHER], "stream": True})
            assert "SECRET" not in raw + stream and "thought" not in raw + stream
            assert [block["type"] for block in whole["content"]] == ["text", "tool_use"]
            assert whole["content"][0]["text"] == RESPONSE and whole["content"][1]["input"] == INPUT
            read = events(stream)
            texts = [e["delta"]["text"] for _, e in read if e.get("delta", {}).get("type") == "text_delta"]
            assert "".join(texts) == RESPONSE
            [given] = [e for _, e in read if e.get("delta", {}).get("type") == "input_json_delta"]
            assert msgspec.json.decode(given["delta"]["partial_json"]) == INPUT


async def test_the_official_client_reads_a_message_and_a_stream(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """All that a message says: type, role, model, why it ended, and what it took."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 4))) as upstream:
        client = connect(await start_gateway(upstream.url))
        message = await both(client)
    thought = len(chunked(OUTPUT, 4)) - len(chunked(RESPONSE, 4))
    details = message["usage"].pop("output_tokens_details")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "thinker",
        "content": [{"type": "text", "text": RESPONSE}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 7, "output_tokens": len(chunked(OUTPUT, 4))},
    }
    # A token may lie on the border.
    assert abs(details["thinking_tokens"] - thought) <= 1


async def test_the_events_of_a_stream_are_anthropics(start_gateway: StartGateway) -> None:
    """In Anthropic's order, with one block open at a time."""
    async with ScriptedUpstream(Script(chunked(OUTPUT + CALL, 6))) as upstream:
        running = await start_gateway(upstream.url)
        _, _, text = await ask(running, {**LEAST, "tools": [WEATHER], "stream": True})
    read = events(text)
    names = [name for name, _ in read]
    deltas = names.count("content_block_delta")
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * (deltas - 1),
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = read[0][1]["message"]
    assert start.pop("id").startswith("msg_")
    assert start == {
        "type": "message",
        "role": "assistant",
        "model": "thinker",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    begun = [event for name, event in read if name == "content_block_start"]
    assert begun[0] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    assert begun[1]["index"] == 1
    assert begun[1]["content_block"].pop("id").startswith("call_")
    assert begun[1]["content_block"] == {"type": "tool_use", "name": "weather", "input": {}}
    assert read[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert read[-2][1]["usage"]["input_tokens"] == 7


async def test_tools_are_called_and_their_results_go_to_the_model(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """The loop of an agent: ask, call, give the result back with all that was said, get the answer."""
    first = Script(chunked(output("tpo-generic", THOUGHT, f"Let me look.\n{CALL}\n{CALL}"), 5))
    async with ScriptedUpstream([first, Script(chunked(OUTPUT, 5))]) as upstream:
        client = connect(await start_gateway(upstream.url))
        asked = {"model": "thinker", "max_tokens": 2000, "tools": [WEATHER]}
        message = await client.messages.create(messages=USER, **asked)
        assert message.stop_reason == "tool_use"
        assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
        calls = message.content[1:]
        assert calls[0].input == INPUT and calls[0].id != calls[1].id
        results = [
            {
                "type": "tool_result",
                "tool_use_id": calls[0].id,
                "content": [{"type": "text", "text": "Sunny"}],
            },
            {
                "type": "tool_result",
                "tool_use_id": calls[1].id,
                "content": "no such place",
                "is_error": True,
            },
            {"type": "text", "text": "Go on."},
        ]
        history = [
            *USER,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": results},
        ]
        last = await client.messages.create(messages=history, **asked)
        assert last.content[0].text == RESPONSE and last.stop_reason == "end_turn"
        function = {
            "name": "weather",
            "description": "The weather.",
            "parameters": WEATHER["input_schema"],
        }
        body = upstream.requests[1].body
        assert body["tools"] == [{"type": "function", "function": function}]
        assert body["tool_choice"] == "none"  # calls are read by the gateway
        arguments = {"name": "weather", "arguments": msgspec.json.encode(INPUT).decode()}
        assert body["messages"] == [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [{"id": call.id, "type": "function", "function": arguments} for call in calls],
            },
            {"role": "tool", "tool_call_id": calls[0].id, "content": "Sunny"},
            {"role": "tool", "tool_call_id": calls[1].id, "content": "Error: no such place"},
            {"role": "user", "content": THOUGHT_PROMPT("Go on.")},
        ]


@pytest.mark.parametrize("end", ["", ', "days": [1'])
async def test_a_call_that_is_cut_off_is_no_call_streamed_or_not(
    end: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """An agent must not run a tool with half of its input."""
    cut = output(
        "tpo-generic", THOUGHT, f'Let me look.\n<tool_call>\n{{"name": "weather", "arguments": {{"city"{end}'
    )
    async with ScriptedUpstream(Script([*chunked(cut, 5), Finish("length")])) as upstream:
        client = connect(await start_gateway(upstream.url))
        message = await both(client, tools=[WEATHER])
    assert message["content"] == [{"type": "text", "text": "Let me look."}]
    assert message["stop_reason"] == "max_tokens"


async def test_text_behind_a_call_is_a_block_of_its_own(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """Streamed or not: the same blocks, wherever the chunks end."""
    text = output("tpo-generic", THOUGHT, f"One.\n{CALL}\nTwo.\n{CALL}")
    async with ScriptedUpstream() as upstream:
        client = connect(await start_gateway(upstream.url))
        request: JSON = {"model": "thinker", "max_tokens": 2000, "messages": USER, "tools": [WEATHER]}
        # The last ones: the rest of a call and the text behind it in one chunk.
        inside = [text.index("Two.") - len(CALL) + 50, text.index("Two.") + 4]
        cuts = [chunked(text, size) for size in (*range(1, 8), 40, 60, 90, len(text))]
        for chunks in (*cuts, tokens(text, inside), tokens(text, [*inside, text.rindex("Rome")])):
            upstream.script = Script(chunks)
            whole = await client.messages.create(**request)
            async with client.messages.stream(**request) as stream:
                streamed = await stream.get_final_message()
            for content in (whole.content, streamed.content):
                blocks = [block.input if block.type == "tool_use" else block.text for block in content]
                assert blocks == ["One.", INPUT, "\nTwo.", INPUT]


@pytest.mark.parametrize("size", [1, 4, 1000])
async def test_stop_sequences_are_matched_on_the_response_only_and_named(
    size: int, start_gateway: StartGateway, connect: Connect
) -> None:
    """Not in the thought; the answer says which one it was."""
    text = output("tpo-generic", "STOP and HALT.", "One. Two. HALT Three. STOP")
    async with ScriptedUpstream(Script(chunked(text, size))) as upstream:
        client = connect(await start_gateway(upstream.url))
        message = await both(client, stop_sequences=["STOP", "HALT"])
        assert message["content"] == [{"type": "text", "text": "One. Two. "}]
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "HALT")
        assert all("stop" not in request.body for request in upstream.requests)


async def test_max_tokens_bounds_thought_and_response_together(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """A thought that takes it all leaves an answer of no blocks, which may come back in the history."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 4))) as upstream:
        client = connect(await start_gateway(upstream.url))
        message = await both(client, max_tokens=10)
        assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
        assert message["usage"]["output_tokens"] == 10
        assert upstream.requests[-1].body["max_tokens"] == 10
        message = await both(client, max_tokens=len(chunked(OUTPUT, 4)) - 2)
        assert RESPONSE.startswith(message["content"][0]["text"])
        assert message["stop_reason"] == "max_tokens"
        history = [*USER, {"role": "assistant", "content": []}, *USER]
        assert (await both(client, messages=history))["stop_reason"] == "end_turn"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_operator_sees_the_thought_as_a_thinking_block(
    stream: bool, start_gateway: StartGateway, connect: Connect
) -> None:
    """And a client who asks is refused."""
    reveal = {"thinkserve-reveal": "1"}
    async with ScriptedUpstream(Script(chunked(OUTPUT, 3))) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS)
        request: JSON = {"model": "thinker", "max_tokens": 2000, "messages": USER, "extra_headers": reveal}
        client = connect(running, "sk-operator")
        if stream:
            async with client.messages.stream(**request) as answer:
                message = await answer.get_final_message()
        else:
            message = await client.messages.create(**request)
        thought, response = message.content
        assert (thought.type, thought.signature) == ("thinking", "")
        assert thought.thinking.strip() == THOUGHT
        assert (response.type, response.text) == ("text", RESPONSE)
        with pytest.raises(anthropic.PermissionDeniedError) as caught:
            await connect(running, "sk-client").messages.create(**request)
        assert caught.value.body["error"]["type"] == "permission_error"
        if stream:
            headers = {**reveal, "x-api-key": "sk-operator"}
            _, _, text = await ask(running, {**LEAST, "stream": True}, **headers)
            kinds = [event["delta"]["type"] for name, event in events(text) if name == "content_block_delta"]
            # As at Anthropic, a thinking block ends with its signature.
            assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta"]
        # What the operator was shown is not what the model sees of its past.
        history = [*USER, {"role": "assistant", "content": message.content}, *USER]
        await client.messages.create(**{**request, "messages": history})
        assert "SECRET" not in str(upstream.requests[-1].body)


async def test_a_stream_is_kept_alive_with_pings_while_the_model_thinks(start_gateway: StartGateway) -> None:
    """Anthropic's own, which its clients pass over."""
    go_on = asyncio.Event()
    async with ScriptedUpstream(Script(["Here is my thought process:\nSECRET", Wait(go_on)])) as upstream:
        running = await start_gateway(upstream.url, keepalive_seconds=0.05)
        body = msgspec.json.encode({**LEAST, "stream": True})
        async with running.http.post(f"{running.url}{PATH}", data=body) as response:
            read = b""
            async with asyncio.timeout(10):
                while read.count(b'event: ping\ndata: {"type":"ping"}\n\n') < 2:
                    read += await response.content.readany()
            go_on.set()
            read += await response.read()
    assert b"SECRET" not in read and read.startswith(b"event: message_start\n")


async def test_a_stream_is_kept_alive_while_a_call_comes(start_gateway: StartGateway) -> None:
    """It goes out when it is whole, and until then nothing does: a proxy would cut a connection that is silent."""
    begun = f'{output("tpo-generic", THOUGHT, "")}<tool_call>\n{{"name": "weather", "arguments": {{"city": "'
    steps: list[Step] = [begun, *[Delta("x", delay=0.02)] * 40, '"}}\n</tool_call>']
    async with ScriptedUpstream(Script(steps)) as upstream:
        running = await start_gateway(upstream.url, keepalive_seconds=0.05)
        _, _, text = await ask(running, {**LEAST, "stream": True, "tools": [WEATHER]})
    assert text.count("event: ping") >= 3
    calls = [event["delta"]["partial_json"] for _, event in events(text) if "partial_json" in str(event)]
    assert "".join(calls) == f'{{"city": "{"x" * 40}"}}'


# Errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "BadRequestError"), (422, "BadRequestError"), (429, "RateLimitError")],
)
async def test_what_an_engine_refuses_is_an_error_of_anthropics(
    status: int, kind: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """Its clients raise the class that they have for it."""
    types = {"BadRequestError": "invalid_request_error", "RateLimitError": "rate_limit_error"}
    async with ScriptedUpstream(Script([Status(status, {"error": {"message": "no"}})])) as upstream:
        client = connect(await start_gateway(upstream.url))
        for stream in (False, True):
            with pytest.raises(getattr(anthropic, kind)) as caught:
                await client.messages.create(model="thinker", stream=stream, **LEAST)
            assert caught.value.body["type"] == "error"
            assert caught.value.body["error"]["type"] == types[kind]


async def test_errors_have_anthropics_types(start_gateway: StartGateway) -> None:
    """By status: what is wrong with the request, the key, the size, the model, the output, the engine."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS, max_body_bytes=2000)
        key = {"x-api-key": "sk-client"}

        async def told(body: object, **headers: str) -> tuple[int, str, str]:
            status, answer, _ = await ask(running, body, **headers)
            assert answer.keys() == {"type", "error"} and answer["type"] == "error"
            assert answer["error"].keys() == {"type", "message"}
            return status, answer["error"]["type"], answer["error"]["message"]

        assert (await told(LEAST))[:2] == (401, "authentication_error")
        assert (await told(LEAST, **{"x-api-key": "sk-no"}))[:2] == (401, "authentication_error")
        assert (await told(b"{", **key))[:2] == (400, "invalid_request_error")
        status, kind, message = await told({**LEAST, "model": "other"}, **key)
        assert (status, kind) == (404, "not_found_error") and "thinker" in message
        assert (await told({**LEAST, "system": "x" * 2000}, **key))[:2] == (413, "request_too_large")
        upstream.script = Script(["no marker at all"])
        assert (await told(LEAST, **key))[:2] == (502, "api_error")
        upstream.script = Script([Die()])
        assert (await told(LEAST, **key))[:2] == (503, "overloaded_error")


@pytest.mark.parametrize("broken", [Die(), ErrorEvent()])
async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(
    broken: Any, start_gateway: StartGateway, connect: Connect
) -> None:
    """The official client raises it; nothing says that the message is whole."""
    async with ScriptedUpstream(Script([*chunked(OUTPUT, 4), broken])) as upstream:
        running = await start_gateway(upstream.url)
        _, _, text = await ask(running, {**LEAST, "stream": True})
        name, event = events(text)[-1]
        assert (name, event["error"]["type"]) == ("error", "overloaded_error")
        assert event["request_id"].startswith("msg_")
        assert "message_stop" not in text and "SECRET" not in text
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with connect(running).messages.stream(model="thinker", **LEAST) as stream:
                await stream.get_final_message()
        assert "overloaded_error" in str(caught.value)


async def test_a_thought_without_an_end_is_an_error_that_shows_nothing(start_gateway: StartGateway) -> None:
    """In a stream too: there the head is sent by then."""
    async with ScriptedUpstream(Script(chunked("Here is my thought process:\nSECRET", 3))) as upstream:
        running = await start_gateway(upstream.url)
        status, body, text = await ask(running, LEAST)
        assert (status, body["error"]["type"]) == (502, "api_error") and "SECRET" not in text
        _, _, text = await ask(running, {**LEAST, "stream": True})
        assert [name for name, _ in events(text)] == ["message_start", "error"] and "SECRET" not in text


# Fields

# One good value for every field that is taken.
GOOD: dict[str, Any] = {
    "model": "thinker",
    "messages": USER,
    "max_tokens": 2000,
    "system": "Be kind.",
    "stream": True,
    "stop_sequences": ["x", "y"],
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "tools": [WEATHER],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "speed": "standard",
    "cache_control": {"type": "ephemeral"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "diagnostics": {"previous_message_id": "msg_1"},
    "user_profile_id": "u",
}
REFUSED = [name for name, field in FIELDS.items() if field.action == REFUSE]
# Which of the values that are wrong elsewhere are right.
RIGHT: dict[str, set[str]] = {
    "stream": {"true"},
    "max_tokens": {"a million"},
    "system": TEXTS | {"an empty array"},
    "stop_sequences": {"strings", "an empty array"},
    "output_config": {"an empty object"},
    "tools": {"an empty array"},
    "top_k": {"a million"},
    "metadata": {"an empty object"},
    "cache_control": set(WRONG) - NO_JSON,
    "context_management": {"an empty object"},
    "diagnostics": {"an empty object", "an object"},
    "user_profile_id": TEXTS,
}


def test_every_field_of_the_table_is_tried_here() -> None:
    """A field that is added to the table needs a good value in this file, or is refused with a reason."""
    assert set(GOOD) | set(REFUSED) == set(FIELDS) and not set(GOOD) & set(REFUSED)
    assert all(field.why for field in FIELDS.values() if field.action == REFUSE)


async def test_the_engine_is_asked_this_and_nothing_else(start_gateway: StartGateway) -> None:
    """The whole body that goes upstream, for the least and for the most that a client can ask."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, format_guard=False)
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "context-1m-2025-08-07"}
        assert (await ask(running, LEAST, **headers))[0] == 200
        assert await sent(running, upstream, LEAST) == plain()
        most = await sent(running, upstream, GOOD)
        tag = msgspec.json.decode(most.pop("structured_outputs")["structural_tag"])["format"]
        # The thought stays free, is bounded, and ends.
        assert "Here is my response:" in str(tag)
        function = {
            "name": "weather",
            "description": "The weather.",
            "parameters": WEATHER["input_schema"],
        }
        assert most == plain(
            [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": THOUGHT_PROMPT("Hi")},
            ],
            temperature=0.5,
            top_p=0.5,
            top_k=5,
            tools=[{"type": "function", "function": function}],
            tool_choice="none",
        )


@pytest.mark.parametrize("action", [PASS, DROP])
async def test_fields_pass_as_they_are_or_are_dropped(action: str, start_gateway: StartGateway) -> None:
    """Sampling parameters pass; of what has no effect the engine does not hear."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, format_guard=False)
        for name in [name for name, field in FIELDS.items() if field.action == action]:
            more = {name: GOOD[name]} if action == PASS else {}
            assert await sent(running, upstream, {**LEAST, name: GOOD[name]}) == plain(**more), name


async def test_a_refused_or_unknown_field_gives_400_with_its_name_and_the_reason(
    start_gateway: StartGateway,
) -> None:
    """Engine extras too; the operator may let them by."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, allow_fields=frozenset({"bad_words", "new_field"}))
        for name in {*REFUSED, "max_tokens_to_sample", "echo", "n"} - {"bad_words"}:
            status, body, text = await ask(running, {**LEAST, name: 1})
            assert (
                status == 400
                and body["error"]["message"].startswith(f"{name} is refused: ")
                or (f"'{name}' is not a field" in body["error"]["message"])
            ), text
        assert not upstream.requests
        asked = await sent(running, upstream, {**LEAST, "bad_words": ["a"], "new_field": 1})
        assert (asked["bad_words"], asked["new_field"]) == (["a"], 1)


@pytest.mark.parametrize("name", GOOD)
async def test_a_wrong_type_in_any_field_gives_400_that_names_it(
    name: str, start_gateway: StartGateway
) -> None:
    """Never 500, whatever stands there; the message stays short."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        for what, value in WRONG.items():
            beside = {key: item for key, item in LEAST.items() if key != name}
            members = [b'"%s":%s' % (key.encode(), msgspec.json.encode(item)) for key, item in beside.items()]
            body = b"{%s}" % b",".join([*members, b'"%s":' % name.encode() + value])
            status, answer, text = await ask(running, body)
            if what in RIGHT.get(name, set()):
                assert status == 200, (what, text)
                continue
            message = answer["error"]["message"]
            assert (status, answer["error"]["type"]) == (
                404 if name == "model" and what in TEXTS else 400,
                "not_found_error" if name == "model" and what in TEXTS else "invalid_request_error",
            ), (what, text)
            assert len(message) < 400 and ("JSON" in message if what in NO_JSON else name in message), message


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("thinking", {"type": "enabled"}, "thinking.budget_tokens"),
        ("thinking", {"type": "enabled", "budget_tokens": LEAST_BUDGET - 1}, "thinking.budget_tokens"),
        ("thinking", {"type": "enabled", "budget_tokens": 2000}, "max_tokens must be greater"),
        ("thinking", {"type": "adaptive", "budget_tokens": 1024}, "thinking.budget_tokens"),
        ("thinking", {"type": "disabled", "display": "omitted"}, "thinking.display"),
        ("thinking", {"type": "adaptive", "display": "full"}, "thinking.display"),
        ("thinking", {"type": "between_tools"}, "thinking.type"),
        ("output_config", {"effort": "none"}, "output_config.effort"),
        ("output_config", {"task_budget": 1}, "output_config.task_budget"),
        ("output_config", {"format": {"type": "json"}}, "output_config.format.type"),
        ("output_config", {"format": {"type": "json_schema"}}, "output_config.format.schema"),
        (
            "output_config",
            {"format": {"type": "json_schema", "schema": {}, "x": 1}},
            "output_config.format.x",
        ),
        ("tools", [{**WEATHER, "type": "web_search_20250305"}], "tools[0].type"),
        ("tools", [{"type": "bash_20250124", "name": "bash"}], "tools[0].type"),
        ("tools", [{**WEATHER, "x": 1}], "tools[0].x"),
        ("tools", [WEATHER, {**WEATHER, "name": "a b"}], "tools[1].name"),
        ("tools", [{"name": "a"}], "tools[0].input_schema"),
        ("tools", [{**WEATHER, "description": 1}], "tools[0].description"),
        ("tools", [{**WEATHER, "strict": 1}], "tools[0].strict"),
        ("tools", [{**WEATHER, "allowed_callers": ["code_execution_20250825"]}], "tools[0].allowed_callers"),
        ("tools", [WEATHER, WEATHER], "two tools of one name"),
        ("tools", [{**WEATHER, "name": f"t{at}"} for at in range(MOST_TOOLS + 1)], f"{MOST_TOOLS} are taken"),
        ("tool_choice", {"type": "any"}, "there are no tools"),
        ("tool_choice", {"type": "tool"}, "tool_choice.name"),
        ("tool_choice", {"type": "none", "disable_parallel_tool_use": True}, "disable_parallel_tool_use"),
        ("tool_choice", {"type": "auto", "name": "weather"}, "tool_choice.name"),
        ("tool_choice", {"type": "required"}, "tool_choice.type"),
        ("stop_sequences", [str(at) for at in range(MOST_STOPS + 1)], "stop_sequences"),
        ("stop_sequences", [""], "stop_sequences"),
        ("system", [{"type": "image", "source": {}}], "system[0].type image is refused"),
        ("metadata", {"user_id": 1}, "metadata.user_id"),
        ("metadata", {"name": "x"}, "metadata.name"),
        ("context_management", {"edits": [{"type": "clear_tool_uses_20250919"}]}, "no input is left out"),
    ],
)
async def test_what_is_wrong_inside_a_field_is_named(
    field: str, value: Any, where: str, start_gateway: StartGateway
) -> None:
    """With the way to the value."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        status, body, _ = await ask(running, {**LEAST, field: value})
        assert status == 400 and where in body["error"]["message"]
        assert not upstream.requests


async def test_a_tool_that_is_named_must_be_there(start_gateway: StartGateway) -> None:
    """With `any` or a name the response is bound to be calls; the thought stays free."""
    async with ScriptedUpstream(Script([output("tpo-generic", THOUGHT, CALL)])) as upstream:
        running = await start_gateway(upstream.url)
        asked = {**LEAST, "tools": [WEATHER]}
        status, body, _ = await ask(running, {**asked, "tool_choice": {"type": "tool", "name": "x"}})
        assert status == 400 and "tool_choice.name" in body["error"]["message"]
        for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
            bound = await sent(running, upstream, {**asked, "tool_choice": choice})
            assert "Here is my response:" in bound["structured_outputs"]["structural_tag"]
        free = await sent(running, upstream, {**asked, "tool_choice": {"type": "none"}})
        assert "tools" not in free


async def test_with_tools_switched_off_what_looks_like_a_call_is_text(start_gateway: StartGateway) -> None:
    """And with one call at most, the second is not shown."""
    async with ScriptedUpstream(Script([output("tpo-generic", THOUGHT, CALL + CALL)])) as upstream:
        running = await start_gateway(upstream.url)
        asked = {**LEAST, "tools": [WEATHER]}
        _, body, _ = await ask(running, {**asked, "tool_choice": {"type": "none"}})
        assert body["content"] == [{"type": "text", "text": CALL + CALL}]
        one = {"type": "auto", "disable_parallel_tool_use": True}
        _, body, _ = await ask(running, {**asked, "tool_choice": one})
        assert [block["type"] for block in body["content"]] == ["tool_use"]


@pytest.mark.parametrize(
    "request_thinking",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"output_config": {"effort": "low"}},
    ],
)
async def test_a_thinking_budget_or_an_effort_bounds_the_thought(
    request_thinking: JSON, start_gateway: StartGateway
) -> None:
    """A thought that goes over it is closed, and the model is asked to go on with its response."""

    def script(recorded: Recorded) -> Script:
        if "continue_final_message" in recorded.body:
            return Script([RESPONSE])
        return Script(["Here is my thought process:\n", *["SECRET "] * 1200])

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, effort_budgets={"low": 1024})
        _, body, text = await ask(running, {**LEAST, **request_thinking})
        assert body["content"] == [{"type": "text", "text": RESPONSE}] and "SECRET" not in text
        assert upstream.requests[1].body["messages"][-1]["content"].count("SECRET") in range(1000, 1030)


async def test_without_a_thought_the_model_is_asked_directly_where_the_format_can_tell(
    start_gateway: StartGateway,
) -> None:
    """Clients send `disabled` whatever they talk to; elsewhere the thought is short, and hidden as ever."""
    disabled = {**LEAST, "thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}
    direct = ThoughtFormat("marked", ("</t>",), ("<t>",), prompt="Think.\n{instruction}")
    async with ScriptedUpstream(Script([RESPONSE])) as upstream:
        running = await start_gateway(upstream.url, format=direct)
        _, body, _ = await ask(running, disabled)
        assert body["content"] == [{"type": "text", "text": RESPONSE}]
        assert upstream.requests[0].body["messages"] == USER
    in_thought = ThoughtFormat("unmarked", ("</t>",), prompt="Think.\n{instruction}")

    def script(recorded: Recorded) -> Script:
        continued = "continue_final_message" in recorded.body
        return Script([RESPONSE] if continued else ["SECRET "] * 20)

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format=in_thought, effort_budgets={"minimal": 5})
        _, body, text = await ask(running, disabled)
        assert body["content"] == [{"type": "text", "text": RESPONSE}] and "SECRET" not in text
        assert upstream.requests[0].body["messages"][0]["content"] == "Think.\nHi"
        assert upstream.requests[1].body["messages"][-1]["content"].count("SECRET") < 10


# Messages


async def test_messages_are_written_as_the_engine_takes_them(start_gateway: StartGateway) -> None:
    """Blocks become text, messages of one role that follow each other one message, and thoughts are gone."""
    cached = {"cache_control": {"type": "ephemeral"}}
    history = [
        {"role": "user", "content": "One."},
        {"role": "user", "content": [{"type": "text", "text": "Two.", **cached}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "SECRET", "signature": "s"},
                {"type": "redacted_thinking", "data": "SECRET"},
                {
                    "type": "text",
                    "text": "Here is my thought process:\nSECRET\nHere is my resp",
                    "citations": None,
                },
                {"type": "text", "text": "onse:\nThree."},
            ],
        },
        {"role": "assistant", "content": " Four."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        {"role": "user", "content": [{"type": "text", "text": "Five."}, {"type": "text", "text": "Six."}]},
    ]
    system = [{"type": "text", "text": "Be kind.", **cached}, {"type": "text", "text": "Be true."}]
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        asked = await sent(running, upstream, {**LEAST, "messages": history, "system": system})
    assert asked["messages"] == [
        {"role": "system", "content": "Be kind.\nBe true."},
        {"role": "user", "content": "One.\nTwo."},
        {"role": "assistant", "content": "Three. Four."},
        {"role": "system", "content": "Be brief."},
        {"role": "tool", "tool_call_id": "t", "content": ""},
        {"role": "user", "content": THOUGHT_PROMPT("Five.\nSix.")},
    ]


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ("Hi", "messages[0]"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": "Hi", "name": "x"}, "messages[0].name"),
        ({"role": "tool", "content": "Hi"}, "messages[0].role"),
        ({"role": "user", "content": ["Hi"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "x": None}]}, "messages[0].content[0].x"),
        (
            {"role": "user", "content": [{"type": "image", "source": {}}]},
            "messages[0].content[0].type image is refused: this model reads text only",
        ),
        (
            {"role": "user", "content": [{"type": "document"}]},
            "document is refused: this model reads text only",
        ),
        ({"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}, "messages[0].content[0].type"),
        (
            {"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"type": "tool_result"}]}, "messages[0].content[0].tool_use_id"),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": False}]},
            "messages[0].content[0].content",
        ),
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "is_error": 1}]},
            "messages[0].content[0].is_error",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}],
            },
            "messages[0].content[0].content[0].type image is refused",
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": "{}"}]},
            "messages[0].content[0].input",
        ),
        (
            {"role": "assistant", "content": [{"type": "server_tool_use", "id": "a"}]},
            "messages[0].content[0].type",
        ),
        ({"role": "system", "content": [{"type": "tool_result"}]}, "messages[0].content[0].type"),
    ],
)
async def test_what_is_wrong_in_a_message_is_named(
    message: Any, where: str, start_gateway: StartGateway
) -> None:
    """With the way to the block; the engine hears nothing."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        status, body, _ = await ask(running, {**LEAST, "messages": [message, *USER]})
        assert status == 400 and where in body["error"]["message"], body
        assert not upstream.requests


async def test_the_beginning_of_a_response_cannot_be_given(start_gateway: StartGateway) -> None:
    """A prefill would decide what is a thought."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        prefill = [*USER, {"role": "assistant", "content": "Here is my response:"}]
        status, body, _ = await ask(running, {**LEAST, "messages": prefill})
        assert status == 400 and "must not end with an assistant message" in body["error"]["message"]
        only_result = [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]
        status, body, _ = await ask(running, {**LEAST, "messages": only_result})
        assert status == 400 and "must hold a user message with text" in body["error"]["message"]
        assert not upstream.requests
