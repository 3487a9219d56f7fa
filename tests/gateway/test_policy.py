"""What a client may ask: every field of the table, every wrong type in every field, messages, and what goes upstream."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.gateway.conftest import Running, StartGateway, content
from tests.gateway.field_values import HUGE, TEXTS, check_wrong_values
from tests.gateway.scripted import JSON, Script, ScriptedUpstream, Wait
from thinkserve.engines.engine import Endpoint
from thinkserve.gateway.api.chat import FIELDS
from thinkserve.gateway.constraints import Constraint, structured_outputs
from thinkserve.gateway.fields import DROP, PASS, REFUSE, REWRITE
from thinkserve.gateway.tools import Tool, Tools
from thinkserve.thoughts import BUILT_IN, ThoughtFormat, get_format

THOUGHT_PROMPT = BUILT_IN["tpo-generic"].thought_prompt
ASK: Any = [{"role": "user", "content": "Hi"}]
OUTPUT = "Here is my thought process:\nHm.\nHere is my response:\nHello!"
SCRIPT = Script([OUTPUT])
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}

# One good value for every field that is taken.
GOOD: dict[str, Any] = {
    "model": "thinker",
    "messages": ASK,
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "n": 2,
    "stop": ["x", "y"],
    "max_tokens": 9,
    "max_completion_tokens": 9,
    "reasoning_effort": "low",
    "thinking_token_budget": 512,
    "logprobs": True,
    "top_logprobs": 3,
    "response_format": JSON_FORMAT,
    "structured_outputs": {"regex": "a+"},
    "seed": 7,
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": -0.5,
    "presence_penalty": 0.5,
    "user": "someone",
    "metadata": {"a": "b"},
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "service_tier": "auto",
    "store": False,
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "tool_choice": "none",
    "tools": [],
    "verbosity": "medium",
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
}
# What else a field needs beside it.
BESIDE: dict[str, JSON] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [{"type": "function", "function": {"name": "look"}}]},
}
REFUSED = [name for name, field in FIELDS.items() if field.action == REFUSE]


async def ask(running: Running, body: JSON | bytes) -> tuple[int, Any]:
    """Post a body, which may be bytes that are no JSON; return the status and the answer (text for a stream)."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with running.http.post(f"{running.url}/v1/chat/completions", data=data) as response:
        raw = await response.read()
        return response.status, msgspec.json.decode(raw) if raw.startswith(b"{") else raw.decode()


async def sent(running: Running, upstream: ScriptedUpstream, body: JSON) -> JSON:
    """Post a body that is taken; return what the engine was asked, less the cache salt and the stream interval."""
    upstream.requests.clear()
    status, answer = await ask(running, body)
    assert status == 200, answer
    asked = upstream.requests[0].body
    assert len(asked.pop("cache_salt")) == 32
    assert 1 <= asked.pop("stream_interval") <= 16
    return asked


