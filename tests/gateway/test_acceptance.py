"""The acceptance tests (a) to (l): what users of thinking models keep asking for, one letter a test.

Each letter stands in the docstring of its tests. The engine is scripted, the client is the official one wherever a
client's view is what counts.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import msgspec
import openai
import pytest

from tests.gateway.conftest import Connect, StartGateway, content, gathered, streamed
from tests.gateway.scripted import (
    Delta,
    Die,
    ErrorEvent,
    Finish,
    Raw,
    Recorded,
    Script,
    ScriptedUpstream,
    chunked,
    tokens,
)
from thinkserve.thoughts import BUILT_IN, ThoughtFormat, split

THOUGHT = "SECRET plan: greet them. Draft: hullo. It is fine."
RESPONSE = "Hello! I am well."
ASK: Any = [{"role": "user", "content": "Hi, how are you?"}]
FORMATS = sorted(BUILT_IN)


def markers(name: str) -> tuple[str, str]:
    """What a model of this format writes before its thought, and between thought and response."""
    format = BUILT_IN[name]
    closing = f"\n{format.closing[0]}\n" if format.line_start else format.closing[0]
    return ("" if format.starts_in_thought else f"{format.opening[0]}\n"), closing


def output(name: str, thought: str = THOUGHT, response: str = RESPONSE) -> str:
    """A whole output in this format."""
    opening, closing = markers(name)
    return opening + thought + closing + response


@pytest.mark.parametrize("name", FORMATS)
async def test_a_any_split_of_any_marker_gives_the_same_answer_streamed_and_gathered(
    name: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """(a) stream == non-stream for every split point of every delimiter, 1-character chunks included."""
    text = output(name)
    expected = split(text, name).response
    assert expected == RESPONSE
    opening, closing = markers(name)
    at = len(opening) + len(THOUGHT)
    cuts = [*range(1, len(opening) + 2), *range(at - 1, at + len(closing) + 2)]
    scripts = [Script(tokens(text, [cut])) for cut in cuts]
    scripts += [Script(chunked(text, size)) for size in (1, 2, 3, 7, len(text))]
    scripts += [Script(chunked(text, 1), write_size=11), Script(chunked(text, 3), events_per_write=5)]
    async with ScriptedUpstream() as upstream:
        client = connect(await start_gateway(upstream.url, format=name))
        for script in scripts:
            upstream.script = script
            [whole] = await gathered(client, messages=ASK)
            [stream] = await streamed(client, messages=ASK)
            assert whole.content == stream.content == expected, script
            assert whole.finish_reason == stream.finish_reason == "stop", script


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ending", ["", "partial marker"])
async def test_b_a_thought_that_is_cut_off_gives_an_empty_response_and_length(
    name: str, ending: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """(b) unclosed thought => content empty, `finish_reason: "length"`, never the thought."""
    opening, closing = markers(name)
    text = opening + THOUGHT + (closing.strip()[:-1] if ending else "")
    async with ScriptedUpstream(Script([*chunked(text, 4), Finish("length")])) as upstream:
        client = connect(await start_gateway(upstream.url, format=name))
        for answers in await gathered(client, messages=ASK), await streamed(client, messages=ASK):
            assert [(answer.content, answer.finish_reason) for answer in answers] == [("", "length")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tpo-generic", "SECRET without any marker"),
        ("tpo-generic", "Here is my thought proces:\nSECRET\nHere is my repsonse:\nSECRET"),
        ("tpo-generic", "Sure! Here is my thought process:\nSECRET\nHere is the response:\nSECRET"),
        ("tpo-specific", "SECRET and then <R SECRET"),
        ("think-tags", "<think>SECRET</thinking>SECRET"),
        ("think-tags", "SECRET alone"),
        ("think-tags-in-prompt", "SECRET alone < / think >SECRET"),
        ("granite", "Here is my thought process: SECRET. My response: SECRET"),
    ],
)
async def test_c_a_missing_or_garbled_marker_is_an_error_and_shows_nothing(
    name: str, text: str, start_gateway: StartGateway
) -> None:
    """(c) fail closed by default on a missing or garbled delimiter."""
    async with ScriptedUpstream(Script(chunked(text, 3))) as upstream:
        running = await start_gateway(upstream.url, format=name)
        status, body = await running.post({"messages": ASK})
        assert (status, body["error"]["code"]) == (502, "malformed_output")
        assert "SECRET" not in str(body)
        events = await running.stream({"messages": ASK})
        assert content(events) == "" and "SECRET" not in str(events)
        assert isinstance(events[-1], dict) and events[-1]["error"]["code"] == "malformed_output"


async def test_c_an_operator_may_choose_that_text_without_markers_is_a_response(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """(c) with an explicit operator choice: a format whose thought is not required shows text without markers."""
    format = ThoughtFormat("lenient", ("</think>",), ("<think>",), thought_required=False)
    async with ScriptedUpstream(Script(chunked("Just an answer.", 3))) as upstream:
        client = connect(await start_gateway(upstream.url, format=format))
        assert (await gathered(client, messages=ASK))[0].content == "Just an answer."
        upstream.script = Script(chunked("<think>SECRET</think>Just an answer.", 3))
        assert (await streamed(client, messages=ASK))[0].content == "Just an answer."


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("tpo-generic", 'Write "Here is my response:" before it, and `Here is my thought process:` first.'),
        ("tpo-generic", "He said here is my thought process: and went on.\nHere is my response: too."),
        ("tpo-specific", "The marker `<R>` is also <R> twice <R>."),
        ("think-tags", 'Models write "<think>" and then `</think>`; </think> alone is text.'),
        ("think-tags-in-prompt", "A quoted `<think>` stays, and so does </think>."),
        ("granite", "The header is `Here is my thought process:`, mind."),
    ],
)
async def test_d_markers_that_the_response_quotes_survive(
    name: str, response: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """(d) quoted delimiters in the answer survive, at any chunking, streamed and gathered."""
    text = output(name, response=response)
    async with ScriptedUpstream() as upstream:
        client = connect(await start_gateway(upstream.url, format=name))
        for size in (1, 2, 5, len(text)):
            upstream.script = Script(chunked(text, size))
            assert (await gathered(client, messages=ASK))[0].content == response
            assert (await streamed(client, messages=ASK))[0].content == response


@pytest.mark.parametrize("size", [1, 4, 1000])
async def test_e_stop_strings_are_matched_on_the_response_only(
    size: int, start_gateway: StartGateway, connect: Connect
) -> None:
    """(e) client `stop` applied to the answer only: not in the thought, not in a marker, and never sent upstream."""
    text = output("tpo-generic", "One. STOP thinking? No.", "One. Two. STOP Three.")
    async with ScriptedUpstream(Script(chunked(text, size))) as upstream:
        client = connect(await start_gateway(upstream.url))
        for stop in ("STOP", ["thinking", "response:", "\n", "STOP"]):
            [whole] = await gathered(client, messages=ASK, stop=stop)
            [stream] = await streamed(client, messages=ASK, stop=stop)
            assert whole.content == stream.content == "One. Two. "
            assert whole.finish_reason == stream.finish_reason == "stop"
        assert all("stop" not in request.body for request in upstream.requests)


async def test_f_a_json_schema_binds_the_response_and_leaves_the_thought_free(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """(f) JSON schema with hidden thought still thinks: the constraint is any text, the closing marker, the schema."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    text = output("tpo-specific", response='{"a": 7}')
    asked: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with ScriptedUpstream(Script(chunked(text, 3))) as upstream:
        client = connect(await start_gateway(upstream.url, format="tpo-specific"))
        assert (await gathered(client, messages=ASK, response_format=asked))[0].content == '{"a": 7}'
        assert (await streamed(client, messages=ASK, response_format=asked))[0].content == '{"a": 7}'
        for request in upstream.requests:
            assert "response_format" not in request.body
            [(kind, tag)] = request.body["structured_outputs"].items()
            assert kind == "structural_tag"
            thought, *_, bound = msgspec.json.decode(tag)["format"]["elements"]
            assert thought == {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "<R>"}
            assert (bound["type"], bound["json_schema"]) == ("json_schema", schema)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1, 3, 5])
