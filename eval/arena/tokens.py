"""How many tokens a response has, as Arena-Hard v2.0 counts them: with the tokenizer of gpt-4o, or nearly so.

The tokenizer's file cannot be shipped, and `tiktoken` would fetch it. So it is used where `tiktoken` has it already;
elsewhere `estimated_tokens` counts. Style control compares lengths with each other, so a common factor drops out.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

CountTokens = Callable[[str], int]

# The name under which tiktoken keeps o200k_base: the sha1 of the address that it loads it from.
O200K_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"
TIKTOKEN, ESTIMATE = "tiktoken o200k_base", "estimate"

_PIECES = re.compile(
    r"(?P<latin>[A-Za-z]+)|(?P<wide>[\u2e80-\uffff\U00020000-\U0003ffff]+)|(?P<other>[^\W\d_A-Za-z]+)"
    r"|(?P<digits>\d{1,3})|(?P<lines>\s*\n\s*)|(?P<signs>_+|[^\w\s]+)"
)


def estimated_tokens(text: str) -> int:
    """About as many tokens as gpt-4o's tokenizer makes of a text.

    Fitted to the `token_len` of 2248 answers of three models to Arena-Hard v2.0, in many languages: 7 % off for one
    answer on average, and within 5 % for the sum of a model's.
    """
    count = 0.0
    for piece in _PIECES.finditer(text):
        length = piece.end() - piece.start()
        match piece.lastgroup:
            case "latin":
                count += 0.84 + 0.24 * max(0, length - 6)
            case "wide":
                count += 0.77 * length
            case "other":
                count += 0.29 * length
            case "digits":
                count += 1.49
            case "lines":
                count += 1.19
            case _:
                count += 0.95
    return round(count)


@cache
def token_counter() -> tuple[str, CountTokens]:
    """The best counter at hand, with its name for the scores."""
    if not _cache_folder().joinpath(O200K_FILE).is_file():
        return ESTIMATE, estimated_tokens
    import tiktoken

    encoding = tiktoken.get_encoding("o200k_base")
    return TIKTOKEN, lambda text: len(encoding.encode(text, disallowed_special=()))


def _cache_folder() -> Path:
    """Where tiktoken looks for its files before it fetches them; it reads the environment itself."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in os.environ:
            return Path(os.environ[name])
    return Path(tempfile.gettempdir()) / "data-gym-cache"