def plain(messages: Any = None) -> JSON:
    """What the engine is asked where the client sends nothing but messages."""
    return {
        "model": "scripted",
        "messages": messages or [{"role": "user", "content": THOUGHT_PROMPT("Hi")}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


def test_every_field_of_the_table_is_tried_here() -> None:
    """A field that is added to the table needs a good value in this file, or is refused."""
    assert set(GOOD) | set(REFUSED) == set(FIELDS) and not set(GOOD) & set(REFUSED)
    assert all(field.why for field in FIELDS.values() if field.action == REFUSE)


async def test_the_engine_is_asked_this_and_nothing_else(start_gateway: StartGateway) -> None:
    """The whole body that goes upstream, for the least and for the most that a client can ask."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert await sent(running, upstream, {"messages": ASK}) == plain()
        both = {name: value for name, value in GOOD.items() if name != "structured_outputs"}
        assert await sent(running, upstream, both) == plain() | {
            "max_tokens": 9,
            "logprobs": True,
            "top_logprobs": 3,
            "seed": 7,
            "temperature": 0.5,
            "top_p": 0.5,
            "frequency_penalty": -0.5,
            "presence_penalty": 0.5,
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "structured_outputs": bound(Constraint("json_schema", {"type": "object"})),
        }
        assert sorted(request.body["seed"] for request in upstream.requests) == [7, 8]


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.action == PASS])
async def test_a_field_that_passes_reaches_the_engine_as_it_is(
    name: str, start_gateway: StartGateway
) -> None:
    """Sampling parameters pass."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert await sent(running, upstream, {"messages": ASK, name: GOOD[name]}) == plain() | {
            name: GOOD[name]
        }


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.action == DROP])
async def test_a_field_that_is_dropped_changes_nothing(name: str, start_gateway: StartGateway) -> None:
    """Fields that have no effect here are taken, and the engine does not hear of them."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert await sent(running, upstream, {"messages": ASK, name: GOOD[name]}) == plain()


def bound(constraint: Constraint | None, tools: Tools | None = None) -> dict[str, str] | None:
    """The grammar that the engine is given (what it takes is tested in test_constraints.py)."""
    format = get_format("tpo-generic")
    return structured_outputs(constraint, tools, format, direct=False, guard=False)


FUNCTION = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
OFFERED = {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "none"}
REWRITTEN: dict[str, tuple[Any, JSON]] = {
    "model": ("thinker", {}),
    "messages": (ASK, {}),
    "stream": (False, {}),
    "stream_options": ({"include_usage": True}, {}),
    "n": (2, {}),
    "stop": ("x", {}),
    "max_tokens": (9, {}),
    "max_completion_tokens": (9, {"max_tokens": 9}),
    "reasoning_effort": ("none", {"messages": ASK}),
    "logprobs": (True, {"logprobs": True, "top_logprobs": 0}),
    "top_logprobs": (2, {"logprobs": True, "top_logprobs": 2}),
    "response_format": ({"type": "text"}, {}),
    "thinking_token_budget": (100, {}),
    "structured_outputs": (
        {"choice": ["yes", "no"]},
        {"structured_outputs": bound(Constraint("choice", ["yes", "no"]))},
    ),
    "tools": ([{"type": "function", "function": {"name": "look"}}], OFFERED),
    "tool_choice": (
        "required",
        OFFERED | {"structured_outputs": bound(None, Tools((Tool("look"),), choice="required"))},
    ),
    "parallel_tool_calls": (False, {}),
}


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.action == REWRITE])
async def test_a_field_that_is_rewritten_changes_this_of_what_the_engine_is_asked(
    name: str, start_gateway: StartGateway
) -> None:
    """What the gateway does itself stays here; what it says in other words is said."""
    value, change = REWRITTEN[name]
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        body = {"messages": ASK, name: value, **BESIDE.get(name, {})}
        assert await sent(running, upstream, body) == plain() | change


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_field_gives_400_that_names_it_and_says_why(
    name: str, start_gateway: StartGateway
) -> None:
    """Whatever its value is; null is the same as absent."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        for value in (True, False, 0, 1, "x", [], {}, [1], {"a": 1}):
            status, body = await ask(running, {"messages": ASK, name: value})
            assert (status, body["error"]["param"]) == (400, name)
            assert body["error"]["code"] == "unsupported_field"
            assert name in body["error"]["message"] and FIELDS[name].why in body["error"]["message"]
        assert not upstream.requests
        assert await sent(running, upstream, {"messages": ASK, name: None}) == plain()


