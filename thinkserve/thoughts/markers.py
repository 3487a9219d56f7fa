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
is a sentence. A marker of a user's own that begins or ends in a letter or digit stands on its own: `FINAL` is not cut
out of `FINALLY`. East Asian neighbours do not count for that, since nothing separates words there.

Each marker becomes two expressions: `full` matches it, `partial` matches any prefix of it that reaches the end of the
text, which is exactly the text that must be held back. Every quantifier is bounded, so a marker has a longest form,
and what is held back never grows with the output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SPACES = " \t\u00a0"
SPACE = f"[{SPACES}]"
# What may stand before a marker on its line: indentation, heading or quotation signs, emphasis. Lazy, since a marker
# may itself begin with such signs: a stream has read `###` as soon as three of them stand there.
LINE_LEAD = (f"{SPACE}{{0,8}}?", "[#>]{0,6}?", f"{SPACE}{{0,4}}?", "[*_]{0,3}?")
COLONS = (":", "\uff1a")
# A trailing colon: emphasis closed before it, spaces, then a colon or the end of the line.
COLON_TAIL = ("[*_]{0,3}", f"{SPACE}{{0,4}}", "\r?", f"[{''.join(COLONS)}\n]")
EMPHASIS = "*_"
# A letter or digit of a script that puts spaces between words.
WORD_CHARACTER = "(?![\u2e80-\U0010ffff])[^\\W_]"

QUOTES = {
    '"': '"',
    "'": "'",
    "`": "`",
    "\u201c": "\u201d",
    "\u2018": "\u2019",
    "\u201e": "\u201c",
    "\u00ab": "\u00bb",
    "\u2039": "\u203a",
    "\u300c": "\u300d",
    "\u300e": "\u300f",
}
# A quote sign right after one of these closes a quotation, it does not open one: `"yes."<R>"no"`.
CLOSES_BEFORE = frozenset(".!?)]}%")
# One of these may stand between a quoted marker and the quote sign: `I write it after "<R>," then`.
CLOSES_AFTER = frozenset(".,;:!?")


def _atoms(spelling: str, *, line_start: bool) -> list[str]:
    """Turn one spelling into atoms, each an expression that matches single characters of a class."""
    body = spelling
    tail: tuple[str, ...] = ()
    if body.endswith(COLONS) and len(body) > 1:
        body, tail = body[:-1].rstrip(), COLON_TAIL
    elif re.match(WORD_CHARACTER, body[-1]):
        tail = (f"(?!{WORD_CHARACTER})",)
    atoms: list[str] = []
    for token in re.findall(r"\s+|.", body, flags=re.DOTALL):
        if token.isspace():
            line_end = "\r" if "\n" in token else ""
            atoms.append(f"[{SPACES}{token}{line_end}]{{1,{max(4, len(token))}}}")
        elif token in "'\u2019":
            atoms.append("['\u2019]")
        else:
            atoms.append(re.escape(token))
    if not line_start and re.match(WORD_CHARACTER, body):
        atoms[0] = f"(?<!{WORD_CHARACTER}){atoms[0]}"
    return [*atoms, *tail]


def _spellings(markers: tuple[str, ...]) -> list[str]:
    """The markers themselves and their contractions."""
    stripped = [marker.strip() for marker in markers]
    contracted = [re.sub(r"^(here) is\b", r"\1's", marker, flags=re.IGNORECASE) for marker in stripped]
    return list(dict.fromkeys([*stripped, *contracted]))


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
    spellings: tuple[re.Pattern[str], ...]
    line_start: bool
    trigger: str

    def find(self, text: str, at: int, *, final: bool) -> re.Match[str] | None:
        """The first match from `at` on; its last group is `opening`, `closing` or `partial`.

        `partial`: the text from there on may still become a marker; not where the text is `final`.
        """
        match = self._first(self.search_final if final else self.search, text, at)
        if match is None or match.lastgroup == "partial" or len(self.spellings) == 1:
            return match
        # Where one marker begins another, a stream completes the shorter one first, so it must also win where the
        # whole text is there at once.
        here = [found for spelling in self.spellings if (found := spelling.match(text, match.start()))]
        return min(here, key=lambda found: found.end())

    def _first(self, pattern: re.Pattern[str], text: str, at: int) -> re.Match[str] | None:
        """As `pattern.search`, which tries every character: where only line starts count, each of them is enough."""
        if not self.line_start:
            return pattern.search(text, at)
        start = at if at == 0 or text[at - 1] == "\n" else text.find("\n", at) + 1
        while start or at == 0:
            if match := pattern.match(text, start):
                return match
            start = text.find("\n", start) + 1
            if not start:
                return None
        return None


