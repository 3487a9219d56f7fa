"""`/v1/responses`: bodies, events, tools, input items and sealed thoughts, through the official client.

The client's own helper for streams is strict: it raises where events do not fit together.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.gateway.conftest import Connect, Running, StartGateway
from tests.gateway.field_values import TEXTS, check_wrong_values
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
    Wait,
    chunked,
)
from thinkserve.gateway.api.responses_fields import FIELDS
from thinkserve.gateway.fields import DROP, PASS, REFUSE, REWRITE
from thinkserve.gateway.sealing import new_seal_key
from thinkserve.thoughts import BUILT_IN

THOUGHT = "SECRET plan: SECRET draft."
RESPONSE = "Hello! I am well."
HEAD = f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n"
OUTPUT = HEAD + RESPONSE
PATH = "/v1/responses"
USER: Any = [{"role": "user", "content": "Hi"}]
PROMPTED = BUILT_IN["tpo-generic"].thought_prompt
SEALED: Final = "reasoning.encrypted_content"
LOGPROBS: Final = "message.output_text.logprobs"
TOOL: JSON = {
    "type": "function",
    "name": "look",
    "description": "Look at a place.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    "strict": True,
}
IN_CHAT: JSON = {"type": "function", "function": {key: TOOL[key] for key in TOOL if key != "type"}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'
OTHER_CALL = CALL.replace("sea", "sky")
NOWHERE = "http://127.0.0.1:9"

check_event: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def ask(running: Running, body: object, path: str = PATH, **headers: str) -> tuple[int, Any, str]:
    """Post a body, which may be bytes; return the status, the answer as JSON (None: a stream), and as text."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with running.http.post(f"{running.url}{path}", data=data, headers=headers) as response:
        raw = await response.read()
        whole = response.content_type == "application/json"
        return response.status, msgspec.json.decode(raw) if whole else None, raw.decode()


async def events(running: Running, body: JSON, **headers: str) -> list[JSON]:
    """Ask for a stream; return its events, each checked: its name, its number, and OpenAI's type of it."""
    _, answer, raw = await ask(running, {"input": "Hi", **body, "stream": True}, **headers)
    assert answer is None, answer
    found: list[JSON] = []
    for block in raw.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = msgspec.json.decode(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == len(found)
        check_event.validate_python(event)
        found.append(event)
    return found


def names(stream: list[JSON]) -> list[str]:
    """The types of events, with those that add text to an item told once."""
    found: list[str] = []
    for event in stream:
        if not event["type"].endswith(".delta") or event["type"] not in found[-1:]:
            found.append(event["type"])
    return found


def kinds(body: JSON) -> list[str]:
    """The types of a response's items."""
    return [item["type"] for item in body["output"]]


def alike(body: JSON) -> JSON:
    """A response without what every request has of its own: ids, times and seals."""
    name = body["id"].removeprefix("resp_")
    text = msgspec.json.encode({**body, "created_at": 0}).decode().replace(name, "ID")
    found: JSON = msgspec.json.decode(text)
    for item in found["output"]:
        if "encrypted_content" in item:
            item["encrypted_content"] = "SEALED"
        if "call_id" in item:
            assert item["call_id"].startswith("call_")
            item["call_id"] = "CALL"
    return found


def done_items(stream: list[JSON]) -> list[JSON]:
    """The items that were done in a stream."""
    return [event["item"] for event in stream if event["type"] == "response.output_item.done"]


async def both(running: Running, body: JSON, **headers: str) -> JSON:
    """Ask whole and streamed; see that the stream ends with the same response, and return it."""
    asked = {"input": "Hi", **body}
    status, whole, _ = await ask(running, asked, **headers)
    assert status == 200, whole
    Response.model_validate(whole)
    stream = await events(running, asked, **headers)
    last = stream[-1]
    assert last["type"] == f"response.{whole['status']}"
    assert alike(last["response"]) == alike(whole)
    assert done_items(stream) == last["response"]["output"]
    found: JSON = whole
    return found


@pytest.fixture
def seal_keys(tmp_path: Path) -> Path:
    """A file with a key that seals thoughts."""
    path = tmp_path / "seal.keys"
    path.touch(0o600)
    path.write_text(f"{new_seal_key()}\n")
    return path


# Bodies and events


async def test_a_response_says_back_what_was_asked_and_hides_the_thought(start_gateway: StartGateway) -> None:
    """An empty reasoning item, then the message; exact counts; nothing stored."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 3))) as upstream:
        running = await start_gateway(upstream.url)
        asked = {
            "model": "thinker",
            "instructions": "Be brief.",
            "temperature": 0.5,
            "top_p": 0.9,
            "max_output_tokens": 100,
            "metadata": {"a": "b"},
            "reasoning": {"effort": "low"},
            "user": "u",
        }
        body = await both(running, asked)
        name = body["id"].removeprefix("resp_")
        assert (body["object"], body["status"], body["model"]) == ("response", "completed", "thinker")
        assert body["output"] == [
            {"id": f"rs_{name}", "type": "reasoning", "summary": []},
            {
                "id": f"msg_{name}",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": RESPONSE, "annotations": [], "logprobs": []}],
            },
        ]
        told = {**asked, "reasoning": {"effort": "low", "summary": None}, "store": False, "tools": []}
        told |= {"tool_choice": "auto", "parallel_tool_calls": True, "truncation": "disabled"}
        told |= {"text": {"format": {"type": "text"}, "verbosity": "medium"}}
        assert {key: body[key] for key in told} == told
        assert body["error"] is body["incomplete_details"] is body["previous_response_id"] is None
        usage = body["usage"]
        assert usage["input_tokens"] == 7 and usage["input_tokens_details"]["cached_tokens"] == 0
        assert usage["total_tokens"] == 7 + usage["output_tokens"]
        # The marker ends within a token of three characters, so the response has six: "H", "ell", "o! ", ...
        assert usage["output_tokens"] - usage["output_tokens_details"]["reasoning_tokens"] == 6
        assert upstream.requests[0].body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": PROMPTED("Hi")},
        ]


async def test_events_come_in_openais_order(start_gateway: StartGateway) -> None:
    """The reasoning item is open while the model thinks, the message while it answers; the body says it all again."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 3))) as upstream:
        running = await start_gateway(upstream.url)
        stream = await events(running, {})
        assert names(stream) == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        for event in stream[:2]:
            assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])
        added = [event for event in stream if event["type"] == "response.output_item.added"]
        assert [event["item"]["type"] for event in added] == ["reasoning", "message"]
        assert "".join(event["delta"] for event in stream if "delta" in event) == RESPONSE


