"""Stop strings, matched on the response only, across any chunking."""

from __future__ import annotations


class StopMatcher:
    """Finds the first stop string to be completed in a text that comes in pieces.

    As if the text came a character at a time: the match that ends first counts, and of those that end together the
    longest. What may still become a match is held back.
    """

    __slots__ = ("_held", "_stops", "behind", "matched")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found."""
        self.behind = 0
        """How many characters came behind the stop string in the text that completed it."""

    def feed(self, text: str) -> str:
        """Take the next text; return what can be shown of it. Once `matched`, nothing more is."""
        text = self._held + text
        found = min(
            ((at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            self.matched, self._held, self.behind = found[2], "", len(text) - found[0]
            return text[: found[1]]
        end = len(text) - max(_begun(stop, text) for stop in self._stops)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """The text has ended: what was held back is no stop."""
        held, self._held = self._held, ""
        return held


def _begun(stop: str, text: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    at = max(0, len(text) - len(stop) + 1)
    while (at := text.find(stop[0], at)) >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at += 1
    return 0
