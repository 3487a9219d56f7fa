"""Stop strings, matched on the response only, across any chunking."""

from __future__ import annotations


class StopMatcher:
    """Finds the first stop string to be completed in a text that comes in pieces.

    As if the text came a character at a time: the match that ends first counts, and of those that end together the
    longest. What may still become a match is held back.
    """

    __slots__ = ("_beginnings", "_held", "_longest", "_stops", "matched")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._beginnings = frozenset(stop[:length] for stop in stops for length in range(1, len(stop)))
        self._longest = max(map(len, stops)) - 1
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """Take the next text; return what can be shown of it. Once `matched`, nothing more is."""
        text = self._held + text
        found = min(
            ((at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            self.matched, self._held = True, ""
            return text[: found[1]]
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                self._held = text[-length:]
                return text[:-length]
        self._held = ""
        return text

    def flush(self) -> str:
        """The text has ended: what was held back is no stop."""
        held, self._held = self._held, ""
        return held