async def test_the_stream_begins_while_the_model_still_thinks(start_gateway: StartGateway) -> None:
    """So that a client sees the reasoning item before there is any text."""
    gate = asyncio.Event()
    async with ScriptedUpstream(Script([OUTPUT[:40], Wait(gate), OUTPUT[40:]])) as upstream:
        running = await start_gateway(upstream.url)
        body = {"input": "Hi", "stream": True}
        async with running.http.post(f"{running.url}{PATH}", json=body) as response:
            head = await asyncio.wait_for(response.content.readuntil(b'"type":"reasoning"'), 5)
            assert b"response.output_item.added" in head and not gate.is_set()
            gate.set()
            assert b"response.completed" in await response.read()


async def test_a_direct_answer_has_no_reasoning_item(start_gateway: StartGateway) -> None:
    """Effort `none`: the prompt goes as it is, and the message is the first item."""
    async with ScriptedUpstream(Script(chunked(RESPONSE, 3))) as upstream:
        running = await start_gateway(upstream.url)
        body = await both(running, {"reasoning": {"effort": "none"}})
        assert kinds(body) == ["message"]
        assert upstream.requests[0].body["messages"] == USER
        stream = await events(running, {"reasoning": {"effort": "none"}})
        assert names(stream)[2:5] == [
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
        ]


