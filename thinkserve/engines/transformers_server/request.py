"""The body of `POST /v1/chat/completions`, checked once and turned into a frozen dataclass.

Unknown fields are ignored, as vLLM ignores them: what a client may ask for is the gateway's decision. A known field of
the wrong type or range is a 400 that names it. Where a field is absent or null, the checkpoint's generation_config
decides, then OpenAI's default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinkserve.engines.transformers_server.sampling import SamplingParams

INT64 = 2**63
# Owned by the server: a request must not change how the prompt becomes token ids.
RESERVED_TEMPLATE_FIELDS = {"tokenize", "add_generation_prompt", "continue_final_message", "conversation"}


class ApiError(Exception):
    """A request ends without a reply; message, `status` and `param` (the field at fault) go into the error body."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as asked for. `top_logprobs` is None where no logprobs are wanted at all."""

    model: str | None
    messages: list[dict[str, Any]]
    sampling: SamplingParams
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    top_logprobs: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def from_body(cls, body: object, defaults: Mapping[str, Any]) -> ChatRequest:
        """Check a decoded JSON body.

        Args:
            body: what the client sent.
            defaults: the checkpoint's generation_config, as vLLM uses it (`do_sample` is not looked at).

        Raises:
            ApiError: a field is wrong.
        """
        if not isinstance(body, dict):
            raise ApiError("the request body must be a JSON object")
        fields = _Fields(body, defaults)
        options = fields.mapping("stream_options") or {}
        usage = _Fields(options, {})
        continuing = fields.flag("continue_final_message", False)
        add_prompt = fields.flag("add_generation_prompt", not continuing)
        if continuing and add_prompt:
            raise ApiError(
                "continue_final_message and add_generation_prompt cannot both be true",
                "continue_final_message",
            )
        include_usage = usage.flag("include_usage", False)
        max_tokens = fields.max_tokens()
        min_tokens = fields.integer("min_tokens", 0, low=0) or 0
        if max_tokens is not None and min_tokens > max_tokens:
            raise ApiError(f"min_tokens is {min_tokens}, more than max_tokens, {max_tokens}", "min_tokens")
        return cls(
            model=fields.string("model"),
            messages=_messages(body.get("messages")),
            sampling=fields.sampling(),
            n=fields.integer("n", 1, low=1, high=16) or 1,
            stream=fields.flag("stream", False),
            include_usage=include_usage,
            continuous_usage=include_usage and usage.flag("continuous_usage_stats", False),
            return_token_ids=fields.flag("return_token_ids", False),
            top_logprobs=fields.top_logprobs(),
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop=fields.stop(),
            stop_token_ids=fields.stop_token_ids(),
            ignore_eos=fields.flag("ignore_eos", False),
            skip_special_tokens=fields.flag("skip_special_tokens", True),
            add_generation_prompt=add_prompt,
            continue_final_message=continuing,
            chat_template_kwargs=fields.template_kwargs(),
        )


