"""From tokens to text, a token at a time, and the stop strings in that text. Plain objects: no I/O, no torch.

A token's text depends on its neighbours: half a character needs the next token's bytes, a word-piece tokenizer puts a
space only between words. So a short window of tokens is decoded together, and what is new in its text is passed on.
The window is cut back to its last token as it grows, so that the work for each token does not depend on how long the
output is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # how a decoder shows bytes that are not (or not yet) a character
WINDOW = 12  # tokens; above it the window is cut
PROMPT_TAIL = 6  # tokens of the prompt before the first window
# An unfinished character has at most 3 bytes, hence at most 3 tokens or replacement characters. Text that still ends
# badly after this many tokens is junk: it is passed on but for its last 3 characters.
PATIENCE = 8
LIMIT = 64  # tokens of junk after which the window is given up

Decode = Callable[[list[int]], str]


class Detokenizer:
    """The text of one output. `decode` turns token ids into text; `hidden` are ids whose text is left out."""

    def __init__(
        self, decode: Decode, prompt_ids: Sequence[int], hidden: frozenset[int] = frozenset()
    ) -> None:
        self._decode = decode
        self._hidden = hidden
        # The prompt's tail is in the window so that the first token's text is what it is after that prompt.
        self._window = list(prompt_ids[-PROMPT_TAIL:])
        self._sent = len(decode(self._window))
        self._clean = self._previous_clean = (
            0  # how much of the window ended in whole characters, now and before
        )
        self._clean = len(self._window)
        self._rest = ""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        if token_id in self._hidden:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            return self._push_unfinished(text)
        delta, self._sent, self._rest = text[self._sent :], len(text), ""
        self._previous_clean, self._clean = self._clean, len(self._window)
        if len(self._window) > WINDOW and delta:
            self._cut()
        return delta

    def flush(self) -> str:
        """What is left at the end of the output: an unfinished character is dropped, not shown as junk."""
        rest, self._rest = self._rest.rstrip(REPLACEMENT), ""
        return rest

    def _push_unfinished(self, text: str) -> str:
        self._rest = text[self._sent :]
        if len(self._window) - self._clean <= PATIENCE:
            return ""
        end = len(text) if len(self._window) > LIMIT else max(self._sent, len(text) - 3)
        delta, self._sent, self._rest = text[self._sent : end], end, text[end:]
        if len(self._window) > LIMIT:
            self._window, self._sent, self._clean = [], 0, 0
        return delta

    def _cut(self) -> None:
        """Keep what the last token(s) completed: the text before them ended in a whole character."""
        kept = self._window[self._previous_clean :]
        kept_text = self._decode(kept)
        if kept_text:  # else the next token would be decoded as if it were the first of all
            self._window, self._sent, self._clean = kept, len(kept_text), len(kept)


class StopStrings:
    """Cuts a stream of text before the first stop string; text that may be the start of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is free to go, and the stop string that was met, if one was.

        Of several, the one that is complete first counts, as if the text had come a character at a time.
        """
        if not self._stops or not text:
            return text, None
        text = self._held + text
        met: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (met is None or start + len(stop) < met[0]):
                met = (start + len(stop), start, stop)
        if met is not None:
            self._held = ""
            return text[: met[1]], met[2]
        free = len(text) - self._partial(text)
        self._held = text[free:]
        return text[:free], None

    def flush(self) -> str:
        """The text held back; call it when the output has ended."""
        held, self._held = self._held, ""
        return held

    def _partial(self, text: str) -> int:
        """How long an end of the text is the start of a stop string (the longest such end)."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-size:]
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0
