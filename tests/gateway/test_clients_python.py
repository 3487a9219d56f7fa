"""LangChain, LiteLLM and Open WebUI against a gateway: what people put in front of an OpenAI-compatible server.

LiteLLM wants older packages (`openai` among them) than the engines do, so it runs in an environment of its own,
`.venv-litellm` in the root of the repository, unless it happens to be installed. Open WebUI is no package: the requests
are those that it sends to an upstream, with its own fields taken out.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.gateway.conftest import Running, StartGateway, content
from tests.gateway.scripted import JSON, Recorded, Script, ScriptedUpstream, Status, chunked

ROOT = Path(__file__).parents[2]
LITELLM = "litellm==1.106.2 mcp==2.3.0"  # it asks for mcp as soon as there are tools
RESPONSE = "Hello, world."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
PARAMETERS: JSON = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: JSON = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": PARAMETERS},
}
KEY = {"Authorization": "Bearer sk-client"}


def output(response: str) -> list[str]:
    """A whole output, in chunks."""
    return chunked(f"Here is my thought process:\nSECRET plan.\nHere is my response:\n{response}", 4)


def script(recorded: Recorded) -> Script:
    """What the engine answers, by what the user said last."""
    match str(recorded.body["messages"][-1]["content"]).rsplit("User query: ")[-1]:
        case "call":
            return Script(output(CALL))
        case "json":
            return Script(output('{"city": "Rome"}'))
        case "busy":
            return Script([Status(429, {"error": {"message": "too many requests"}})])
        case _:
            return Script(output(RESPONSE))


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """The engine behind the gateway of each test."""
    async with ScriptedUpstream(script) as engine:
        yield engine


@pytest.fixture
async def running(upstream: ScriptedUpstream, start_gateway: StartGateway) -> Running:
    """A gateway that wants a key."""
    return await start_gateway(upstream.url, keys={"sk-client": "client", "sk-operator": "operator"})


# LangChain


ChatModel = Callable[..., Any]


@pytest.fixture
async def chat_model(running: Running) -> AsyncIterator[ChatModel]:
    """Makes LangChain's chat models that ask the gateway. Left to itself, it never closes its HTTP clients."""
    langchain = pytest.importorskip("langchain_openai", reason="needs the package langchain-openai")
    async with httpx.AsyncClient() as awaited:
        with httpx.Client() as plain:

            def make(**more: Any) -> Any:
                return langchain.ChatOpenAI(
                    base_url=f"{running.url}/v1",
                    model="thinker",
                    max_retries=0,
                    http_client=plain,
                    http_async_client=awaited,
                    **{"api_key": "sk-client", **more},
                )

            yield make


