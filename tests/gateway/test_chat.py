"""What a client gets: streamed and gathered answers that agree, stops, bounds, choices, logprobs, usage, retries."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.gateway.conftest import Connect, Running, StartGateway, content, gathered, streamed
from tests.gateway.scripted import (
    JSON,
    Delta,
    ErrorEvent,
    Finish,
    Raw,
    Recorded,
    Script,
    ScriptedUpstream,
    Stall,
    Status,
    Step,
    chunked,
    tokens,
)
from thinkserve.thoughts import BUILT_IN, ThoughtFormat, split

ASK: Any = [{"role": "user", "content": "Hi"}]
OPENING, CLOSING = "Here is my thought process:\n", "\nHere is my response:\n"
GENERIC = OPENING + "SECRET thought." + CLOSING


def outputs(format: ThoughtFormat) -> dict[str, str]:
    """The output shapes that engines' own parsers were found to leak or to cut differently while streaming."""
    line = "\n" if format.line_start else ""
    opening = "" if format.starts_in_thought else f"{format.opening[0]}{line}"
    closing = f"{line}{format.closing[0]}{line}"
    mark = format.closing[0]
    thought, response = (
        "SECRET one: two.\n\nSECRET",
        "Answer: one.\n\n    two \u00e9\u4f60 e\u0301 \U0001f600 end",
    )
    reopened = f"{line}{format.opening[0]}{line}" if format.opening else ""
    return {
        "normal": opening + thought + closing + response,
        "decorated": opening.upper() + thought + line + "**" + mark + "**\n\n" + response,
        "near miss": opening + thought + "\n" + mark[:-1] + " \n" + mark[:3] + closing + response + mark[:4],
        "colons": opening + "SECRET: a: b::\n: " + closing + ": colon first:\n: " + response,
        "leading line end": "\n" + opening + thought + closing + response,
        "preamble": f"Sure! {line}" + opening + thought + closing + response,
        "no opening": thought + closing + response,
        "no markers": thought + response,
        "no end": opening + thought,
        "cut inside the end": opening + thought + closing.rstrip()[:-1],
        "end repeated in the response": opening + thought + closing + response + closing + "more",
        "second thought": opening + thought + closing + response + reopened + "SECRET" + closing + "more",
        "end quoted in the thought": opening + f'SECRET "{mark}" SECRET `{mark}` ' + closing + response,
    }


SHAPES = sorted(outputs(BUILT_IN["tpo-generic"]))
CASES = [(name, shape, direct) for name in BUILT_IN for shape in SHAPES for direct in (False, True)]
CASES = [case for case in CASES if not case[2] or BUILT_IN[case[0]].allows_direct]


async def both(running: Running, body: JSON) -> list[tuple[Any, ...]]:
    """Ask streamed and gathered; return of each: the text, and the finish reason or error code."""
    status, whole = await running.post({"messages": ASK, **body})
    if status == 200:
        choice = whole["choices"][0]
        seen = [(choice["message"]["content"], choice["finish_reason"])]
    else:
        seen = [("", whole["error"]["code"])]
    events = await running.stream({"messages": ASK, **body})
    if events[-1] == "data: [DONE]":
        last = next(event for event in reversed(events) if isinstance(event, dict))
        seen.append((content(events), last["choices"][0]["finish_reason"]))
    else:
        assert isinstance(events[-1], dict)
        seen.append((content(events), events[-1]["error"]["code"]))
    return seen


async def answers(running: Running, body: JSON) -> tuple[Any, ...]:
    """Ask streamed and gathered, which must agree; return the text, and the finish reason or error code."""
    whole, stream = await both(running, body)
    assert whole == stream
    return whole


# Streamed and gathered


@pytest.mark.parametrize(("name", "shape", "direct"), CASES)
async def test_streamed_and_gathered_answers_agree_whatever_the_output_and_its_chunks(
    name: str, shape: str, direct: bool, start_gateway: StartGateway
) -> None:
    """For every shape of output, any chunking and any cutting of the bytes; and neither holds a hidden word."""
    format = BUILT_IN[name]
    text = outputs(format)[shape]
    expected = split(text, format, direct=direct)
    random_ = random.Random(f"{name} {shape}")
    cuts = [sorted(random_.sample(range(1, len(text)), min(9, len(text) - 1))) for _ in range(3)]
    scripts = [Script(chunked(text, size)) for size in (1, len(text))]
    scripts += [
        Script(
            tokens(text, cut),
            events_per_write=random_.randint(1, 9),
            write_size=random_.choice([None, 50, 200]),
        )
        for cut in cuts
    ]
    body = {"reasoning_effort": "none"} if direct else {}
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, format=format, format_retries=0)
        for script in scripts:
            upstream.script = script
            whole, stream = await both(running, body)
            if direct and stream[1] == "malformed_output":
                # A part was shown before it turned out to be a thought that nobody announced.
                assert whole == ("", "malformed_output")
                continue
            assert whole == stream
            # Without an opening marker nothing tells a second thought from the response, and without any marker
            # a direct answer is all response.
            visible = shape == "no markers" if direct else shape == "second thought" and not format.opening
            assert visible or "SECRET" not in whole[0]
            if expected.complete:
                assert whole == (expected.response, "stop")
            elif expected.response:  # ended inside a second thought
                assert whole[0] == expected.response
            else:
                assert whole == ("", "malformed_output")