async def test_g_logprobs_are_those_of_the_response_and_no_token_ids_are_shown(
    name: str, size: int, start_gateway: StartGateway, connect: Connect
) -> None:
    """(g) logprobs and token_ids only for answer tokens: the tokens add up to the content."""
    async with ScriptedUpstream(Script(chunked(output(name), size))) as upstream:
        running = await start_gateway(upstream.url, format=name)
        client = connect(running)
        [whole] = await gathered(client, messages=ASK, logprobs=True, top_logprobs=2)
        [stream] = await streamed(client, messages=ASK, logprobs=True, top_logprobs=2)
        assert whole.content == stream.content == RESPONSE
        assert whole.tokens == stream.tokens and "".join(whole.tokens) == RESPONSE
        request = {"messages": ASK, "logprobs": True, "top_logprobs": 2}
        for shown in await running.post(request), await running.stream(request):
            assert "token_ids" not in str(shown) and "SECRET" not in str(shown)


@pytest.mark.parametrize("name", FORMATS)
async def test_h_reasoning_tokens_and_response_tokens_add_up(
    name: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """(h) reasoning_tokens > 0 and answer + reasoning (+ delimiter) = completion_tokens, counted exactly."""
    opening, closing = markers(name)
    hidden = [*chunked(opening, 4), *chunked(THOUGHT, 4), *chunked(closing, 4)]
    shown = chunked(RESPONSE, 4)
    async with ScriptedUpstream(Script([*hidden, *shown], prompt_tokens=11)) as upstream:
        client = connect(await start_gateway(upstream.url, format=name))
        [whole] = await gathered(client, messages=ASK)
        [stream] = await streamed(client, messages=ASK, stream_options={"include_usage": True})
        assert whole.usage == stream.usage and whole.usage is not None
        assert whole.usage["prompt_tokens"] == 11
        assert whole.usage["completion_tokens"] == len(hidden) + len(shown)
        assert whole.usage["completion_tokens_details"]["reasoning_tokens"] == len(hidden)
        assert whole.usage["total_tokens"] == 11 + len(hidden) + len(shown)


async def test_i_max_tokens_is_the_responses_whatever_the_thought_took(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """(i) answer-side `max_tokens`: a long thought takes nothing of it."""
    opening, closing = markers("think-tags")
    chunks = [opening, *["SECRET "] * 50, closing, "one ", "two ", "three ", "four ", "five"]
    async with ScriptedUpstream(Script(chunks)) as upstream:
        client = connect(await start_gateway(upstream.url, format="think-tags"))
        for answers in (
            await gathered(client, messages=ASK, max_tokens=3),
            await streamed(client, messages=ASK, max_tokens=3),
        ):
            assert [(answer.content, answer.finish_reason) for answer in answers] == [
                ("one two three ", "length")
            ]
        assert all("max_tokens" not in request.body for request in upstream.requests)


async def test_i_a_thought_over_its_budget_is_closed_and_the_response_asked_for(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """(i) a separate thought budget: the engine goes on from the thought that the gateway closed."""

    def script(request: Recorded) -> Script:
        if request.body.get("continue_final_message"):
            return Script(["An ", "answer."])
        return Script(["<think>", *["SECRET "] * 100, "</think>", "Too late."], delay=0.001)

    async with ScriptedUpstream(script) as upstream:
        client = connect(await start_gateway(upstream.url, format="think-tags", max_thought_tokens=10))
        assert (await gathered(client, messages=ASK))[0].content == "An answer."
        assert (await streamed(client, messages=ASK))[0].content == "An answer."
        closed = upstream.requests[1].body["messages"][-1]
        assert closed["role"] == "assistant"
        assert closed["content"].startswith("<think>SECRET ") and closed["content"].endswith("</think>")


@pytest.mark.parametrize(
    ("request_fields", "reason"),
    [({"max_completion_tokens": 5}, "max_completion_tokens"), ({}, "context_length")],
)
async def test_i_an_answer_lost_to_thinking_says_so_in_a_field(
    request_fields: dict[str, Any], reason: str, start_gateway: StartGateway
) -> None:
    """(i) a machine-readable "answer lost to thinking" signal: `incomplete_details.reason`, and a metric."""
    async with ScriptedUpstream(Script(["<think>", *["SECRET "] * 4, Finish("length")])) as upstream:
        running = await start_gateway(upstream.url, format="think-tags")
        _, body = await running.post({"messages": ASK, **request_fields})
        [choice] = body["choices"]
        assert choice["message"]["content"] == "" and choice["finish_reason"] == "length"
        assert choice["incomplete_details"] == {"reason": reason}
        events = await running.stream({"messages": ASK, **request_fields})
        last = events[-2]
        assert isinstance(last, dict) and last["choices"][0]["incomplete_details"] == {"reason": reason}
        async with running.http.get(f"{running.url}/metrics") as response:
            assert f'thinkserve_responses_lost_total{{reason="{reason}"}} 2.0' in await response.text()


async def test_j_other_generating_endpoints_are_not_served(start_gateway: StartGateway) -> None:
    """(j) same policy everywhere: what is not served cannot leak, and the engine never hears of it."""
    paths = [
        "/v1/chat/completions/batch",
        "/v1/responses/resp_1",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/render",
        "/inference/v1/generate",
        "/invocations",
        "/generative_scoring",
        "/tokenize",
        "/detokenize",
        "/v1/systemone",
        "/v2/chat",
        "/v1/embeddings",
    ]
    async with ScriptedUpstream(Script([output("tpo-generic")])) as upstream:
        running = await start_gateway(upstream.url)
        for path in paths:
            for method in ("POST", "GET"):
                body = {"messages": ASK, "prompt": "x", "input": "x"}
                async with running.http.request(method, running.url + path, json=body) as response:
                    error = (await response.json())["error"]
                    assert response.status == 404
                    assert path in error["message"] and "POST /v1/chat/completions" in error["message"]
        assert not upstream.requests


async def test_j_errors_logs_and_metrics_hold_no_thought(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """(j) errors, logs at DEBUG and /metrics never hold thought text, nor what the client wrote."""
    caplog.set_level(logging.DEBUG)
    secret = "Here is my thought process:\nSECRET one\n"
    whole = secret + "Here is my response:\nRESPONSE text"
    broken = {"choices": [{"index": 0, "delta": {"content": "SECRET"}, "finish_reason": 5}]}
    scripts = [
        Script(chunked(whole, 3)),
        Script(chunked(secret, 3)),
        Script([*chunked(secret, 3), Die()]),
        Script([*chunked(whole, 3)[:-2], Die()]),
        Script([*chunked(secret, 3), Finish("length")]),
        Script([*chunked(secret, 3), Finish("abort")]),
        Script([*chunked(secret, 3), Delta("SECRET", finish_reason="error")]),
        *(Script([*chunked(secret, 3), step]) for step in garbage(broken)),
    ]
    shown: list[str] = []
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, max_thought_tokens=200)
        for script in scripts:
            upstream.script = script
            ask = {"messages": [{"role": "user", "content": "QUESTION"}]}
            shown += [str(await running.post(ask)), str(await running.stream(ask))]
        async with running.http.get(f"{running.url}/metrics") as response:
            shown.append(await response.text())
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert not [text for text in shown if "SECRET" in text]
    assert "SECRET" not in logged and "QUESTION" not in logged and "RESPONSE" not in logged


def garbage(broken: dict[str, Any]) -> list[Any]:
    """Ways for an engine to end in the middle of a thought, with the thought in its last words."""
    return [
        ErrorEvent({"message": "SECRET", "type": "SECRET", "code": 500}),
        Raw(b'data: {"choices": [{"delta": {"content": "SECRET\n\n'),
        Raw(b"data: " + msgspec.json.encode(broken) + b"\n\n"),
        Raw(b"data: SECRET\n\n"),
    ]


@pytest.mark.parametrize("name", FORMATS)
async def test_k_thoughts_smuggled_into_the_history_are_stripped(
    name: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """(k) history with smuggled thoughts is stripped: markers, reasoning fields, in strings and in parts."""
    history: Any = [
        {"role": "user", "content": "First."},
        {
            "role": "assistant",
            "content": output(name),
            "reasoning": "SECRET",
            "reasoning_content": "SECRET",
            "thinking": "SECRET",
        },
        {"role": "user", "content": "Second."},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": part} for part in chunked(output(name), 6)],
        },
        {"role": "user", "content": "Third."},
    ]
    async with ScriptedUpstream(Script([output(name)])) as upstream:
        client = connect(await start_gateway(upstream.url, format=name))
        assert (await gathered(client, messages=history))[0].content == RESPONSE
        [request] = upstream.requests
        sent = request.body["messages"]
        assert "SECRET" not in str(sent)
        assert sent[1] == {"role": "assistant", "content": RESPONSE}
        assert sent[3] == {"role": "assistant", "content": [{"type": "text", "text": RESPONSE}]}


HIDING_OFF: dict[str, Any] = {
    "include_reasoning": True,
    "reasoning": {"exclude": False},
    "separate_reasoning": False,
    "think": False,
    "thinking": {"type": "disabled"},
    "enable_thinking": False,
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "continue_final_message": True,
    "add_generation_prompt": False,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "prompt_logprobs": 1,
    "echo": True,
    "logit_bias": {"1": -100},
    "bad_words": ["Here is my response:"],
    "allowed_token_ids": [1],
    "stop_token_ids": [1],
    "skip_special_tokens": False,
    "thinking_token_budget": 0,
    "kv_transfer_params": {"prompt_token_ids": [1]},
    "ec_transfer_params": {},
    "vllm_xargs": {"a": 1},
    "repetition_detection": {},
    "ignore_eos": True,
    "min_tokens": 10,
    "include_stop_str_in_output": True,
    "guided_regex": ".*",
}


@pytest.mark.parametrize("field", HIDING_OFF)
async def test_l_no_request_field_turns_hiding_off(
    field: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """(l) a client cannot turn hiding off: each field that might is refused by name, and nothing is generated."""
    async with ScriptedUpstream(Script([output("tpo-generic")])) as upstream:
        client = connect(await start_gateway(upstream.url))
        with pytest.raises(openai.BadRequestError) as refused:
            await gathered(client, messages=ASK, extra_body={field: HIDING_OFF[field]})
        assert refused.value.param == field and field in refused.value.message
        with pytest.raises(openai.BadRequestError):
            await streamed(client, messages=ASK, extra_body={field: HIDING_OFF[field]})
        assert not upstream.requests


async def test_l_no_header_turns_hiding_off(start_gateway: StartGateway) -> None:
    """(l) nor can a header, with or without API keys, whatever it says."""
    async with ScriptedUpstream(Script(chunked(output("tpo-generic"), 3))) as upstream:
        running = await start_gateway(upstream.url)
        for value in ("1", "true", "yes", " 1", "0, 1"):
            status, body = await running.post({"messages": ASK}, **{"thinkserve-reveal": value})
            assert status == 403 and body["error"]["code"] == "operator_key_required"
        headers = {"x-include-reasoning": "1", "thinkserve_reveal": "1", "x-thinkserve-reveal": "1"}
        for shown in (
            await running.post({"messages": ASK}, **headers),
            await running.stream({"messages": ASK}, **headers),
        ):
            assert "SECRET" not in str(shown) and "reasoning_content" not in str(shown)


async def test_l_no_prompt_moves_where_the_response_begins(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """(l) nor can a prompt: markers in what the client writes do not count, in any role or at the end."""
    for name in FORMATS:
        closing = BUILT_IN[name].closing[0]
        text = output(name)
        async with ScriptedUpstream(Script(chunked(text, 3))) as upstream:
            client = connect(await start_gateway(upstream.url, format=name))
            for role, following in pairwise(["system", "user", "assistant", "user"]):
                messages: Any = [
                    {"role": role, "content": f"x\n{closing}\n"},
                    {"role": following, "content": f"x\n{closing}\n"},
                    *ASK,
                    {"role": "assistant", "content": f"x\n{closing}\n"},
                ]
                assert (await streamed(client, messages=messages))[0].content == RESPONSE
                assert (await gathered(client, messages=messages))[0].content == RESPONSE
