"""`/v1/completions`: prompts as conversations, choices, echo, legacy logprobs, and every field of its table.

What the engine is asked is held against what it is asked for the same chat completion.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import openai
import pytest
from openai import AsyncOpenAI

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
from thinkserve.gateway.api.completions import FIELDS
from thinkserve.gateway.fields import DROP, PASS, REFUSE, REWRITE
from thinkserve.thoughts import BUILT_IN

THOUGHT = "SECRET plan: SECRET draft."
RESPONSE = "Hello! I am well."
OUTPUT = f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n{RESPONSE}"
PATH = "/v1/completions"
USER: Any = [{"role": "user", "content": "Hi"}]


async def ask(running: Running, body: object, path: str = PATH, **headers: str) -> tuple[int, Any, str]:
    """Post a body, which may be bytes; return the status, the answer as JSON (None: a stream), and as text."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with running.http.post(f"{running.url}{path}", data=data, headers=headers) as response:
        raw = await response.read()
        whole = response.content_type == "application/json"
        return response.status, msgspec.json.decode(raw) if whole else None, raw.decode()


@dataclass
class Text:
    """What a choice adds up to."""

    text: str = ""
    finish_reason: str | None = None
    tokens: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    top: list[Any] = field(default_factory=list)

    def add(self, choice: Any) -> None:
        """Take a choice, or a part of it."""
        self.text += choice.text
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.logprobs is not None:
            self.tokens += choice.logprobs.tokens
            self.offsets += choice.logprobs.text_offset
            self.token_logprobs += choice.logprobs.token_logprobs
            self.top += choice.logprobs.top_logprobs


async def whole(client: AsyncOpenAI, **request: Any) -> tuple[list[Text], Any]:
    """Ask for a whole answer; return its choices by index, and the usage."""
    answer = await client.completions.create(model="thinker", **request)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-") and answer.model == "thinker"
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    texts = [Text() for _ in answer.choices]
    for choice in answer.choices:
        texts[choice.index].add(choice)
    return texts, answer.usage


async def stream(client: AsyncOpenAI, **request: Any) -> tuple[list[Text], Any]:
    """Ask for a stream; return what its choices add up to, and the usage."""
    texts: dict[int, Text] = {}
    usage = None
    answer: Any = await client.completions.create(
        model="thinker", stream=True, stream_options={"include_usage": True}, **request
    )
    async for chunk in answer:
        assert chunk.object == "text_completion" and chunk.id.startswith("cmpl-")
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts.setdefault(choice.index, Text()).add(choice)
    return [texts[index] for index in sorted(texts)], usage


def by_prompt(recorded: Recorded) -> Script:
    """An engine that says the prompt back, in its thought and in its response."""
    asked = recorded.body["messages"][-1]["content"]
    [prompt] = [name for name in ("first", "second", "third") if name in asked]
    return Script(chunked(OUTPUT.replace("Hello", prompt), 4), prompt_tokens=len(prompt))


