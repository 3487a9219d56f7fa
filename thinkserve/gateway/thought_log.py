"""The one place where thoughts are kept, if the operator asked for it: JSON lines in a file that only they can read.

`thinkserve thoughts` reads it (`thought_reader.py`).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from thinkserve.gateway.line_log import LineLog


class ThoughtRecord(msgspec.Struct, kw_only=True):
    """A line: one output of the model, whether its response was sent or it was thrown away and sampled again."""

    id: str
    """Of the response, as the client has it."""
    created: int
    """Seconds since 1970."""
    model: str
    choice: int = 0
    attempt: int = 0
    """Which output of this choice it is: 0, and one more for each that came before it."""
    retried: bool = False
    """Whether the output was thrown away, and another sampled for the choice."""
    malformed: str | None = None
    """How the output broke its format, if it did."""
    caller: str | None = None
    """The public name of the key."""
    upstream: str | None = None
    seconds: float | None = None
    """From the request's start to the end of the thought."""
    finish_reason: str | None = None
    thought_tokens: int = 0
    response_tokens: int = 0
    thought: str = ""


class ThoughtLog(LineLog):
    """Appends a `ThoughtRecord` for each output.

    Raises:
        UsageError: the file cannot be opened, or others can read it already.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, what="thought log", private=True)

    def append(self, record: ThoughtRecord) -> None:
        """Write one line; a disk that is full loses the line, and no answer."""
        super().append(record)