def compile_scanner(
    opening: tuple[str, ...], closing: tuple[str, ...], *, line_start: bool, variants: bool = True
) -> MarkerScanner | None:
    """Compile a scanner for some opening and closing markers; None where there is nothing to look for.

    Without `variants` a marker counts only as it is written, at the very start of the line where that is asked for.

    The groups of a match are `opening`, `closing`, or `partial`: the text from there on may still become a marker.
    """
    if not opening and not closing:
        return None
    lead = ["^", *(LINE_LEAD if variants else ())] if line_start else []
    full, full_final, partial = [], [], []
    for group, markers in (("opening", opening), ("closing", closing)):
        for spelling in _spellings(markers) if variants else markers:
            atoms = (
                _atoms(spelling, line_start=line_start)
                if variants
                else [re.escape(sign) for sign in spelling]
            )
            words = "".join(atoms)
            # A marker that ends in a letter is complete only when the next character is there.
            waits = r"(?!\Z)" if atoms[-1].startswith("(?!") else ""
            full.append((group, words + waits))
            full_final.append((group, words))
            # `^` is no atom: it would reach the end of the text on its own.
            partial.append(("^" if line_start else "") + _prefix(lead[1:] + atoms))
    flags = re.MULTILINE | (re.IGNORECASE if variants else 0)

    def any_of(spellings: list[tuple[str, str]]) -> str:
        """One expression for all spellings; a group name may stand in it only once."""
        groups = dict.fromkeys(group for group, _ in spellings)
        words = {group: "|".join(word for g, word in spellings if g == group) for group in groups}
        return "|".join(f"{''.join(lead)}(?P<{group}>{words[group]})" for group in groups)

    first = {marker.strip()[0] for marker in (*opening, *closing)}
    single = first.pop() if len(first) == 1 else ""
    # Letters have other cases and apostrophes another form, so one character is not all there is to look for.
    only = single.lower() == single.upper() and single not in "'\u2019"
    return MarkerScanner(
        search=re.compile(f"{any_of(full)}|(?P<partial>{'|'.join(partial)})", flags),
        search_final=re.compile(any_of(full_final), flags),
        spellings=tuple(re.compile(any_of([one]), flags) for one in full_final),
        line_start=line_start,
        trigger="\n" if line_start else single if only else "",
    )


def is_quoted(text: str, begin: int, end: int) -> bool | None:
    """Whether quote signs stand directly round `text[begin:end]`; None: the text ends before that can be told.

    A sign glued to the word before it is a closing quote: in `"yes"<R>"no"` the marker is not quoted.
    """
    closing = QUOTES.get(text[begin - 1]) if begin else None
    if closing is None:
        return False
    before = text[begin - 2] if begin > 1 else "\n"
    if before in CLOSES_BEFORE or (before.isascii() and before.isalnum()):
        return False
    after = text[end : end + 2]
    after = after[1:] if after[:1] in CLOSES_AFTER else after[:1]
    return after == closing if after else None


def emphasis_open_after(text: str, end: int, words: int) -> str:
    """What closes the emphasis that a marker leaves open behind itself: `**` for `**Here is my response:`.

    `words` is where the marker's words begin, `end` where the marker ends.
    """
    begin = words
    while begin > max(0, words - 3) and text[begin - 1] in EMPHASIS:
        begin -= 1
    # Behind a word the signs close an emphasis of the thought, as in `**Done.**<R>`: they do not belong to the marker.
    opened = begin == 0 or text[begin - 1].isspace() or text[begin - 1] in "#>"
    closed_inside = text[words:end].rstrip(f"{''.join(COLONS)}\r\n{SPACES}")[-1:] in ("*", "_")
    # Emphasis does not reach over the end of a line.
    return text[begin:words][::-1] if opened and not closed_inside and text[end - 1] != "\n" else ""
