"""`POST /v1/responses`: OpenAI's Responses API, without its store.

A response is not kept, so its id is good for nothing but telling its items: clients send the whole conversation again.
A thought can go with it, sealed (`include: ["reasoning.encrypted_content"]`). An absent `store`, which is true at OpenAI,
is false here.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from thinkserve.gateway.api.completion import only_constraint
from thinkserve.gateway.api.responses_events import ResponsesWriter
from thinkserve.gateway.api.responses_fields import FIELDS, LOGPROBS, SEALED
from thinkserve.gateway.api.responses_input import ResponsesRequest, read_input
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.endpoint import Head
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import read_fields
from thinkserve.gateway.request import Names
from thinkserve.gateway.tool_fields import read_tools
from thinkserve.gateway.tools import Tools

NAMES = Names(messages="input", effort="reasoning.effort", logprobs="include")
# What an answer says back of a tool.
_TOOL_KEYS = ("type", "name", "description", "parameters")


class Responses:
    """The endpoint; keeps the `Endpoint` protocol."""

    path = "/v1/responses"
    fields = FIELDS
    required: tuple[str, ...] = ("input",)

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config

    def new_id(self) -> str:
        return f"resp_{secrets.token_hex(12)}"

    def read(self, data: Mapping[str, Any]) -> ResponsesRequest:
        config = self._config
        values = read_fields(data, FIELDS, config.allow_fields)
        given, sampling = values.rewritten, values.passed
        effort = given.get("reasoning")
        conversation = read_input(given.get("input"), given.get("instructions"), config.max_messages)
        included = given.get("include", frozenset())
        tools = self._tools(given)
        logprobs = LOGPROBS in included
        if given.get("top_logprobs") and not logprobs:
            raise invalid("top_logprobs", f'top_logprobs needs include: ["{LOGPROBS}"]')
        return ResponsesRequest(
            conversations=(conversation.messages,),
            sealed=conversation.sealed,
            model=given.get("model"),
            stream=given.get("stream", False),
            include_usage=True,
            stops=given.get("stop", ()),
            max_completion_tokens=given.get("max_output_tokens"),
            effort=effort,
            thought_tokens=given.get("thinking_token_budget"),
            logprobs=logprobs,
            top_logprobs=given.get("top_logprobs", 0),
            constraint=only_constraint(given, "text.format", given.get("text")),
            tools=tools,
            seal=SEALED in included,
            told=_told(data, effort),
            seed=sampling.pop("seed", None),
            sampling=sampling,
            extra=values.allowed,
            names=NAMES,
        )

    def _tools(self, given: Mapping[str, Any]) -> Tools | None:
        """The tools, which have the form of chat completions less a level."""
        nested = []
        for at, tool in enumerate(given.get("tools", ())):
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind != "function":
                raise invalid(
                    f"tools[{at}].type",
                    f"tools[{at}].type must be function, not {shown(kind)}: no other tool is served",
                )
            nested.append({"type": "function", "function": tool})
        try:
            return read_tools(
                nested,
                given.get("tool_choice"),
                parallel=given.get("parallel_tool_calls", True),
                format=self._config.tool_format,
            )
        except ApiError as error:
            param = (error.param or "tools").replace(".function", "")
            raise invalid(param, error.message.replace(error.param or "tools", param)) from None

    def writer(self, head: Head) -> ResponsesWriter:
        return ResponsesWriter(head)

    def error(self, error: ApiError) -> bytes:
        return error.body()


def _told(data: Mapping[str, Any], effort: str | None) -> dict[str, Any]:
    """What an answer says back of a request that was read; null where the engine or the model has the say."""
    given = {name: value for name, value in data.items() if value is not None}
    described = given.get("text", {})
    return {
        "background": False,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": given.get("temperature"),
        "text": {"format": described.get("format") or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [
            {key: tool.get(key) for key in _TOOL_KEYS} | {"strict": tool.get("strict") is True}
            for tool in given.get("tools", ())
        ],
        "top_logprobs": given.get("top_logprobs", 0),
        "top_p": given.get("top_p"),
        "truncation": "disabled",
        "user": given.get("user"),
    }