async def test_the_official_clients_stream_helper_adds_up_to_the_response(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """And so does its plain call."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 3))) as upstream:
        client = connect(await start_gateway(upstream.url))
        response = await client.responses.create(model="thinker", input="Hi")
        assert response.output_text == RESPONSE
        async with client.responses.stream(model="thinker", input="Hi") as stream:
            snapshots = [
                event.snapshot async for event in stream if event.type == "response.output_text.delta"
            ]
            final = await stream.get_final_response()
        assert snapshots[-1] == final.output_text == RESPONSE
        assert final.usage == response.usage


async def test_an_empty_response_is_an_empty_message(start_gateway: StartGateway) -> None:
    """The model had nothing to say, which is not the same as having been cut."""
    async with ScriptedUpstream(Script(chunked(HEAD, 3))) as upstream:
        body = await both(await start_gateway(upstream.url), {})
        assert body["status"] == "completed" and kinds(body) == ["reasoning", "message"]
        assert body["output"][1]["content"][0]["text"] == ""


async def test_a_response_that_is_cut_is_incomplete(start_gateway: StartGateway) -> None:
    """By the client's bound on thought and response, or by the engine; the message says so too."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 1))) as upstream:
        running = await start_gateway(upstream.url)
        body = await both(running, {"max_output_tokens": len(HEAD) + 4})
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert body["output"][1]["status"] == "incomplete"
        assert body["output"][1]["content"][0]["text"] == RESPONSE[:4]
        assert body["usage"]["output_tokens"] == len(HEAD) + 4
        assert upstream.requests[0].body["max_tokens"] == len(HEAD) + 4
        upstream.script = Script([OUTPUT[:-3], Finish("content_filter")])
        body = await both(running, {})
        assert body["incomplete_details"] == {"reason": "content_filter"}


async def test_an_output_lost_in_its_thought_has_a_reasoning_item_and_no_message(
    start_gateway: StartGateway,
) -> None:
    """Never the thought."""
    async with ScriptedUpstream(Script([*chunked(OUTPUT[:45], 3), Finish("length")])) as upstream:
        running = await start_gateway(upstream.url)
        body = await both(running, {"max_output_tokens": 500})
        assert (body["status"], kinds(body)) == ("incomplete", ["reasoning"])
        assert body["incomplete_details"] == {"reason": "max_output_tokens"} and "SECRET" not in str(body)
        assert names(await events(running, {}))[2:] == [
            "response.output_item.added",
            "response.output_item.done",
            "response.incomplete",
        ]


async def test_stop_strings_end_the_response_only(start_gateway: StartGateway) -> None:
    """As in chat completions."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 2))) as upstream:
        body = await both(await start_gateway(upstream.url), {"stop": ["SECRET", " am"]})
        assert body["output"][1]["content"][0]["text"] == "Hello! I" and body["status"] == "completed"


async def test_logprobs_are_of_exactly_the_tokens_of_the_response(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """In the deltas, when the text is done, and in the body."""
    pieces = ["Hello", "!", " é", "."]
    async with ScriptedUpstream(Script([*chunked(HEAD, 5), *pieces])) as upstream:
        running = await start_gateway(upstream.url)
        asked: JSON = {"include": [LOGPROBS], "top_logprobs": 2}
        body = await both(running, asked)
        told = body["output"][1]["content"][0]["logprobs"]
        assert [entry["token"] for entry in told] == pieces and body["top_logprobs"] == 2
        assert [entry["bytes"] for entry in told] == [list(piece.encode()) for piece in pieces]
        assert [[other["token"] for other in entry["top_logprobs"]] for entry in told] == [
            [piece, f"{piece}~1"] for piece in pieces
        ]
        stream = await events(running, asked)
        assert [entry for event in stream if "delta" in event for entry in event["logprobs"]] == told
        [done] = [event for event in stream if event["type"] == "response.output_text.done"]
        assert done["logprobs"] == told
        response = await connect(running).responses.create(model="thinker", input="Hi", include=[LOGPROBS])
        message: Any = response.output[1]
        assert [entry.token for entry in message.content[0].logprobs] == pieces


async def test_an_engine_that_tells_no_bytes_gets_them_filled_in(start_gateway: StartGateway) -> None:
    """This API must tell the bytes of a token."""
    entry = {"token": "é", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    async with ScriptedUpstream(Script([*chunked(HEAD, 5), Delta("é", [1], [entry])])) as upstream:
        body = await both(await start_gateway(upstream.url), {"include": [LOGPROBS]})
        [told] = body["output"][1]["content"][0]["logprobs"]
        assert told["bytes"] == list("é".encode())


ENDS: dict[str, list[Any]] = {
    "dies": [Die()],
    "reports an error": [ErrorEvent({"message": "SECRET", "type": "SECRET", "code": 500})],
    "gives up": [Finish("abort")],
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_engine_that_fails_is_an_error_and_shows_no_thought(
    end: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """A stream that had begun ends with `response.failed`, which has the items so far."""
    for shown, items in ((OUTPUT[:45], ["reasoning"]), (OUTPUT[:-4], ["reasoning", "message"])):
        async with ScriptedUpstream(Script([*chunked(shown, 3), *ENDS[end]])) as upstream:
            running = await start_gateway(upstream.url)
            status, body, raw = await ask(running, {"input": "Hi"})
            assert (status, body["error"]["code"]) == (503, "engine_unavailable") and "SECRET" not in raw
            stream = await events(running, {})
            response = stream[-1]["response"]
            assert (stream[-1]["type"], response["status"]) == ("response.failed", "failed")
            assert response["error"]["code"] == "server_error" and "engine" in response["error"]["message"]
            assert kinds(response) == items and "SECRET" not in str(stream)
            assert response["output"][-1].get("status", "incomplete") == "incomplete"
            async with connect(running).responses.stream(model="thinker", input="Hi") as official:
                with pytest.raises(RuntimeError, match="response.completed"):
                    await official.get_final_response()


async def test_a_broken_format_is_told_as_such(start_gateway: StartGateway) -> None:
    """Nothing of the output is shown."""
    async with ScriptedUpstream(Script(chunked("SECRET without a marker", 3))) as upstream:
        running = await start_gateway(upstream.url)
        status, body, _ = await ask(running, {"input": "Hi"})
        assert (status, body["error"]["code"]) == (502, "malformed_output")
        stream = await events(running, {})
        assert "malformed" in stream[-1]["response"]["error"]["message"] and "SECRET" not in str(stream)


async def test_a_refusal_of_the_engine_is_the_clients(start_gateway: StartGateway, connect: Connect) -> None:
    """As an HTTP error, streamed or not."""
    refusal = Status(400, {"error": {"message": "too long", "type": "BadRequestError", "code": 400}})
    async with ScriptedUpstream(Script([refusal])) as upstream:
        client = connect(await start_gateway(upstream.url))
        with pytest.raises(openai.BadRequestError, match="too long"):
            await client.responses.create(model="thinker", input="Hi")
        with pytest.raises(openai.BadRequestError, match="too long"):
            await client.responses.create(model="thinker", input="Hi", stream=True)


@pytest.mark.parametrize("size", range(1, 8))
async def test_no_chunking_lets_a_thought_out(
    size: int, start_gateway: StartGateway, seal_keys: Path
) -> None:
    """Not a byte of it, whole or streamed, with all that might show it; and the answer is the same."""
    called = OUTPUT.replace("draft.", CALL.replace("sea", "SECRET")) + CALL
    async with ScriptedUpstream() as upstream:
        running = await start_gateway(upstream.url, seal_keys=seal_keys)
        extras: list[tuple[str, JSON]] = [
            (OUTPUT, {}),
            (OUTPUT, {"include": [LOGPROBS], "top_logprobs": 20}),
            (OUTPUT, {"include": [SEALED], "stop": ["zzz"]}),
            (called, {"tools": [TOOL]}),
        ]
        for output, extra in extras:
            upstream.script = Script(chunked(output, size))
            for streamed in (False, True):
                status, _, raw = await ask(running, {"input": "Hi", "stream": streamed, **extra})
                assert status == 200 and "SECRET" not in raw and "thought" not in raw
            body = await both(running, extra)
            assert body["output"][1]["content"][0]["text"] == RESPONSE


async def test_only_an_operator_sees_the_thought(start_gateway: StartGateway) -> None:
    """As the content of the reasoning item, in events of its own while it is thought."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 4))) as upstream:
        running = await start_gateway(upstream.url, keys={"op": "operator", "cl": "client"})
        operator = {"Authorization": "Bearer op", "thinkserve-reveal": "1"}
        body = await both(running, {}, **operator)
        [part] = body["output"][0]["content"]
        assert part["type"] == "reasoning_text" and part["text"].strip() == THOUGHT
        stream = await events(running, {}, **operator)
        assert names(stream)[2:8] == [
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ]
        thought = [event["delta"] for event in stream if event["type"] == "response.reasoning_text.delta"]
        assert "".join(thought) == part["text"]
        for key, reveal, status in (("cl", "1", 403), ("cl", "0", 200), ("op", "0", 200)):
            headers = {"Authorization": f"Bearer {key}", "thinkserve-reveal": reveal}
            for streamed in (False, True):
                answer = await ask(running, {"input": "Hi", "stream": streamed}, **headers)
                assert answer[0] == status and "SECRET" not in answer[2]


async def test_answers_side_by_side_keep_apart(start_gateway: StartGateway) -> None:
    """Each has its own id and its own text."""

    def script(recorded: Recorded) -> Script:
        word = "one" if "one" in recorded.body["messages"][-1]["content"].split() else "two"
        return Script(chunked(HEAD + word, 2), delay=0.001)

    async with ScriptedUpstream(script) as upstream:
        running = await start_gateway(upstream.url)
        answers = await asyncio.gather(*(events(running, {"input": word}) for word in ("one", "two") * 4))
        assert len({stream[0]["response"]["id"] for stream in answers}) == 8
        texts = [stream[-1]["response"]["output"][1]["content"][0]["text"] for stream in answers]
        assert texts == ["one", "two"] * 4


# Tools and formats


async def test_a_tool_call_is_an_item(start_gateway: StartGateway, connect: Connect) -> None:
    """Its arguments stream; a call in the thought is none; the text before it is a message."""
    thought = OUTPUT.replace("draft.", OTHER_CALL)
    async with ScriptedUpstream(Script(chunked(f"{thought}\n{CALL}", 3))) as upstream:
        running = await start_gateway(upstream.url)
        body = await both(running, {"tools": [TOOL]})
        name = body["id"].removeprefix("resp_")
        assert kinds(body) == ["reasoning", "message", "function_call"] and body["tools"] == [TOOL]
        call = body["output"][2]
        assert call.pop("call_id").startswith("call_")
        assert call == {
            "id": f"fc_{name}_0",
            "type": "function_call",
            "status": "completed",
            "name": "look",
            "arguments": '{"at": "sea"}',
        }
        stream = await events(running, {"tools": [TOOL]})
        assert names(stream)[7:] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        tools: Any = [TOOL]
        async with connect(running).responses.stream(model="thinker", input="Hi", tools=tools) as official:
            final = await official.get_final_response()
        item: Any = final.output[2]
        assert (item.name, item.parsed_arguments) == ("look", {"at": "sea"})


async def test_several_calls_are_several_items(start_gateway: StartGateway) -> None:
    """Without a message where there is no text."""
    async with ScriptedUpstream(Script(chunked(f"{HEAD}{CALL}\n{OTHER_CALL}", 4))) as upstream:
        running = await start_gateway(upstream.url)
        body = await both(running, {"tools": [TOOL]})
        assert [item.get("arguments") for item in body["output"]] == [None, '{"at": "sea"}', '{"at": "sky"}']
        assert len({item["id"] for item in body["output"]}) == 3
        body = await both(running, {"tools": [TOOL], "parallel_tool_calls": False})
        assert kinds(body) == ["reasoning", "function_call"] and body["parallel_tool_calls"] is False


async def test_text_behind_a_call_is_a_message_of_its_own(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """In the events as in the body, in the same place."""
    async with ScriptedUpstream(Script(chunked(f"{HEAD}One. {CALL} Two.", 4))) as upstream:
        running = await start_gateway(upstream.url)
        _, body, _ = await ask(running, {"input": "Hi", "tools": [TOOL]})
        assert kinds(body) == ["reasoning", "message", "function_call", "message"]
        assert [body["output"][at]["content"][0]["text"] for at in (1, 3)] == ["One.", "\nTwo."]
        stream = await events(running, {"tools": [TOOL]})
        assert alike(stream[-1]["response"]) == alike(body)
        added = [event for event in stream if event["type"] == "response.output_item.added"]
        assert [event["output_index"] for event in added] == [0, 1, 2, 3]
        assert len({event["item"]["id"] for event in added}) == 4
        texts = [event["text"] for event in stream if event["type"] == "response.output_text.done"]
        assert texts == ["One.", "\nTwo."]
        tools: Any = [TOOL]
        async with connect(running).responses.stream(model="thinker", input="Hi", tools=tools) as official:
            assert (await official.get_final_response()).output_text == "One.\nTwo."


@pytest.mark.parametrize("size", range(1, 40, 2))
async def test_items_are_whole_however_the_output_is_cut(size: int, start_gateway: StartGateway) -> None:
    """Also where the end of a call, a text and the beginning of the next call come in one chunk."""
    output = f"{HEAD}One. {CALL} Two. {OTHER_CALL}{CALL} Three."
    async with ScriptedUpstream(Script(chunked(output, size))) as upstream:
        stream = await events(await start_gateway(upstream.url), {"tools": [TOOL]})
        done = done_items(stream)
        assert stream[-1]["response"]["output"] == done
        calls = [item for item in done if item["type"] == "function_call"]
        assert [call["arguments"] for call in calls] == ['{"at": "sea"}', '{"at": "sky"}', '{"at": "sea"}']
        added: dict[str, str] = {}
        for event in stream:
            if event["type"].endswith(".delta"):
                added[event["item_id"]] = added.get(event["item_id"], "") + event["delta"]
        for item in done[1:]:
            whole = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
            assert added[item["id"]] == whole


async def test_a_call_that_is_cut_is_incomplete(start_gateway: StartGateway) -> None:
    """Its arguments are what there is of them."""
    async with ScriptedUpstream(Script([*chunked(HEAD + CALL[:-20], 4), Finish("length")])) as upstream:
        body = await both(await start_gateway(upstream.url), {"tools": [TOOL]})
        assert (body["status"], body["output"][-1]["status"]) == ("incomplete", "incomplete")
        assert kinds(body)[-1] == "function_call"


TOOL_CHOICES: list[tuple[Any, Any]] = [
    ("auto", "auto"),
    ("none", "none"),
    ("required", "required"),
    ({"type": "function", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
]


@pytest.mark.parametrize(("choice", "in_chat"), TOOL_CHOICES)
async def test_tool_choice_means_what_it_means_in_a_chat_completion(
    choice: Any, in_chat: Any, start_gateway: StartGateway
) -> None:
    """And is said back as it was given."""
    async with ScriptedUpstream(Script([HEAD + CALL])) as upstream:
        running = await start_gateway(upstream.url)
        body = {"input": "Hi", "tools": [TOOL], "tool_choice": choice}
        chat = {"tools": [IN_CHAT], "tool_choice": in_chat}
        assert await sent(running, upstream, body) == await sent_by_chat(running, upstream, chat)
        assert (await both(running, body))["tool_choice"] == choice


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tools": [TOOL, {"type": "mcp", "server_label": "x"}]}, "tools[1].type", "mcp"),
        ({"tools": [IN_CHAT]}, "tools[0].name", "tools[0].name must be"),
        ({"tools": ["x"]}, "tools[0].type", "function"),
        ({"tools": [{**TOOL, "parameters": 1}]}, "tools[0].parameters", "tools[0].parameters must be"),
        ({"tools": [{**TOOL, "description": 1}]}, "tools[0].description", "tools[0].description must be"),
        ({"tools": [TOOL, TOOL]}, "tools", "one name"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "'x'"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice", "web_search"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice", "allowed"),
        ({"tools": [TOOL], "include": [LOGPROBS]}, "include", "beside tools"),
    ],
)
async def test_what_is_wrong_with_tools_is_told_in_the_words_of_this_api(
    body: JSON, param: str, words: str, start_gateway: StartGateway
) -> None:
    """Not in those of chat completions, whose tools have a level more."""
    running = await start_gateway(NOWHERE)
    status, answer, _ = await ask(running, {"input": "Hi", **body})
    assert (status, answer["error"]["param"]) == (400, param)
    assert words in answer["error"]["message"] and ".function." not in answer["error"]["message"]


class Place(BaseModel):
    """What a response is to fit."""

    at: str


async def test_a_text_format_binds_the_response_as_in_a_chat_completion(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """A schema, flat here; JSON mode; text. The client's own parser reads the response."""
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    flat = {"type": "json_schema", "name": "place", "schema": schema, "strict": True}
    nested = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    async with ScriptedUpstream(Script(chunked(HEAD + '{"at": "sea"}', 3))) as upstream:
        running = await start_gateway(upstream.url)
        for format, chat in ((flat, nested), ({"type": "json_object"},) * 2, ({"type": "text"},) * 2):
            body: JSON = {"input": "Hi", "text": {"format": format}}
            in_chat = await sent_by_chat(running, upstream, {"response_format": chat})
            assert await sent(running, upstream, body) == in_chat
            assert (await both(running, body))["text"]["format"] == format
        client = connect(running)
        parsed = await client.responses.parse(model="thinker", input="Hi", text_format=Place)
        assert parsed.output_parsed == Place(at="sea")
        async with client.responses.stream(model="thinker", input="Hi", text_format=Place) as stream:
            assert (await stream.get_final_response()).output_parsed == Place(at="sea")


# Input


async def read(running: Running, upstream: ScriptedUpstream, items: Any, **more: Any) -> list[JSON]:
    """The messages that the engine gets for an input."""
    [asked] = await sent(running, upstream, {"input": items, **more})
    messages: list[JSON] = asked["messages"]
    return messages


def user(text: str) -> JSON:
    """A user message for the engine, with the thought prompt."""
    return {"role": "user", "content": PROMPTED(text)}


def past_call(name: str, arguments: str = "{}") -> JSON:
    """A call in a past assistant message, for the engine."""
    return {"id": name, "type": "function", "function": {"name": "look", "arguments": arguments}}


def call_item(name: str, **more: Any) -> JSON:
    """A call among the items of an input."""
    return {"type": "function_call", "call_id": name, "name": "look", "arguments": "{}", **more}


def result_item(name: str, output: Any = "x") -> JSON:
    """What a call returned, among the items of an input."""
    return {"type": "function_call_output", "call_id": name, "output": output}


async def test_items_become_messages(start_gateway: StartGateway) -> None:
    """Easy messages, messages as the server returned them, parts; reasoning items without a seal go."""
    text = {"type": "output_text", "text": "Sure.", "annotations": [], "logprobs": []}
    returned = {"type": "message", "id": "m", "status": "completed", "role": "assistant", "phase": None}
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "First."}]},
        {"id": "rs_1", "type": "reasoning", "summary": [], "content": [{"text": "SECRET"}]},
        {**returned, "content": [text]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "message", "role": "assistant", "content": []},
        {"role": "user", "content": [{"type": "input_text", "text": part} for part in ("Last", " one.")]},
    ]
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        messages = await read(running, upstream, items, instructions="Be kind.")
        before, after = BUILT_IN["tpo-generic"].thought_prompt_halves()
        last = [{"type": "text", "text": f"{before}Last"}, {"type": "text", "text": f" one.{after}"}]
        assert messages == [
            {"role": "system", "content": "Be kind."},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First."},
            {"role": "assistant", "content": "Sure."},
            {"role": "assistant", "content": "No."},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": last},
        ]


