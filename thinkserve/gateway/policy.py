"""What a client may ask: one table of the fields of a chat completion, read once and written anew.

Each field passes to the engine, is rewritten by the gateway, is dropped without effect, or is refused with the reason.
A field that is not in the table is refused too, unless the operator allows it by name. The body is parsed into the
values below and never forwarded or patched, so nothing rides along (duplicate keys, unknown fields).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.wire import MAX_DEPTH, nested_within

Action = Literal["pass", "rewrite", "drop", "refuse"]
Check = Callable[[str, Any], Any]
# What may be the beginning of a stop string is held back and looked at again with every chunk.
MAX_STOP = 1024


def number(low: float, high: float) -> Check:
    """A finite number within bounds (a boolean is none)."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(name, f"{name} must be a number, not {shown(value)}")
        if not low <= value <= high:
            raise invalid(name, f"{name} must be from {low:g} to {high:g}, not {shown(value)}")
        return value

    return check


def integer(low: int, high: int) -> Check:
    """A whole number within bounds (a boolean is none)."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(name, f"{name} must be an integer, not {shown(value)}")
        if not low <= value <= high:
            raise invalid(name, f"{name} must be from {low} to {high}, not {shown(value)}")
        return value

    return check


def boolean(name: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise invalid(name, f"{name} must be true or false, not {shown(value)}")
    return value


def string(name: str, value: Any) -> str:
    """Any string."""
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be a string, not {shown(value)}")
    return value


def one_of(*values: object) -> Check:
    """One of a few values."""

    def check(name: str, value: Any) -> Any:
        # 1 == True in Python, and lists cannot be hashed: compare value and type one by one.
        if not any(value == known and type(value) is type(known) for known in values):
            listed = ", ".join(str(msgspec.json.encode(known), "utf-8") for known in values)
            raise invalid(name, f"{name} must be one of {listed}, not {shown(value)}")
        return value

    return check


def stop_strings(name: str, value: Any) -> tuple[str, ...]:
    """A string, or up to four."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise invalid(name, f"{name} must be a string or an array of strings, not {shown(value)}")
    if any(len(stop) > MAX_STOP for stop in stops):
        raise invalid(name, f"{name} must hold strings of at most {MAX_STOP} characters")
    if len(stops) > 4:
        raise invalid(name, f"{name} must hold 4 strings at most, not {len(stops)}")
    if not all(stops):
        raise invalid(name, f"{name} must not hold an empty string")
    return tuple(dict.fromkeys(stops))


def stream_options(name: str, value: Any) -> bool:
    """`include_usage`; `include_obfuscation` is taken and has no effect."""
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be an object, not {shown(value)}")
    for key in value:
        if key not in ("include_usage", "include_obfuscation"):
            raise invalid(f"{name}.{key}", f"{name}.{key} is not supported; include_usage is")
    include = value.get("include_usage")
    return include is not None and boolean(f"{name}.include_usage", include)


def bounded(name: str, value: Any) -> Any:
    """Anything that can be written again for the engine."""
    if not nested_within(value, MAX_DEPTH):
        raise invalid(name, f"{name} is nested too deep; {MAX_DEPTH} levels are taken")
    return value


def response_format(name: str, value: Any) -> dict[str, Any] | None:
    """The JSON schema that the response must fit, or None for plain text."""
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be an object, not {shown(value)}")
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            described = value.get("json_schema")
            schema = described.get("schema", {}) if isinstance(described, dict) else None
            if not isinstance(schema, dict):
                raise invalid(f"{name}.json_schema", f"{name}.json_schema must be an object with a schema")
            bounded(f"{name}.json_schema", schema)
            return schema
        case other:
            raise invalid(
                f"{name}.type", f"{name}.type must be text, json_object or json_schema, not {shown(other)}"
            )


def no_tools(name: str, value: Any) -> list[Any]:
    """An empty list: tools are not served yet."""
    if value != []:
        raise invalid(name, f"{name} is refused: tool calls are not served yet", code="unsupported_field")
    return []