WORDS = [
    "SECRET",
    " the",
    "\n",
    "\n\n",
    "**",
    '"',
    "`",
    ":",
    "Hi",
    " ",
    "\u00e9",
    "e\u0301",
    "\u4f60",
    "\U0001f600",
]


@st.composite
def scripted_outputs(draw: st.DrawFn) -> tuple[str, str, Script, JSON]:
    """A format, an output made of its markers and of words, a chunking of it, and what the client asks."""
    name = draw(st.sampled_from(sorted(BUILT_IN)))
    format = BUILT_IN[name]
    marker = st.sampled_from([*format.opening, *format.closing, *(c + "\n" for c in format.closing)])
    text = "".join(draw(st.lists(st.one_of(st.sampled_from(WORDS), marker), min_size=1, max_size=14)))
    cuts = draw(st.lists(st.integers(1, max(1, len(text) - 1)), max_size=len(text), unique=True))
    script = Script(
        tokens(text, sorted(cut for cut in cuts if cut < len(text))),
        events_per_write=draw(st.integers(1, 8)),
        write_size=draw(st.sampled_from([None, None, 23, 200])),
    )
    body: JSON = {}
    if draw(st.booleans()):
        body["stop"] = draw(st.lists(st.sampled_from(WORDS[1:]), min_size=1, max_size=4))
    if draw(st.booleans()):
        body["max_tokens"] = draw(st.integers(1, 6))
    return name, text, script, body


async def test_streamed_and_gathered_answers_agree_on_anything(start_gateway: StartGateway) -> None:
    """Markers, words, stops and bounds in any order: both ways of asking give the same, and only what is a response."""
    async with ScriptedUpstream() as upstream:
        gateways = {
            name: await start_gateway(upstream.url, format=name, format_retries=0) for name in BUILT_IN
        }
        loop = asyncio.get_running_loop()

        @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
        @given(scripted_outputs())
        def agree(case: tuple[str, str, Script, JSON]) -> None:
            name, text, script, body = case
            upstream.script = script
            seen = asyncio.run_coroutine_threadsafe(answers(gateways[name], body), loop).result(20)
            expected = split(text, name)
            if seen[1] != "malformed_output":
                assert expected.response.startswith(seen[0])
            if not body:
                complete = expected.complete or expected.response
                assert seen[0] == expected.response and (seen[1] == "stop") == bool(complete)

        await asyncio.to_thread(agree)


async def test_reasoning_fields_from_the_engine_are_dropped(start_gateway: StartGateway) -> None:
    """What an engine chose to call reasoning never passes, in no field and in no event."""
    fields = (
        b'"reasoning":"SECRET","reasoning_content":"SECRET","thinking":"SECRET","tool_calls":[{"a":"SECRET"}]'
    )
    event = b'data: {"choices":[{"index":0,"delta":{%s,"content":null},"reasoning":"SECRET"}]}\n\n' % fields
    async with ScriptedUpstream(
        Script([Raw(event), GENERIC + "Hello", Raw(event), "!", Raw(event)])
    ) as upstream:
        running = await start_gateway(upstream.url)
        _, whole = await running.post({"messages": ASK})
        events = await running.stream({"messages": ASK})
        assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Hello!", "refusal": None}
        assert content(events) == "Hello!"
        assert "SECRET" not in str(whole) and "SECRET" not in str(events)


@pytest.mark.parametrize("size", [1, 2, 3, 7, None])
async def test_an_engines_events_are_read_in_every_form_that_the_standard_allows(
    size: int | None, start_gateway: StartGateway
) -> None:
    """Line ends of two characters, torn anywhere; comments, other fields, no space, data over several lines."""

    def chunk(text: str) -> bytes:
        return msgspec.json.encode({"choices": [{"index": 0, "delta": {"content": text}}]})

    events = [
        b": a comment\r\n\r\n",
        b"data: " + chunk(OPENING) + b"\r\n\r\n",
        b"event: message\r\nid: 7\r\ndata:" + chunk("SECRET\r\n") + b"\r\n\r\n",
        b"data: " + chunk(CLOSING).replace(b",", b"\r\ndata: ,").replace(b"{", b"{\r\ndata:") + b"\r\n\r\n",
        b"retry: 5\n\n\n\n",
        b"data: " + chunk("Hello\n\nyou") + b"\n\n",
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\r\n\r\n',
        b"data: [DONE]\r\n\r\n",
    ]
    async with ScriptedUpstream(Script([Raw(event) for event in events], write_size=size)) as upstream:
        running = await start_gateway(upstream.url)
        assert await answers(running, {}) == ("Hello\n\nyou", "stop")


async def test_a_stream_has_the_form_that_openai_documents(start_gateway: StartGateway) -> None:
    """A role chunk, content chunks, a finish chunk, `[DONE]`; one id; usage only where it was asked for."""
    async with ScriptedUpstream(Script([GENERIC, "Hel", "lo"])) as upstream:
        running = await start_gateway(upstream.url)
        *events, done = await running.stream({"messages": ASK})
        assert done == "data: [DONE]"
        chunks = [event for event in events if isinstance(event, dict)]
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
        assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
            {"role": "assistant", "content": ""},
            {"content": "Hel"},
            {"content": "lo"},
            {},
        ]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
        assert all("usage" not in chunk for chunk in chunks)
        asked = {"messages": ASK, "stream_options": {"include_usage": True}}
        chunks = [event for event in await running.stream(asked) if isinstance(event, dict)]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 3


