"""What LiteLLM makes of a gateway: python litellm_client.py URL KEY. Prints one JSON object, a result a name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its own list of prices, not one from the network

import litellm
import openai

URL, KEY = sys.argv[1:]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def ask(content: str, **more: Any) -> dict[str, Any]:
    """A request through LiteLLM's provider for OpenAI's API."""
    messages = [{"role": "user", "content": content}]
    request = {"model": "openai/thinker", "messages": messages, "num_retries": 0, "max_retries": 0}
    return {**request, "api_base": f"{URL}/v1", "api_key": KEY, **more}


def anthropic(content: str, **more: Any) -> dict[str, Any]:
    """The same through its provider for Anthropic's API."""
    return ask(content, model="anthropic/thinker", api_base=URL, max_tokens=2000, **more)


def told(answer: Any) -> dict[str, Any]:
    """What a whole answer says."""
    [choice] = answer.choices
    return {"content": choice.message.content, "finish": choice.finish_reason}


def read(stream: Any) -> dict[str, Any]:
    """What a stream says."""
    content, finish = "", None
    for chunk in stream:
        content += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    return {"content": content, "finish": finish}


def calls(answer: Any) -> list[Any]:
    """The calls of an answer: name and arguments."""
    found = answer.choices[0].message.tool_calls
    return [[call.function.name, json.loads(call.function.arguments)] for call in found]


def failure(**request: Any) -> list[Any]:
    """The error of a request that fails."""
    try:
        litellm.completion(**request)
    except openai.APIError as exc:
        return [type(exc).__name__, getattr(exc, "status_code", None)]
    return []


SCENARIOS: dict[str, Callable[[], Any]] = {
    "chat": lambda: told(litellm.completion(**ask("Hi"))),
    "stream": lambda: read(litellm.completion(**ask("Hi", stream=True))),
    "tools": lambda: calls(litellm.completion(**ask("call", tools=[WEATHER]))),
    "anthropic": lambda: told(litellm.completion(**anthropic("Hi"))),
    "anthropic stream": lambda: read(litellm.completion(**anthropic("Hi", stream=True))),
    "anthropic tools": lambda: calls(litellm.completion(**anthropic("call", tools=[WEATHER]))),
    "wrong key": lambda: failure(**ask("Hi", api_key="sk-no")),
    "wrong field": lambda: failure(**ask("Hi", extra_body={"allowed_token_ids": [1]})),
    "busy": lambda: failure(**ask("busy")),
}

if __name__ == "__main__":
    print(json.dumps({name: run() for name, run in SCENARIOS.items()}))