# Which of them are right after all.
RIGHT: dict[str, set[str]] = {
    "stream": {"true"},
    "stream_options": {"an empty object"},
    "stop": TEXTS - {"an empty string", "a long string"} | {"an empty array"},
    "max_tokens": {"a million"},
    "max_completion_tokens": {"a million"},
    "logprobs": {"true"},
    "seed": {"minus five", "a million"},
    "temperature": {"one and a half"},
    "frequency_penalty": {"one and a half"},
    "presence_penalty": {"one and a half"},
    "repetition_penalty": {"one and a half"},
    "top_k": {"a million"},
    "user": TEXTS,
    "safety_identifier": TEXTS,
    "prompt_cache_key": TEXTS,
    "prompt_cache_retention": TEXTS,
    "metadata": {"an empty object"},
    "parallel_tool_calls": {"true"},
    "thinking_token_budget": {"a million"},
    "tools": {"an empty array"},
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_wrong_type_in_any_field_gives_400_that_names_it(
    name: str, start_gateway: StartGateway
) -> None:
    """Never 500, whatever stands there; the message stays short."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        beside = {"messages": ASK, **BESIDE.get(name, {})}
        await check_wrong_values(running, "/v1/chat/completions", name, beside, RIGHT.get(name, set()))


@pytest.mark.parametrize(
    "place",
    [
        b'{"messages":[{"role":"user","content":"x"}],"temperature":%s}',
        b'{"messages":[{"role":"user","content":"x"}],"stop":%s}',
        b'{"messages":[{"role":"user","content":"x"}],"metadata":%s}',
        b'{"messages":[{"role":"user","content":"x"}],"tools":%s}',
        b'{"messages":[{"role":"user","content":"x"}],"service_tier":%s}',
        b'{"messages":[{"role":"user","content":"x"}],"response_format":{"type":%s}}',
        b'{"messages":[{"role":"user","content":"x"}],"logit_bias":%s}',
        b'{"messages":[{"role":"user","content":"x"}],"nobody":%s}',
        b'{"messages":[{"role":%s,"content":"x"}]}',
        b'{"messages":[{"role":"user","content":%s}]}',
        b'{"messages":[{"role":"user","content":[{"type":%s}]}]}',
        b'{"messages":%s}',
        b"%s",
    ],
)
async def test_nesting_of_any_depth_is_a_400(place: bytes, start_gateway: StartGateway) -> None:
    """Also just short of where the parser gives up, where what handles the value might give up in its place."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        for depth in [*range(700, 1010, 7), 2_000, 100_000]:
            status, body = await ask(running, place % (b"[" * depth + b"]" * depth))
            assert status == 400, (depth, body)
            assert len(body["error"]["message"]) < 400


async def test_a_deep_schema_is_taken_or_refused_with_400(start_gateway: StartGateway) -> None:
    """A schema goes on to the engine: one too deep to be written again is the client's error."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        for depth in [10, *range(50, 80), *range(700, 1010, 7), 5_000]:
            schema = b'{"a":' * depth + b"{}" + b"}" * depth
            body = b'{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema",'
            status, answer = await ask(running, body + b'"json_schema":{"schema":%s}}}' % schema)
            assert status in (200, 400), (depth, answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"{",
        b'{"messages": [',
        b"\x00\x01\x02",
        b"\xff\xfe{}",
        b'{"messages":[{"role":"user","content":"x"}]} trailing',
        b"messages=1",
        b"{'messages': []}",
        b'{"messages":[{"role":"user","content":"x"}],}',
    ],
)
async def test_a_body_that_is_no_json_object_is_a_400(body: bytes, start_gateway: StartGateway) -> None:
    """And says so."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        status, answer = await ask(running, body)
        assert (status, answer["error"]["code"]) == (400, "invalid_json")
        assert not upstream.requests


async def test_an_unknown_field_is_refused_by_name(start_gateway: StartGateway) -> None:
    """Whatever it is called."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        for name in ("nobody", "", "Model", "messages ", "include_reasoning\u0000", "__proto__", "x" * 5000):
            status, body = await ask(running, {"messages": ASK, name: None})
            assert (status, body["error"]["code"]) == (400, "unsupported_field")
            assert body["error"]["param"] == name[:100] and len(body["error"]["message"]) < 200


async def test_the_operator_may_let_fields_pass_by_name(start_gateway: StartGateway) -> None:
    """Unknown and refused ones alike, as they are; the gateway's own fields stay its own."""
    allowed = frozenset({"bad_words", "new_field", "temperature", "stop", "n"})
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, allow_fields=allowed)
        body = {"messages": ASK, "bad_words": ["x"], "new_field": {"a": [None]}, "stop": "x"}
        assert await sent(running, upstream, body) == plain() | {
            "bad_words": ["x"],
            "new_field": {"a": [None]},
        }
        assert (await ask(running, {"messages": ASK, "temperature": 9}))[0] == 400
        assert (await ask(running, {"messages": ASK, "echo": True}))[0] == 400


