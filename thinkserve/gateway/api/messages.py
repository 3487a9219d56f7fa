"""`POST /v1/messages`: Anthropic's Messages API.

`max_tokens` bounds thought and response together, as at Anthropic. Thoughts are hidden from clients: an answer has no
thinking blocks, and those that clients send back are dropped. Operators who ask see the thought as a thinking block.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from thinkserve.gateway.api.messages_events import MessagesWriter, error_body
from thinkserve.gateway.api.messages_fields import FIELDS, Chosen, OutputConfig, Thinking
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.endpoint import Head
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.fields import read_fields
from thinkserve.gateway.request import Names, Request
from thinkserve.gateway.tools import Tool, ToolName, Tools
from thinkserve.gateway.wire import encode

NAMES = Names(effort="output_config.effort", thought_tokens="thinking.budget_tokens")


class Messages:
    """The endpoint; keeps the `Endpoint` protocol."""

    path = "/v1/messages"
    fields = FIELDS
    required: tuple[str, ...] = ("messages", "max_tokens")

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config

    def new_id(self) -> str:
        return f"msg_{secrets.token_hex(12)}"

    def read(self, data: Mapping[str, Any]) -> Request:
        values = read_fields(data, FIELDS, self._config.allow_fields)
        given = values.rewritten
        for name in self.required:
            if name not in given:
                raise invalid(name, f"{name} is required")
        thinking: Thinking = given.get("thinking", Thinking())
        if thinking.budget is not None and thinking.budget >= given["max_tokens"]:
            raise invalid(
                "max_tokens",
                f"max_tokens must be greater than thinking.budget_tokens ({thinking.budget}): it bounds thought and "
                "response together",
            )
        effort, constraint = given.get("output_config", OutputConfig())
        if thinking.disabled:
            # Many clients send this whatever they talk to. A format in which a model that thinks all the same could not
            # be told apart hides a thought, and the next best to none is a short one.
            effort = "none" if self._config.format.allows_direct else "minimal"
        system = given.get("system")
        before = [{"role": "system", "content": system}] if system else []
        return Request(
            conversations=([*before, *given["messages"]],),
            model=given.get("model"),
            stream=given.get("stream", False),
            include_usage=True,
            stops=given.get("stop_sequences", ()),
            max_completion_tokens=given["max_tokens"],
            effort=effort,
            thought_tokens=thinking.budget,
            constraint=constraint,
            tools=self._tools(given.get("tools", ()), given.get("tool_choice")),
            sampling=values.passed,
            extra=values.allowed,
            names=NAMES,
        )

    def _tools(self, tools: tuple[Tool, ...], choice: Chosen | None) -> Tools | None:
        asked, parallel = Chosen() if choice is None else choice
        if not tools:
            if asked not in ("auto", "none"):
                raise invalid("tool_choice", "tool_choice asks for a tool, and there are no tools")
            return None
        if isinstance(asked, ToolName) and all(tool.name != asked for tool in tools):
            raise invalid(
                "tool_choice.name", f"tool_choice.name is {shown(str(asked))}, which is none of the tools"
            )
        return Tools(tools, asked, parallel, self._config.tool_format)

    def writer(self, head: Head) -> MessagesWriter:
        return MessagesWriter(head)

    def error(self, error: ApiError) -> bytes:
        return encode(error_body(error))