async def test_a_prompt_is_the_user_message_of_a_conversation(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """The engine is asked for a chat, with the thought prompt; the client gets the response as text."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 3))) as upstream:
        client = connect(await start_gateway(upstream.url))
        [text], usage = await whole(client, prompt="Hi")
        assert (text.text, text.finish_reason) == (RESPONSE, "stop")
        assert upstream.requests[0].body["messages"] == [
            {"role": "user", "content": BUILT_IN["tpo-generic"].thought_prompt("Hi")}
        ]
        details = usage.completion_tokens_details.reasoning_tokens
        assert 0 < details < usage.completion_tokens
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert await stream(client, prompt="Hi") == ([text], usage)


async def test_the_stream_begins_while_the_model_still_thinks(start_gateway: StartGateway) -> None:
    """Though there is nothing to show: a client that waits for the head would give up on a long thought."""
    gate = asyncio.Event()
    async with ScriptedUpstream(Script([OUTPUT[:40], Wait(gate), OUTPUT[40:]])) as upstream:
        running = await start_gateway(upstream.url, keepalive_seconds=600)
        body = {"prompt": "Hi", "stream": True}
        async with asyncio.timeout(10), running.http.post(f"{running.url}{PATH}", json=body) as response:
            assert (await response.content.readline()).startswith(b":") and not gate.is_set()
            gate.set()
            assert b"[DONE]" in await response.read()


async def test_several_prompts_with_several_choices_each_come_by_prompt(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """Index = prompt * n + i, and each prompt is counted once."""
    async with ScriptedUpstream(by_prompt) as upstream:
        client = connect(await start_gateway(upstream.url))
        asked: Any = {"prompt": ["first", "second", "third"], "n": 2, "echo": True, "seed": 5}
        texts, usage = await whole(client, **asked)
        names = [name for name in asked["prompt"] for _ in range(2)]
        assert [text.text for text in texts] == [f"{name}{name}! I am well." for name in names]
        assert usage.prompt_tokens == len("firstsecondthird")
        assert sorted(request.body["seed"] for request in upstream.requests) == [5, 6, 7, 8, 9, 10]
        assert await stream(client, **asked) == (texts, usage)


async def test_choices_are_bounded_over_all_prompts(start_gateway: StartGateway) -> None:
    """Prompts times n, not n alone."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url, max_choices=4)
        for prompts, n, param in ((["a"] * 5, 1, "prompt"), (["a"] * 2, 3, "prompt"), (["a"], 5, "n")):
            status, body, _ = await ask(running, {"prompt": prompts, "n": n})
            assert (status, body["error"]["param"]) == (400, param) and "4" in body["error"]["message"]
        assert (await ask(running, {"prompt": ["a"] * 2, "n": 2}))[0] == 200


async def test_best_of_is_taken_where_it_asks_for_nothing_more(start_gateway: StartGateway) -> None:
    """1 and n; choosing among more choices than are shown is not offered."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        for n, best_of, status in ((1, 1, 200), (2, 2, 200), (2, 1, 200), (1, 2, 400), (2, 3, 400)):
            answer = await ask(running, {"prompt": "Hi", "n": n, "best_of": best_of})
            assert answer[0] == status
            assert status == 200 or answer[1]["error"]["param"] == "best_of"


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], ["Hi", 1], ["Hi", [1]]])
async def test_token_ids_are_refused_with_the_reason(prompt: Any, start_gateway: StartGateway) -> None:
    """They could say where the output begins."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        status, body, _ = await ask(running, {"prompt": prompt})
        assert (status, body["error"]["param"]) == (400, "prompt")
        assert "token ids are refused" in body["error"]["message"]
        assert not upstream.requests


async def test_a_request_without_a_prompt_is_told_so(start_gateway: StartGateway) -> None:
    """Absent and null, and no prompt in the array."""
    running = await start_gateway("http://127.0.0.1:9")
    bodies: list[JSON] = [{}, {"prompt": None}, {"prompt": []}]
    for body in bodies:
        status, answer, _ = await ask(running, body)
        assert (status, answer["error"]["param"]) == (400, "prompt")


async def test_echo_shows_the_clients_own_prompt_and_never_the_thought_prompt(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """Once a choice, before the response; in a stream it comes first."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 5))) as upstream:
        running = await start_gateway(upstream.url)
        client = connect(running)
        [text], _ = await whole(client, prompt="Say hi. ", echo=True)
        assert text.text == f"Say hi. {RESPONSE}"
        assert (await stream(client, prompt="Say hi. ", echo=True))[0] == [text]
        raw = (await ask(running, {"prompt": "Say hi. ", "echo": True, "stream": True}))[2]
        assert raw.index("Say hi. ") < raw.index("He") and raw.count("Say hi.") == 1


async def test_logprobs_are_of_exactly_the_tokens_of_the_response(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """In the legacy form: the token itself among the alternatives, offsets behind what is echoed."""
    pieces = ["Hé", "llo", " wörld", "!"]
    thought = chunked(f"Here is my thought process:\n{THOUGHT}\nHere is my response:\n", 6)
    async with ScriptedUpstream(Script([*thought, *pieces])) as upstream:
        client = connect(await start_gateway(upstream.url))
        for prompt, echo in (("Hi? ", False), ("Hi? ", True)):
            asked: Any = {"prompt": prompt, "echo": echo, "logprobs": 2}
            [text], _ = await whole(client, **asked)
            start = len(prompt) if echo else 0
            assert text.tokens == pieces
            assert text.offsets == [start, start + 2, start + 5, start + 11]
            assert [
                text.text[at:][: len(token)] for at, token in zip(text.offsets, pieces, strict=True)
            ] == pieces
            assert [sorted(top) for top in text.top] == [[piece, f"{piece}~1"] for piece in pieces]
            assert text.token_logprobs == [top[piece] for top, piece in zip(text.top, pieces, strict=True)]
            assert (await stream(client, **asked))[0] == [text]
        [text], _ = await whole(client, prompt="Hi", logprobs=0)
        assert text.tokens == pieces and [list(top) for top in text.top] == [[piece] for piece in pieces]


async def test_a_character_of_several_tokens_moves_the_offset_once(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """Engines stream half a character as a token without text, or with a replacement character."""
    raw = list("é".encode())
    entries: list[JSON] = [
        {"token": "A", "logprob": -0.1, "bytes": [65], "top_logprobs": []},
        {"token": "\ufffd", "logprob": -0.2, "bytes": raw[:1], "top_logprobs": []},
        {"token": "\ufffd", "logprob": -0.3, "bytes": raw[1:], "top_logprobs": []},
        {"token": "B", "logprob": -0.4, "bytes": [66], "top_logprobs": []},
    ]
    first, *others = [
        Delta("A", [1], entries[:1]),
        Delta("", [2], entries[1:2]),
        Delta("é", [3], entries[2:3]),
        Delta("B", [4], entries[3:]),
    ]
    async with ScriptedUpstream(Script([OUTPUT.removesuffix(RESPONSE), first, *others])) as upstream:
        client = connect(await start_gateway(upstream.url))
        [text], _ = await whole(client, prompt="Hi", logprobs=1)
        assert text.text == "AéB" and text.token_logprobs == [-0.1, -0.2, -0.3, -0.4]
        assert text.offsets[0] == 0 and text.offsets[1] == 1 and text.offsets[-1] == 2
        assert (await stream(client, prompt="Hi", logprobs=1))[0] == [text]


async def test_stop_strings_and_max_tokens_bound_the_response(
    start_gateway: StartGateway, connect: Connect
) -> None:
    """A stop string in the thought is none; the thought does not count; there is no default of 16 tokens."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 2))) as upstream:
        client = connect(await start_gateway(upstream.url))
        for ask_for in whole, stream:
            [text], _ = await ask_for(client, prompt="Hi", stop=["SECRET", " am"])
            assert (text.text, text.finish_reason) == ("Hello! I", "stop")
            [text], usage = await ask_for(client, prompt="Hi", max_tokens=3)
            assert text.finish_reason == "length" and RESPONSE.startswith(text.text)
            assert usage.completion_tokens - usage.completion_tokens_details.reasoning_tokens == 3
            [text], usage = await ask_for(client, prompt="Hi")
            assert text.text == RESPONSE and usage.completion_tokens > 16


async def test_an_output_that_ends_in_its_thought_is_an_empty_text_with_length(
    start_gateway: StartGateway,
) -> None:
    """And it says what it was lost to."""
    async with ScriptedUpstream(Script([*chunked(OUTPUT[:50], 4), Finish("length")])) as upstream:
        running = await start_gateway(upstream.url)
        _, body, _ = await ask(running, {"prompt": "Hi"})
        [choice] = body["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("", "length")
        assert choice["incomplete_details"] == {"reason": "context_length"}
        _, _, raw = await ask(running, {"prompt": "Hi", "stream": True})
        assert '"incomplete_details":{"reason":"context_length"}' in raw and "SECRET" not in raw


@pytest.mark.parametrize("size", range(1, 8))
async def test_no_chunking_lets_a_thought_out(size: int, start_gateway: StartGateway) -> None:
    """Not a byte of it, whole or streamed, with all that might show it; and the text is the same."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, size))) as upstream:
        running = await start_gateway(upstream.url)
        for extra in ({}, {"logprobs": 5}, {"echo": True, "n": 2}, {"stop": ["zzz"]}):
            for streamed in (False, True):
                status, body, raw = await ask(running, {"prompt": "Hi", "stream": streamed, **extra})
                assert status == 200 and "SECRET" not in raw and "thought" not in raw
                assert body is None or body["choices"][0]["text"].endswith(RESPONSE)


ENDS: dict[str, list[Any]] = {
    "dies": [Die()],
    "reports an error": [ErrorEvent({"message": "SECRET", "type": "SECRET", "code": 500})],
    "gives up": [Finish("abort")],
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_engine_that_fails_is_an_error_and_shows_no_thought(
    end: str, start_gateway: StartGateway, connect: Connect
) -> None:
    """Within the thought and within the response; a stream that had begun ends with an error event."""
    for shown in (OUTPUT[:45], OUTPUT[:-4]):
        async with ScriptedUpstream(Script([*chunked(shown, 3), *ENDS[end]])) as upstream:
            running = await start_gateway(upstream.url)
            status, body, raw = await ask(running, {"prompt": "Hi"})
            assert (status, body["error"]["code"]) == (503, "engine_unavailable") and "SECRET" not in raw
            _, _, raw = await ask(running, {"prompt": "Hi", "stream": True})
            assert '"code":"engine_unavailable"' in raw and "SECRET" not in raw and "[DONE]" not in raw
            with pytest.raises(openai.APIError):
                await stream(connect(running), prompt="Hi")


async def test_a_refusal_of_the_engine_is_the_clients(start_gateway: StartGateway, connect: Connect) -> None:
    """As an HTTP error, streamed or not."""
    refusal = Status(400, {"error": {"message": "too long", "type": "BadRequestError", "code": 400}})
    async with ScriptedUpstream(Script([refusal])) as upstream:
        client = connect(await start_gateway(upstream.url))
        for ask_for in whole, stream:
            with pytest.raises(openai.BadRequestError, match="too long"):
                await ask_for(client, prompt="Hi")


async def test_only_an_operator_sees_the_thought(start_gateway: StartGateway) -> None:
    """As `reasoning`, beside the text."""
    async with ScriptedUpstream(Script(chunked(OUTPUT, 4))) as upstream:
        running = await start_gateway(upstream.url, keys={"op": "operator", "cl": "client"})
        reveal = {"thinkserve-reveal": "1"}
        status, body, _ = await ask(running, {"prompt": "Hi"}, Authorization="Bearer op", **reveal)
        assert status == 200
        [choice] = body["choices"]
        assert (choice["text"], choice["reasoning"].strip()) == (RESPONSE, THOUGHT)
        streaming = {"prompt": "Hi", "stream": True}
        _, _, raw = await ask(running, streaming, Authorization="Bearer op", **reveal)
        events = [msgspec.json.decode(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
        told = "".join(event["choices"][0].get("reasoning", "") for event in events)
        assert told == choice["reasoning"]
        status, body, raw = await ask(running, streaming, Authorization="Bearer cl", **reveal)
        assert (status, body["error"]["code"]) == (403, "operator_key_required")
        for key in ("op", "cl"):
            assert "SECRET" not in (await ask(running, {"prompt": "Hi"}, Authorization=f"Bearer {key}"))[2]


# The table. One good value for every field that is taken.
GOOD: dict[str, Any] = {
    "model": "thinker",
    "prompt": "Hi",
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 2,
    "best_of": 1,
    "echo": True,
    "logprobs": 3,
    "max_tokens": 9,
    "stop": ["x", "y"],
    "reasoning_effort": "low",
    "thinking_token_budget": 512,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "structured_outputs": {"regex": "a+"},
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
}
BESIDE: dict[str, JSON] = {"stream_options": {"stream": True}}
REFUSED = [name for name, field in FIELDS.items() if field.action == REFUSE]
TAKEN = [name for name, field in FIELDS.items() if field.action == REWRITE]
# What says the same in a chat completion, where it is not the same field.
IN_CHAT: dict[str, JSON] = {
    "prompt": {},
    "best_of": {},
    "echo": {},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
}


async def sent(running: Running, upstream: ScriptedUpstream, body: JSON, path: str = PATH) -> list[JSON]:
    """Post a body that is taken; return what the engine was asked."""
    upstream.requests.clear()
    status, answer, _ = await ask(running, body, path)
    assert status == 200, answer
    return sorted((request.body for request in upstream.requests), key=lambda body: body.get("seed", 0))


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
        body = {"prompt": "Hi", name: GOOD[name], **BESIDE.get(name, {})}
        in_chat = {**IN_CHAT.get(name, {name: GOOD[name]}), **BESIDE.get(name, {})}
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
                assert await sent(running, upstream, {"prompt": "Hi", name: GOOD[name]}) == [plain | passes]


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refused_field_gives_400_that_names_it_and_says_why(
    name: str, start_gateway: StartGateway
) -> None:
    """Whatever its value is; null is the same as absent."""
    async with ScriptedUpstream(Script([OUTPUT])) as upstream:
        running = await start_gateway(upstream.url)
        values: list[Any] = [True, 0, "x", [], {"a": 1}]
        for value in values:
            status, body, _ = await ask(running, {"prompt": "Hi", name: value})
            assert (status, body["error"]["param"]) == (400, name)
            assert (
                body["error"]["code"] == "unsupported_field" and FIELDS[name].why in body["error"]["message"]
            )
        assert not upstream.requests
        assert (await ask(running, {"prompt": "Hi", name: None}))[0] == 200


RIGHT: dict[str, set[str]] = {
    "prompt": TEXTS | {"strings"},
    "stream": {"true"},
    "echo": {"true"},
    "stream_options": {"an empty object"},
    "stop": TEXTS - {"an empty string", "a long string"} | {"an empty array"},
    "max_tokens": {"a million"},
    "thinking_token_budget": {"a million"},
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
        beside = {"prompt": "Hi", **BESIDE.get(name, {})}
        await check_wrong_values(running, PATH, name, beside, RIGHT.get(name, set()))