def metadata(name: str, value: Any) -> dict[str, str]:
    """Up to 16 pairs of strings."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise invalid(name, f"{name} must be an object of strings, not {shown(value)}")
    return value


@dataclass(frozen=True, slots=True)
class Field:
    """What happens to one field of a request; `why` is told to whoever sends one that is refused."""

    action: Action
    why: str
    check: Check | None = None


PASS: Final = "pass"
REWRITE: Final = "rewrite"
DROP: Final = "drop"
REFUSE: Final = "refuse"

_MARKERS = "it can forbid or force the tokens of a marker, and with that break the hiding of thoughts"
_PROMPT = "it changes the prompt or where the output begins, which decides what is a thought"
_ENGINE = "it reaches into the engine"
_RAW = "it would show what the engine generated before the thought is taken out"

FIELDS: Mapping[str, Field] = {
    # OpenAI's fields
    "model": Field(REWRITE, "must name the model that is served", string),
    "messages": Field(
        REWRITE, "the thought prompt is put round the last user message; thoughts are taken out"
    ),
    "stream": Field(REWRITE, "the engine is always asked to stream", boolean),
    "stream_options": Field(REWRITE, "`include_usage`", stream_options),
    "n": Field(REWRITE, "each choice is a request of its own to the engine", integer(1, 128)),
    "stop": Field(REWRITE, "matched by the gateway, on the response only", stop_strings),
    "max_tokens": Field(REWRITE, "bounds the response", integer(1, 2**31 - 1)),
    "max_completion_tokens": Field(REWRITE, "bounds thought and response together", integer(1, 2**31 - 1)),
    "reasoning_effort": Field(
        REWRITE,
        "bounds the thought; `none` asks for a response without one",
        one_of("none", "minimal", "low", "medium", "high", "xhigh"),
    ),
    "logprobs": Field(REWRITE, "of exactly the tokens of the response", boolean),
    "top_logprobs": Field(REWRITE, "of exactly the tokens of the response", integer(0, 20)),
    "response_format": Field(REWRITE, "binds the response only; the thought stays free", response_format),
    "seed": Field(PASS, "choice number i gets seed + i", integer(-(2**63), 2**63 - 1)),
    "temperature": Field(PASS, "", number(0, 2)),
    "top_p": Field(PASS, "", number(0, 1)),
    "frequency_penalty": Field(PASS, "", number(-2, 2)),
    "presence_penalty": Field(PASS, "", number(-2, 2)),
    "user": Field(DROP, "", string),
    "metadata": Field(DROP, "", metadata),
    "safety_identifier": Field(DROP, "", string),
    "prompt_cache_key": Field(DROP, "the gateway sets `cache_salt`, one for each API key", string),
    "prompt_cache_retention": Field(DROP, "", string),
    "service_tier": Field(DROP, "", one_of("auto", "default")),
    "store": Field(DROP, "nothing is stored, so only false is true", one_of(False)),
    "modalities": Field(DROP, "text only", one_of(["text"])),
    "parallel_tool_calls": Field(DROP, "there are no tools to call", boolean),
    "tool_choice": Field(DROP, "there are no tools to call", one_of("none", "auto")),
    "tools": Field(DROP, "an empty list only: tool calls are not served yet", no_tools),
    "verbosity": Field(DROP, "`medium`, which changes nothing", one_of("medium")),
    "logit_bias": Field(REFUSE, _MARKERS),
    "audio": Field(REFUSE, "this model writes text only"),
    "prediction": Field(REFUSE, "predicted outputs are not supported"),
    "web_search_options": Field(REFUSE, "there is no web search"),
    "functions": Field(REFUSE, "functions are not served; they are deprecated at OpenAI too"),
    "function_call": Field(REFUSE, "functions are not served; they are deprecated at OpenAI too"),
    # Sampling that engines add, and that leaves markers alone
    "top_k": Field(PASS, "", integer(-1, 2**31 - 1)),
    "min_p": Field(PASS, "", number(0, 1)),
    "repetition_penalty": Field(PASS, "", number(0.01, 2)),
    # What engines add and a client must not have
    "include_reasoning": Field(REFUSE, "whether thoughts are shown is the operator's decision"),
    "return_token_ids": Field(REFUSE, _RAW),
    "return_tokens_as_token_ids": Field(REFUSE, _RAW),
    "return_prompt_text": Field(REFUSE, "it shows the thought prompt"),
    "prompt_logprobs": Field(REFUSE, "it shows the thought prompt and what was in the history"),
    "logprob_token_ids": Field(REFUSE, _RAW),
    "echo": Field(REFUSE, "it shows the thought prompt"),
    "chat_template": Field(REFUSE, _PROMPT),
    "chat_template_kwargs": Field(REFUSE, _PROMPT),
    "documents": Field(REFUSE, _PROMPT),
    "continue_final_message": Field(REFUSE, _PROMPT),
    "add_generation_prompt": Field(REFUSE, _PROMPT),
    "add_special_tokens": Field(REFUSE, _PROMPT),
    "skip_special_tokens": Field(REFUSE, "a marker may be a special token"),
    "spaces_between_special_tokens": Field(REFUSE, "a marker may be a special token"),
    "include_stop_str_in_output": Field(REFUSE, "stop strings are matched by the gateway"),
    "bad_words": Field(REFUSE, _MARKERS),
    "allowed_token_ids": Field(REFUSE, _MARKERS),
    "stop_token_ids": Field(
        REFUSE, "asked again and again, it gives away a whole thought, a token at a time"
    ),
    "structured_outputs": Field(REFUSE, "it would bind the thought; use response_format"),
    "guided_json": Field(REFUSE, "it would bind the thought; use response_format"),
    "guided_regex": Field(REFUSE, "it would bind the thought"),
    "guided_choice": Field(REFUSE, "it would bind the thought"),
    "guided_grammar": Field(REFUSE, "it would bind the thought"),
    "ignore_eos": Field(REFUSE, "a model driven past its end begins a new thought"),
    "min_tokens": Field(REFUSE, "a model driven past its end begins a new thought"),
    "truncate_prompt_tokens": Field(REFUSE, _PROMPT),
    "thinking_token_budget": Field(REFUSE, "cut off, a thought goes on as a response; use reasoning_effort"),
    "repetition_detection": Field(REFUSE, "where it strikes tells what a thought holds"),
    "kv_transfer_params": Field(REFUSE, _ENGINE),
    "ec_transfer_params": Field(REFUSE, _ENGINE),
    "vllm_xargs": Field(REFUSE, _ENGINE),
    "mm_processor_kwargs": Field(REFUSE, _ENGINE),
    "priority": Field(REFUSE, _ENGINE),
    "request_id": Field(REFUSE, "the gateway names its own requests"),
    "cache_salt": Field(REFUSE, "the gateway sets it, one for each API key"),
    "stream_interval": Field(REFUSE, _ENGINE),
    "use_beam_search": Field(REFUSE, "beams cannot be cut while they stream"),
    "best_of": Field(REFUSE, "use n"),
    "suffix": Field(REFUSE, _PROMPT),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as the client means it; `sampling` and `extra` go to the engine as they are."""

    messages: list[Any]
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    effort: str | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    schema: dict[str, Any] | None = None
    seed: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def read_request(body: bytes, config: GatewayConfig) -> ChatRequest:
    """Parse a body and hold it against the table.

    Raises:
        ApiError: 400, naming the first field that is wrong or refused, and why; 404 for another model.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ApiError(400, f"the body is not JSON: {exc}", code="invalid_json") from exc
    if not isinstance(data, dict):
        raise ApiError(400, f"the body must be a JSON object, not {shown(data)}", code="invalid_json")
    values: dict[str, Any] = {}
    sampling: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in data.items():
        known = FIELDS.get(name)
        if name in config.allow_fields and (known is None or known.action == REFUSE):
            extra[name] = bounded(name, value)
            continue
        if known is None:
            raise invalid(
                name[:100], f"{shown(name)} is not a field this server takes", code="unsupported_field"
            )
        if value is None:  # as at OpenAI, null is the same as absent
            continue
        if known.action == REFUSE:
            raise invalid(name, f"{name} is refused: {known.why}", code="unsupported_field")
        checked = value if known.check is None else known.check(name, value)
        if known.action == PASS:
            sampling[name] = checked
        elif known.action == REWRITE:
            values[name] = checked
    return _request(values, sampling, extra, config)


def _request(
    values: dict[str, Any], sampling: dict[str, Any], extra: dict[str, Any], config: GatewayConfig
) -> ChatRequest:
    """What the fields mean together."""
    messages = values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid(
            "messages", f"messages must be an array with at least one message, not {shown(messages)}"
        )
    if len(messages) > config.max_messages:
        raise invalid("messages", f"messages holds {len(messages)} messages, {config.max_messages} are taken")
    model = values.get("model")
    if model is not None and config.model_name and model != config.model_name:
        raise ApiError(
            404,
            f"the model {shown(model)} does not exist; this server has {config.model_name!r}",
            param="model",
            code="model_not_found",
        )
    if (n := values.get("n", 1)) > config.max_choices:
        raise invalid("n", f"n must be from 1 to {config.max_choices}, not {n}")
    if "stream_options" in values and not values.get("stream"):
        raise invalid("stream_options", "stream_options is for stream: true only")
    logprobs = values.get("logprobs", False)
    if values.get("top_logprobs") and not logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs: true")
    effort = values.get("reasoning_effort")
    if effort == "none" and not config.format.allows_direct:
        raise invalid(
            "reasoning_effort",
            f"reasoning_effort none is not offered: in the thought format {config.format.name!r} a model that thinks "
            "all the same could not be told apart; ask minimal, or the operator to set direct in the format",
        )
    return ChatRequest(
        messages=messages,
        model=model,
        stream=values.get("stream", False),
        include_usage=values.get("stream_options", False),
        n=n,
        stops=values.get("stop", ()),
        max_tokens=values.get("max_tokens"),
        max_completion_tokens=values.get("max_completion_tokens"),
        effort=effort,
        logprobs=logprobs,
        top_logprobs=values.get("top_logprobs", 0),
        schema=values.get("response_format"),
        seed=sampling.pop("seed", None),
        sampling=sampling,
        extra=extra,
    )
