"""Tool call formats: how a model writes a call of a tool in its response.

A format is data. Two are built in (`hermes`, `llama3-json`); a user's own comes from a TOML or JSON file:

    begin = "<tool_call>"         # stands before a call; "" (the default): the response is one call and nothing else
    end = "</tool_call>"          # stands behind it; "" (the default): the call ends with its JSON
    name_key = "name"             # the keys of its JSON object; these are the defaults
    arguments_key = "arguments"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from thinkserve.errors import UsageError

MAX_MARKER = 100


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a call is written: `begin`, `{"<name_key>": NAME, "<arguments_key>": {...}}`, `end`.

    The white space of `begin` and `end` is what models are trained to write; when a call is read, other white space
    counts too.
    """

    name: str
    begin: str = ""
    """The marker before a call; "": a call begins with the response."""
    end: str = ""
    """The marker behind a call; "": it ends with its JSON object."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    optional_begin: str = ""
    """May stand before `begin`, and says nothing."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or len(value) > MAX_MARKER:
                raise UsageError(
                    f"tool format {self.name!r}: {field.name} is {value!r}; give a string of at most {MAX_MARKER} "
                    "characters"
                )
        for key in ("begin", "end", "optional_begin"):
            if (value := getattr(self, key)) and not value.strip():
                raise UsageError(
                    f'tool format {self.name!r}: {key} is only white space; give a marker, or ""'
                )
        if self.end and not self.begin:
            raise UsageError(f"tool format {self.name!r} has an end and no begin; give both, or drop the end")
        if not self.name_key or not self.arguments_key or self.name_key == self.arguments_key:
            raise UsageError(
                f"tool format {self.name!r}: name_key and arguments_key must be two different keys, not "
                f"{self.name_key!r} and {self.arguments_key!r}"
            )

    def head(self, tool: str) -> str:
        """A call up to its arguments, as the model is trained to write it."""
        name, name_key, arguments_key = map(json.dumps, (tool, self.name_key, self.arguments_key))
        return f"{self.begin}{{{name_key}: {name}, {arguments_key}: "

    def call(self, tool: str, arguments: str) -> str:
        """A whole call; `arguments` is JSON text."""
        return f"{self.head(tool)}{arguments}}}{self.end}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str) -> ToolFormat:
        """Build a format from parsed TOML or JSON; `name` is what errors call it.

        Raises:
            UsageError: a key is unknown, or a value is wrong.
        """
        known = [field.name for field in fields(cls) if field.name != "name"]
        for key in data:
            if key not in known:
                raise UsageError(f"tool format {name!r}: unknown key {key!r}; known are {', '.join(known)}")
        return cls(name, **data)


HERMES = ToolFormat("hermes", "<tool_call>\n", "\n</tool_call>")
LLAMA3_JSON = ToolFormat("llama3-json", arguments_key="parameters", optional_begin="<|python_tag|>")

BUILT_IN: Mapping[str, ToolFormat] = {format.name: format for format in (HERMES, LLAMA3_JSON)}


def get_tool_format(name_or_path: str | Path) -> ToolFormat:
    """Find a tool call format by its built-in name, or in a TOML or JSON file.

    Raises:
        UsageError: there is no such format, or its definition is malformed.
    """
    if (known := BUILT_IN.get(str(name_or_path))) is not None:
        return known
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f"no tool format {str(name_or_path)!r}; choose from {', '.join(BUILT_IN)}, or give a .toml or .json file"
        )
    try:
        raw = path.read_text(encoding="utf-8")
        data = tomllib.loads(raw) if path.suffix == ".toml" else json.loads(raw)
    except (ValueError, OSError, RecursionError) as exc:
        raise UsageError(f"cannot read the tool format {path}: {exc}") from exc
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a tool format is a table of keys, not {type(data).__name__}")
    return ToolFormat.from_dict(data, str(path))
