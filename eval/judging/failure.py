"""Why a call failed: what it is called, whether another attempt may help, and what the user must do if none can."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import openai

from thinkserve.eval.config import is_openai

# Parts of the messages of vLLM, OpenAI and others about this one request, however many others are fine.
_ABOUT_ONE_REQUEST = re.compile(
    r"context.?length|context window|maximum context|too long|too many tokens|content.?(management.)?polic|"
    r"content.?filter|invalid_prompt|safety",
    re.IGNORECASE,
)
_NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_credits"}
_LONGEST_DETAIL = 240
# As our gateway calls an output that broke its thought format: it was sampled again already, and nothing may be shown.
MALFORMED = "malformed_output"


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed."""

    kind: str
    """`http 429`, `http 500`, `timeout`, `connection`, `bad json`, `empty` ..."""
    detail: str = ""
    """What the server said, without keys and in one short line."""
    retry: bool = True
    retry_after: float | None = None
    """Seconds."""
    stop: str | None = None
    """What the user is told, if every further call would fail like this one."""
    unreachable: bool = False
    """No connection was made at all."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who was asked, for messages."""

    url: str
    model: str
    api_key: str | None
    settings: Mapping[str, object]

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def failure_of(exc: Exception, asked: Asked) -> Failure:
    """Name the failure that the `openai` package, or what is under it, raised."""
    if isinstance(exc, openai.APIStatusError):
        return _of_status(exc, asked)
    cause: BaseException = exc
    while cause.__cause__ is not None:
        cause = cause.__cause__
    # The package calls a connection that was cut a time-out; real ones are measured by the client itself.
    return Failure("connection", _one_line(str(cause), asked), unreachable=_never_connected(exc))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a `Retry-After`, in whichever of its forms; None where there is none that can be read."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    given = headers.get("retry-after", "")
    if (seconds := _number(given)) is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text.strip()) else None


def _of_status(exc: openai.APIStatusError, asked: Asked) -> Failure:
    status = exc.status_code
    body = exc.body if isinstance(exc.body, dict) else {}
    said = body.get("message")
    detail = _one_line(said if isinstance(said, str) else exc.message, asked)
    kind = f"http {status}"
    if status == 402 or (status == 429 and {exc.code, exc.type} & _NO_CREDIT):
        stop = f"{asked.shown_url}: the API key has no credit left (HTTP {status}: {detail}); add some and run again"
        return Failure(kind, detail, retry=False, stop=stop)
    if exc.code == MALFORMED:
        return Failure(MALFORMED, detail, retry=False)
    if status in (408, 409, 425, 429) or status >= 500:
        return Failure(kind, detail, retry_after=retry_after(exc.response.headers))
    return Failure(kind, detail, retry=False, stop=_what_to_do(exc, detail, asked))


def _what_to_do(exc: openai.APIStatusError, detail: str, asked: Asked) -> str | None:
    """About a status that no retry mends; None if it is about one request only."""
    status, url, model = exc.status_code, asked.shown_url, asked.model
    if status == 401 and asked.api_key is None:
        keys = (
            "OPENAI_API_KEY"
            if is_openai(asked.url)
            else "THINKSERVE_JUDGE_API_KEY or THINKSERVE_MODEL_API_KEY"
        )
        return f"{url}: wants an API key (HTTP 401), and there is none: set {keys}, or name a file with --api-key-file"
    if status == 401:
        return f"{url}: refused the API key (HTTP 401): is it the one for this server, and still valid?"
    if status == 403:
        return f"{url}: the API key may not use {model!r} (HTTP 403): choose a model that it may use"
    if status in (404, 405):
        return f"{url}: has no model {model!r}, or is not the base URL of an API (HTTP {status}: {detail})"
    if status not in (400, 422) or _ABOUT_ONE_REQUEST.search(f"{detail} {exc.code}"):
        return None
    setting = _named_setting(exc, detail, asked.settings)
    if setting in ("logprobs", "top_logprobs"):
        return (
            f"{url}: {model!r} gives no logprobs (HTTP {status}: {detail}); name a judge that does, or have verdicts "
            "read from text, which is not comparable with published numbers"
        )
    if setting is not None:
        return f"{url}: {model!r} does not take {setting!r} (HTTP {status}: {detail}); name another model"
    return None


def _named_setting(exc: openai.APIStatusError, detail: str, settings: Mapping[str, object]) -> str | None:
    """The setting of the request that the server complains of."""
    if exc.param in settings:
        return exc.param
    words = set(re.findall(r"\w+", detail))
    return next((name for name in settings if name in words), None)


def wants_max_completion_tokens(failure: Failure, settings: Mapping[str, object]) -> bool:
    """Whether `max_tokens` was refused by a model that knows it by its new name."""
    return (
        failure.kind == "http 400"
        and failure.stop is not None
        and "max_tokens" in settings
        and "max_completion_tokens" in failure.detail
    )


def _never_connected(exc: BaseException) -> bool:
    found: BaseException | None = exc
    while found is not None:
        if type(found).__name__ in ("ClientConnectorError", "ClientConnectorDNSError", "ConnectError"):
            return True
        found = found.__cause__
    return False


def _one_line(text: str, asked: Asked) -> str:
    if asked.api_key:
        text = text.replace(asked.api_key, "***")
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]}..."
