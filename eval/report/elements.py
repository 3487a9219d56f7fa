"""HTML by functions: every string that is not `Html` is escaped, so a hostile response stays text.

What goes into a page passes through `tag`; nothing else in the report joins strings to markup.
"""

from __future__ import annotations

import re
from html import escape
from typing import TypeAlias

# Control characters but tab and line ends, and the embeddings and overrides of bidirectional text.
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
VOID = frozenset({"meta", "br", "input", "hr"})


class Html(str):
    """Markup: text that is escaped already."""

    __slots__ = ()


Child: TypeAlias = "str | int | None | list[Html]"
Attribute: TypeAlias = "str | int | float | bool | None"


def text(value: object) -> Html:
    """Anything as text.

    Characters that show nothing, or turn the text around them, are spelled out (`<U+202E>`): a response could hide behind
    them from whoever reads it. What no HTML file can hold (lone surrogates) becomes U+FFFD.
    """
    plain = str(value).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return Html(escape(UNSEEN.sub(lambda found: f"<U+{ord(found.group()):04X}>", plain)))


def tag(element: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        element: its name.
        children: `Html` as it is, other strings escaped, None left out, lists one by one.
        attributes: `data_kind` is written `data-kind`, `class_` `class`; True has no value; None and False are left out.
    """
    opening = element + "".join(_attribute(key, value) for key, value in attributes.items())
    if element in VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(*children)}</{element}>")


def join(*children: Child) -> Html:
    """Children after each other, as `tag` takes them."""
    return Html("".join(_child(child) for child in children))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, list):
        return "".join(child)
    return child if isinstance(child, Html) else text(child)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(value)}"'


def scrolling(label: str, *children: Child, class_: str = "scroll") -> Html:
    """A box that scrolls by itself, also by keyboard, so that the page never does sideways."""
    return tag("div", *children, class_=class_, tabindex="0", role="region", aria_label=label)


def folded(summary: Child, *children: Child, opened: bool = False, class_: str | None = None) -> Html:
    """Content that is opened on demand; works without scripts."""
    return tag("details", tag("summary", summary), *children, open=opened, class_=class_)


def tabs(label: str, panels: list[tuple[str, Html]]) -> Html:
    """Panels of which one is shown. Without scripts, and in print, all of them are, each under its title."""
    if len(panels) == 1:
        return panels[0][1]
    shown = [
        tag("section", tag("h4", title), panel, class_="panel", data_title=title) for title, panel in panels
    ]
    return tag("div", shown, class_="tabs", data_label=label)
