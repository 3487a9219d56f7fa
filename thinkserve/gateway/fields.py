"""The words in which a policy is written: what happens to a field of a request, and what a good value of it is.

Each endpoint has a table from field to `Field` (`thinkserve.gateway.api`). A field passes to the engine, is rewritten
by the gateway, is dropped without effect, or is refused with the reason. A field that is not in the table is refused
too, unless the operator allows it by name. A body is parsed into values and never forwarded or patched, so nothing rides
along (duplicate keys, unknown fields). The tables are also what `openapi.json` and the tables in the docs are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from thinkserve.gateway.errors import ApiError, invalid, shown
from thinkserve.gateway.wire import MAX_DEPTH, nested_within

Action = Literal["pass", "rewrite", "drop", "refuse"]
PASS: Final = "pass"
REWRITE: Final = "rewrite"
DROP: Final = "drop"
REFUSE: Final = "refuse"

# What may be the beginning of a stop string is held back and looked at again with every chunk.
MAX_STOP = 1024


@dataclass(frozen=True, slots=True)
class Check:
    """Reads a value, or raises an `ApiError` that names it. `schema` says the same in JSON Schema."""

    schema: Mapping[str, Any]
    read: Callable[[str, Any], Any]

    def __call__(self, name: str, value: Any) -> Any:
        return self.read(name, value)


@dataclass(frozen=True, slots=True)
class Field:
    """What happens to one field of a request; `why` is told to whoever sends one that is refused."""

    action: Action
    why: str
    check: Check | None = None


Fields = Mapping[str, Field]


class Values(msgspec.Struct, frozen=True):
    """A body as its table reads it: what the gateway makes something of, what the engine gets, what the operator lets by."""

    rewritten: dict[str, Any] = {}
    passed: dict[str, Any] = {}
    allowed: dict[str, Any] = {}


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Raises:
        ApiError: 400, it is none.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ApiError(400, f"the body is not JSON: {exc}", code="invalid_json") from exc
    if not isinstance(data, dict):
        raise ApiError(400, f"the body must be a JSON object, not {shown(data)}", code="invalid_json")
    return data


def read_fields(data: Mapping[str, Any], fields: Fields, allow: frozenset[str] = frozenset()) -> Values:
    """Hold a body against a table.

    Args:
        data: the parsed body.
        fields: the table of the endpoint.
        allow: refused or unknown fields that the operator lets pass to the engine unread.

    Raises:
        ApiError: 400, naming the first field that is wrong or refused, and why.
    """
    values = Values()
    for name, value in data.items():
        known = fields.get(name)
        if name in allow and (known is None or known.action == REFUSE):
            values.allowed[name] = _bounded(name, value)
            continue
        if known is None:
            raise invalid(
                name[:100], f"{shown(name)} is not a field this server takes", code="unsupported_field"
            )
        if value is None:  # as at OpenAI, null is the same as absent
            continue
        if known.action == REFUSE:
            raise invalid(name, f"{name} is refused: {known.why}", code="unsupported_field")
        if known.action == REWRITE and isinstance(value, dict | list):
            _bounded(name, value)
        checked = value if known.check is None else known.check(name, value)
        if known.action == PASS:
            values.passed[name] = checked
        elif known.action == REWRITE:
            values.rewritten[name] = checked
    return values


# The checks


def number(low: float, high: float) -> Check:
    """A finite number within bounds (a boolean is none)."""

    def read(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(name, f"{name} must be a number, not {shown(value)}")
        if not low <= value <= high:
            raise invalid(name, f"{name} must be from {low:g} to {high:g}, not {shown(value)}")
        return value

    return Check({"type": "number", "minimum": low, "maximum": high}, read)


def integer(low: int, high: int) -> Check:
    """A whole number within bounds (a boolean is none)."""

    def read(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(name, f"{name} must be an integer, not {shown(value)}")
        if not low <= value <= high:
            raise invalid(name, f"{name} must be from {low} to {high}, not {shown(value)}")
        return value

    return Check({"type": "integer", "minimum": low, "maximum": high}, read)


def _read_boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise invalid(name, f"{name} must be true or false, not {shown(value)}")
    return value


boolean = Check({"type": "boolean"}, _read_boolean)


def _read_string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be a string, not {shown(value)}")
    return value


string = Check({"type": "string"}, _read_string)


def one_of(*values: object) -> Check:
    """One of a few values."""

    def read(name: str, value: Any) -> Any:
        # 1 == True in Python, and lists cannot be hashed: compare value and type one by one.
        if not any(value == known and type(value) is type(known) for known in values):
            listed = ", ".join(str(msgspec.json.encode(known), "utf-8") for known in values)
            raise invalid(name, f"{name} must be one of {listed}, not {shown(value)}")
        return value

    return Check({"enum": list(values)}, read)


def _read_stops(name: str, value: Any) -> tuple[str, ...]:
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


_stop = {"type": "string", "minLength": 1, "maxLength": MAX_STOP}
stop_strings = Check({"anyOf": [_stop, {"type": "array", "items": _stop, "maxItems": 4}]}, _read_stops)
"""A string, or up to four."""


def _bounded(name: str, value: Any) -> Any:
    if not nested_within(value, MAX_DEPTH):
        raise invalid(name, f"{name} is nested too deep; {MAX_DEPTH} levels are taken")
    return value


def _read_object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be an object, not {shown(value)}")
    checked: dict[str, Any] = _bounded(name, value)
    return checked


json_object = Check({"type": "object"}, _read_object)
"""An object that can be written again for the engine."""


def _read_array(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(name, f"{name} must be an array, not {shown(value)}")
    checked: list[Any] = _bounded(name, value)
    return checked


json_array = Check({"type": "array"}, _read_array)
"""An array that can be written again for the engine."""


def _read_metadata(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise invalid(name, f"{name} must be an object of strings, not {shown(value)}")
    return value


metadata = Check({"type": "object", "additionalProperties": {"type": "string"}}, _read_metadata)


def _read_stream_options(name: str, value: Any) -> bool:
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be an object, not {shown(value)}")
    for key in value:
        if key not in ("include_usage", "include_obfuscation"):
            raise invalid(f"{name}.{key[:100]}", f"{name}.{key[:100]} is not supported; include_usage is")
    include = value.get("include_usage")
    return include is not None and _read_boolean(f"{name}.include_usage", include)


stream_options = Check(
    {
        "type": "object",
        "properties": {
            "include_usage": {"type": ["boolean", "null"]},
            "include_obfuscation": {"description": "taken, without effect"},
        },
        "additionalProperties": False,
    },
    _read_stream_options,
)
"""`include_usage`; `include_obfuscation` is taken and has no effect."""

# What is the same in the tables of several endpoints

SAMPLING: Fields = {
    "temperature": Field(PASS, "", number(0, 2)),
    "top_p": Field(PASS, "", number(0, 1)),
    "frequency_penalty": Field(PASS, "", number(-2, 2)),
    "presence_penalty": Field(PASS, "", number(-2, 2)),
    "seed": Field(PASS, "choice number i gets seed + i", integer(-(2**63), 2**63 - 1)),
    # Sampling that engines add, and that leaves markers alone
    "top_k": Field(PASS, "", integer(-1, 2**31 - 1)),
    "min_p": Field(PASS, "", number(0, 1)),
    "repetition_penalty": Field(PASS, "", number(0.01, 2)),
}

NO_EFFECT: Fields = {
    "user": Field(DROP, "", string),
    "metadata": Field(DROP, "", metadata),
    "safety_identifier": Field(DROP, "", string),
    "prompt_cache_key": Field(DROP, "the gateway sets `cache_salt`, one for each API key", string),
    "prompt_cache_retention": Field(DROP, "", string),
    "service_tier": Field(DROP, "", one_of("auto", "default")),
    "store": Field(DROP, "nothing is stored, so only false is true", one_of(False)),
}

_MARKERS = "it can forbid or force the tokens of a marker, and with that break the hiding of thoughts"
PROMPT: Final = "it changes the prompt or where the output begins, which decides what is a thought"
_ENGINE = "it reaches into the engine"
RAW: Final = "it would show what the engine generated before the thought is taken out"
_BINDS = "it would bind the thought; use response_format or structured_outputs"

ENGINE_EXTRAS: Fields = {
    name: Field(REFUSE, why)
    for why, names in {
        _MARKERS: ("logit_bias", "bad_words", "allowed_token_ids"),
        RAW: ("return_token_ids", "return_tokens_as_token_ids", "logprob_token_ids"),
        PROMPT: (
            *("chat_template", "chat_template_kwargs", "documents", "continue_final_message"),
            *("add_generation_prompt", "add_special_tokens", "truncate_prompt_tokens"),
        ),
        _ENGINE: (
            *("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "mm_processor_kwargs"),
            *("priority", "stream_interval"),
        ),
        _BINDS: ("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        "it shows the thought prompt": ("return_prompt_text",),
        "it shows the thought prompt and what was in the history": ("prompt_logprobs",),
        "whether thoughts are shown is the operator's decision": ("include_reasoning",),
        "a marker may be a special token": ("skip_special_tokens", "spaces_between_special_tokens"),
        "stop strings are matched by the gateway": ("include_stop_str_in_output",),
        "asked again and again, it gives away a whole thought, a token at a time": ("stop_token_ids",),
        "a model driven past its end begins a new thought": ("ignore_eos", "min_tokens"),
        "where it strikes tells what a thought holds": ("repetition_detection",),
        "the gateway names its own requests": ("request_id",),
        "the gateway sets it, one for each API key": ("cache_salt",),
        "beams cannot be cut while they stream": ("use_beam_search",),
    }.items()
    for name in names
}
"""What engines add to OpenAI's fields, and a client must not have."""