async def test_an_unclosed_thought_that_met_a_bound_is_length_with_the_details(
    start_gateway: StartGateway,
) -> None:
    """Empty content, `finish_reason: "length"` and what the tokens went to."""
    async with ScriptedUpstream(Script([OPENING, "SECRET", "SECRET", Finish("length")])) as upstream:
        running = await start_gateway(upstream.url)
        assert await answers(running, {"max_completion_tokens": 3}) == ("", "length")
        _, body = await running.post({"messages": ASK, "max_completion_tokens": 3})
        assert body["choices"][0]["incomplete_details"] == {"reason": "max_completion_tokens"}
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("repetition", "stop"),
        ("tool_calls", "stop"),
    ],
)
async def test_the_finish_reason_is_one_that_openai_knows(
    reason: str, expected: str, start_gateway: StartGateway
) -> None:
    """The engine's own, or stop; behind a response that has begun, length says only that it is not whole."""
    async with ScriptedUpstream(Script([GENERIC, "Hello", Finish(reason)])) as upstream:
        running = await start_gateway(upstream.url)
        assert await answers(running, {}) == ("Hello", expected)
        _, whole = await running.post({"messages": ASK})
        assert "incomplete_details" not in whole["choices"][0]


async def test_json_is_bound_where_the_response_begins(start_gateway: StartGateway) -> None:
    """A thought that names its marker in another form must not move the response away from where the schema binds."""
    text = '<think>I write **</THINK>** soon.</think>{"a": 7}'
    async with ScriptedUpstream(Script([text])) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        assert await answers(running, {"response_format": {"type": "json_object"}}) == ('{"a": 7}', "stop")


# Stop strings


@pytest.mark.parametrize(
    ("response", "stop", "expected"),
    [
        ("one STOP two", "STOP", "one "),
        ("one STOP", "STOP", "one "),
        ("STOP two", "STOP", ""),
        ("one ST two", "STOP", "one ST two"),
        ("one STO", "STOP", "one STO"),
        ("STSTOP two", "STOP", "ST"),
        ("one abcd two", ["bcd", "abcde", "abc"], "one "),
        ("one abcd two", ["d two", "cd", "bcd"], "one a"),
        ("aaab", "aab", "a"),
        ("one two three four five", ["five", "four", "three", "two"], "one "),
        ("caf\u00e9 \U0001f600\u4f60 x", "\U0001f600\u4f60", "caf\u00e9 "),
        ("e\u0301x", "\u0301", "e"),
        ("line\n\nline", "\n\n", "line"),
        ("same same", ["same", "same", "same", "same"], ""),
        ("x" * 900 + "y", "x" * 900 + "z", "x" * 900 + "y"),
        ("x" * 1500 + "y", "x" * 1000 + "y", "x" * 500),
    ],
)
async def test_a_stop_string_ends_the_response_before_itself(
    response: str, stop: Any, expected: str, start_gateway: StartGateway
) -> None:
    """Across chunk borders, overlapping, up to four, in Unicode; the one that is complete first counts."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url)
        for size in (1, 2, 3, 5, 10_000) if len(response) < 100 else (100, 7):
            upstream.script = Script([GENERIC, *chunked(response, size)])
            for logprobs in (False, True):
                found = await answers(running, {"stop": stop, "logprobs": logprobs})
                assert found == (expected, "stop"), (size, logprobs)


@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_a_stop_string_in_the_thought_or_in_a_marker_has_no_effect(
    size: int, start_gateway: StartGateway
) -> None:
    """Nor does one that begins in the marker and ends in the response."""
    async with ScriptedUpstream(Script(chunked(GENERIC + "The answer.", size))) as upstream:
        running = await start_gateway(upstream.url)
        for stop in ("SECRET", "Here", "response:", "response:\nThe", ["\n", "thought", ":", "\nThe"]):
            assert await answers(running, {"stop": stop}) == ("The answer.", "stop")


async def until(condition: Callable[[], bool], seconds: float = 1.0) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("body", [{"stop": "STOP"}, {"max_tokens": 2}])
async def test_an_answer_that_is_complete_ends_the_engines_work_at_once(
    body: JSON, start_gateway: StartGateway
) -> None:
    """With the token that completes it: the engine sends no other for a minute."""
    script = Script([GENERIC, "one ", "STOP", Stall(60)])
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url)
        began = time.monotonic()
        assert (await answers(running, body))[0].startswith("one ")
        assert time.monotonic() - began < 2
        await until(lambda: upstream.running == 0)
        assert upstream.cancelled == 2


# Bounds


async def test_max_tokens_counts_the_responses_tokens(start_gateway: StartGateway) -> None:
    """Exactly, at every bound, also where it is met just as the output ends."""
    words = ["one ", "two ", "three ", "four"]
    async with ScriptedUpstream(Script([OPENING, *["SECRET "] * 20, CLOSING, *words])) as upstream:
        running = await start_gateway(upstream.url)
        for bound in range(1, 5):
            assert await answers(running, {"max_tokens": bound}) == ("".join(words[:bound]), "length")
        assert await answers(running, {"max_tokens": 5}) == ("".join(words), "stop")
        body = {"messages": ASK, "max_tokens": 2}
        _, whole = await running.post(body)
        details = whole["usage"]["completion_tokens_details"]
        assert whole["usage"]["completion_tokens"] - details["reasoning_tokens"] == 2


async def test_max_completion_tokens_bounds_thought_and_response_together(
    start_gateway: StartGateway,
) -> None:
    """It is sent to the engine, and kept here where the engine does not."""
    words = ["one ", "two ", "three ", "four"]
    async with ScriptedUpstream(Script([OPENING, "SECRET", CLOSING, *words])) as upstream:
        running = await start_gateway(upstream.url)
        for bound in range(1, 8):
            found = await answers(running, {"max_completion_tokens": bound})
            assert found == ("".join(words[: max(0, bound - 3)]), "length" if bound < 7 else "stop")
            assert upstream.requests[-1].body["max_tokens"] == bound
        both_bounds = {"max_completion_tokens": 6, "max_tokens": 1}
        assert await answers(running, both_bounds) == ("one ", "length")


async def test_a_direct_answer_asks_the_engine_for_no_more_than_it_may_show(
    start_gateway: StartGateway,
) -> None:
    """One token more tells a stop from a cut."""
    async with ScriptedUpstream(Script(["one ", "two ", "three "])) as upstream:
        running = await start_gateway(upstream.url)
        body = {"reasoning_effort": "none", "max_tokens": 2}
        assert await answers(running, body) == ("one two ", "length")
        assert upstream.requests[-1].body["max_tokens"] == 3


THINK = ["<think>", *["SECRET "] * 60]


def answers_when_asked(request: Recorded) -> Script:
    """An engine that thinks at length, and goes on with a response where its thought was closed for it."""
    if request.body.get("continue_final_message"):
        return Script(["An ", "answer."], prompt_tokens=90)
    return Script([*THINK, "</think>", "Late."], delay=0.001)


async def test_a_thought_over_its_budget_is_closed_and_the_engine_goes_on(
    start_gateway: StartGateway,
) -> None:
    """The second call holds the first one's output and the closing marker; usage adds both calls up."""
    async with ScriptedUpstream(answers_when_asked) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10)
        assert await answers(running, {}) == ("An answer.", "stop")
        first, second = (request.body for request in upstream.requests[:2])
        *messages, last = second["messages"]
        assert messages == first["messages"]
        assert second["continue_final_message"] is True and second["add_generation_prompt"] is False
        thought = last["content"].removeprefix("<think>").removesuffix("</think>")
        assert last["role"] == "assistant" and thought.replace("SECRET ", "") == ""
        words = thought.count("SECRET")
        assert 10 <= words <= 15
        _, whole = await running.post({"messages": ASK})
        usage = whole["usage"]
        words = upstream.requests[-1].body["messages"][-1]["content"].count("SECRET")
        assert usage["completion_tokens"] == 1 + words + 2
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 1 + words
        assert usage["prompt_tokens"] == 7, "the thought is no part of the client's prompt"