async def test_of_a_duplicate_key_one_value_is_checked_and_sent(start_gateway: StartGateway) -> None:
    """A body is parsed and written anew, so no second value rides along."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        head = b'{"messages":[{"role":"user","content":"Hi"}],'
        status, _ = await ask(running, head + b'"temperature":9,"temperature":1}')
        assert status == 200 and upstream.requests[0].body["temperature"] == 1
        status, body = await ask(running, head + b'"temperature":1,"temperature":9}')
        assert (status, body["error"]["param"]) == (400, "temperature")
        status, body = await ask(running, head + b'"echo":true,"ech\\u006f":false}')
        assert (status, body["error"]["param"]) == (400, "echo")


async def test_null_is_the_same_as_absent_in_every_field(start_gateway: StartGateway) -> None:
    """As the official clients send it; only messages must be there."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        nulls = dict.fromkeys(FIELDS) | {"messages": ASK}
        assert await sent(running, upstream, nulls) == plain()
        status, body = await ask(running, dict.fromkeys(FIELDS))
        assert (status, body["error"]["param"]) == (400, "messages")


async def test_another_model_is_404_and_no_model_is_the_one_that_is_served(
    start_gateway: StartGateway,
) -> None:
    """As at OpenAI, with the name of the one there is."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        status, body = await ask(running, {"messages": ASK, "model": "gpt-4o"})
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert "gpt-4o" in body["error"]["message"] and "thinker" in body["error"]["message"]
        status, body = await ask(running, {"messages": ASK})
        assert status == 200 and body["model"] == "thinker"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x", "x" * 1025]}, "stop"),
        ({"stop": ["a", 1]}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format.json_schema",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
async def test_a_value_out_of_bounds_is_a_400_that_names_the_field(
    fields: JSON, param: str, start_gateway: StartGateway
) -> None:
    """With the bounds in the message."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        status, body = await ask(running, {"messages": ASK, **fields})
        assert status == 400 and body["error"]["param"].startswith(param)
        assert body["error"]["message"].startswith(param) and not upstream.requests


# Messages

USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([None], "messages[0]"),
        (["Hi"], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": {"type": "text", "text": "x"}}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "messages[0].content[0].type"),
        (
            [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[1].content[0].type",
        ),
        ([{"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}, USER], "messages[0]"),
        ([{"role": "tool", "content": "x"}, USER], "messages[0].tool_call_id"),
        ([{"role": "tool", "tool_call_id": "1"}, USER], "messages[0].content"),
        ([{"role": "user", "content": "x", "tool_call_id": "1"}, USER], "messages[0].tool_call_id"),
        ([{"role": "function", "content": "x"}, USER], "messages[0].role"),
        ([{"role": "User", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": {"a": 1}, "content": "x"}], "messages[0].role"),
        ([{"role": True, "content": "x"}], "messages[0].role"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{}]}, USER], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "content": "x", "tool_calls": 5}, USER], "messages[0].tool_calls"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}, USER], "messages[0].tool_calls"),
        ([{"role": "assistant", "content": "x", "prefix": True}], "messages[0].prefix"),
        ([{"role": "user", "content": "x", "y" * 500: 1}], "messages[0]." + "y" * 100),
        ([{"role": "user", "content": "x", "name": 5}], "messages[0].name"),
        ([{"role": "system", "content": "x"}], "messages"),
        ([{"role": "assistant", "content": "x"}], "messages"),
    ],
)
async def test_a_message_that_is_wrong_is_a_400_that_names_the_place(
    messages: Any, param: str, start_gateway: StartGateway
) -> None:
    """Down to the part."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        status, body = await ask(running, {"messages": messages})
        assert status == 400 and body["error"]["param"].startswith(param), body
        assert len(body["error"]["message"]) < 400 and not upstream.requests


@pytest.mark.parametrize("value", [HUGE, b"1" + b"0" * 4000, b"1" + b"0" * 4299, b"1" + b"0" * 4300])
@pytest.mark.parametrize(
    "place",
    [
        b'{"role":%s,"content":"x"}',
        b'{"role":"user","content":%s}',
        b'{"role":"user","content":[{"type":%s}]}',
        b'{"role":"user","content":[{"type":"text","text":%s}]}',
        b'{"role":"user","content":"x","name":%s}',
        b'{"role":"user","content":"x","other":%s}',
        b"%s",
    ],
)
async def test_a_huge_integer_in_a_message_is_a_400(
    place: bytes, value: bytes, start_gateway: StartGateway
) -> None:
    """Also one that is too long to be printed."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        status, body = await ask(running, b'{"messages":[%s]}' % (place % value))
        assert status == 400 and len(body["error"]["message"]) < 400


