"""Markers as regular expressions: which variants of a marker count, and what may still become one.

Instruct models decorate markers. For a marker such as `Here is my response:` these variants count too:

| variant | example |
|---|---|
| other case | `here is MY Response:` |
| emphasis or heading round it | `**Here is my response:**`, `__Here is my response__:`, `## Here is my response:`, `> ...` |
| several spaces, tabs or no-break spaces | `Here  is my response:` |
| space before the colon, full-width colon | `Here is my response :`, `Here is my response：` |
| no colon, where the line ends there | `Here is my response` + newline |
| the contraction | `Here's my response:`, with either apostrophe |

A tag such as `<R>` or `</think>` counts in either case, with emphasis round it, and nothing else: `< R >` and `<R/>`
are text (`a < R > b` is algebra). A missing colon counts only before a line end, since `Here is my response to that`
is a sentence.

Each marker becomes two expressions: `full` matches it, `partial` matches any prefix of it that reaches the end of the
text, which is exactly the text that must be held back. Every quantifier is bounded, so a marker has a longest form,
and what is held back never grows with the output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SPACE = "[ \t\u00a0]"
# What may stand before a marker on its line: indentation, heading or quotation signs, emphasis.
LINE_LEAD = (f"{SPACE}{{0,8}}", "[#>]{0,6}", f"{SPACE}{{0,4}}", "[*_]{0,3}")
# A trailing colon: emphasis closed before it, spaces, then a colon or the end of the line.
COLON_TAIL = ("[*_]{0,3}", f"{SPACE}{{0,4}}", "\r?", "[:\uff1a\n]")
EMPHASIS = "*_"

QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
# A quote sign right after one of these closes a quotation, it does not open one: `"yes."<R>"no"`.
CLOSES_BEFORE = frozenset(".!?)]}%")


def _atoms(spelling: str) -> list[str]:
    """Turn one spelling into atoms, each an expression that matches single characters of a class."""
    body = spelling.strip()
    tail: tuple[str, ...] = ()
    if body.endswith(":") and len(body) > 1:
        body, tail = body[:-1].rstrip(), COLON_TAIL
    atoms: list[str] = []
    for token in re.findall(r"\s+|.", body, flags=re.DOTALL):
        if token.isspace():
            atoms.append(f"{SPACE}{{1,4}}")
        elif token in "'\u2019":
            atoms.append("['\u2019]")
        else:
            atoms.append(re.escape(token))
    return [*atoms, *tail]


def _spellings(marker: str) -> list[str]:
    """The marker itself and its contraction."""
    contracted = re.sub(r"^(here) is\b", r"\1's", marker, flags=re.IGNORECASE)
    return [marker] if contracted == marker else [marker, contracted]


def _variants(markers: tuple[str, ...]) -> list[list[str]]:
    seen: dict[tuple[str, ...], None] = {}
    for marker in markers:
        for spelling in _spellings(marker):
            seen.setdefault(tuple(_atoms(spelling)))
    # Shortest first: where one marker begins another, the shorter one is complete first in a stream, so it must also
    # win where the whole text is there at once.
    return sorted((list(atoms) for atoms in seen), key=len)


def _prefix(atoms: list[str]) -> str:
    """An expression for every beginning of `atoms` that ends where the text ends (at least one atom entered)."""
    expression = atoms[-1]
    for atom in reversed(atoms[:-1]):
        expression = f"{atom}(?:{expression}|\\Z)"
    return expression


@dataclass(frozen=True, slots=True)
class MarkerScanner:
    """Finds the first place in a text where one of some markers stands, or may yet stand.

    `trigger` is a character without which no marker can begin in a text whose line has begun already; "" if there is
    no such single character.
    """

    search: re.Pattern[str]
    search_final: re.Pattern[str]
    line_start: bool
    trigger: str


def compile_scanner(
    opening: tuple[str, ...], closing: tuple[str, ...], *, line_start: bool
) -> MarkerScanner | None:
    """Compile a scanner for some opening and closing markers; None where there is nothing to look for.

    The groups of a match are `opening`, `closing`, or `partial`: the text from there on may still become a marker.
    """
    if not opening and not closing:
        return None
    lead = list(LINE_LEAD) if line_start else []
    anchor = "^" if line_start else ""
    full, partial = [], []
    for group, markers in (("opening", opening), ("closing", closing)):
        variants = _variants(markers)
        if variants:
            words = "|".join("".join(atoms) for atoms in variants)
            full.append(f"{anchor}{''.join(lead)}(?P<{group}>{words})")
            partial += [anchor + _prefix(lead + atoms) for atoms in variants]
    flags = re.IGNORECASE | re.MULTILINE
    first = {marker.strip()[:1] for marker in (*opening, *closing)}
    single = first.pop() if len(first) == 1 else ""
    return MarkerScanner(
        search=re.compile("|".join([*full, f"(?P<partial>{'|'.join(partial)})"]), flags),
        search_final=re.compile("|".join([*full, "(?P<partial>(?!))"]), flags),
        line_start=line_start,
        trigger="\n" if line_start else single if single and not single.isalpha() else "",
    )


def opens_quotation(text: str, at: int) -> str | None:
    """The sign that would close the quotation opened at `text[at - 1]`, or None where none is opened there.

    A sign glued to the word before it is a closing quote: in `"yes"<R>"no"` the marker is not quoted.
    """
    closing = QUOTES.get(text[at - 1]) if at else None
    if closing is None:
        return None
    before = text[at - 2] if at > 1 else "\n"
    glued = before in CLOSES_BEFORE or (before.isascii() and before.isalnum())
    return None if glued else closing


def emphasis_open_after(text: str, end: int, words: int) -> str:
    """The emphasis run that a marker leaves open behind itself: `**` in `**Here is my response:`.

    `words` is where the marker's words begin, `end` where the marker ends.
    """
    begin = words
    while begin > max(0, words - 3) and text[begin - 1] in EMPHASIS:
        begin -= 1
    closed_inside = text[words:end].rstrip(":\uff1a\r\n \t\u00a0")[-1:] in ("*", "_")
    return "" if closed_inside else text[begin:words]