async def test_after_a_cut_thought_the_schema_binds_from_the_first_token(start_gateway: StartGateway) -> None:
    """A grammar with a free thought in it would let the engine write anything into the response."""
    async with ScriptedUpstream(answers_when_asked) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10)
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        await running.post({"messages": ASK, "response_format": wanted})
        first, second = (request.body["structured_outputs"] for request in upstream.requests)
        thought = msgspec.json.decode(first["structural_tag"])["format"]["elements"][0]
        assert thought["content"] == {"type": "any_text"}
        alone = msgspec.json.decode(second["structural_tag"])["format"]
        assert (alone["type"], alone["json_schema"]) == ("json_schema", schema)


async def test_the_budget_is_that_of_the_effort_and_at_most_the_operators(
    start_gateway: StartGateway,
) -> None:
    """A client asks for less, never for more; without either there is no budget."""
    budgets = {"minimal": 5, "low": 20, "xhigh": None}
    async with ScriptedUpstream(answers_when_asked) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", effort_budgets=budgets)
        assert await answers(running, {"reasoning_effort": "minimal"}) == ("An answer.", "stop")
        assert 5 <= upstream.requests[1].body["messages"][-1]["content"].count("SECRET") <= 10
        assert await answers(running, {"reasoning_effort": "xhigh"}) == ("Late.", "stop")
        assert await answers(running, {}) == ("Late.", "stop")
        running = await start_gateway(
            upstream.url, format="think-tags", effort_budgets=budgets, max_thought_tokens=8
        )
        upstream.requests.clear()
        for effort in ("low", "xhigh", None):
            assert await answers(running, {"reasoning_effort": effort}) == ("An answer.", "stop")
        closed = [r.body["messages"][-1]["content"] for r in upstream.requests if len(r.body["messages"]) > 1]
        assert len(closed) == 6 and all(8 <= thought.count("SECRET") <= 13 for thought in closed)


@pytest.mark.parametrize("per_write", [1, 7, 100])
async def test_where_a_thought_is_cut_does_not_hang_on_how_the_bytes_came(
    per_write: int, start_gateway: StartGateway
) -> None:
    """The budget is held against every chunk, not against every read."""

    def script(request: Recorded) -> Script:
        if request.body.get("continue_final_message"):
            return Script(["An answer."])
        return Script([*THINK, "</think>", "Late."], events_per_write=per_write)

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10)
        assert await answers(running, {}) == ("An answer.", "stop")
        for request in upstream.requests[1::2]:
            assert request.body["messages"][-1]["content"] == "<think>" + "SECRET " * 10 + "</think>"


