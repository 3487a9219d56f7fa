"""Thought formats: how a model marks its thought, and how it is asked to think.

A format is data. Four are built in (`tpo-generic`, `tpo-specific`, `think-tags` in two forms, `granite`); a user's
own comes from a TOML or JSON file, and a checkpoint names its format in `thought_format.json` beside its weights.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from thinkserve.errors import ThoughtFormatError
from thinkserve.thoughts.markers import MarkerScanner, compile_scanner

CHECKPOINT_FILE = "thought_format.json"
PLACE = "{instruction}"
# A marker is compiled to an expression nested as deep as it is long, and as much text is held back for it.
MAX_MARKER = 100


@dataclass(frozen=True)
class ThoughtFormat:
    """How an output is divided into thought and response.

    A single marker may be given as a string; it is kept as a tuple of one. Which decorated variants of a marker count
    is written down in `thinkserve.thoughts.markers`.
    """

    name: str
    closing: tuple[str, ...]
    """Markers after which the response begins, at least one."""
    opening: tuple[str, ...] = ()
    """Markers after which the thought begins; none: the output begins inside the thought."""
    opening_in_prompt: bool = False
    """The chat template has written the opening marker already, so the output begins inside the thought."""
    prompt: str | None = None
    """The thought prompt, with one `{instruction}` in it; None: the model thinks without being asked."""
    thought_required: bool = True
    """Whether an output without a thought is broken; False: text before any marker is a response."""
    line_start: bool = False
    """Whether a marker counts only at the start of a line."""
    variants: bool = True
    """Whether decorated variants of a marker count, or only the marker as it is written."""
    direct: bool | None = None
    """Whether the model may be asked without the thought prompt (`reasoning_effort: "none"`).

    None: only where there is an opening marker, since elsewhere a model that thinks all the same could not be told
    apart while its output streams.
    """

    def __post_init__(self) -> None:
        for field in ("opening", "closing"):
            value = getattr(self, field)
            markers = () if value is None else (value,) if isinstance(value, str) else tuple(value)
            if not all(
                isinstance(marker, str) and 0 < len(marker.strip()) <= MAX_MARKER for marker in markers
            ):
                raise ThoughtFormatError(
                    f"thought format {self.name!r}: {field} has the marker {value!r}; give non-empty strings of at "
                    f"most {MAX_MARKER} characters"
                )
            object.__setattr__(self, field, markers)
        if not self.closing:
            raise ThoughtFormatError(f"thought format {self.name!r} has no closing marker; give at least one")
        if self.opening_in_prompt and not self.opening:
            raise ThoughtFormatError(
                f"thought format {self.name!r}: opening_in_prompt needs an opening marker; add one or drop it"
            )
        if not self.thought_required and not self.opening:
            raise ThoughtFormatError(
                f"thought format {self.name!r}: without an opening marker a thought must be required, "
                "or nothing would tell it from a response; set thought_required to true"
            )
        if self.prompt is not None and self.prompt.count(PLACE) != 1:
            raise ThoughtFormatError(
                f"thought format {self.name!r}: the prompt must hold {PLACE} once, "
                f"it holds it {self.prompt.count(PLACE)} times"
            )

    @property
    def starts_in_thought(self) -> bool:
        """Whether the first character of an output belongs to the thought, with no marker before it."""
        return not self.opening or self.opening_in_prompt

    @property
    def allows_direct(self) -> bool:
        """Whether the model may be asked for a response without a thought."""
        return bool(self.opening) and not self.opening_in_prompt if self.direct is None else self.direct

    def thought_prompt(self, instruction: str) -> str:
        """The user's instruction inside the thought prompt; the instruction itself where the format has none."""
        before, after = self.thought_prompt_halves()
        return before + instruction + after

    def thought_prompt_halves(self) -> tuple[str, str]:
        """What the thought prompt puts before and behind the instruction."""
        before, _, after = (self.prompt or PLACE).partition(PLACE)
        return before, after

    @cached_property
    def exact(self) -> ThoughtFormat:
        """The same format without tolerance for variants of its markers."""
        return replace(self, variants=False)

    # The scanners are compiled once a format and shared by all its splitters.
    @cached_property
    def scan_preamble(self) -> MarkerScanner | None:
        """Looks for where a thought begins, or, where the opening marker was left out, for where it ends."""
        return compile_scanner(self.opening, self.closing, line_start=self.line_start, variants=self.variants)

    @cached_property
    def scan_thought(self) -> MarkerScanner | None:
        """Looks for where the thought ends."""
        return compile_scanner((), self.closing, line_start=self.line_start, variants=self.variants)

    @cached_property
    def scan_response(self) -> MarkerScanner | None:
        """Looks for a thought that begins again inside the response."""
        return compile_scanner(self.opening, (), line_start=self.line_start, variants=self.variants)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> ThoughtFormat:
        """Build a format from parsed TOML or JSON; `base` names a built-in format to start from.

        Raises:
            ThoughtFormatError: a key is unknown or has the wrong type; the message names it and `source`.
        """
        values = dict(data)
        base = values.pop("base", None)
        known = {field.name for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise ThoughtFormatError(
                    f"{source}: unknown key {key!r}; known are base, {', '.join(sorted(known))}"
                )
            if not _fits(key, value):
                raise ThoughtFormatError(
                    f"{source}: {key} has the value {value!r}; it must be {_EXPECTS[key]}"
                )
        if base is not None:
            if not isinstance(base, str) or base not in BUILT_IN:
                raise ThoughtFormatError(
                    f"{source}: base {base!r} is not a built-in format; choose from {', '.join(BUILT_IN)}"
                )
            return replace(BUILT_IN[base], **values)
        if missing := [key for key in ("name", "closing") if key not in values]:
            raise ThoughtFormatError(
                f"{source}: {' and '.join(missing)} missing; give them, or a base to start from"
            )
        return cls(**values)


_EXPECTS = {
    "name": "a string",
    "opening": "a string or a list of strings",
    "closing": "a string or a list of strings",
    "opening_in_prompt": "true or false",
    "prompt": f"a string with {PLACE} in it",
    "thought_required": "true or false",
    "line_start": "true or false",
    "variants": "true or false",
    "direct": "true or false",
}


def _fits(key: str, value: object) -> bool:
    hint = str(get_type_hints(ThoughtFormat)[key])
    if "bool" in hint:
        return isinstance(value, bool)
    if "tuple" in hint:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    return isinstance(value, str)


# The prompts are those of Wu et al., arXiv 2410.10630: generic is "Thought Prompt" (Figure 2), specific is the
# published form with the marker <R>.
_GENERIC_PROMPT = (
    "Respond to the following user query in a comprehensive and detailed way. You can write down your thought process "
    'before responding. Write your thoughts after "Here is my thought process:" and write your response after '
    '"Here is my response:".\n\nUser query: {instruction}'
)
_SPECIFIC_PROMPT = (
    "Respond to the following user query in a comprehensive and detailed way. But first write down your internal "
    "thoughts. This must include your draft response and its evaluation. After this, write your final response after "
    '"<R>".\n\nUser query: {instruction}'
)
_TPO_OPENING, _TPO_CLOSING = ("Here is my thought process:",), ("Here is my response:",)

BUILT_IN: Mapping[str, ThoughtFormat] = {
    format.name: format
    for format in (
        ThoughtFormat("tpo-generic", _TPO_CLOSING, _TPO_OPENING, prompt=_GENERIC_PROMPT, line_start=True),
        ThoughtFormat("tpo-specific", closing=("<R>",), prompt=_SPECIFIC_PROMPT),
        ThoughtFormat("think-tags", opening=("<think>",), closing=("</think>",)),
        ThoughtFormat(
            "think-tags-in-prompt", opening=("<think>",), closing=("</think>",), opening_in_prompt=True
        ),
        # Granite's chat template writes the request to think itself, so the format has no prompt of its own.
        ThoughtFormat("granite", _TPO_CLOSING, _TPO_OPENING, line_start=True),
    )
}


def get_format(name_or_path: str | Path | ThoughtFormat) -> ThoughtFormat:
    """Find a format by its built-in name, by a TOML or JSON file, or by the checkpoint folder that names it.

    Raises:
        ThoughtFormatError: there is no such format, or its definition is malformed.
    """
    if isinstance(name_or_path, ThoughtFormat):
        return name_or_path
    if (known := BUILT_IN.get(str(name_or_path))) is not None:
        return known
    path = Path(name_or_path)
    try:
        if path.is_dir():
            path = path / CHECKPOINT_FILE
            if not path.exists():
                raise ThoughtFormatError(
                    f"{path.parent} has no {CHECKPOINT_FILE}; name the format with --thought-format, one of "
                    f"{', '.join(BUILT_IN)} or a file"
                )
        if not path.is_file():
            raise ThoughtFormatError(
                f"no thought format {str(name_or_path)!r}; choose from {', '.join(BUILT_IN)}, or give a .toml or "
                ".json file"
            )
        raw = path.read_text(encoding="utf-8")
        data = tomllib.loads(raw) if path.suffix == ".toml" else json.loads(raw)
    except (ValueError, OSError, RecursionError) as exc:
        raise ThoughtFormatError(f"cannot read the thought format {path}: {exc}") from exc
    # "format": NAME is the short form for a checkpoint whose format is a built-in one.
    if isinstance(data, str):
        data = {"base": data}
    if not isinstance(data, dict):
        raise ThoughtFormatError(f"{path}: a thought format is a table of keys, not {type(data).__name__}")
    if "format" in data and "base" not in data:
        data["base"] = data.pop("format")
    return ThoughtFormat.from_dict(data, str(path))
