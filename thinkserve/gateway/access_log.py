"""The access log: a JSON line for each request, with who, what, how long and how much, and never a word of a body."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from thinkserve.gateway.line_log import LineLog

MAX_REQUEST_ID = 128
MAX_TEXT = 100


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """A client's text as logs may hold it: cut to a length, and `?` for what a terminal would not just print."""
    text = text[:limit]
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def client_request_id(header: str | None) -> str | None:
    """What the client calls its request (`X-Request-Id`), if it is fit for a log and for a header of the answer."""
    if header is None or not header.isascii():
        return None
    return printable(header.strip(), MAX_REQUEST_ID) or None


class AccessRecord(msgspec.Struct, kw_only=True):
    """A line of the access log; made when the request comes, filled in on its way, written at its end."""

    time: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    """When the request came."""
    id: str | None = None
    """Of the answer (`X-Request-Id`); None where it ended before it got one."""
    client_id: str | None = None
    """What the client calls it: `client_request_id(...)`."""
    caller: str | None = None
    """The public name of the key; None where it was not known."""
    method: str
    path: str
    """The route, never the path as the client wrote it."""
    status: int = 0
    """Of the answer; 499 where the client left before there was one."""
    model: str | None = None
    """As the client called it."""
    stream: bool = False
    n: int = 1
    prompt_tokens: int = 0
    thought_tokens: int = 0
    response_tokens: int = 0
    seconds: float = 0.0
    first_response_seconds: float | None = None
    """Until the first text of a response; None where there was none."""
    finish_reasons: list[str] = []
    upstream: str | None = None
    """The engine that was asked last."""
    retries: int = 0
    failovers: int = 0
    error: str | None = None
    """The error's code, or its type where it has none; for a stream that broke off, too."""


class AccessLog(LineLog):
    """Appends an `AccessRecord` for each request. Reopened on SIGHUP, for rotation.

    Args:
        path: the file; `-` is standard output.

    Raises:
        UsageError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, what="access log")

    def append(self, record: AccessRecord) -> None:
        """Write one line. What the client wrote in it is cut and made printable here, so that no caller forgets it."""
        record.method = printable(record.method, 16)
        record.model = printable(record.model) if record.model is not None else None
        record.seconds = round(record.seconds, 6)
        if record.first_response_seconds is not None:
            record.first_response_seconds = round(record.first_response_seconds, 6)
        super().append(record)