@pytest.mark.parametrize("name", sorted(BUILT_IN))
async def test_the_closing_marker_that_the_gateway_writes_is_the_formats(
    name: str, start_gateway: StartGateway
) -> None:
    """On a line of its own where the format asks for that; with the opening one where the template wrote it."""
    format = BUILT_IN[name]
    opening = "" if format.starts_in_thought else format.opening[0] + "\n"

    def script(request: Recorded) -> Script:
        if request.body.get("continue_final_message"):
            return Script(chunked("An answer.", 3))
        return Script([opening, *["SECRET "] * 50, Finish("length")])

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format=name, max_thought_tokens=10)
        assert await answers(running, {}) == ("An answer.", "stop")
        closed = upstream.requests[1].body["messages"][-1]["content"]
        again = split(closed + "An answer.", format)
        assert again.response == "An answer." and "SECRET" in again.thought
        assert closed.count("<think>") == (1 if name.startswith("think-tags") else 0)


@pytest.mark.parametrize("status", [400, 404, 422, 500])
async def test_an_engine_that_cannot_go_on_from_a_cut_thought_leaves_the_response_empty(
    status: int, start_gateway: StartGateway
) -> None:
    """Never the thought; the engine's words about its prompt, which now holds the thought, are not passed on."""

    def script(request: Recorded) -> Script:
        if request.body.get("continue_final_message"):
            return Script([Status(status, {"error": {"message": f"SECRET {request.body['messages']}"}})])
        return Script([*THINK, "</think>", "Late."], delay=0.001)

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10)
        code, whole = await running.post({"messages": ASK})
        assert "SECRET" not in str(whole)
        if status in (400, 422):
            assert code == 200 and whole["choices"][0]["finish_reason"] == "length"
            assert whole["choices"][0]["message"]["content"] == ""
            assert whole["choices"][0]["incomplete_details"] == {"reason": "max_thought_tokens"}
        else:
            assert code == 503
        assert (await answers(running, {}))[0] == ""


async def test_an_engine_that_thinks_again_after_its_thought_was_closed_is_given_up(
    start_gateway: StartGateway,
) -> None:
    """With an empty response; a second budget is not spent."""
    async with ScriptedUpstream(Script(THINK, delay=0.001)) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10)
        assert await answers(running, {}) == ("", "length")
        assert len(upstream.requests) == 4


async def test_the_bound_on_both_holds_for_the_second_call_too(start_gateway: StartGateway) -> None:
    """What the thought took is gone."""
    async with ScriptedUpstream(answers_when_asked) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10)
        assert await answers(running, {"max_completion_tokens": 30}) == ("An answer.", "stop")
        spent = 1 + upstream.requests[1].body["messages"][-1]["content"].count("SECRET")
        assert upstream.requests[1].body["max_tokens"] == 30 - spent


async def test_usage_adds_up_where_the_engine_counts_and_the_thought_was_cut(
    start_gateway: StartGateway,
) -> None:
    """An engine without token ids counts each of its two outputs for itself."""

    def script(request: Recorded) -> Script:
        if request.body.get("continue_final_message"):
            return without_ids(["An ", "answer."], counted=2)
        return without_ids([*THINK, "</think>", "Late."], counted=64)

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10)
        _, whole = await running.post({"messages": ASK})
        assert whole["choices"][0]["message"]["content"] == "An answer."
        words = upstream.requests[-1].body["messages"][-1]["content"].count("SECRET")
        assert whole["usage"]["completion_tokens"] == 1 + words + 2


def without_ids(texts: list[str], *, counted: int, logprobs: list[list[JSON]] | None = None) -> Script:
    """An engine that tells no token ids, and counts its tokens at the end."""

    def event(choice: JSON) -> Raw:
        return Raw(b"data: " + msgspec.json.encode({"choices": [{"index": 0, **choice}]}) + b"\n\n")

    def entries(at: int) -> JSON:
        return {} if logprobs is None else {"logprobs": {"content": logprobs[at]}}

    steps: list[Step] = [event({"delta": {"content": text}, **entries(at)}) for at, text in enumerate(texts)]
    steps.append(event({"delta": {}, "finish_reason": "stop"}))
    usage = {"prompt_tokens": 7, "completion_tokens": counted}
    steps.append(Raw(b"data: " + msgspec.json.encode({"choices": [], "usage": usage}) + b"\n\n"))
    return Script([*steps, Raw(b"data: [DONE]\n\n")])


# Choices


