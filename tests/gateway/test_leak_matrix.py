"""The leak matrix: every way in which engines were found to show a thought, tried on every endpoint it applies to.

A row is something that a client asks, a model writes or an engine does. Each case asks for it, streamed and whole, over a
raw connection: no byte that comes back (status line, headers, body) may hold a sign of the thought or of the thought
prompt, and the feature must do for the response what it should. Every chunk of a thought holds `EYE`, so a thought that
comes in the smallest pieces is seen too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from tests.gateway.conftest import Running, StartGateway
from tests.gateway.scripted import (
    JSON,
    Delta,
    Die,
    End,
    ErrorEvent,
    Finish,
    Raw,
    Recorded,
    Script,
    ScriptedUpstream,
    Scripts,
    Status,
    Step,
    Wait,
)
from thinkserve.engines.engine import Endpoint as EngineEndpoint
from thinkserve.gateway.keys import Role
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import get_format

ROWS = (
    "chat: default request",
    "chat: include_reasoning",
    "chat: logprobs",
    "chat: return_token_ids",
    "chat: prompt_logprobs, echo, return_prompt_text",
    "chat: stop strings",
    "chat: long stop strings, streamed",
    "chat: stop_token_ids",
    "chat: repetition_detection",
    "chat: max_tokens",
    "chat: min_tokens, ignore_eos",
    "chat: n",
    "chat: stream_options",
    "chat: logit_bias, bad_words, allowed_token_ids",
    "chat: response_format, structured_outputs",
    "chat: tools auto",
    "chat: tools named or required",
    "chat: chat_template",
    "chat: chat_template_kwargs, reasoning_effort",
    "chat: continue_final_message, add_generation_prompt",
    "chat: kv_transfer_params, ec_transfer_params",
    "chat: vllm_xargs, priority, request_id, session_id, cache_salt",
    "chat: thinking_token_budget",
    "chat: skip_special_tokens",
    "chat: end token in a message",
    "chat: the model leaves its format",
    "chat: cut off in the thought",
    "chat: end marker quoted, second thought",
    "chat/completions/batch",
    "completions",
    "responses: default, include_reasoning",
    "responses: enable_response_messages",
    "responses: stop, store, background, previous_response_id, cached_tokens",
    "messages: any setting of thinking",
    "messages: stop_sequences",
    "generate, render, derender",
    "invocations",
    "scoring, systemone, tokenize, detokenize",
    "metrics, load, version",
    "logs",
    "shutdown, crash",
)

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
ALL = tuple(PATHS)
OPENAI = ("chat", "completions", "responses")
CLIENT, OTHER, OPERATOR = "sk-client", "sk-other", "sk-operator"
KEYS: dict[str, Role] = {CLIENT: "client", OTHER: "client", OPERATOR: "operator"}

EYE = "ꙮ"
# As text, escaped in JSON, as the bytes of a token, and the words in which thoughts are asked for.
SIGNS = (EYE.encode(), b"\\ua66e", b"\\uA66E", b"234,153,174", b"234, 153, 174", b"comprehensive and")
QUESTION = "Is WATER wet?"
THOUGHT = [f"{EYE}alpha", f" {EYE} beta", f"{EYE}\n", f"{EYE}Draft: no {EYE}."]
RESPONSE = ["Hello", " world", ", ", "fine", "."]
TEXT = "".join(RESPONSE)
SCHEMA: JSON = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "%s"}}\n</tool_call>'
FORMATS = ("tpo-generic", "tpo-specific", "think-tags")


def marks(format: str) -> tuple[list[str], str]:
    """What a model of this format writes before its thought (if anything) and behind it."""
    known = get_format(format)
    line = "\n" if known.line_start else ""
    return [mark + line for mark in known.opening], line + known.closing[0] + line


def output(
    format: str = "tpo-generic", thought: Sequence[str] = THOUGHT, response: Sequence[str] = RESPONSE
) -> list[str]:
    """A well-formed output, a token a chunk."""
    opening, closing = marks(format)
    return [*opening, *thought, closing, *response]


OUTPUT = output()
HIDDEN = len(OUTPUT) - len(RESPONSE)


# What comes back


@dataclass
class Reply:
    """An answer, read the same whatever its endpoint and whether it was streamed."""

    status: int
    head: bytes
    body: bytes
    texts: list[str] = field(default_factory=list)
    finish: list[str | None] = field(default_factory=list)
    """`stop` or `length`, in whatever words the endpoint says it."""
    usage: tuple[int, int] = (0, 0)
    """Tokens of the output, and how many of them are hidden."""
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    calls: list[tuple[str, JSON]] = field(default_factory=list)
    error: str | None = None
    """The message of the error that it is or ends with."""

    @property
    def told(self) -> object:
        """All that it tells of the output."""
        return self.status, self.texts, self.finish, self.usage, self.logprobs, self.calls, self.error

    @property
    def text(self) -> str:
        """The text of its one choice."""
        [text] = self.texts or [""]
        return text


def read(endpoint: str, status: int, head: bytes, body: bytes) -> Reply:
    """Read what came back."""
    reply = Reply(status, head, body)
    events = [msgspec.json.decode(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    if not events:
        events = [msgspec.json.decode(body)]
    for event in events:
        error = event.get("error") or event.get("response", {}).get("error")
        if error:
            reply.error = error["message"]
    if status == 200:
        READERS[endpoint](reply, events)
    return reply


def _read_openai(reply: Reply, events: list[JSON]) -> None:
    """Chat completions and completions."""
    calls: dict[int, list[str]] = {}
    for event in events:
        for choice in event.get("choices", []):
            at = choice["index"]
            reply.texts += [""] * (at + 1 - len(reply.texts))
            reply.finish += [None] * (at + 1 - len(reply.finish))
            said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
            reply.texts[at] += said.get("content") or ""
            for number, call in enumerate(said.get("tool_calls", [])):
                function = call["function"]
                parts = calls.setdefault(call.get("index", number), [function.get("name", ""), ""])
                parts[1] += function["arguments"]
            if choice["finish_reason"] is not None:
                reply.finish[at] = choice["finish_reason"].replace("tool_calls", "stop")
            reply.logprobs += _logprobs(choice.get("logprobs") or {})
        if event.get("usage"):
            usage = event["usage"]
            hidden = usage["completion_tokens_details"]["reasoning_tokens"]
            reply.usage = usage["completion_tokens"], hidden
    reply.calls = [(name, msgspec.json.decode(arguments)) for name, arguments in calls.values()]


def _logprobs(found: JSON) -> list[tuple[str, float]]:
    if "tokens" in found:
        return list(zip(found["tokens"], found["token_logprobs"], strict=True))
    return [(entry["token"], entry["logprob"]) for entry in found.get("content", [])]


def _read_responses(reply: Reply, events: list[JSON]) -> None:
    last = events[-1].get("response", events[-1])
    items = last["output"]
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    reply.texts = ["".join(part["text"] for part in parts)]
    reply.finish = [{"completed": "stop", "incomplete": "length"}.get(last["status"])]
    reply.logprobs = [(one["token"], one["logprob"]) for part in parts for one in part["logprobs"]]
    reply.calls = [
        (item["name"], msgspec.json.decode(item["arguments"]))
        for item in items
        if item["type"] == "function_call"
    ]
    if last["usage"]:
        usage = last["usage"]
        reply.usage = usage["output_tokens"], usage["output_tokens_details"]["reasoning_tokens"]
    if len(events) > 1:
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert "".join(deltas) == reply.texts[0]


def _read_messages(reply: Reply, events: list[JSON]) -> None:
    reply.texts, stop, usage = [""], None, None
    for event in events:
        match event["type"]:
            case "message":
                reply.texts = ["".join(block.get("text", "") for block in event["content"])]
                uses = [block for block in event["content"] if block["type"] == "tool_use"]
                reply.calls = [(block["name"], block["input"]) for block in uses]
                stop, usage = event["stop_reason"], event["usage"]
            case "content_block_start" if event["content_block"]["type"] == "tool_use":
                reply.calls.append((event["content_block"]["name"], {}))
            case "content_block_delta" if "text" in event["delta"]:
                reply.texts[0] += event["delta"]["text"]
            case "content_block_delta":
                given = msgspec.json.decode(event["delta"]["partial_json"])
                reply.calls[-1] = (reply.calls[-1][0], given)
            case "message_delta":
                stop, usage = event["delta"]["stop_reason"], event["usage"]
    reply.finish = [None if stop is None else "length" if stop == "max_tokens" else "stop"]
    if usage is not None:
        reply.usage = usage["output_tokens"], usage["output_tokens_details"]["thinking_tokens"]


READERS: dict[str, Callable[[Reply, list[JSON]], None]] = {
    "chat": _read_openai,
    "completions": _read_openai,
    "responses": _read_responses,
    "messages": _read_messages,
}


async def exchange(
    url: str, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, bytes, bytes, bytes]:
    """One request on a connection of its own: the status, the head, the body, and every byte as it came."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {place.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        rest = unchunked(rest)
    return int(head.split(b" ", 2)[1]), head, rest, raw