async def test_thoughts_smuggled_into_the_input_are_taken_out(start_gateway: StartGateway) -> None:
    """From past assistant messages, whole or cut over parts."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        parts = [{"type": "output_text", "text": part} for part in chunked(OUTPUT, 6)]
        for content in (OUTPUT, parts):
            items = [*USER, {"role": "assistant", "content": content}, *USER]
            messages = await read(running, upstream, items)
            assert "SECRET" not in str(messages) and RESPONSE in str(messages[1]["content"])


async def test_calls_of_a_turn_belong_to_its_message(start_gateway: StartGateway) -> None:
    """Several to one message, with or without a text; outputs are messages of the role tool."""
    items = [
        *USER,
        {"type": "message", "role": "assistant", "content": "I look."},
        call_item("a", id="fc_1", status="completed"),
        call_item("b"),
        result_item("a"),
        result_item("b", [{"type": "input_text", "text": "y"}]),
        {"type": "reasoning", "id": "rs_2", "summary": []},
        call_item("c"),
        result_item("c"),
        call_item("d"),
        {"role": "assistant", "content": "And so."},
    ]
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        assert await read(running, upstream, items, tools=[TOOL]) == [
            user("Hi"),
            {"role": "assistant", "content": "I look.", "tool_calls": [past_call("a"), past_call("b")]},
            {"role": "tool", "tool_call_id": "a", "content": "x"},
            {"role": "tool", "tool_call_id": "b", "content": "y"},
            {"role": "assistant", "content": "", "tool_calls": [past_call("c")]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
            {"role": "assistant", "content": "And so.", "tool_calls": [past_call("d")]},
        ]


async def test_what_the_client_got_can_be_sent_back(start_gateway: StartGateway, connect: Connect) -> None:
    """Items as the official client holds them: of a plain call, and parsed by its stream helper."""
    async with ScriptedUpstream(Script(chunked(f"{OUTPUT}\n{CALL}", 5))) as upstream:
        client = connect(await start_gateway(upstream.url))
        tools: Any = [TOOL]
        response = await client.responses.create(model="thinker", input="Hi", tools=tools)
        async with client.responses.stream(model="thinker", input="Hi", tools=tools) as stream:
            streamed = await stream.get_final_response()
        for got in (response, streamed):
            call: Any = got.output[2]
            items: Any = [*USER, *got.output, result_item(call.call_id, "waves")]
            upstream.requests.clear()
            again = await client.responses.create(model="thinker", input=items, tools=tools)
            assert again.output_text == RESPONSE
            calls = [past_call(call.call_id, '{"at": "sea"}')]
            assert upstream.requests[0].body["messages"] == [
                user("Hi"),
                {"role": "assistant", "content": RESPONSE, "tool_calls": calls},
                {"role": "tool", "tool_call_id": call.call_id, "content": "waves"},
            ]


WRONG_ITEMS: list[tuple[Any, str]] = [
    ("x", "input[1]"),
    (None, "input[1]"),
    ({}, "input[1].type"),
    ({"type": "message"}, "input[1].role"),
    ({"type": 1, "role": "user", "content": "x"}, "input[1].type"),
    ({"type": "item_reference", "id": "msg_1"}, "input[1].type"),
    ({"type": "computer_call"}, "input[1].type"),
    ({"type": "web_search_call", "id": "x"}, "input[1].type"),
    ({"role": "tool", "content": "x"}, "input[1].role"),
    ({"role": ["user"], "content": "x"}, "input[1].role"),
    ({"role": "user"}, "input[1].content"),
    ({"role": "user", "content": []}, "input[1].content"),
    ({"role": "user", "content": 1}, "input[1].content"),
    ({"role": "user", "content": ["x"]}, "input[1].content[0].type"),
    ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0].text"),
    ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[1].content[0].type"),
    ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, "input[1].content[0].type"),
    ({"role": "user", "content": "x", "audio": {}}, "input[1].audio"),
    ({"role": "assistant", "content": "x", "tool_calls": []}, "input[1].tool_calls"),
    ({"type": "function_call", "name": "x", "arguments": "{}"}, "input[1].call_id"),
    ({"type": "function_call", "call_id": "a", "arguments": "{}"}, "input[1].name"),
    ({"type": "function_call", "call_id": "a", "name": "x", "arguments": {}}, "input[1].arguments"),
    ({"type": "function_call_output", "output": "x"}, "input[1].call_id"),
    ({"type": "function_call_output", "call_id": "a"}, "input[1].output"),
    ({"type": "function_call_output", "call_id": "a", "output": {}}, "input[1].output"),
    ({"type": "reasoning", "id": "rs_1", "encrypted_content": 1}, "input[1].encrypted_content"),
]


@pytest.mark.parametrize(("item", "param"), WRONG_ITEMS)
async def test_a_wrong_item_is_named(item: Any, param: str, start_gateway: StartGateway) -> None:
    """Never 500."""
    running = await start_gateway(NOWHERE)
    status, body, _ = await ask(running, {"input": [*USER, item]})
    assert (status, body["error"]["param"]) == (400, param)
    assert param in body["error"]["message"] and len(body["error"]["message"]) < 400


async def test_an_input_must_hold_a_user_message_and_not_too_many(start_gateway: StartGateway) -> None:
    """The thought prompt goes round the last one; a direct answer needs none."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url, max_messages=3)
        alone = [{"role": "assistant", "content": "x"}]
        for items in (alone, [], None, USER * 4):
            status, body, _ = await ask(running, {"input": items})
            assert (status, body["error"]["param"]) == (400, "input")
        assert (await ask(running, {"input": USER * 2, "instructions": "x"}))[0] == 200
        assert (await ask(running, {"input": USER * 3, "instructions": "x"}))[0] == 400
        upstream.script = Script([RESPONSE])
        assert (await ask(running, {"input": alone, "reasoning": {"effort": "none"}}))[0] == 200


