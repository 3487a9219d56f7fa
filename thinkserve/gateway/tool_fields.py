"""The fields by which a client offers tools, in OpenAI's form; other endpoints bring theirs into it."""

from __future__ import annotations

import re
from typing import Any

from thinkserve.gateway.errors import invalid, shown
from thinkserve.gateway.fields import Check
from thinkserve.gateway.tools import Tool, ToolFormat, ToolName, Tools

MOST_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def _read_choice(name: str, value: Any) -> str | ToolName:
    if value in ("none", "auto", "required"):
        return str(value)
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(
            name,
            f'{name} must be none, auto, required or {{"type": "function", "function": {{"name": ...}}}}, '
            f"not {shown(value)}",
        )
    return ToolName(function["name"])


tool_choice = Check(
    {
        "anyOf": [
            {"enum": ["none", "auto", "required"]},
            {
                "type": "object",
                "properties": {
                    "type": {"const": "function"},
                    "function": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}},
                        "required": ["name"],
                    },
                },
                "required": ["type", "function"],
            },
        ]
    },
    _read_choice,
)
"""none, auto, required, or one function by its name."""


def read_tools(
    tools: list[Any] | None, choice: str | ToolName | None, *, parallel: bool, format: ToolFormat
) -> Tools | None:
    """The tools of a request; None where there are none.

    Args:
        tools: the field of that name: `{"type": "function", "function": {name, description, parameters}}` each.
        choice: `tool_choice`, as its check reads it.
        parallel: whether one answer may hold several calls.
        format: how this model writes its calls.

    Raises:
        ApiError: 400, a tool is malformed, or the choice names none of them.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", f"tool_choice {shown(choice)} needs tools, and there are none")
        return None
    if len(tools) > MOST_TOOLS:
        raise invalid("tools", f"tools holds {len(tools)} tools, {MOST_TOOLS} are taken")
    read = tuple(_read_tool(f"tools[{at}]", tool) for at, tool in enumerate(tools))
    names = {tool.name for tool in read}
    if len(names) < len(read):
        raise invalid("tools", "tools holds two tools of one name; give each its own")
    if isinstance(choice, ToolName) and choice not in names:
        raise invalid("tool_choice", f"tool_choice names {shown(str(choice))}, which is none of the tools")
    return Tools(read, "auto" if choice is None else choice, parallel, format)


def _read_tool(where: str, tool: Any) -> Tool:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise invalid(
            where, f'{where} must be {{"type": "function", "function": {{...}}}}; no other tools are served'
        )
    name, description = function.get("name"), function.get("description")
    parameters = function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(
            f"{where}.function.name",
            f"{where}.function.name must be 1 to 64 letters, digits, dots, underscores and dashes, not {shown(name)}",
        )
    if description is not None and not isinstance(description, str):
        raise invalid(f"{where}.function.description", f"{where}.function.description must be a string")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(f"{where}.function.parameters", f"{where}.function.parameters must be a JSON schema")
    return Tool(name, description or "", parameters, function.get("strict") is True)
