"""How many tokens of an output were its thought's and its response's, by what the server counted."""

from __future__ import annotations


def split_tokens(
    completion_tokens: int | None, reasoning_tokens: int | None
) -> tuple[int | None, int | None]:
    """The tokens of thought and response of one output; None where the server does not tell them apart.

    `completion_tokens` counts both (as at OpenAI). A server that counts no `reasoning_tokens` may have had a thought in
    it all the same, so its count is nobody's.
    """
    if (
        completion_tokens is None
        or reasoning_tokens is None
        or not 0 <= reasoning_tokens <= completion_tokens
    ):
        return None, None
    return reasoning_tokens, completion_tokens - reasoning_tokens