async def test_an_effort_that_is_not_offered_is_named_as_this_api_does(start_gateway: StartGateway) -> None:
    """A format in which a model that thinks all the same could not be told apart."""
    refusing = [name for name, format in BUILT_IN.items() if not format.allows_direct]
    assert refusing
    for name in refusing:
        running = await start_gateway(NOWHERE, format=name)
        status, body, _ = await ask(running, {"input": "Hi", "reasoning": {"effort": "none"}})
        assert (status, body["error"]["param"]) == (400, "reasoning.effort")


# Sealed thoughts

KEYS = {"sk-a": "client", "sk-b": "client"}
A = {"Authorization": "Bearer sk-a"}
B = {"Authorization": "Bearer sk-b"}


async def sealed_output(running: Running, **more: Any) -> list[JSON]:
    """The items of a response with its thought sealed."""
    status, body, raw = await ask(running, {"input": "Hi", "include": [SEALED], **more}, **A)
    assert status == 200 and "SECRET" not in raw
    items: list[JSON] = body["output"]
    return items


async def test_a_sealed_thought_comes_back_to_the_model(start_gateway: StartGateway, seal_keys: Path) -> None:
    """In front of the response that it led to, whole or streamed; the client never reads it."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 4))) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS, seal_keys=seal_keys)
        await both(running, {"include": [SEALED]}, **A)
        stream = await events(running, {"include": [SEALED]}, **A)
        first = next(event for event in stream if event["type"] == "response.output_item.done")
        streamed = stream[-1]["response"]["output"]
        assert first["item"] == streamed[0] and "encrypted_content" not in stream[2]["item"]
        for output in (await sealed_output(running), streamed):
            items = [*USER, *output, {"role": "user", "content": "Why?"}]
            upstream.requests.clear()
            status, body, raw = await ask(running, {"input": items, "instructions": "Be kind."}, **A)
            assert status == 200 and "SECRET" not in raw, body
            past = upstream.requests[0].body["messages"][2]
            assert past == {"role": "assistant", "content": OUTPUT}


async def test_a_sealed_thought_goes_with_the_calls_it_led_to(
    start_gateway: StartGateway, seal_keys: Path
) -> None:
    """Without a text, and where the client puts each result behind its call."""
    async with ScriptedUpstream(Script([f"{HEAD}{CALL}{OTHER_CALL}"])) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS, seal_keys=seal_keys)
        output = await sealed_output(running, tools=[TOOL])
        assert [item["type"] for item in output] == ["reasoning", "function_call", "function_call"]
        one, two = (result_item(item["call_id"]) for item in output[1:])
        for items in ([*output, one, two], [output[0], output[1], one, output[2], two]):
            upstream.requests.clear()
            status, body, _ = await ask(running, {"input": [*USER, *items], "tools": [TOOL]}, **A)
            assert status == 200, body
            messages = upstream.requests[0].body["messages"]
            assert THOUGHT in messages[1]["content"] and str(messages).count(THOUGHT) == 1
            assert messages[1]["tool_calls"][0]["id"] == output[1]["call_id"]


async def test_nothing_stands_between_a_past_call_and_its_result(start_gateway: StartGateway) -> None:
    """Text behind a call is of the same turn: chat templates want results right behind the calls."""
    async with ScriptedUpstream(Script([f"{HEAD}One. {CALL} Two. {OTHER_CALL}"])) as upstream:
        running = await start_gateway(upstream.url)
        _, body, _ = await ask(running, {"input": USER, "tools": [TOOL]})
        output = body["output"]
        assert kinds(body) == ["reasoning", "message", "function_call", "message", "function_call"]
        results = [result_item(output[at]["call_id"]) for at in (2, 4)]
        upstream.requests.clear()
        status, body, _ = await ask(running, {"input": [*USER, *output, *results, *USER], "tools": [TOOL]})
        assert status == 200, body
        past = upstream.requests[0].body["messages"]
        assert [message["role"] for message in past] == ["user", "assistant", "tool", "tool", "user"]
        assert past[1]["content"] == [{"type": "text", "text": "One.\nTwo."}]
        assert len(past[1]["tool_calls"]) == 2


async def test_a_sealed_thought_goes_with_both_texts_of_its_response(
    start_gateway: StartGateway, seal_keys: Path
) -> None:
    """A client that keeps the items of the events has two messages where text stood behind a call."""
    async with ScriptedUpstream(Script(chunked(f"{HEAD}One. {CALL} Two.", 4))) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS, seal_keys=seal_keys)
        stream = await events(running, {"include": [SEALED], "tools": [TOOL]}, **A)
        output = done_items(stream)
        assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "message"]
        # The response that the last event holds has the same items, in the same places.
        assert stream[-1]["response"]["output"] == output
        upstream.requests.clear()
        result = result_item(output[2]["call_id"])
        status, body, _ = await ask(running, {"input": [*USER, *output, result], "tools": [TOOL]}, **A)
        assert status == 200, body
        past = upstream.requests[0].body["messages"][1]
        assert past["content"] == f"{HEAD}One.\nTwo." and len(past["tool_calls"]) == 1


async def test_a_sealed_thought_without_what_followed_it_is_left_out(
    start_gateway: StartGateway, seal_keys: Path
) -> None:
    """An output that was lost in its thought: there is no turn that the thought could be of."""
    async with ScriptedUpstream(Script([OUTPUT[:45], Finish("length")])) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS, seal_keys=seal_keys)
        output = await sealed_output(running)
        assert [item["type"] for item in output] == ["reasoning"] and output[0]["encrypted_content"]
        upstream.script = Script([OUTPUT])
        upstream.requests.clear()
        items = [*USER, *output, *USER, {"role": "assistant", "content": "x"}, *USER]
        assert (await ask(running, {"input": items}, **A))[0] == 200
        past = [*USER, *USER, {"role": "assistant", "content": "x"}]
        assert upstream.requests[0].body["messages"] == [*past, user("Hi")]


async def test_a_sealed_thought_is_good_for_its_client_and_its_response_only(
    start_gateway: StartGateway, seal_keys: Path
) -> None:
    """Tampered, foreign, moved to another response, or without its id: 400, and nothing is generated."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url, keys=KEYS, seal_keys=seal_keys)
        reasoning, message = await sealed_output(running)
        other_reasoning, other_message = await sealed_output(running)
        upstream.requests.clear()
        token = reasoning["encrypted_content"]
        changed = token[:-9] + ("A" if token[-9] != "A" else "B") + token[-8:]
        other_call = call_item("a", id=other_message["id"].replace("msg", "fc") + "_0")
        foreign: list[tuple[list[JSON], dict[str, str]]] = [
            ([reasoning, message], B),
            ([{**reasoning, "encrypted_content": changed}, message], A),
            ([{**reasoning, "encrypted_content": "x"}, message], A),
            ([{**reasoning, "id": other_reasoning["id"]}, message], A),
            ([{**reasoning, "id": other_reasoning["id"]}, other_message], A),
            ([{**reasoning, "id": None}, message], A),
            ([{**reasoning, "id": reasoning["id"].removeprefix("rs_")}, message], A),
            ([reasoning, other_message], A),
            ([reasoning, {**message, "id": 1}], A),
            ([reasoning, {**message, "id": "msg"}], A),
            ([reasoning, message, other_call], A),
        ]
        for items, headers in foreign:
            status, body, raw = await ask(running, {"input": [*USER, *items, *USER]}, **headers)
            assert (status, body["error"]["code"]) == (400, "invalid_encrypted_content"), items
            assert "SECRET" not in raw and token not in raw
        assert not upstream.requests
        without_id = {key: message[key] for key in message if key != "id"}
        for items in ([reasoning, message], [reasoning, without_id], [reasoning, message, other_reasoning]):
            assert (await ask(running, {"input": [*USER, *items, *USER]}, **A))[0] == 200