def unchunked(data: bytes) -> bytes:
    """The body of a chunked transfer, as far as it came."""
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        out += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return out


# What is asked


def body(endpoint: str, prompt: Any, /, *, stream: bool, **fields: Any) -> JSON:
    """The body of a request; a prompt is a text, or messages (or what they are to the endpoint)."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked: JSON = {
        "chat": {"messages": turns},
        "completions": {"prompt": prompt},
        "responses": {"input": prompt},
        "messages": {"messages": turns, "max_tokens": 1400},
    }[endpoint]
    if stream and endpoint in ("chat", "completions"):
        asked["stream_options"] = {"include_usage": True}
    return {**asked, "stream": stream, **fields}


def stopping(endpoint: str, *stops: str) -> JSON:
    """The field for stop strings."""
    return {"stop_sequences" if endpoint == "messages" else "stop": list(stops)}


def top_logprobs(endpoint: str, top: int) -> JSON:
    """The fields that ask for log probabilities (Anthropic's API has none)."""
    asked: dict[str, JSON] = {
        "chat": {"logprobs": True, "top_logprobs": top},
        "completions": {"logprobs": top},
        "responses": {"include": ["message.output_text.logprobs"], "top_logprobs": top},
        "messages": {"logprobs": True, "top_logprobs": top},
    }
    return asked[endpoint]


def budget(endpoint: str, tokens: Any) -> JSON:
    """The field that bounds a thought."""
    if endpoint == "messages":
        return {"thinking": {"type": "enabled", "budget_tokens": tokens}}
    return {"thinking_token_budget": tokens}


def schema(endpoint: str, wanted: JSON) -> JSON:
    """The field that asks for JSON."""
    named = {"type": "json_schema", "name": "wanted", "schema": wanted}
    match endpoint:
        case "responses":
            return {"text": {"format": named}}
        case "messages":
            return {"output_config": {"format": {"type": "json_schema", "schema": wanted}}}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def tools(endpoint: str, parameters: JSON, **more: Any) -> JSON:
    """The tool `look`, as the endpoint takes it."""
    function = {"name": "look", "description": "Looks.", "parameters": parameters}
    tool: JSON = {
        "chat": {"type": "function", "function": function},
        "responses": {"type": "function", **function},
        "messages": {"name": "look", "description": "Looks.", "input_schema": parameters},
    }[endpoint]
    return {"tools": [tool], **more}


def must_call(endpoint: str) -> list[Any]:
    """The values of `tool_choice` that ask for a call: any, and that of `look`."""
    choices: dict[str, list[Any]] = {
        "chat": ["required", {"type": "function", "function": {"name": "look"}}],
        "responses": ["required", {"type": "function", "name": "look"}],
        "messages": [{"type": "any"}, {"type": "tool", "name": "look"}],
    }
    return choices[endpoint]


# The case


@dataclass
class Case:
    """One row on one endpoint, streamed or whole."""

    endpoint: str
    stream: bool
    start: StartGateway
    stack: AsyncExitStack
    caplog: pytest.LogCaptureFixture
    folder: Path
    running: Running | None = None
    engine: ScriptedUpstream = field(default_factory=ScriptedUpstream)

    async def serve(
        self, script: Scripts | Sequence[Step], *, budgets: bool = False, **config: Any
    ) -> ScriptedUpstream:
        """Start a gateway over an engine that plays this; `budgets`: it bounds thoughts itself."""
        whole = script if isinstance(script, Script) or callable(script) else _scripts(script)
        engine = await self.stack.enter_async_context(ScriptedUpstream(whole))
        endpoint = EngineEndpoint(engine.url, thinking_budgets=budgets)
        self.running = await self.start(endpoint, **{"keys": KEYS, "format_retries": 0, **config})
        self.engine = engine
        return engine

    async def send(
        self, method: str, path: str, body: object = None, *, key: str = CLIENT, **headers: str
    ) -> tuple[int, bytes, bytes]:
        """Any request: the status, the head and the body; none of which may show a thought to a client."""
        assert self.running is not None
        data = b"" if body is None else msgspec.json.encode(body)
        told = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
        status, head, rest, raw = await exchange(self.running.url, method, path, data, told)
        if key != OPERATOR:
            for sign in SIGNS:
                assert sign not in raw and sign not in rest, raw
        return status, head, rest

    async def ask(self, *, prompt: Any = QUESTION, key: str = CLIENT, **fields: Any) -> Reply:
        """Ask the endpoint."""
        status, head, body = await self.send(
            "POST", PATHS[self.endpoint], self.body(prompt, **fields), key=key
        )
        return read(self.endpoint, status, head, body)

    def body(self, prompt: Any, **fields: Any) -> JSON:
        """What is asked."""
        return body(self.endpoint, prompt, stream=self.stream, **fields)

    def stopping(self, *stops: str) -> JSON:
        """The field for stop strings."""
        return stopping(self.endpoint, *stops)

    async def refuses(self, **fields: Any) -> None:
        """Each of the fields is refused by its name, and the engine hears of nothing."""
        for name, value in fields.items():
            heard = len(self.engine.requests)
            reply = await self.ask(**{name: value})
            assert reply.status == 400 and name.encode() in reply.body, reply.body
            assert len(self.engine.requests) == heard

    @property
    def asked(self) -> JSON:
        """What the engine was asked last."""
        return self.engine.requests[-1].body


def _scripts(script: Any) -> Scripts:
    steps = list(script)
    return steps if steps and isinstance(steps[0], Script) else Script(steps)


Check = Callable[[Case], Awaitable[None]]
CHECKS: dict[str, tuple[Check, tuple[str, ...]]] = {}


def row(name: str, *endpoints: str) -> Callable[[Check], Check]:
    """Say that a check is the row of this name, for these endpoints."""

    def add(check: Check) -> Check:
        assert name in ROWS and name not in CHECKS
        CHECKS[name] = (check, endpoints)
        return check

    return add


@pytest.fixture
async def new_case(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> AsyncIterator[Callable[[str, bool], Case]]:
    async with AsyncExitStack() as stack:
        yield lambda endpoint, stream: Case(endpoint, stream, start_gateway, stack, caplog, tmp_path)


# The rows, in their order


@row("chat: default request", *ALL)
async def default_request(case: Case) -> None:
    """Nothing special is asked: the thought is there, the operator can see it, and the client cannot."""
    await case.serve(OUTPUT)
    reply = await case.ask()
    assert (reply.text, reply.finish, reply.usage) == (TEXT, ["stop"], (len(OUTPUT), HIDDEN))
    assert b"reasoning_content" not in reply.body and b'"thinking"' not in reply.body
    path, body = PATHS[case.endpoint], case.body(QUESTION)
    status, _, revealed = await case.send("POST", path, body, key=OPERATOR, **{"thinkserve-reveal": "1"})
    assert status == 200 and EYE.encode() in revealed
    for value in ("1", "true", "yes"):
        status, _, _ = await case.send("POST", path, body, **{"thinkserve-reveal": value})
        assert status == 403


@row("chat: include_reasoning", *ALL)
async def include_reasoning(case: Case) -> None:
    """Nobody's but the operator's decision, whatever its value; null is absent. Of duplicate keys the last counts."""
    await case.serve(OUTPUT)
    for value in (True, False):
        await case.refuses(include_reasoning=value)
    assert (await case.ask(include_reasoning=None)).text == TEXT
    assert "include_reasoning" not in case.asked
    assert case.running is not None
    body = msgspec.json.encode(case.body(QUESTION))
    twice = body[:-1] + b',"include_reasoning":true,"include_reasoning":null}'
    headers = {"Authorization": f"Bearer {CLIENT}"}
    *_, raw = await exchange(case.running.url, "POST", PATHS[case.endpoint], twice, headers)
    assert not any(sign in raw for sign in SIGNS)


@row("chat: logprobs", *ALL)
async def logprobs(case: Case) -> None:
    """Exactly those of the response's tokens, also where a token holds the end of the thought and the first word."""
    await case.serve(OUTPUT)
    asked = top_logprobs(case.endpoint, 3)
    if case.endpoint == "messages":
        await case.refuses(**asked)
        return
    reply = await case.ask(**asked)
    ids = case.engine.token_ids
    assert reply.logprobs == [(token, -0.01 * (ids[token] % 100)) for token in RESPONSE]
    assert case.asked["logprobs"] is True
    _, closing = marks("tpo-generic")
    for token in (f"{EYE}{closing}Hello", "".join(OUTPUT[:-4])):
        case.engine.script = Script([*OUTPUT[: -len(RESPONSE) - 1], token, *RESPONSE[1:]])
        reply = await case.ask(**asked)
        assert reply.text == TEXT
        assert [token for token, _ in reply.logprobs] == RESPONSE
    await case.refuses(return_tokens_as_token_ids=True, logprob_token_ids=[1])


@row("chat: return_token_ids", *ALL)
async def return_token_ids(case: Case) -> None:
    """Refused; and the ids that the gateway asks for itself are in no answer."""
    await case.serve(OUTPUT)
    await case.refuses(return_token_ids=True)
    reply = await case.ask()
    assert case.asked["return_token_ids"] is True
    assert b"token_ids" not in reply.body


@row("chat: prompt_logprobs, echo, return_prompt_text", *ALL)
async def prompt_echoes(case: Case) -> None:
    """What shows the prompt is refused; completions repeat what the client wrote, and no more."""
    await case.serve(OUTPUT)
    await case.refuses(prompt_logprobs=1, return_prompt_text=True)
    if case.endpoint != "completions":
        await case.refuses(echo=True)
        return
    assert (await case.ask(echo=True)).text == QUESTION + TEXT
    [message] = case.asked["messages"]
    assert "comprehensive and" in message["content"] and "echo" not in case.asked


@row("chat: stop strings", *ALL)
async def stop_strings(case: Case) -> None:
    """They end the response only: a string that stands in the thought changes nothing that is told, nor when."""
    await case.serve(OUTPUT)
    elsewhere = await case.ask(**case.stopping("zebra"))
    assert (elsewhere.text, elsewhere.finish) == (TEXT, ["stop"])
    opening, closing = marks("tpo-generic")
    for stop in ("alpha", EYE, f"{EYE} beta", "\n", opening[0], closing, closing.strip(), f"{closing}Hello"):
        assert (await case.ask(**case.stopping(stop))).told == elsewhere.told
    cut = await case.ask(**case.stopping("alpha", "wor"))
    assert (cut.text, cut.finish) == ("Hello ", ["stop"])
    assert cut.usage == (HIDDEN + 2, HIDDEN)
    assert all("stop" not in request.body for request in case.engine.requests)
    # The end of the answer comes when the response has ended, and not when the engine has written the string.
    for stop in ("alpha", "zebra"):
        gate = asyncio.Event()
        case.engine.script = Script([*OUTPUT[: -len(RESPONSE)], Wait(gate), *RESPONSE])
        asking = asyncio.create_task(case.ask(**case.stopping(stop)))
        await asyncio.sleep(0.1)
        assert not asking.done() and case.engine.running == 1
        gate.set()
        assert (await asking).told == elsewhere.told
    assert case.engine.cancelled <= 1  # by the response's own stop string


@row("chat: long stop strings, streamed", *ALL)
async def long_stop_strings(case: Case) -> None:
    """Text that is held back for a long string does not come out as a response."""
    for format in FORMATS:
        whole = "".join(output(format))
        await case.serve([whole[at : at + 2] for at in range(0, len(whole), 2)], format=format)
        for stop in ("z" * 40, "z" * 1024, f"{EYE}" * 500, TEXT + "z" * 500):
            reply = await case.ask(**case.stopping(stop))
            assert (reply.text, reply.finish) == (TEXT, ["stop"])


@row("chat: stop_token_ids", *ALL)
async def stop_token_ids(case: Case) -> None:
    """The extraction of a thought a token at a time: all ids but those seen. Nothing that comes back depends on it."""
    await case.serve(OUTPUT)
    assert (await case.ask()).text == TEXT
    told = set()
    for known in case.engine.token_ids.values():
        ids = [one for one in range(100, 200) if one != known]
        reply = await case.ask(stop_token_ids=ids)
        assert reply.status == 400 and b"stop_token_ids" in reply.body
        told.add(reply.body)
    assert len(told) == 1 and len(case.engine.requests) == 1


@row("chat: repetition_detection", *ALL)
async def repetition_detection(case: Case) -> None:
    await case.serve(OUTPUT)
    await case.refuses(repetition_detection={"max_pattern_size": 2, "min_count": 2})


@row("chat: max_tokens", *ALL)
async def max_tokens(case: Case) -> None:
    """It bounds the response; where an API bounds the whole output, an empty answer says that it was cut."""
    await case.serve(OUTPUT)
    if case.endpoint in ("chat", "completions"):
        reply = await case.ask(max_tokens=2)
        assert (reply.text, reply.finish) == ("Hello world", ["length"])
        assert "max_tokens" not in case.asked
    if case.endpoint == "completions":
        return
    name = {"chat": "max_completion_tokens", "responses": "max_output_tokens"}
    for bound in range(1, len(OUTPUT)):
        fields: JSON = {name.get(case.endpoint, "max_tokens"): bound}
        reply = await case.ask(**fields)
        assert reply.text == "".join(RESPONSE[: max(0, bound - HIDDEN)])
        assert (reply.finish, reply.usage[0]) == (["length"], bound)


@row("chat: min_tokens, ignore_eos", *ALL)
async def ignore_eos(case: Case) -> None:
    """Refused; and a thought that an engine goes on to, behind the end, is hidden."""
    opening, closing = marks("tpo-generic")
    again = ["<|eos|>", "\n", opening[0], *THOUGHT, closing, "Bye"]
    await case.serve([*OUTPUT, *again])
    await case.refuses(min_tokens=50, ignore_eos=True)
    assert (await case.ask()).text == f"{TEXT}<|eos|>\nBye"


@row("chat: n", *ALL)
async def several_choices(case: Case) -> None:
    """One splitter a choice: their thoughts end at different times, in different chunks."""
    if case.endpoint in ("responses", "messages"):
        await case.serve(OUTPUT)
        await case.refuses(n=2)
        return

    def script(recorded: Recorded) -> Script:
        at = recorded.body["seed"] - 5
        whole = "".join(output(thought=[*THOUGHT * (at + 1)], response=["Number ", str(at)]))
        return Script([whole[begin : begin + 3 + at] for begin in range(0, len(whole), 3 + at)])

    await case.serve(script)
    reply = await case.ask(n=4, seed=5)
    assert reply.texts == [f"Number {at}" for at in range(4)]
    assert reply.finish == ["stop"] * 4
    assert all("n" not in request.body for request in case.engine.requests)


@row("chat: stream_options", *ALL)
async def stream_options(case: Case) -> None:
    """Usage is exact and comes at the end; usage while it thinks would tell how the thought goes on."""
    await case.serve(OUTPUT)
    reply = await case.ask()
    assert reply.usage == (len(OUTPUT), HIDDEN)
    for options in (
        {"continuous_usage_stats": True},
        {"include_usage": True, "continuous_usage_stats": True},
    ):
        reply = await case.ask(stream_options=options)
        assert reply.status == 400 and b"stream_options" in reply.body
    if case.stream and case.endpoint in ("chat", "completions"):
        reply = await case.ask(stream_options={"include_usage": False})
        assert (reply.text, reply.usage) == (TEXT, (0, 0))


@row("chat: logit_bias, bad_words, allowed_token_ids", *ALL)
async def marker_bans(case: Case) -> None:
    """Refused; and an output from which the markers are missing shows nothing."""
    await case.serve(OUTPUT)
    markers = [mark.strip() for mark in (*marks("tpo-generic")[0], marks("tpo-generic")[1])]
    await case.refuses(logit_bias={"100": -100}, bad_words=markers, allowed_token_ids=[1, 2])
    case.engine.script = Script([*THOUGHT, *THOUGHT])
    assert (await case.ask()).error is not None


@row("chat: response_format, structured_outputs", *ALL)
async def constraints(case: Case) -> None:
    """The engine gets the format itself: any thought, the marker, then what binds. The model thinks, the JSON parses."""
    thought = [*THOUGHT, f'{{"at": "{EYE}"}}', f"{EYE}"]
    asked = [schema(case.endpoint, SCHEMA)]
    if case.endpoint != "messages":
        asked.append({"structured_outputs": {"json": SCHEMA}})
    for format in FORMATS:
        await case.serve(output(format, thought, [' {"at":', ' "here"}']), format=format)
        for fields in asked:
            reply = await case.ask(**fields)
            assert msgspec.json.decode(reply.text) == {"at": "here"}
            assert reply.usage[1] >= len(thought)
            assert not {"response_format", "text", "output_config"} & case.asked.keys()
            [(kind, tag)] = case.asked["structured_outputs"].items()
            begun, _, bound = tag.partition('"end":')
            assert kind == "structural_tag" and "any_text" in begun and "json_schema" not in begun
            assert get_format(format).closing[0] in bound.partition("json_schema")[0]
    if case.endpoint == "messages":
        await case.refuses(structured_outputs={"json": SCHEMA}, response_format={"type": "json_object"})
        return
    for given in ({"regex": "[a-z]+"}, {"grammar": 'root ::= "a"'}, {"choice": ["a", "b"]}):
        assert (await case.ask(structured_outputs=given)).status == 200
        assert "any_text" in case.asked["structured_outputs"]["structural_tag"]
    await case.refuses(guided_json=SCHEMA, guided_regex="a", guided_choice=["a"], guided_grammar="root")


@row("chat: tools auto", *ALL)
async def tools_auto(case: Case) -> None:
    """A call in the thought is text of the thought; one in the response is a call."""
    thought = [*THOUGHT, f"\n{EYE}{CALL % EYE}", f"{EYE}\n"]
    await case.serve(output(thought=thought, response=["I look. ", CALL % "here"]))
    if case.endpoint == "completions":
        await case.refuses(**tools("chat", SCHEMA, tool_choice="auto"))
        return
    reply = await case.ask(**tools(case.endpoint, SCHEMA))
    assert reply.calls == [("look", {"at": "here"})]
    assert reply.text.strip() == "I look."
    assert case.asked["tool_choice"] == "none"  # the engine is not to look for calls
    case.engine.script = Script(output(thought=thought))
    reply = await case.ask(**tools(case.endpoint, SCHEMA))
    assert (reply.text, reply.calls, reply.finish) == (TEXT, [], ["stop"])


@row("chat: tools named or required", *ALL)
async def tools_required(case: Case) -> None:
    """Bound behind the thought, which stays free; the call is read out of the response."""
    thought = [*THOUGHT, f"{EYE}{CALL % EYE}{EYE}"]
    await case.serve(output(thought=thought, response=[" ", CALL % "here"]))
    if case.endpoint == "completions":
        await case.refuses(tool_choice="required", tools=tools("chat", SCHEMA)["tools"])
        return
    for choice in must_call(case.endpoint):
        reply = await case.ask(**tools(case.endpoint, SCHEMA, tool_choice=choice))
        assert (reply.text, reply.calls) == ("", [("look", {"at": "here"})])
        assert reply.usage[1] > len(thought)
        tag = case.asked["structured_outputs"]["structural_tag"]
        free, _, bound = tag.rpartition("Here is my response:")
        assert "any_text" in free and "look" not in free and "look" in bound


@row("chat: chat_template", *ALL)
async def chat_template(case: Case) -> None:
    await case.serve(OUTPUT)
    await case.refuses(chat_template="{{ messages }}", documents=[{"text": "x"}])


@row("chat: chat_template_kwargs, reasoning_effort", *ALL)
async def efforts(case: Case) -> None:
    """No key reaches the template; an effort bounds the thought and never shows it."""
    await case.serve(OUTPUT)
    for kwargs in ({"enable_thinking": False}, {"thinking": False}, {"force_nonempty_content": True}, {}):
        await case.refuses(chat_template_kwargs=kwargs)

    def effort(name: str) -> JSON:
        match case.endpoint:
            case "responses":
                return {"reasoning": {"effort": name}}
            case "messages" if name == "none":
                return {"thinking": {"type": "disabled"}}
            case "messages":
                return {"output_config": {"effort": name}}
        return {"reasoning_effort": name}

    for name in ("low", "medium", "high"):
        assert (await case.ask(**effort(name))).text == TEXT
        assert not {"reasoning_effort", "chat_template_kwargs"} & case.asked.keys()
    # Asked not to think, it does all the same, and says so.
    assert (await case.ask(**effort("none"))).text == TEXT
    # Nothing would tell such a thought from a response where there is no opening marker.
    await case.serve(output("tpo-specific"), format="tpo-specific")
    reply = await case.ask(**effort("none"))
    assert reply.text == TEXT if case.endpoint == "messages" else reply.status == 400


PREFILLS = [
    "Here is my thought process:\nx\nHere is my response:\n",
    "Here is my thought process:\nx\n",
    "x\n**Here is my response:**\n",
    "Here is my thought process:\nx\nHere is my response:\nSure",
]


@row("chat: continue_final_message, add_generation_prompt", *ALL)
async def prefills(case: Case) -> None:
    """The output cannot be begun in the model's stead: no field, and no message that the client wrote as the model's."""
    await case.serve(OUTPUT)
    await case.refuses(
        continue_final_message=True,
        add_generation_prompt=False,
        add_special_tokens=True,
        truncate_prompt_tokens=5,
    )
    if case.endpoint == "completions":
        for ids in ([1, 2], [[1, 2]]):
            reply = await case.ask(prompt=ids)
            assert reply.status == 400 and b"token ids" in reply.body
    for prefill in PREFILLS:
        if case.endpoint == "completions":  # a prompt is what the user says
            assert (await case.ask(prompt=prefill)).text == TEXT
            assert [message["role"] for message in case.asked["messages"]] == ["user"]
            continue
        halves = prefill[: len(prefill) // 2], prefill[len(prefill) // 2 :]
        kind = "output_text" if case.endpoint == "responses" else "text"
        parts = [{"type": kind, "text": half} for half in halves]
        for content in (prefill, parts):
            turns = [
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": content},
            ]
            reply = await case.ask(prompt=turns)
            if case.endpoint == "messages":
                assert reply.status == 400 and b"must not end with an assistant" in reply.body
                reply = await case.ask(prompt=[*turns, {"role": "user", "content": "So?"}])
            assert reply.text == TEXT
            assert not {"continue_final_message", "add_generation_prompt"} & case.asked.keys()
            past = case.asked["messages"][1]
            written = past["content"] if isinstance(past["content"], str) else past["content"][0]["text"]
            assert past["role"] == "assistant" and written == ("Sure" if "Sure" in prefill else "")
    if case.endpoint == "chat":
        for flag in ("prefix", "partial", "continue"):
            turn = {"role": "assistant", "content": "x", flag: True}
            reply = await case.ask(prompt=[{"role": "user", "content": "x"}, turn])
            assert reply.status == 400 and flag.encode() in reply.body


@row("chat: kv_transfer_params, ec_transfer_params", *ALL)
async def transfers(case: Case) -> None:
    await case.serve(OUTPUT)
    tokens = {"prompt_token_ids": [1, 2, 3]}
    await case.refuses(kv_transfer_params=tokens, ec_transfer_params=tokens, mm_processor_kwargs={})
    await case.refuses(prompt_token_ids=[1, 2, 3], prompt_embeds="AAAA")


@row("chat: vllm_xargs, priority, request_id, session_id, cache_salt", *ALL)
async def engine_extensions(case: Case) -> None:
    """None of a client's reaches the engine; the gateway names its requests, and salts the cache for each key."""
    await case.serve(OUTPUT)
    await case.refuses(vllm_xargs={"a": 1}, priority=-1, request_id="x", session_id="x", cache_salt="x")
    await case.refuses(stream_interval=1, use_beam_search=True)
    path, body = PATHS[case.endpoint], case.body(QUESTION)
    salts = []
    for key in (CLIENT, CLIENT, OTHER):
        await case.send("POST", path, body, key=key, **{"X-Request-Id": "mine"})
        salts.append(case.asked["cache_salt"])
        assert "mine" not in case.engine.requests[-1].headers.values()
    assert salts[0] == salts[1] != salts[2]
    assert not {"vllm_xargs", "priority", "request_id", "session_id"} & case.asked.keys()


@row("chat: thinking_token_budget", *ALL)
async def thought_budgets(case: Case) -> None:
    """Bounded by the gateway, or by the engine with the gateway's eye on it; none is no budget."""
    least = 1024 if case.endpoint == "messages" else 3
    endless = [f"{EYE} and" for _ in range(least + 200)]
    # This engine cannot bound thoughts: it is cut, and goes on with the response.
    await case.serve([Script([*marks("tpo-generic")[0], *endless]), Script(RESPONSE)])
    reply = await case.ask(**budget(case.endpoint, least))
    assert (reply.text, reply.finish) == (TEXT, ["stop"])
    assert least < reply.usage[1] <= least + 20
    assert "thinking_token_budget" not in case.asked and case.asked["continue_final_message"] is True
    assert case.asked["messages"][-1]["content"].endswith("Here is my response:\n")
    # This one can, and does not see where the thought begins.
    await case.serve([Script([*marks("tpo-generic")[0], *endless]), Script(RESPONSE)], budgets=True)
    reply = await case.ask(**budget(case.endpoint, least))
    assert (reply.text, reply.finish) == (TEXT, ["stop"])
    assert least < reply.usage[1] <= least + 80
    assert case.engine.requests[0].body["thinking_token_budget"] == least
    for wrong in (0, -1, True, "5", None if case.endpoint == "messages" else 1.5):
        reply = await case.ask(**budget(case.endpoint, wrong))
        assert reply.status == 400 and b"budget" in reply.body


@row("chat: skip_special_tokens", *ALL)
async def special_tokens(case: Case) -> None:
    """Refused; where a marker is a special token the engine is told to write it."""
    await case.serve(output("think-tags"), format="think-tags", skip_special_tokens=False)
    await case.refuses(
        skip_special_tokens=True, spaces_between_special_tokens=True, include_stop_str_in_output=True
    )
    assert (await case.ask()).text == TEXT
    assert case.asked["skip_special_tokens"] is False


@row("chat: end token in a message", *ALL)
async def end_tokens(case: Case) -> None:
    """Where a thought ends is told from the output alone, whatever stands in the prompt; past thoughts are taken out."""
    for format in FORMATS:
        await case.serve(output(format), format=format)
        _, closing = marks(format)
        for text in (f"hi {closing}", closing, f"{closing}{QUESTION}{closing}", "</think> <R>"):
            assert (await case.ask(prompt=text)).text == TEXT
        if case.endpoint == "completions":
            continue
        past = "".join(marks(format)[0]) + f"{EYE}old thought{closing}Old answer."
        kind = "output_text" if case.endpoint == "responses" else "text"
        for content in (past, [{"type": kind, "text": part} for part in (past[:9], past[9:])]):
            turns = [
                {"role": "user", "content": f"hi {closing}"},
                {"role": "assistant", "content": content},
                {"role": "user", "content": f"{closing} now?"},
            ]
            if case.endpoint != "messages":
                turns.insert(0, {"role": "system", "content": f"Write {closing}."})
            assert (await case.ask(prompt=turns)).text == TEXT
            assert EYE not in str(case.asked["messages"]) and "Old answer." in str(case.asked["messages"])


@row("chat: the model leaves its format", *ALL)
async def deviations(case: Case) -> None:
    """What is not certain is thought: a missing or late opening, decorated markers, a near miss, no markers at all."""
    thought = "".join(THOUGHT)
    for format in FORMATS:
        opening, closing = marks(format)
        begin = "".join(opening)
        shown = [
            thought + closing + TEXT,
            f"Sure! {EYE}\n" + begin + thought + closing + TEXT,
            f"\n{EYE}\n" + thought + closing + TEXT,
            begin.upper() + thought + f"\n**{closing.strip()}**\n" + TEXT,
            begin + f"{EYE}{closing.strip()[:-1]}{EYE}{closing.strip()[:2]}{EYE}" + closing + TEXT,
        ]
        hidden = [thought, begin + thought, begin + thought + closing.rstrip()[:-1], f"{EYE}{TEXT}", ""]
        await case.serve([], format=format)
        for text in shown + hidden:
            for size in (1, 7, 1000):
                case.engine.script = Script([text[at : at + size] for at in range(0, len(text), size)])
                reply = await case.ask()
                if text in shown:
                    assert (reply.text, reply.error) == (TEXT, None), text
                else:
                    assert reply.text == "" and reply.error is not None, text
                    assert case.stream or reply.status == 502


@row("chat: cut off in the thought", *ALL)
async def cut_in_the_thought(case: Case) -> None:
    """The engine runs out of room: an empty answer that says so, wherever in the thought or its end it was."""
    for format in FORMATS:
        whole = "".join(output(format, response=[]))
        await case.serve([], format=format)
        for end in (len(whole) - 1, len(whole) - 2, len(whole) // 2, 1):
            case.engine.script = Script([*whole[:end], Finish("length")])
            reply = await case.ask()
            if format == "tpo-generic" and end == len(whole) - 1:
                assert reply.text == ""  # the marker is whole, but for its line end
                continue
            assert (reply.status, reply.text, reply.finish) == (200, "", ["length"]), whole[:end]
            assert reply.usage == (end, end)


@row("chat: end marker quoted, second thought", *ALL)
async def quoted_markers(case: Case) -> None:
    """A mention of the marker ends nothing, and a thought that begins again is hidden again, as far as is promised."""
    for format in FORMATS:
        opening, closing = marks(format)
        mark = closing.strip()
        quoted = [*THOUGHT, f'{EYE} "{mark}" {EYE} `{mark}` {EYE} "{mark}," {EYE}']
        if get_format(format).line_start:
            quoted.append(f"{EYE} then {mark} {EYE}")
        whole = "".join(output(format, quoted))
        second = "".join(["\n", *opening, *quoted, closing, " More."]) if opening else ""
        await case.serve([], format=format)
        for size in (1, 4, 1000):
            text = whole + second
            case.engine.script = Script([text[at : at + size] for at in range(0, len(text), size)])
            reply = await case.ask()
            assert reply.text.split() == [*TEXT.split(), *(["More."] if second else [])]
            if second:  # that ends inside its second thought
                text = (whole + second)[: -len(closing) - len(" More.")]
                case.engine.script = Script([text[at : at + size] for at in range(0, len(text), size)])
                assert (await case.ask()).text.strip() == TEXT


async def not_served(case: Case, routes: dict[str, str]) -> None:
    """None of these is served, with or without a key, however the path is written; the engine hears of nothing."""
    await case.serve(OUTPUT)
    asked = {"messages": [{"role": "user", "content": QUESTION}], "prompt": QUESTION, "token_ids": [1]}
    for path, method in routes.items():
        for way in (
            path,
            f"{path}/",
            f"/{path}",
            f"/v1/..{path}",
            f"/v1/chat/%2e%2e/%2e%2e{path}",
            f"{path}?x=1",
        ):
            for key in (CLIENT, OPERATOR):
                status, _, body = await case.send(method, way, asked, key=key)
                assert status in (404, 405), way
                assert b'"error"' in body and EYE.encode() not in body
        status, _, _ = await case.send(method, f"http://engine{path}", asked)  # as proxies are asked
        assert status in (404, 405)
    assert case.engine.requests == []


@row("chat/completions/batch")
async def batch(case: Case) -> None:
    await not_served(case, {"/v1/chat/completions/batch": "POST"})


@row("completions", "completions")
async def completions(case: Case) -> None:
    """It is a chat to the engine, with the thought prompt round it; what would begin the output is refused."""
    await case.serve(OUTPUT)
    await case.refuses(suffix="x", prompt_embeds="AAAA")
    several = [QUESTION, "And ice?"]
    reply = await case.ask(prompt=several, n=2)
    assert reply.texts == [TEXT] * 4
    assert reply.usage == (4 * len(OUTPUT), 4 * HIDDEN)
    for request in case.engine.requests:
        assert "prompt" not in request.body and "comprehensive and" in request.body["messages"][0]["content"]


@row("responses: default, include_reasoning", "responses")
async def responses(case: Case) -> None:
    """There is a reasoning item, and nothing in it."""
    await case.serve(OUTPUT)
    several: list[JSON] = [{}, {"reasoning": {"effort": "high", "summary": "auto"}}]
    for fields in several:
        reply = await case.ask(**fields)
        assert reply.text == TEXT
        last = reply.body.decode().rpartition('"output":')[2]
        assert '"type":"reasoning","summary":[]' in last
        assert b"reasoning_text" not in reply.body and b"reasoning_summary" not in reply.body
    await case.refuses(include_reasoning=True)
    for summary in ("detailed", "concise"):
        assert (await case.ask(reasoning={"summary": summary})).status == 400
    reply = await case.ask(include=["reasoning.encrypted_content"])  # the operator offers none
    assert reply.status == 400 and b"encrypted" in reply.body


@row("responses: enable_response_messages", "responses")
async def response_messages(case: Case) -> None:
    await case.serve(OUTPUT)
    await case.refuses(enable_response_messages=True, previous_input_messages=[])
    reply = await case.ask()
    assert b"output_messages" not in reply.body and b"input_messages" not in reply.body


@row("responses: stop, store, background, previous_response_id, cached_tokens", "responses")
async def response_state(case: Case) -> None:
    """Nothing is stored, so nothing of another is read; what was cached is not told."""
    await case.serve(OUTPUT)
    await case.refuses(store=True, background=True, previous_response_id="resp_x", conversation="c")
    reply = await case.ask(stop="alpha")
    assert (reply.text, reply.finish) == (TEXT, ["stop"])
    assert b'"cached_tokens":0' in reply.body
    named = re.search(rb"resp_[0-9a-f]+", reply.body)
    assert named is not None
    name = named[0].decode()
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        status, _, _ = await case.send(method, f"/v1/responses/{name}{path}")
        assert status == 404
    status, _, _ = await case.send("GET", "/v1/responses")
    assert status == 405


@row("messages: any setting of thinking", "messages")
async def messages(case: Case) -> None:
    """There is no thinking block, whatever is asked of it."""
    await case.serve(OUTPUT)
    for thinking in (
        {"type": "enabled", "budget_tokens": 1024},
        {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
        {"type": "adaptive", "display": "summarized"},
        {"type": "adaptive"},
        {"type": "disabled"},
    ):
        reply = await case.ask(thinking=thinking)
        assert (reply.text, reply.finish) == (TEXT, ["stop"])
        assert b'"thinking"' not in reply.body and b"signature" not in reply.body
    assert (await case.ask(thinking={"type": "enabled", "budget_tokens": 5})).status == 400
    past = [{"type": "thinking", "thinking": EYE, "signature": ""}, {"type": "text", "text": "Yes."}]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": past}]
    reply = await case.ask(prompt=[*turns, {"role": "user", "content": "So?"}])
    assert reply.text == TEXT and EYE not in str(case.asked["messages"])


@row("messages: stop_sequences", "messages")
async def stop_sequences(case: Case) -> None:
    """As stop strings anywhere; which one it was is told of the response only."""
    await case.serve(OUTPUT)
    free = await case.ask()
    inside = await case.ask(stop_sequences=["alpha", "Draft"])
    assert inside.told == free.told
    assert b'"end_turn","stop_sequence":null' in inside.body
    cut = await case.ask(stop_sequences=["alpha", "fine"])
    assert cut.text == "Hello world, " and b'"stop_sequence","stop_sequence":"fine"' in cut.body


@row("generate, render, derender")
async def generate_routes(case: Case) -> None:
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
    routes = {f"{path}/{way}": "POST" for path in paths for way in ("render", "derender")}
    await not_served(
        case, {"/inference/v1/generate": "POST", "/inference/v1/abort_requests": "POST", **routes}
    )


@row("invocations")
async def invocations(case: Case) -> None:
    await not_served(case, {"/invocations": "POST", "/ping": "GET", "/v2/chat": "POST"})


@row("scoring, systemone, tokenize, detokenize")
async def scoring(case: Case) -> None:
    """Not served; /tokenize where the operator says so, and then it counts the client's own text and no prompt."""
    names = ("generative_scoring", "v1/systemone", "tokenize", "detokenize", "score", "v1/embeddings")
    counted = {"/v1/messages/count_tokens": "POST"}
    await not_served(case, {**{f"/{name}": "POST" for name in names}, **counted})
    await case.serve(OUTPUT, tokenize=True, tokenizer=CHECKPOINT / "tokenizer.json")
    status, _, body = await case.send("POST", "/tokenize", {"prompt": "a"})
    assert (status, msgspec.json.decode(body)["count"]) == (200, 1)
    status, _, _ = await case.send("POST", "/tokenize", {"messages": [{"role": "user", "content": "a"}]})
    assert status == 400
    status, _, _ = await case.send("POST", "/detokenize", {"tokens": [1]})
    assert status == 404 and case.engine.requests == []


@row("metrics, load, version")
async def metrics(case: Case) -> None:
    """After answers of every kind these hold numbers and names, and no word of prompts, thoughts or responses."""
    await case.serve(OUTPUT, access_log=case.folder / "access.jsonl", echo_guard="flag")
    for endpoint in ALL:
        case.endpoint = endpoint
        assert (await case.ask()).text == TEXT
        case.engine.script = Script(THOUGHT)
        assert (await case.ask()).status == 502
        case.engine.script = Script(OUTPUT)
    for path in ("/metrics", "/version", "/openapi.json", "/health", "/ready", "/v1/models", "/"):
        status, _, body = await case.send("GET", path)
        assert status == 200
        assert b"Hello world" not in body and b"WATER" not in body and b"alpha" not in body
        status, _, body = await case.send("HEAD", path)
        assert (status, body) == (200, b"")
    for path in ("/load", "/server_info", "/kv_event_sources", "/scale_elastic_ep", "/docs", "/redoc"):
        assert (await case.send("GET", path))[0] == 404
    written = (case.folder / "access.jsonl").read_text()
    assert len(written.splitlines()) > 8
    assert not any(word in written for word in (EYE, "WATER", "Hello", "alpha"))


@row("logs", *ALL)
async def logs(case: Case) -> None:
    """At the most talkative level, over outputs of every kind and engines that quote them in their errors."""
    case.caplog.set_level("DEBUG")
    await case.serve(OUTPUT)
    told = {"message": f"{EYE} broke", "type": "InternalServerError", "code": 500}
    scripts: list[list[Step]] = [
        [*OUTPUT],
        [*THOUGHT],
        [*OUTPUT[:3], ErrorEvent(told)],
        [*OUTPUT[:3], Die()],
        [*OUTPUT[:-1], Raw(f"data: {{{EYE}}}\n\n".encode())],
        [Status(500, {"error": told})],
        [Delta(EYE, finish_reason="abort")],
    ]
    for steps in scripts:
        case.engine.script = Script(steps)
        await case.ask(**case.stopping("alpha"))
    await case.ask(stop_token_ids=[1])
    assert "malformed" in case.caplog.text or "never closed" in case.caplog.text
    for word in (EYE, "\\ua66e", "alpha", "WATER", "Hello", "fine"):
        assert word not in case.caplog.text


@row("shutdown, crash", *ALL)
async def failures(case: Case) -> None:
    """Whatever ends an output early, the answer is a clear error, holds no thought, and quotes no engine."""
    told = {"message": f"{EYE} broke", "type": "InternalServerError", "code": 400}
    bad: list[Step] = [
        Die(),
        End(),
        ErrorEvent(told),
        Finish("abort"),
        Raw(f"data: {{{EYE}}}\n\n".encode()),
        Raw(f'data: {{"choices": [{{"delta": {{"content": ["{EYE}"]}}}}]}}\n\n'.encode()),
    ]
    await case.serve(OUTPUT)
    for step in bad:
        for at in (0, 1, HIDDEN - 1, HIDDEN, HIDDEN + 2):
            case.engine.script = Script([*OUTPUT[:at], step])
            reply = await case.ask()
            if at == 0 and isinstance(step, ErrorEvent):  # it refused before it generated anything
                continue
            assert reply.error is not None and "".join(OUTPUT[HIDDEN:at]).startswith(reply.text)
            assert case.stream or (reply.status, reply.text) == (503, "")
    # What an engine itself calls a thought has no way out.
    own = f'data: {{"choices":[{{"delta":{{"reasoning":"{EYE}","reasoning_content":"{EYE}"}}}}]}}\n\n'
    case.engine.script = Script([Raw(own.encode()), *OUTPUT])
    assert (await case.ask()).text == TEXT
    case.engine.script = Script([Status(500, {"error": told})])
    assert (await case.ask()).error is not None
    # The time to drain is over while the model thinks, and while it answers.
    for at in (2, HIDDEN + 1):
        gate = asyncio.Event()
        engine = await case.serve(Script([*OUTPUT[:at], Wait(gate)]))
        asking = asyncio.create_task(case.ask())
        await asyncio.sleep(0.1)
        assert engine.running == 1 and case.running is not None
        case.running.gateway.draining = True
        case.running.gateway.cut()
        reply = await asking
        assert reply.error is not None and reply.text in ("", "Hello")
        assert (await case.ask()).status == 503


# The tests


def test_no_row_is_forgotten() -> None:
    assert tuple(CHECKS) == ROWS


def _cases() -> list[Any]:
    cases = []
    for name, (_, endpoints) in CHECKS.items():
        ways = [(endpoint, stream) for endpoint in endpoints for stream in (False, True)]
        for endpoint, stream in ways or [("chat", False)]:
            way = f" [{endpoint}, {'streamed' if stream else 'whole'}]" if ways else ""
            cases.append(pytest.param(name, endpoint, stream, id=name + way))
    return cases


@pytest.mark.parametrize(("name", "endpoint", "stream"), _cases())
async def test_row(name: str, endpoint: str, stream: bool, new_case: Callable[[str, bool], Case]) -> None:
    await CHECKS[name][0](new_case(endpoint, stream))


@pytest.mark.parametrize("by_engine", [False, True])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("endpoint", OPENAI)
async def test_a_thought_that_goes_on_behind_its_bound_is_not_an_answer(
    endpoint: str, format: str, by_engine: bool, new_case: Callable[[str, bool], Case]
) -> None:
    """The model takes no notice of the marker in its stead, thinks on, and closes its thought with a marker of its own."""
    case = new_case(endpoint, False)
    opening, closing = marks(format)
    begun, rest = [*opening, *THOUGHT], [f"{EYE} and", *THOUGHT, closing, *RESPONSE]
    scripts = [Script([*begun, closing, *rest])] if by_engine else [Script(begun), Script(rest)]
    await case.serve(scripts, format=format, budgets=by_engine)
    await case.ask(**budget(endpoint, len(THOUGHT) - 1))