class _Fields:
    """Reads fields of a JSON object by type; null counts as absent."""

    def __init__(self, body: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._body = body
        self._defaults = defaults

    def sampling(self) -> SamplingParams:
        """How to draw, with the checkpoint's defaults."""
        top_k = self.integer("top_k", self._default("top_k", 0), low=-1, high=INT64 - 1) or 0
        return SamplingParams(
            temperature=self.number("temperature", 1.0, low=0.0, high=2.0),
            top_p=self.number("top_p", 1.0, low=0.0, high=1.0, low_excluded=True),
            top_k=max(top_k, 0),
            min_p=self.number("min_p", 0.0, low=0.0, high=1.0),
            seed=self.integer("seed", None, low=-INT64, high=INT64 - 1),
            presence_penalty=self.number("presence_penalty", 0.0, low=-2.0, high=2.0),
            frequency_penalty=self.number("frequency_penalty", 0.0, low=-2.0, high=2.0),
            repetition_penalty=self.number("repetition_penalty", 1.0, low=0.0, low_excluded=True),
        )

    def max_tokens(self) -> int | None:
        """The smaller of the two limits; where neither is set, the checkpoint's `max_new_tokens`."""
        limits = [
            self.integer("max_tokens", None, low=1),
            self.integer("max_completion_tokens", None, low=1),
        ]
        given = [limit for limit in limits if limit is not None]
        default: int | None = self._defaults.get("max_new_tokens")
        return min(given) if given else default

    def top_logprobs(self) -> int | None:
        wanted = self.flag("logprobs", False)
        count = self.integer("top_logprobs", None, low=0, high=20)
        if count and not wanted:
            raise ApiError("top_logprobs needs logprobs: true", "top_logprobs")
        return (count or 0) if wanted else None

    def stop(self) -> tuple[str, ...]:
        value = self._body.get("stop")
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
            raise ApiError("stop must be a string or a list of strings, none of them empty", "stop")
        return tuple(stops)

    def stop_token_ids(self) -> tuple[int, ...]:
        value = self._body.get("stop_token_ids") or []
        if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
            raise ApiError("stop_token_ids must be a list of token ids", "stop_token_ids")
        return tuple(value)

    def template_kwargs(self) -> Mapping[str, Any]:
        value = self.mapping("chat_template_kwargs") or {}
        return {name: each for name, each in value.items() if name not in RESERVED_TEMPLATE_FIELDS}

    def flag(self, name: str, default: bool) -> bool:
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ApiError(f"{name} must be true or false, not {_shown(value)}", name)
        return value

    def string(self, name: str) -> str | None:
        value = self._body.get(name)
        if value is not None and not isinstance(value, str):
            raise ApiError(f"{name} must be a string, not {_shown(value)}", name)
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        value = self._body.get(name)
        if value is not None and not isinstance(value, dict):
            raise ApiError(f"{name} must be an object, not {_shown(value)}", name)
        return value

    def integer(
        self, name: str, default: int | None, *, low: int | None = None, high: int | None = None
    ) -> int | None:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # some clients' JSON has no integers
        if type(value) is not int:
            raise ApiError(f"{name} must be an integer, not {_shown(value)}", name)
        if (low is not None and value < low) or (high is not None and value > high):
            raise ApiError(f"{name} must be {_range(low, high)}, not {value}", name)
        return value

    def number(
        self, name: str, default: float, *, low: float, high: float | None = None, low_excluded: bool = False
    ) -> float:
        value = self._body.get(name)
        if value is None:
            value = self._default(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ApiError(f"{name} must be a number, not {_shown(value)}", name)
        too_low = value <= low if low_excluded else value < low
        if too_low or (high is not None and value > high):
            above = f"more than {low:g}" if low_excluded else f"{low:g} or more"
            below = "" if high is None else f" and at most {high:g}"
            raise ApiError(f"{name} must be {above}{below}, not {value}", name)
        return float(value)

    def _default(self, name: str, default: Any) -> Any:
        value = self._defaults.get(name)
        return default if value is None else value


def _messages(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ApiError("messages must be a list of at least one message", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _message(message: object, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ApiError(f"{place} must be an object, not {_shown(message)}", place)
    if not isinstance(message.get("role"), str):
        raise ApiError(f"{place}.role must be a string", f"{place}.role")
    return {**message, "content": _content(message.get("content"), f"{place}.content")}


def _content(content: object, place: str) -> str:
    """Templates want a string: text parts are joined by newlines, as vLLM joins them."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(f"{place} must be a string or a list of text parts", place)
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text" or not isinstance(text, str):
            raise ApiError(f"{place}: only text parts are supported, not {_shown(kind)}", place)
        texts.append(text)
    return "\n".join(texts)


def _range(low: int | None, high: int | None) -> str:
    if high is None:
        return f"{low} or more"
    return f"from {low} to {high}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