async def test_without_keys_nothing_is_sealed_and_the_client_is_told(start_gateway: StartGateway) -> None:
    """Rather than taking the thought for sent."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        status, body, _ = await ask(running, {"input": "Hi", "include": [SEALED]})
        assert status == 400 and SEALED in body["error"]["message"]
        sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
        items = [*USER, sealed, {"role": "assistant", "content": "x"}, *USER]
        status, body, _ = await ask(running, {"input": items})
        assert status == 400 and SEALED in body["error"]["message"] and not upstream.requests


# The table. One good value for every field that is taken.
GOOD: dict[str, Any] = {
    "model": "thinker",
    "input": USER,
    "instructions": "Be brief.",
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "max_output_tokens": 90,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_object"}, "verbosity": "medium"},
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "include": [LOGPROBS, "file_search_call.results"],
    "top_logprobs": 3,
    "stop": ["x", "y"],
    "structured_outputs": {"regex": "a+"},
    "thinking_token_budget": 512,
    "seed": 7,
    "temperature": 0.5,
    "top_p": 0.5,
    "frequency_penalty": -0.5,
    "presence_penalty": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "user": "someone",
    "metadata": {"a": "b"},
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "service_tier": "auto",
    "store": False,
    "background": False,
    "truncation": "disabled",
    "max_tool_calls": 3,
}
BESIDE: dict[str, JSON] = {"top_logprobs": {"include": [LOGPROBS]}}
REFUSED = [name for name, field in FIELDS.items() if field.action == REFUSE]
TAKEN = [name for name, field in FIELDS.items() if field.action == REWRITE]
# What says the same in a chat completion, where it is not the same field.
CHAT: dict[str, JSON] = {
    "input": {},
    "instructions": {"messages": [{"role": "system", "content": "Be brief."}, *USER]},
    "max_output_tokens": {"max_completion_tokens": 90},
    "reasoning": {"reasoning_effort": "low"},
    "text": {"response_format": {"type": "json_object"}},
    "tools": {"tools": [IN_CHAT]},
    "include": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 3},
}


async def sent(running: Running, upstream: ScriptedUpstream, body: JSON, path: str = PATH) -> list[JSON]:
    """Post a body that is taken; return what the engine was asked."""
    upstream.requests.clear()
    status, answer, _ = await ask(running, body, path)
    assert status == 200, answer
    return [request.body for request in upstream.requests]


async def sent_by_chat(running: Running, upstream: ScriptedUpstream, body: JSON) -> list[JSON]:
    """What the engine is asked for a chat completion."""
    return await sent(running, upstream, {"messages": USER, **body}, "/v1/chat/completions")


def test_every_field_of_the_table_is_tried_here() -> None:
    """A field that is added to the table needs a good value in this file, or is refused."""
    assert set(GOOD) | set(REFUSED) == set(FIELDS) and not set(GOOD) & set(REFUSED)
    assert all(field.why for field in FIELDS.values() if field.action == REFUSE)


@pytest.mark.parametrize("name", TAKEN)
async def test_a_field_means_what_it_means_in_a_chat_completion(
    name: str, start_gateway: StartGateway
) -> None:
    """So far as it reaches the engine at all."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        body = {"input": "Hi", name: GOOD[name], **BESIDE.get(name, {})}
        in_chat = CHAT.get(name, {name: GOOD[name]})
        assert await sent(running, upstream, body) == await sent_by_chat(running, upstream, in_chat)


