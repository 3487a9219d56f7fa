"""Whether what a server gave as its response has a thought in it: looked for wherever nobody told how thoughts are marked.

A server that was said to hide thoughts, and does not, would have them judged. So one sighting ends the run. What counts
is what a response hardly ever says by itself: a thought's opening at the very start, or the end of a thought with
something before it. Inside quotes and backticks a marker is a mention, as everywhere in thinkserve.
"""

from __future__ import annotations

import re

from thinkserve.thoughts import BUILT_IN, State, ThoughtFormat, ThoughtSplitter

# How models known to the field mark thoughts beside the built-in formats; looked for as they are written.
_TAGS = (
    ThoughtFormat("tags", opening=("<think>",), closing=("</think>",), thought_required=False),
    ThoughtFormat("tags", opening=("<thinking>",), closing=("</thinking>",), thought_required=False),
    ThoughtFormat("tags", opening=("<thought>",), closing=("</thought>",), thought_required=False),
    ThoughtFormat("tags", opening=("[THINK]",), closing=("[/THINK]",), thought_required=False),
    ThoughtFormat("tags", opening=("◁think▷",), closing=("◁/think▷",), thought_required=False),
    ThoughtFormat(
        "tags",
        opening=("<|begin_of_thought|>", "<|channel|>analysis"),
        closing=("<|end_of_thought|>", "<|channel|>final"),
        thought_required=False,
    ),
)
# "Here is my response:" alone is how many letters begin, so of formats that are phrases the opening counts alone.
_PHRASES = tuple(
    {marker for format in BUILT_IN.values() for marker in format.opening if not marker.startswith("<")}
)
_PHRASE_FORMAT = ThoughtFormat(
    "phrases", opening=_PHRASES, closing=("</think>",), line_start=True, thought_required=False
)
# `<R>` ends the thoughts of tpo-specific, and is a type's parameter in code: `Stream<R>`, or within a code block.
_TPO_SPECIFIC = re.compile(r"(?<![\w`\"'])<R>(?![`\"'(])")
_CODE = re.compile(r"^ *```.*?^ *```[ \t]*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def visible_marker(content: str) -> str | None:
    """The marker of a thought that can be seen in a response, or None."""
    for format in (*_TAGS, _PHRASE_FORMAT):
        splitter = ThoughtSplitter(format)
        splitter.feed(content)
        splitter.flush()
        if splitter.state is not State.DIRECT:
            return _first_of(format, content)
    return "<R>" if _TPO_SPECIFIC.search(_CODE.sub("", content)) else None


def _first_of(format: ThoughtFormat, content: str) -> str:
    """Which marker it was; in a decorated form it is named as the format writes it."""
    low = content.lower()
    places = [(low.find(marker.lower()), marker) for marker in (*format.opening, *format.closing)]
    found = [(place, marker) for place, marker in places if place >= 0]
    return min(found)[1] if found else format.opening[0]
