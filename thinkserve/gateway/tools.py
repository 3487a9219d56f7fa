"""Tools: what a client lets the model call, how the model is told of them, and past calls as the model wrote them.

`tool_formats.py` says how calls are written, `tool_calls.py` reads them out of a response, and `constraints.py` makes
the engine write them so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinkserve.gateway.errors import invalid
from thinkserve.gateway.tool_calls import CallDelta, CallParser, Part
from thinkserve.gateway.tool_formats import HERMES, LLAMA3_JSON, ToolFormat, get_tool_format

__all__ = [
    "HERMES",
    "LLAMA3_JSON",
    "CallDelta",
    "CallParser",
    "Part",
    "Tool",
    "ToolFormat",
    "ToolName",
    "Tools",
    "get_tool_format",
    "past_calls",
    "past_result",
    "tool_prompt",
]


class ToolName(str):
    """The name of the one tool that must be called; a type of its own, since a tool may be called `auto`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """The JSON schema of its arguments; None: any object."""
    strict: bool = False
    """Whether the client insists on its schema. An engine that binds calls holds to it either way."""

    def as_json(self) -> dict[str, Any]:
        """The tool as chat templates read it: OpenAI's form."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request."""

    tools: tuple[Tool, ...]
    choice: str = "auto"
    """`auto`, `required`, `none`, or the `ToolName` of the one that must be called."""
    parallel: bool = True
    """Whether one response may hold several calls."""
    format: ToolFormat = HERMES

    @property
    def bind(self) -> bool:
        """Whether the response must be calls, of any tool or of the one that is named: only a grammar makes sure."""
        return isinstance(self.choice, ToolName) or self.choice == "required"

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        if isinstance(self.choice, ToolName):
            return tuple(tool for tool in self.tools if tool.name == self.choice)
        return () if self.choice == "none" else self.tools

    @property
    def allowed(self) -> tuple[str, ...]:
        """The names of the tools that may be called."""
        return tuple(tool.name for tool in self.callable)


def tool_prompt(tools: Tools) -> str:
    """A system text that tells the model its tools, for chat templates that do not; "" where none may be called."""
    if not tools.callable:
        return ""
    lines = "\n".join(json.dumps(tool.as_json(), ensure_ascii=False) for tool in tools.callable)
    example = tools.format.call("NAME", "ARGUMENTS").replace('"NAME"', "<function-name>")
    text = (
        "You may call functions to assist with the user query. You are provided with function signatures within "
        f"<tools></tools> XML tags:\n<tools>\n{lines}\n</tools>\n\n"
        "To call a function, write a JSON object with its name and its arguments in your response, in this form:\n"
        f"{example.replace('ARGUMENTS', '<args-json-object>')}"
    )
    if not tools.format.begin:
        text += "\nA response that calls a function holds nothing else."
    if isinstance(tools.choice, ToolName):
        text += f"\nYou must call the function {tools.choice}."
    elif tools.bind:
        text += "\nYou must call a function."
    if not tools.parallel and not isinstance(tools.choice, ToolName):
        text += "\nCall at most one function."
    return text


def past_calls(
    message: Mapping[str, Any], format: ToolFormat | None = None, *, field: str = "messages"
) -> str:
    """The calls of a past assistant message as the model wrote them, for chat templates that know no tools.

    Args:
        message: in OpenAI's form, with `tool_calls`.
        format: how calls are written; None: hermes.
        field: what the endpoint calls its messages.

    Raises:
        ApiError: 400, a call has arguments that are no JSON object.
    """
    format = format or HERMES
    calls = []
    for call in message.get("tool_calls") or ():
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        try:
            whole = isinstance(json.loads(arguments), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            raise invalid(
                field,
                f"{field} holds the call {call.get('id')!r}, whose arguments must be a JSON object as text",
            )
        calls.append(format.call(name, arguments.strip()))
    return "\n".join(calls)


def past_result(message: Mapping[str, Any], format: ToolFormat | None = None) -> str:
    """The result of a past call, as text for a user's turn, for chat templates that know no tools.

    Args:
        message: of the role `tool`; its content is text, or parts of text.
        format: how calls are written; None: hermes.
    """
    format = format or HERMES
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", "") for part in content)
    if not format.begin:  # such models read results in a turn of their own, without markers
        return f"The function returned:\n{content}"
    return f"<tool_response>\n{content}\n</tool_response>"