async def test_sampling_reaches_the_engine_and_what_has_no_effect_does_not(
    start_gateway: StartGateway,
) -> None:
    """Each field by itself."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        [plain] = await sent_by_chat(running, upstream, {})
        for name, known in FIELDS.items():
            if known.action in (PASS, DROP):
                passes = {name: GOOD[name]} if known.action == PASS else {}
                assert await sent(running, upstream, {"input": "Hi", name: GOOD[name]}) == [plain | passes]


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_field_gives_400_that_names_it_and_says_why(
    name: str, start_gateway: StartGateway
) -> None:
    """Whatever its value is; null is the same as absent."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        values: list[Any] = [True, 0, "x", [], {"a": 1}]
        for value in values:
            status, body, _ = await ask(running, {"input": "Hi", name: value})
            assert (status, body["error"]["param"]) == (400, name)
            assert (
                body["error"]["code"] == "unsupported_field" and FIELDS[name].why in body["error"]["message"]
            )
        assert not upstream.requests
        assert (await ask(running, {"input": "Hi", name: None}))[0] == 200


ODD: list[tuple[JSON, str, str]] = [
    ({"store": True}, "store", "nothing is stored"),
    ({"background": True}, "background", "refused"),
    ({"truncation": "auto"}, "truncation", "shorten"),
    ({"reasoning": {"effort": "max"}}, "reasoning.effort", "xhigh"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "no summaries"),
    ({"reasoning": {"generate_summary": "concise"}}, "reasoning.generate_summary", "no summaries"),
    ({"reasoning": {"exclude": False}}, "reasoning.exclude", "not supported"),
    ({"text": {"verbosity": "high"}}, "text.verbosity", "medium"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "json_schema"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "object"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "string"),
    ({"text": {"style": "x"}}, "text.style", "not supported"),
    ({"include": ["message.everything"]}, "include[0]", "message.everything"),
    ({"include": [LOGPROBS, 1]}, "include[1]", "1"),
    ({"top_logprobs": 2}, "top_logprobs", LOGPROBS),
    ({"max_output_tokens": 0}, "max_output_tokens", "1"),
    ({"service_tier": "priority"}, "service_tier", "auto"),
    (
        {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "not both",
    ),
    ({"messages": USER}, "messages", "not a field"),
    ({"max_tokens": 5}, "max_tokens", "not a field"),
]


@pytest.mark.parametrize(("body", "param", "words"), ODD)
async def test_an_odd_value_is_refused_by_name(
    body: JSON, param: str, words: str, start_gateway: StartGateway
) -> None:
    """With what to do."""
    running = await start_gateway(NOWHERE)
    status, answer, _ = await ask(running, {"input": "Hi", **body})
    assert (status, answer["error"]["param"]) == (400, param)
    assert param in answer["error"]["message"] and words in answer["error"]["message"]


async def test_what_says_nothing_is_taken(start_gateway: StartGateway) -> None:
    """Nulls within objects, and defaults that clients send along."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        bodies: list[JSON] = [
            {"reasoning": {"effort": None, "summary": None}},
            {"text": {"format": None, "verbosity": None}},
            {"include": [], "tools": [], "top_logprobs": 0, "previous_response_id": None},
        ]
        for body in bodies:
            assert (await both(running, body))["status"] == "completed"


RIGHT: dict[str, set[str]] = {
    "input": TEXTS,
    "instructions": TEXTS,
    "stream": {"true"},
    "parallel_tool_calls": {"true"},
    "stream_options": {"an empty object"},
    "reasoning": {"an empty object"},
    "text": {"an empty object"},
    "tools": {"an empty array"},
    "include": {"an empty array"},
    "stop": TEXTS - {"an empty string", "a long string"} | {"an empty array"},
    **{name: {"a million"} for name in ("max_output_tokens", "thinking_token_budget", "max_tool_calls")},
    "seed": {"minus five", "a million"},
    **{name: {"one and a half"} for name in ("temperature", "frequency_penalty", "presence_penalty")},
    "repetition_penalty": {"one and a half"},
    "top_k": {"a million"},
    **{name: TEXTS for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")},
    "metadata": {"an empty object"},
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_wrong_type_in_any_field_gives_400_that_names_it(
    name: str, start_gateway: StartGateway
) -> None:
    """Never 500, whatever stands there."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        beside = {"input": "Hi", **BESIDE.get(name, {})}
        await check_wrong_values(running, PATH, name, beside, RIGHT.get(name, set()))


@pytest.mark.parametrize(
    "place",
    [
        b'{"input":%s}',
        b'{"input":[%s]}',
        b'{"input":[{"role":"user","content":[{"type":"input_text","text":%s}]}]}',
        b'{"input":[{"type":"reasoning","summary":%s}]}',
        b'{"input":"Hi","tools":[{"type":"function","name":"x","parameters":{"a":%s}}]}',
        b'{"input":"Hi","text":{"format":{"type":"json_schema","name":"x","schema":{"a":%s}}}}',
        b'{"input":"Hi","reasoning":{"effort":%s}}',
        b'{"input":"Hi","metadata":{"a":%s}}',
    ],
)
async def test_nesting_of_any_depth_is_a_400(place: bytes, start_gateway: StartGateway) -> None:
    """Also where the value would have been said back."""
    running = await start_gateway(NOWHERE)
    for depth in (100, *range(700, 1010, 30), 5_000):
        status, body, _ = await ask(running, place % (b"[" * depth + b"]" * depth))
        assert status == 400, (depth, body)