async def test_messages_are_written_anew(start_gateway: StartGateway) -> None:
    """Roles, names, parts; developer is the system; an assistant's absent content is empty."""
    messages = [
        {"role": "developer", "content": "D"},
        {"role": "system", "content": [{"type": "text", "text": "S", "cache_control": {"x": 1}}]},
        {"role": "user", "content": "U", "name": "bob"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "A"},
    ]
    before, after = BUILT_IN["tpo-generic"].thought_prompt_halves()
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert (await sent(running, upstream, {"messages": messages}))["messages"] == [
            {"role": "system", "content": "D"},
            {"role": "system", "content": [{"type": "text", "text": "S"}]},
            {"role": "user", "content": "U", "name": "bob"},
            {"role": "assistant", "content": ""},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": before + "one"},
                    {"type": "text", "text": "two" + after},
                ],
            },
            {"role": "assistant", "content": "A"},
        ]


async def test_the_thought_prompt_goes_round_the_last_user_message_only(start_gateway: StartGateway) -> None:
    """And a user who writes its placeholder, or the prompt itself, changes nothing."""
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "{instruction} {0} %s \\1"},
        {"role": "system", "content": "last"},
    ]
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert (await sent(running, upstream, {"messages": messages}))["messages"] == [
            *messages[:2],
            {"role": "user", "content": THOUGHT_PROMPT("{instruction} {0} %s \\1")},
            messages[3],
        ]


async def test_parts_that_the_operator_allows_pass_and_the_prompt_goes_round_the_text(
    start_gateway: StartGateway,
) -> None:
    """An image stays where it is; with no text beside it the prompt comes behind it."""
    image = {"type": "image_url", "image_url": {"url": "data:,x"}}
    before, after = BUILT_IN["tpo-generic"].thought_prompt_halves()
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, allow_fields=frozenset({"image_url"}))
        both = [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]
        [message] = (await sent(running, upstream, {"messages": both}))["messages"]
        assert message["content"] == [image, {"type": "text", "text": before + "what?" + after}]
        alone = [{"role": "user", "content": [image]}]
        [message] = (await sent(running, upstream, {"messages": alone}))["messages"]
        assert message["content"] == [image, {"type": "text", "text": before + after}]


