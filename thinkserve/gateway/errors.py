"""What a client is told when something is wrong: OpenAI's error body, and an HTTP status that fits.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

No message ever quotes an output: an upstream's own words are passed on only where it refused a request before it
generated anything.
"""

from __future__ import annotations

import reprlib

import msgspec

INVALID = "invalid_request_error"

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 50


def shown(value: object) -> str:
    """A client's value as an error message may show it: short, however large or deep it is."""
    text = _short.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class ApiError(Exception):
    """An answer that is an error; raised anywhere on the path of a request, sent by the route.

    Args:
        status: HTTP status.
        message: what is wrong and what to do, naming the value.
        type: OpenAI's error type.
        code: OpenAI's error code, where clients tell cases apart by it.
        param: the request field concerned.
        headers: HTTP headers to send along, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> bytes:
        """The error as JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def invalid(param: str, message: str, *, code: str | None = None) -> ApiError:
    """A request field is wrong: 400."""
    return ApiError(400, message, param=param, code=code)


class UpstreamFailed(Exception):
    """An engine did not do what was asked: it died, stalled, or sent what is no answer. Another may be asked."""


class FormatBroken(Exception):
    """An output does not keep to its thought format, so no part of it may be shown. It may be sampled again."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def engine_unavailable(detail: str) -> ApiError:
    """No engine could answer: 503, to be tried again."""
    return ApiError(
        503,
        f"the engine is not available: {detail}; try again in a moment",
        type="service_unavailable_error",
        code="engine_unavailable",
        headers={"Retry-After": "2"},
    )


def shutting_down() -> ApiError:
    """The gateway takes no new work, or cannot wait for the work it has: 503."""
    return ApiError(
        503,
        "the server is shutting down; send the request again, another one will take it",
        type="service_unavailable_error",
        code="draining",
        headers={"Retry-After": "1", "Connection": "close"},
    )


def format_broken(kind: str, tries: int) -> ApiError:
    """The model did not keep to its format in any try: 502."""
    return ApiError(
        502,
        f"the model's output was malformed ({kind}) in {tries} tries, so there is no response to show; "
        "try again, or ask the operator to raise --format-retries",
        type="server_error",
        code="malformed_output",
    )


INTERNAL = ApiError(500, "internal error of the gateway; its log has it", type="server_error")