@pytest.mark.parametrize("responses", [False, True])
async def test_langchain_asks_and_streams(running: Running, responses: bool, chat_model: ChatModel) -> None:
    """Over chat completions and over responses; the usage tells the thought's share."""
    model = chat_model(use_responses_api=responses, stream_usage=True)
    message = await model.ainvoke([("system", "Be kind."), ("user", "Hi")])
    assert message.text == RESPONSE and "SECRET" not in str(message)
    usage = message.usage_metadata
    assert usage["output_tokens"] == len(output(RESPONSE)) and usage["input_tokens"] == 7
    assert 0 < usage["output_token_details"]["reasoning"] < usage["output_tokens"]
    whole = None
    async for chunk in model.astream("Hi"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None and whole.text == RESPONSE and whole.usage_metadata == usage
    assert "SECRET" not in str(whole)


async def test_langchain_binds_tools_and_gives_their_results(
    running: Running, upstream: ScriptedUpstream, chat_model: ChatModel
) -> None:
    """The message with the calls goes back as LangChain keeps it."""
    model = chat_model().bind_tools([WEATHER])
    message = await model.ainvoke("call")
    [call] = message.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Rome"})
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Sunny."}
    answer = await model.ainvoke([("user", "call"), message, result, ("user", "Go on.")])
    assert answer.text == RESPONSE
    roles = [message["role"] for message in upstream.requests[-1].body["messages"]]
    assert roles == ["user", "assistant", "tool", "user"]
    streamed = [chunk async for chunk in model.astream("call")]
    parts = [part for chunk in streamed for part in chunk.tool_call_chunks]
    assert msgspec.json.decode("".join(part["args"] or "" for part in parts)) == {"city": "Rome"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_langchain_gets_structured_output(
    running: Running, upstream: ScriptedUpstream, method: str, chat_model: ChatModel
) -> None:
    """By a schema, by a tool that must be called, and by JSON mode: the response is bound, the thought is free."""
    schema = {"title": "weather", "description": "A place.", **PARAMETERS}
    model = chat_model().with_structured_output(schema, method=method)
    assert await model.ainvoke("call" if method == "function_calling" else "json") == {"city": "Rome"}
    assert "Here is my response:" in str(upstream.requests[-1].body["structured_outputs"])


async def test_langchain_raises_the_errors_of_openai(running: Running, chat_model: ChatModel) -> None:
    """So that its retries and fallbacks work."""
    import openai

    with pytest.raises(openai.AuthenticationError):
        await chat_model(api_key="sk-no").ainvoke("Hi")
    with pytest.raises(openai.RateLimitError):
        await chat_model().ainvoke("busy")
    with pytest.raises(openai.BadRequestError, match="logit_bias is refused"):
        await chat_model(logit_bias={1: 1}).ainvoke("Hi")


# LiteLLM


def litellm_python() -> Path:
    """The interpreter that has LiteLLM."""
    if find_spec("litellm") is not None:
        return Path(sys.executable)
    own = ROOT / ".venv-litellm" / "bin" / "python"
    if not own.exists():
        pytest.skip(
            f"needs the package litellm in an environment of its own: python -m venv .venv-litellm && "
            f".venv-litellm/bin/pip install {LITELLM}"
        )
    return own


@pytest.mark.slow
async def test_litellm_works(running: Running) -> None:
    """Through its providers for OpenAI's and Anthropic's APIs, whole and streamed; errors by their class."""
    process = await asyncio.create_subprocess_exec(
        litellm_python(),
        Path(__file__).parent / "clients" / "litellm_client.py",
        running.url,
        "sk-client",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    assert b"SECRET" not in out
    said = {"content": RESPONSE, "finish": "stop"}
    calls = [["weather", {"city": "Rome"}]]
    assert msgspec.json.decode(out.splitlines()[-1]) == {
        "chat": said,
        "stream": said,
        "tools": calls,
        "anthropic": said,
        "anthropic stream": said,
        "anthropic tools": calls,
        "wrong key": ["AuthenticationError", 401],
        "wrong field": ["BadRequestError", 400],
        "busy": ["RateLimitError", 429],
    }


# Open WebUI

# It may tell who its users are.
FORWARDED = {
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "ada@example.org",
    "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "7",
}


async def test_open_webui_finds_the_model(running: Running) -> None:
    """It asks with the key of the connection when that is verified, and again whenever models are listed."""
    async with running.http.get(f"{running.url}/v1/models", headers=KEY | FORWARDED) as response:
        models = msgspec.json.decode(await response.read())["data"]
    assert [model["id"] for model in models] == ["thinker"]
    assert models[0]["owned_by"] != "ollama"  # else it would send Ollama's parameters
    async with running.http.get(f"{running.url}/v1/models") as response:
        assert response.status == 401 and "error" in msgspec.json.decode(await response.read())


async def test_open_webui_chats(running: Running, upstream: ScriptedUpstream) -> None:
    """A streamed chat, with the parameters that it can be told for a model."""
    body: JSON = {
        "model": "thinker",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "Here is my thought process:\nSECRET\nHere is my response:\nHo.",
            },
            {"role": "user", "content": "Hi"},
        ],
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.1,
        "seed": 0,
        "stop": ["###", "\n\n\n"],
        "max_tokens": 500,
        "reasoning_effort": "medium",
        "response_format": {"type": "text"},
    }
    events = await running.stream(body, **KEY, **FORWARDED)
    assert content(events) == RESPONSE and "SECRET" not in str(events)
    usage = [event["usage"] for event in events if isinstance(event, dict) and event.get("usage")]
    assert len(usage) == 1 and events[-1] == "data: [DONE]"
    asked = upstream.requests[0].body
    assert asked["temperature"] == 0.7 and asked["top_k"] == 40 and asked["seed"] == 0
    assert "stop" not in asked and "SECRET" not in str(asked["messages"])


@pytest.mark.parametrize("more", [{"max_completion_tokens": 1000}, {}])
async def test_open_webui_asks_for_titles_tags_and_follow_ups(running: Running, more: JSON) -> None:
    """Not streamed, the whole chat in one user message; what it gets must be the response alone."""
    task = "### Task:\nGenerate a concise title.\n### Chat History:\nUSER: Hi\nASSISTANT: Hello"
    messages = [{"role": "user", "content": task}]
    status, body = await running.post(
        {"model": "thinker", "messages": messages, "stream": False, **more}, **KEY, **FORWARDED
    )
    assert status == 200 and body["choices"][0]["message"]["content"] == RESPONSE
    assert "SECRET" not in str(body)


async def test_open_webui_runs_tools(running: Running, upstream: ScriptedUpstream) -> None:
    """Its native function calling: the calls of the stream come back with their index, and go to the engine."""
    body: JSON = {
        "model": "thinker",
        "messages": [{"role": "user", "content": "call"}],
        "tools": [WEATHER],
    }
    events = await running.stream(body, **KEY)
    deltas = [
        call
        for event in events
        if isinstance(event, dict)
        for choice in event["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    arguments = "".join(delta["function"].get("arguments", "") for delta in deltas)
    assert msgspec.json.decode(arguments) == {"city": "Rome"}
    call = {**deltas[0], "function": {"name": deltas[0]["function"]["name"], "arguments": arguments}}
    assert call["index"] == 0
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Sunny."}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    events = await running.stream({**body, "messages": [*body["messages"], said, result]}, **KEY)
    assert upstream.requests[-1].body["messages"][-1]["role"] == "tool"
    assert content(events) == RESPONSE


async def test_open_webui_is_told_what_is_not_served(running: Running) -> None:
    """It shows its user the message of the error."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    status, body = await running.post({"model": "thinker", "messages": messages}, **KEY)
    assert status == 400 and "image_url" in body["error"]["message"]
    status, body = await running.post(
        {"model": "thinker", "messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"5": 100}}, **KEY
    )
    assert status == 400 and body["error"]["message"].startswith("logit_bias is refused")


async def test_open_webui_shows_an_operator_the_thought(running: Running) -> None:
    """A connection with an operator's key and the header gets it where Open WebUI looks for it."""
    operator = {"Authorization": "Bearer sk-operator", "thinkserve-reveal": "1"}
    events = await running.stream(
        {"model": "thinker", "messages": [{"role": "user", "content": "Hi"}]}, **operator
    )
    thought = [
        choice["delta"].get("reasoning_content", "")
        for event in events
        if isinstance(event, dict)
        for choice in event["choices"]
    ]
    assert "".join(thought).strip() == "SECRET plan." and content(events) == RESPONSE