@pytest.mark.parametrize("effort", [None, "minimal", "low", "medium", "high", "xhigh"])
async def test_every_effort_but_none_asks_with_the_thought_prompt(
    effort: str | None, start_gateway: StartGateway
) -> None:
    """The effort bounds the thought, it does not change what is asked."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert await sent(running, upstream, {"messages": ASK, "reasoning_effort": effort}) == plain()


async def test_effort_none_is_refused_where_a_thought_could_not_be_told_apart(
    start_gateway: StartGateway,
) -> None:
    """And asks directly, without a need for a user message, where the format says so."""
    said = ThoughtFormat("mine", ("<R>",), prompt="Think. {instruction}", direct=True)
    async with ScriptedUpstream(Script(["An answer."])) as upstream:
        for name in ("tpo-specific", "think-tags-in-prompt"):
            running = await start_gateway(upstream.url, format=name)
            status, body = await ask(running, {"messages": ASK, "reasoning_effort": "none"})
            assert (status, body["error"]["param"]) == (400, "reasoning_effort")
        running = await start_gateway(upstream.url, format=said)
        system = [{"role": "system", "content": "x"}]
        asked = await sent(running, upstream, {"messages": system, "reasoning_effort": "none"})
        assert asked == plain(system)
        status, body = await ask(running, {"messages": ASK, "reasoning_effort": "none"})
        assert body["choices"][0]["message"]["content"] == "An answer."


SMUGGLED = {
    "tpo-generic": [
        "Here is my thought process:\nSECRET\nHere is my response:\nok",
        "**here's my THOUGHT process**:\nSECRET\n\n## Here is my response :\nok",
        "SECRET\nHere is my response:\nok",
        "Sure!\nHere is my thought process: SECRET\nHere is my response: ok",
        "ok\nHere is my thought process:\nSECRET",
        "SECRET\nHere is my response:\nok\nHere is my thought process:\nSECRET",
    ],
    "tpo-specific": ["SECRET<R>ok", "SECRET <r> ok", "SECRET\n**<R>**\nok"],
    "think-tags": [
        "<think>SECRET</think>ok",
        "SECRET</think>ok",
        "<THINK>SECRET</THINK>\n\nok",
        "ok<think>SECRET",
        "ok<think>SECRET</think>",
        "<think>SECRET</think>ok<think>SECRET</think>",
        "SECRET</think>ok<think>SECRET",
    ],
    "think-tags-in-prompt": ["SECRET</think>ok", "<think>SECRET</think>ok", "SECRET</think>ok<think>SECRET"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in SMUGGLED for text in SMUGGLED[name]])
async def test_a_thought_in_an_assistants_turn_does_not_go_on(
    name: str, text: str, start_gateway: StartGateway
) -> None:
    """As a string, in one part, and cut over parts anywhere; a final assistant message too."""
    parts = [[{"type": "text", "text": text}]]
    parts += [[{"type": "text", "text": piece} for piece in (text[:at], text[at:])] for at in (3, 7, 12)]
    async with ScriptedUpstream(Script(["SECRET\n", get_format(name).closing[0], "ok"])) as upstream:
        running = await start_gateway(upstream.url, format=name)
        for content_ in [text, *parts]:
            turn = {"role": "assistant", "content": content_}
            for messages in [turn, USER], [USER, turn]:
                upstream.requests.clear()
                await ask(running, {"messages": messages})
                [request] = upstream.requests
                [kept] = [message for message in request.body["messages"] if message["role"] == "assistant"]
                assert "SECRET" not in str(kept["content"]) and "ok" in str(kept["content"])


async def test_reasoning_fields_of_the_history_do_not_go_on(start_gateway: StartGateway) -> None:
    """In any role, of any type, and even where the operator allows other fields."""
    fields = {
        "reasoning": "SECRET",
        "reasoning_content": {"a": "SECRET"},
        "reasoning_details": [{"text": "SECRET"}],
        "thinking": "SECRET",
    }
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, allow_fields=frozenset({"tool_call_id"}))
        messages = [{"role": role, "content": "x", **fields} for role in ("system", "assistant", "user")]
        messages.append({"role": "user", "content": "x", "tool_call_id": "1"})
        asked = await sent(running, upstream, {"messages": messages})
        assert "SECRET" not in str(asked["messages"])
        assert asked["messages"][1] == {"role": "assistant", "content": "x"}
        assert asked["messages"][3]["tool_call_id"] == "1"


async def test_too_many_messages_are_a_400_that_says_how_many_are_taken(start_gateway: StartGateway) -> None:
    """Bounded, by the operator."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, max_messages=10)
        status, body = await ask(running, {"messages": ASK * 11})
        assert (status, body["error"]["param"]) == (400, "messages") and "10" in body["error"]["message"]
        assert (await ask(running, {"messages": ASK * 10}))[0] == 200


