"""Which tokens of an output are the response's: exact counts, though chunks are not tokens.

Chunks are settled as segments of characters. A segment that lies wholly on one side counts as it is; one that straddles
a marker is taken apart into its tokens, by its logprobs or with the checkpoint's tokenizer.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from thinkserve.gateway.wire import TokenLogprob

logger = logging.getLogger(__name__)


class TokenTexts:
    """How many characters of a text each of its tokens is; the tokenizer is loaded when it is first needed.

    Most deployments never need it (engines stream a token a chunk unless a client lags), and a large vocabulary costs
    tens of megabytes.
    """

    def __init__(self, tokenizer: Path | None = None, *, skip_special_tokens: bool = True) -> None:
        self._path = tokenizer
        self._skip_special_tokens = skip_special_tokens  # as the engine was asked to

    @cached_property
    def _tokenizer(self) -> Any:
        if self._path is None:
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self._path))
        except Exception as exc:  # noqa: BLE001 - tokenizers raises nothing narrower
            logger.warning(
                "cannot load the tokenizer %s (%s); token counts at markers are estimated", self._path, exc
            )
            return None

    def encode(self, text: str) -> list[int]:
        """The ids of a text's tokens, without those that a prompt begins with; none without a tokenizer."""
        if self._tokenizer is None:
            return []
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def lengths(
        self, text: str, ids: list[int] | None, count: int, logprobs: list[TokenLogprob] | None
    ) -> list[int]:
        """The length in characters of each of `count` tokens of `text`; they add up to `len(text)`."""
        if count <= 1:
            return [len(text)] * count
        if logprobs and len(logprobs) == count:
            ends = _ends_by_bytes([entry.bytes or list(entry.token.encode()) for entry in logprobs])
        elif ids and self._tokenizer is not None and all(0 <= id < 2**32 for id in ids):
            alone = [
                self._tokenizer.decode([id], skip_special_tokens=self._skip_special_tokens) for id in ids
            ]
            if "".join(alone) == text:
                return [len(part) for part in alone]
            decoded = [
                self._tokenizer.decode(ids[: at + 1], skip_special_tokens=self._skip_special_tokens)
                for at in range(len(ids))
            ]
            # Decoding alone may drop a leading space that the text has, and shows the bytes of a character that began
            # before these tokens one by one: count from the end of the text. A last character that is not whole is
            # left for the next chunk.
            last = decoded[-1] if text.endswith("\ufffd") else decoded[-1].rstrip("\ufffd")
            missing = len(text) - len(last)
            ends = [len(part.rstrip("\ufffd")) + missing for part in decoded]
        else:
            ends = [len(text) * (at + 1) // count for at in range(count)]
        ends[-1] = len(text)
        lengths, start = [], 0
        for end in ends:
            end = min(max(end, start), len(text))
            lengths.append(end - start)
            start = end
        return lengths


def _ends_by_bytes(tokens: list[list[int]]) -> list[int]:
    """Where each token's last whole character ends; a character belongs to the token that completes it."""
    raw = b""
    ends = []
    for token in tokens:
        raw += bytes(token)
        ends.append(len(raw.decode("utf-8", errors="ignore")))
    return ends


def trimmed(entry: TokenLogprob, visible: str) -> TokenLogprob:
    """The entry of a token of which only a part is visible: that part alone, and no alternatives to the whole."""
    return TokenLogprob(visible, entry.logprob, list(visible.encode("utf-8", errors="replace")), [])
