"""Where a JSON object ends, in text that comes in pieces: what tells a call from the text behind it."""

from __future__ import annotations

import re

_IN_STRING = re.compile(r'["\\]')
# What changes the nesting, or cannot stand in JSON outside a string.
_OUTSIDE = re.compile(r'["{}\[\]]|[^ \t\r\n,:0-9+.eEtrufalsn-]')


class JsonEnd:
    """Finds where a JSON object ends, in text that comes in pieces. It follows strings and nesting, no more."""

    __slots__ = ("_depth", "_escaped", "_in_string", "broken")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = self._escaped = False
        self.broken = False
        """Whether what stands where the scan has ended cannot be JSON."""

    def scan(self, text: str, at: int = 0) -> int | None:
        """Take more text, from `at` on; return the index behind the object, or of what is no JSON; None: it goes on."""
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_IN_STRING if self._in_string else _OUTSIDE).search(text, at)
            if match is None:
                return None
            at, sign = match.end(), match[0]
            if sign == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._escaped = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at
            else:
                self.broken = True
                return at - 1
        return None