async def test_json_is_refused_where_the_engine_cannot_leave_the_thought_free(
    start_gateway: StartGateway,
) -> None:
    """An engine that is not known to take structural tags is not asked for JSON: it would bind the thought."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        running.gateway.pool.upstreams[0].structural_tags = False
        status, body = await ask(running, {"messages": ASK, "response_format": {"type": "json_object"}})
        assert (status, body["error"]["param"]) == (400, "response_format")
        assert (await ask(running, {"messages": ASK, "response_format": {"type": "text"}}))[0] == 200


async def test_json_asked_for_directly_binds_the_whole_output(start_gateway: StartGateway) -> None:
    """Without a thought there is nothing to leave free."""
    async with ScriptedUpstream(Script(['{"a": 1}'])) as upstream:
        running = await start_gateway(upstream.url)
        body = {"messages": ASK, "reasoning_effort": "none", "response_format": JSON_FORMAT}
        asked = await sent(running, upstream, body)
        constraint = Constraint("json_schema", {"type": "object"})
        alone = structured_outputs(constraint, None, get_format("tpo-generic"), direct=True, guard=False)
        assert asked == plain(ASK) | {"structured_outputs": alone}


async def test_special_tokens_are_kept_in_the_output_where_a_marker_is_one(
    start_gateway: StartGateway,
) -> None:
    """Else the engine would leave the marker out."""
    async with ScriptedUpstream(Script(["<think>Hm.</think>Hello!"])) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", skip_special_tokens=False)
        assert await sent(running, upstream, {"messages": ASK}) == plain(ASK) | {"skip_special_tokens": False}
        assert content(await running.stream({"messages": ASK})) == "Hello!"


@pytest.mark.parametrize(
    ("fields", "interval"),
    [
        ({}, 16),
        ({"stream": True}, 1),
        ({"stop": "x"}, 4),
        ({"max_tokens": 5}, 4),
        ({"stream": True, "stop": "x"}, 1),
        ({"reasoning_effort": "low"}, 1),
    ],
)
async def test_an_answer_that_is_sent_whole_comes_in_larger_chunks(
    fields: JSON, interval: int, start_gateway: StartGateway
) -> None:
    """Unless the gateway is to cut it: what the engine is ahead by then was in vain."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        assert (await ask(running, {"messages": ASK, **fields}))[0] == 200
        assert upstream.requests[0].body["stream_interval"] == interval


async def test_streams_come_in_larger_chunks_the_more_there_are(start_gateway: StartGateway) -> None:
    """Each chunk costs the engine's server and the gateway time, and many streams share it."""
    hold = asyncio.Event()
    async with ScriptedUpstream(Script([Wait(hold), OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        asked = [asyncio.ensure_future(ask(running, {"messages": ASK, "stream": True})) for _ in range(70)]
        for _ in range(1000):
            if len(upstream.requests) == 70:
                break
            await asyncio.sleep(0.01)
        hold.set()
        await asyncio.gather(*asked)
        intervals = sorted(request.body["stream_interval"] for request in upstream.requests)
        assert intervals == [1] * 3 + [4] * 60 + [8] * 7


async def test_an_engine_that_bounds_thoughts_is_asked_to(start_gateway: StartGateway) -> None:
    """And not where there is no thought; the gateway's own bound stays as the second lock."""
    endless = Script(["Here is my thought process:\n", *["SECRET "] * 200])
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(Endpoint(upstream.url, thinking_budgets=True))
        for asked, budget in (
            ({"reasoning_effort": "low"}, 1024),
            ({"thinking_token_budget": 7}, 7),
            ({}, None),
        ):
            assert (await sent(running, upstream, {"messages": ASK, **asked})).get(
                "thinking_token_budget"
            ) == budget
        direct = await sent(
            running, upstream, {"messages": ASK, "thinking_token_budget": 7, "reasoning_effort": "none"}
        )
        assert "thinking_token_budget" not in direct
        upstream.script = lambda request: (
            Script(["Done."]) if request.body.get("continue_final_message") else endless
        )
        upstream.requests.clear()
        status, body = await ask(running, {"messages": ASK, "thinking_token_budget": 7})
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Done.")
        first, second = (request.body for request in upstream.requests)
        assert first["thinking_token_budget"] == 7 and "thinking_token_budget" not in second


async def test_the_format_guard_binds_every_thought_where_the_engine_can(start_gateway: StartGateway) -> None:
    """An output with a free response is bound too; a direct one is not."""
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url, format_guard=True)
        guard = structured_outputs(None, None, get_format("tpo-generic"), direct=False, guard=True)
        assert await sent(running, upstream, {"messages": ASK}) == plain() | {"structured_outputs": guard}
        assert await sent(running, upstream, {"messages": ASK, "reasoning_effort": "none"}) == plain(ASK)


async def test_a_schema_that_would_keep_an_engine_busy_is_refused(start_gateway: StartGateway) -> None:
    """By its size, in response_format and in tools."""
    huge = {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(9000)}}
    async with ScriptedUpstream(SCRIPT) as upstream:
        running = await start_gateway(upstream.url)
        for asked in (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": huge}}},
            {"tools": [{"type": "function", "function": {"name": "look", "parameters": huge}}]},
        ):
            status, body = await ask(running, {"messages": ASK, **asked})
            assert status == 400 and body["error"]["param"] in asked
        assert not upstream.requests