async def test_each_choice_has_its_own_thought_response_and_end(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """Side by side, with their indexes, streamed and gathered, and the usage of all of them."""

    def script(request: Recorded) -> Script:
        seed = request.body["seed"]
        ends = {5: "stop", 6: "length", 7: "stop"}
        text = GENERIC + f"Answer {seed}."
        return Script([*chunked(text, seed), Finish(ends[seed])], delay=0.001)

    async with ScriptedUpstream(script) as upstream:
        client = connect(await start_gateway(upstream.url))
        whole = await gathered(client, messages=ASK, n=3, seed=5)
        stream = await streamed(client, messages=ASK, n=3, seed=5, stream_options={"include_usage": True})
        assert whole == stream
        assert [answer.content for answer in whole] == ["Answer 5.", "Answer 6.", "Answer 7."]
        assert [answer.finish_reason for answer in whole] == ["stop", "length", "stop"]
        usage = whole[0].usage
        text = len(GENERIC) + len("Answer 5.")
        assert usage is not None and usage["prompt_tokens"] == 7
        assert usage["completion_tokens"] == sum(-(-text // size) for size in (5, 6, 7))
        assert all(request.body.get("n") is None for request in upstream.requests)


async def test_one_choice_that_fails_for_good_ends_them_all(start_gateway: StartGateway) -> None:
    """With an error, and no engine left working."""

    def script(request: Recorded) -> Script:
        if request.body["seed"] % 1000 == 6:
            return Script(["no markers"])
        return Script([GENERIC, *[Delta("more ", delay=0.05)] * 400])

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format_retries=0)
        status, body = await running.post({"messages": ASK, "n": 3, "seed": 5})
        assert (status, body["error"]["code"]) == (502, "malformed_output")
        await until(lambda: upstream.running == 0)
        events = await running.stream({"messages": ASK, "n": 3, "seed": 5})
        assert isinstance(events[-1], dict) and events[-1]["error"]["code"] == "malformed_output"
        await until(lambda: upstream.running == 0)


# Logprobs


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize(
    "body", [{}, {"stop": "sto"}, {"stop": ["and"], "max_tokens": 30}, {"max_tokens": 2}]
)
async def test_logprobs_are_exactly_those_of_the_responses_tokens(
    size: int, body: JSON, start_gateway: StartGateway, connect: Connect
) -> None:
    """The joined tokens are the content, whatever was held back, cut by a stop or by a bound."""
    text = GENERIC + "Answer and more to stop at."
    async with ScriptedUpstream(Script(chunked(text, size))) as upstream:
        client = connect(await start_gateway(upstream.url))
        [whole] = await gathered(client, messages=ASK, logprobs=True, top_logprobs=3, **body)
        [stream] = await streamed(client, messages=ASK, logprobs=True, top_logprobs=3, **body)
        assert whole.content == stream.content and "".join(whole.tokens) == whole.content
        assert stream.tokens == whole.tokens


async def test_a_token_on_both_sides_of_the_border_shows_its_visible_part_alone(
    start_gateway: StartGateway,
) -> None:
    """Neither its whole text nor its alternatives, which go on from the marker."""
    async with ScriptedUpstream(Script(["SECRET", "SECRET<R>Hel", "lo"])) as upstream:
        running = await start_gateway(upstream.url, format="tpo-specific")
        _, body = await running.post({"messages": ASK, "logprobs": True, "top_logprobs": 2})
        first, second = body["choices"][0]["logprobs"]["content"]
        assert (first["token"], first["bytes"], first["top_logprobs"]) == ("Hel", list(b"Hel"), [])
        assert second["token"] == "lo" and len(second["top_logprobs"]) == 2
        assert "SECRET" not in str(body)


async def test_logprobs_of_a_chunk_of_many_tokens_are_cut_with_it(start_gateway: StartGateway) -> None:
    """A lagging client gets several tokens in a chunk, and a chunk may straddle the marker."""
    pieces = ["SEC", "RET", "<", "R", ">", " Hel", "lo", " you", "!"]
    chunk = Delta("".join(pieces), tokens=pieces)
    async with ScriptedUpstream(Script([chunk])) as upstream:
        running = await start_gateway(upstream.url, format="tpo-specific")
        for bound, count in ((None, 4), (2, 2)):
            body = {"messages": ASK, "logprobs": True, "max_tokens": bound}
            _, whole = await running.post(body)
            shown = [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
            assert shown == ["Hel", "lo", " you", "!"][:count]
            assert "".join(shown) == whole["choices"][0]["message"]["content"]


async def test_logprobs_of_an_engine_without_token_ids_are_kept(start_gateway: StartGateway) -> None:
    """Their number tells how many tokens a chunk is."""
    texts = ["SECRET <R> ", "Hello you", "!"]
    parts = [["SECRET", " <", "R", "> "], ["Hello", " you"], ["!"]]
    entries = [[{"token": token, "logprob": -1.0} for token in chunk] for chunk in parts]
    async with ScriptedUpstream(without_ids(texts, counted=7, logprobs=entries)) as upstream:
        running = await start_gateway(upstream.url, format="tpo-specific")
        _, whole = await running.post({"messages": ASK, "logprobs": True})
        shown = [entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]]
        assert shown == ["Hello", " you", "!"]
        usage = whole["usage"]
        assert usage["completion_tokens"] == 7
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 4


async def test_byte_tokens_of_one_character_keep_their_logprobs_together(start_gateway: StartGateway) -> None:
    """A character that takes four tokens comes with all four, three of which had no text."""
    emoji = [{"token": f"<0x{byte:02X}>", "logprob": -1.0, "bytes": [byte]} for byte in "\U0001f600".encode()]
    quiet: list[Step] = [Delta("", token_ids=[200 + at], logprobs=[emoji[at]]) for at in range(3)]
    chunks: list[Step] = [
        GENERIC,
        "Hi ",
        *quiet,
        Delta("\U0001f600", token_ids=[203], logprobs=[emoji[3]]),
        "!",
    ]
    async with ScriptedUpstream(Script(chunks)) as upstream:
        running = await start_gateway(upstream.url)
        _, whole = await running.post({"messages": ASK, "logprobs": True})
        shown = whole["choices"][0]["logprobs"]["content"]
        assert bytes(byte for entry in shown for byte in entry["bytes"]).decode() == "Hi \U0001f600!"
        usage = whole["usage"]
        assert usage["completion_tokens"] - usage["completion_tokens_details"]["reasoning_tokens"] == 6
        assert await answers(running, {"logprobs": True}) == ("Hi \U0001f600!", "stop")


async def test_without_logprobs_asked_for_there_are_none(start_gateway: StartGateway) -> None:
    """null, as at OpenAI, and the engine is not asked either."""
    async with ScriptedUpstream(Script([GENERIC, "Hello"])) as upstream:
        running = await start_gateway(upstream.url)
        _, whole = await running.post({"messages": ASK, "logprobs": False})
        assert whole["choices"][0]["logprobs"] is None
        events = [event for event in await running.stream({"messages": ASK}) if isinstance(event, dict)]
        assert all(event["choices"][0]["logprobs"] is None for event in events)
        assert all("logprobs" not in request.body for request in upstream.requests)


# Usage


RESPONSES = ["Hello you.", "H", "caf\u00e9 \U0001f600 \u4f60\u597d", " and: Here is", "Here is my respons"]


@pytest.fixture(scope="module", params=["bytes", "words"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Path]:
    """A tokenizer whose tokens straddle markers, with an end token, and its file.

    One splits characters into bytes, as GPT's does; one marks words with the space before them and drops it where it
    decodes them alone, as Llama's does.
    """
    tokenizer = Tokenizer(models.BPE())
    if request.param == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [GENERIC + "Hello you.", "t.\nHere is my response:\nH"] * 3
    tokenizer.train_from_iterator([*texts, *RESPONSES], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return tokenizer, path


def grouped(tokenizer: Tokenizer, ids: list[int], sizes: list[int]) -> list[Step]:
    """The chunks of an engine that sends its tokens in groups, holding back characters that are not whole."""
    steps: list[Step] = []
    done, at, text = "", 0, ""
    for size in sizes:
        if at >= len(ids):
            break
        text = tokenizer.decode(ids[: at + size], skip_special_tokens=True)
        whole = text.rstrip("\ufffd") if at + size < len(ids) else text
        steps.append(Delta(whole[len(done) :], token_ids=ids[at : at + size]))
        done, at = whole, at + size
    return steps


@pytest.mark.parametrize("response", RESPONSES)
async def test_reasoning_tokens_are_exact_though_chunks_are_not_tokens(
    response: str, tokenizer: tuple[Tokenizer, Path], start_gateway: StartGateway
) -> None:
    """Chunks of any number of tokens, that straddle markers and split characters, ended by an end token without text.

    Expected is counted from the tokens themselves: hidden are those of which no character is in the response.
    """
    made, path = tokenizer
    text = GENERIC + response
    ids = made.encode(text).ids
    begins = len(text) - len(split(text).response)
    hidden = sum(len(made.decode(ids[: at + 1])) <= begins for at in range(len(ids)))
    end = made.token_to_id("<eos>")
    assert end is not None
    ids = [*ids, end]
    random_ = random.Random(response)
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, tokenizer=path)
        groupings = [[1] * 200, [2] * 200, [3] * 200, [7] * 200, [1000]]
        groupings += [[random_.randint(1, 9) for _ in range(200)] for _ in range(12)]
        for sizes in groupings:
            upstream.script = Script(grouped(made, ids, sizes))
            status, whole = await running.post({"messages": ASK})
            assert status == 200 and whole["choices"][0]["message"]["content"] == split(text).response
            usage = whole["usage"]
            assert usage["completion_tokens"] == len(ids), sizes
            assert usage["completion_tokens_details"]["reasoning_tokens"] == hidden, sizes


async def test_tokens_without_text_count_where_the_text_they_end_in_is(start_gateway: StartGateway) -> None:
    """In the thought, in the response, and the end token behind it."""

    def quiet(*ids: int) -> Delta:
        return Delta("", token_ids=list(ids))

    chunks: list[Step] = [
        quiet(1),
        "<think>",
        quiet(2, 3),
        "\u4f60",
        "</think>",
        quiet(4),
        "\u4f60",
        "!",
        quiet(5),
    ]
    async with ScriptedUpstream(Script(chunks)) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        _, whole = await running.post({"messages": ASK})
        usage = whole["usage"]
        assert usage["completion_tokens"] == 10
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 6


async def test_usage_is_the_engines_own_count_where_it_tells_no_token_ids(
    start_gateway: StartGateway,
) -> None:
    """And streamed as gathered."""
    script = without_ids(["SECRET and ", "more<R>", "Hello ", "you"], counted=9)
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url, format="tpo-specific")
        _, whole = await running.post({"messages": ASK})
        assert whole["usage"]["completion_tokens"] == 9 and whole["usage"]["prompt_tokens"] == 7
        events = await running.stream({"messages": ASK, "stream_options": {"include_usage": True}})
        last = [event for event in events if isinstance(event, dict)][-1]
        assert last["usage"] == whole["usage"]


# Retries


async def test_a_broken_output_is_sampled_again_with_another_seed(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """The client sees only that it took longer; the retry is counted."""
    broken, good = Script(["SECRET only"]), Script([GENERIC + "Hello"])
    async with ScriptedUpstream([broken, good, broken, good]) as upstream:
        running = await start_gateway(upstream.url)
        client = connect(running)
        assert (await gathered(client, messages=ASK, seed=3))[0].content == "Hello"
        assert (await streamed(client, messages=ASK, seed=3))[0].content == "Hello"
        seeds = [request.body["seed"] for request in upstream.requests]
        assert len(set(seeds[:2])) == 2 and seeds[:2] == seeds[2:]
        async with running.http.get(f"{running.url}/metrics") as response:
            metrics = await response.text()
        assert "thinkserve_format_retries_total 2.0" in metrics
        assert 'thinkserve_malformed_outputs_total{kind="the thought was never closed"} 2.0' in metrics


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_after_the_last_retry_a_broken_output_is_a_502(
    retries: int, start_gateway: StartGateway, connect: Connect
) -> None:
    """Streamed: an error event, which the official client raises."""
    async with ScriptedUpstream(Script(["SECRET only"])) as upstream:
        client = connect(await start_gateway(upstream.url, format_retries=retries))
        with pytest.raises(openai.InternalServerError) as failed:
            await gathered(client, messages=ASK)
        assert failed.value.status_code == 502 and failed.value.code == "malformed_output"
        assert len(upstream.requests) == retries + 1
        with pytest.raises(openai.APIError, match="malformed"):
            await streamed(client, messages=ASK)
        assert "SECRET" not in str(failed.value)


async def test_a_direct_answer_that_turns_out_to_be_a_thought_ends_in_an_error(
    start_gateway: StartGateway,
) -> None:
    """Streamed, a part was shown already, so it cannot be sampled again; gathered, it is."""
    broken = Script(["An answer, ", "it seems.", "</think>", "SECRET"], delay=0.005)
    async with ScriptedUpstream([broken, Script(["Hello"])]) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        _, whole = await running.post({"messages": ASK, "reasoning_effort": "none"})
        assert whole["choices"][0]["message"]["content"] == "Hello"
        upstream.script = [broken, Script(["Hello"])]
        events = await running.stream({"messages": ASK, "reasoning_effort": "none"})
        assert content(events).startswith("An answer") and "SECRET" not in str(events)
        assert isinstance(events[-1], dict) and events[-1]["error"]["code"] == "malformed_output"


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("body", [{"stop": "STOP"}, {"max_tokens": 5}])
async def test_a_direct_answer_that_was_over_is_not_broken_by_what_follows(
    size: int, body: JSON, start_gateway: StartGateway
) -> None:
    """The stop string comes before the marker, also where both come in one chunk."""
    pieces = ["one ", "two ", "STOP ", "x ", "y ", "z ", "</think>", "SECRET"]
    chunks = [
        Delta("".join(pieces[at : at + size]), tokens=pieces[at : at + size]) for at in range(0, 8, size)
    ]
    async with ScriptedUpstream(Script(list(chunks))) as upstream:
        running = await start_gateway(upstream.url, format="think-tags", format_retries=0)
        text, reason = await answers(running, {**body, "reasoning_effort": "none"})
        assert reason == ("stop" if "stop" in body else "length")
        assert text[:8] == "one two " and "SECRET" not in text


async def test_a_thought_in_a_direct_answer_is_hidden(start_gateway: StartGateway) -> None:
    """A model that thinks all the same announces it with the opening marker."""
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        for text in ("<think>SECRET</think>Hello", "Hel<think>SECRET</think>lo"):
            for size in (1, 4, 100):
                upstream.script = Script(chunked(text, size))
                assert await answers(running, {"reasoning_effort": "none"}) == ("Hello", "stop")


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"stop": ["five", "nine"]},
        {"max_tokens": 5},
        {"max_completion_tokens": 17},
        {"thinking_token_budget": 300},
    ],
    ids=lambda asked: next(iter(asked), "nothing"),
)
async def test_what_came_in_one_read_counts_as_if_it_had_come_alone(
    asked: JSON, start_gateway: StartGateway
) -> None:
    """The text, why it ended and every count: a busy gateway finds many events in a read, an idle one a single one."""
    words = "Here is my thought process:\n SECRET SECRET\nHere is my response:\n one two three four five six seven eight"
    pieces = re.findall(r"\s*\S+", words) + ["", " n\u00ef", "\U0001f600 nine", " ten"]
    pieces += ["\nHere is my thought process:\n", " SECRET", " again\n", "Here is my response:\n", " eleven"]
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url)
        seen: list[JSON] = []
        for together in (1, 2, 5, 8, 1000):
            upstream.script = Script(pieces, events_per_write=together)
            _, body = await running.post({"messages": ASK, **asked})
            seen.append({key: body[key] for key in body.keys() - {"id", "created"}})
    assert all(body == seen[0] for body in seen) and "SECRET" not in str(seen)


@pytest.mark.parametrize("behind", [ErrorEvent(), Raw(b"data: {broken\n\n")], ids=["error", "garbage"])
@pytest.mark.parametrize("asked", [{"stop": "END"}, {"max_tokens": 2}], ids=["stop", "max_tokens"])
@pytest.mark.parametrize("together", [1, 1000])
async def test_what_comes_behind_the_end_of_a_response_does_not_undo_it(
    together: int, asked: JSON, behind: Step, start_gateway: StartGateway
) -> None:
    """Also where it came in the same read."""
    script = Script([GENERIC, " hi", " you", " END", behind], events_per_write=together)
    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url)
        status, body = await running.post({"messages": ASK, **asked})
        assert (status, body["choices"][0]["message"]["content"].strip()) == (200, "hi you")
