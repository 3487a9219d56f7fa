"""The style of a response: its length and its markdown, counted as Arena-Hard does.

Source: lmarena/arena-hard-auto@196f6b8 `utils/add_markdown_info.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from thinkserve.eval.answer import Style
from thinkserve.eval.arena.tokens import CountTokens
from thinkserve.thoughts import Response

_CODE = re.compile("```([^`]*)```")
_HEADERS = tuple(re.compile(rf"^#{{{level}}}\s", re.MULTILINE) for level in range(1, 7))
_LISTS = (re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE))
_BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))
COUNTS = {
    "header_count": {f"h{level}": pattern for level, pattern in enumerate(_HEADERS, 1)},
    "list_count": dict(zip(("ordered", "unordered"), _LISTS, strict=True)),
    "bold_count": dict(zip(("**", "__"), _BOLD, strict=True)),
}


def metadata_of(response: Response, count_tokens: CountTokens) -> dict[str, Any]:
    """The `metadata` of an answer file (v0.1: `conv_metadata`)."""
    prose = _without_code(response)
    counts = {
        name: {kind: len(pattern.findall(prose)) for kind, pattern in patterns.items()}
        for name, patterns in COUNTS.items()
    }
    return {"token_len": count_tokens(response), **counts}


def style_of(response: Response, count_tokens: CountTokens) -> Style:
    """The style of a response."""
    return style_from(metadata_of(response, count_tokens))


def style_from(metadata: Any) -> Style:
    """The style in an answer file's metadata.

    Raises:
        TypeError, ValueError: a count is missing or is none; says which.
    """
    if not isinstance(metadata, Mapping):
        raise TypeError("it is no object")
    return Style(
        token_len=_count(metadata.get("token_len"), "token_len"),
        headers=_total(metadata, "header_count"),
        lists=_total(metadata, "list_count"),
        bold=_total(metadata, "bold_count"),
    )


def _total(metadata: Mapping[str, Any], name: str) -> int:
    counts = metadata.get(name)
    if not isinstance(counts, Mapping):
        raise TypeError(f"{name} must be an object")
    return sum(_count(count, f"{name}.{kind}") for kind, count in counts.items())


def _count(value: Any, name: str) -> int:
    # Some forks have token counts as floats. Where style is compared, no number may be beyond a float's precision.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**53:
        raise ValueError(f"{name} must be a count")
    return int(value)


def _without_code(text: str) -> str:
    # As the original does it: what a fence encloses goes wherever else it occurs, and the fence itself stays.
    for block in _CODE.findall(text):
        text = text.replace(block, "")
    return text
