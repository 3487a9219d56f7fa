"""What binds a response in the engine, while the thought stays free.

A constraint of a whole output would bind the thought too, or keep the model from thinking at all. So the engine gets
the thought format itself as its grammar: any text, a closing marker, then what binds the response. Its end-of-sequence
token is not allowed inside the thought, so a response always follows; the grammar reads text, so it does not matter
over how many tokens a marker is spread. The form is a structural tag of xgrammar, as vLLM takes it; plain constraints
are sent in this form too, because vLLM turns to another grammar engine for schemas that xgrammar does not know, for
good and for all requests, and that one knows no structural tags.

Bounds on thoughts are not put in the grammar, though it could hold them (`max_tokens` of any text): where the marker must
follow, a model may spell it in tokens that are not its marker's, and go on thinking behind it.

How responses are bound:

| asked for | the response is |
|---|---|
| a constraint | JSON of the schema, a match of the regex or the grammar, or one of the choices |
| tools, `auto` | text and calls; each call has a known name and arguments that fit its schema |
| tools, `required` | calls and nothing else |
| a tool by its name | one call of it |
| a constraint and tools, `auto` | calls, or what the constraint allows: never a mixture |
| a constraint and tools that must be called | calls: there is no text to be constrained |

The splitter must end the thought where the grammar does: `splitter_format` is the format that it needs for that.
White space is asked for between the marker and a bound response: a quotation sign right there could make the splitter
read a marker in quotation signs as a mention. (The splitter drops it.) In a response of free text the model may mention
the marker; then the grammar is a step ahead of the splitter, and the thought stays hidden until it really ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import msgspec

from thinkserve.gateway.tools import ToolName, Tools
from thinkserve.thoughts import ThoughtFormat

Kind = Literal["json_schema", "regex", "grammar", "choice"]
Element = dict[str, Any]

# Between the tokens of JSON: enough for any indentation, and an end for a model that writes white space for ever.
MAX_JSON_SPACE = 32
MAX_EMPTY_LINES = 4
# How instruct models decorate a marker that has a line of its own.
DECORATIONS = ("{}", "**{}**", "## {}")

_ANY_TEXT: Element = {"type": "any_text"}
# All of it is dropped by the splitter, so the response is exactly what was asked for.
_GAP: Element = {"type": "regex", "pattern": r" |\n|\n\n"}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a response must be: a JSON schema (dict), a regex or an EBNF grammar (str), or one of some strings (list)."""

    kind: Kind
    value: Any
    name: str = field(default="response_format", compare=False)
    """The field in which it was asked for."""


def structured_outputs(
    constraint: Constraint | None,
    tools: Tools | None,
    format: ThoughtFormat,
    *,
    direct: bool,
    guard: bool,
) -> dict[str, str] | None:
    """What vLLM gets as `structured_outputs`; None where nothing binds.

    Args:
        constraint: what the response must fit.
        tools: what it may call.
        format: how the model marks its thought.
        direct: no thought comes before the response (or it has come already).
        guard: bind an output with a free response too, so that its thought must be closed.
    """
    response = _response(constraint, tools)
    if not direct and (response is not None or (guard and format.thought_required)):
        parts = _thought(_exact(format))
        if is_bound(constraint, tools):
            parts.append(_GAP)
        if not format.thought_required:
            parts = [{"type": "optional", "content": _sequence(parts)}]
        response = _sequence([*parts, response or _ANY_TEXT])
    if response is None:
        return None
    tag = {"type": "structural_tag", "format": response}
    return {"structural_tag": str(msgspec.json.encode(tag), "utf-8")}


def splitter_format(
    constraint: Constraint | None, tools: Tools | None, format: ThoughtFormat, *, direct: bool
) -> ThoughtFormat:
    """The format by which an output is split that the engine has bound by the same arguments.

    A bound response begins where the grammar says. Where that leaves no room for a thought, nothing in it is one,
    whatever its strings hold; any other is watched for thoughts as ever.
    """
    if not is_bound(constraint, tools):
        return format
    if direct or not format.thought_required:
        return format.exact
    return _exact_and_closed(format) if is_closed(constraint, tools) else _exact(format)


def is_bound(constraint: Constraint | None, tools: Tools | None) -> bool:
    """Whether a grammar is needed, which binds the response from its first character."""
    return constraint is not None or (tools is not None and tools.bind)


def is_closed(constraint: Constraint | None, tools: Tools | None) -> bool:
    """Whether free text can stand in the strings of JSON only. A client's regex or grammar may allow any text."""
    if tools is not None and tools.bind:
        return True
    return constraint is not None and constraint.kind in ("json_schema", "choice")


def _sequence(elements: list[Element]) -> Element:
    return {"type": "sequence", "elements": elements}


def _any_of(elements: list[Element]) -> Element:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": elements}


def _constant(text: str) -> Element:
    return {"type": "const_string", "value": text}


# The thought


@lru_cache(maxsize=32)
def _exact(format: ThoughtFormat) -> ThoughtFormat:
    """The format with markers that grammar and splitter read alike: as they are written."""
    if not format.line_start or not format.variants:
        return format.exact
    opening, closing = (
        tuple(form.format(marker) for marker in markers for form in DECORATIONS)
        for markers in (format.opening, format.closing)
    )
    return replace(format, opening=opening, closing=closing, variants=False)


@lru_cache(maxsize=32)
def _exact_and_closed(format: ThoughtFormat) -> ThoughtFormat:
    return replace(_exact(format), opening=(), opening_in_prompt=False)


def _thought(format: ThoughtFormat) -> list[Element]:
    """A thought and its closing marker. An opening marker is not asked for: the splitter does without.

    Where markers count at line starts only, what does not begin with the opening marker must not begin with the first
    character of a closing one either.
    """
    closing = [f"\n{marker}" if format.line_start else marker for marker in format.closing]
    end = closing if len(closing) > 1 else closing[0]
    openings = ("",) if format.thought_required else format.opening
    thought = _any_of(
        [{"type": "tag", "begin": begin, "content": _ANY_TEXT, "end": end} for begin in openings]
    )
    if not format.line_start or not format.thought_required:
        return [thought]
    # The output begins a line, so a marker that begins the output counts, though no line end stands before it. To tell
    # anything else from one by its first character is little to ask, and cheap: a grammar that reads on to where they
    # part has a state for each character, and takes seconds to compile for a large vocabulary.
    opening = [marker for marker in format.opening if not _either_begins(marker, format.closing)]
    other = {"type": "regex", "pattern": _none_of({"\n", *(marker[0] for marker in format.closing)})}
    first = _any_of([*map(_constant, opening), other])
    empty_lines = {"type": "regex", "pattern": rf"\n{{0,{MAX_EMPTY_LINES}}}"}
    return [empty_lines, _any_of([*map(_constant, format.closing), _sequence([first, thought])])]


def _either_begins(text: str, others: tuple[str, ...]) -> bool:
    return any(text.startswith(other) or other.startswith(text) for other in others)


def _none_of(characters: set[str]) -> str:
    """A regex for one character that is none of some."""
    return f"[^{''.join(map(_escaped, sorted(characters)))}]"


def _not_beginning(text: str) -> str:
    """A regex for how anything begins that does not begin like a text. It costs a state for each character."""
    return "|".join(_escaped(text[:at]) + _none_of({text[at]}) for at in range(len(text)))


def _escaped(text: str) -> str:
    """A text as a regex of xgrammar reads it, inside a class of characters too."""
    return re.sub(r"[\\^$.|?*+()\[\]{}/-]", r"\\\g<0>", text).replace("\n", r"\n")


# The response


def _response(constraint: Constraint | None, tools: Tools | None) -> Element | None:
    """What binds the response; None: nothing does."""
    if tools is None or not tools.allowed:
        return None if constraint is None else _fits(constraint)
    if tools.bind:
        return _calls(tools)
    return _text_and_calls(tools) if constraint is None else _any_of([_calls(tools), _fits(constraint)])


def _fits(constraint: Constraint) -> Element:
    match constraint.kind:
        case "json_schema":
            return _json(constraint.value)
        case "regex":
            return {"type": "regex", "pattern": constraint.value}
        case "grammar":
            return {"type": "grammar", "grammar": constraint.value}
        case "choice":
            return _any_of([_constant(choice) for choice in constraint.value])


def _json(schema: Any) -> Element:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MAX_JSON_SPACE}


def _call_tags(tools: Tools) -> list[Element]:
    """Each tool that may be called, as a tag: name and form are fixed, the arguments fit the schema."""
    return [
        {
            "type": "tag",
            "begin": tools.format.head(tool.name),
            # Arguments are an object, also where the schema does not say so.
            "content": _json({"type": "object", **(tool.parameters or {})}),
            "end": "}" + tools.format.end,
        }
        for tool in tools.callable
    ]


def _calls(tools: Tools) -> Element:
    tags = _call_tags(tools)
    # A format without a begin marker knows one call a response.
    if isinstance(tools.choice, ToolName) or not tools.format.begin:
        return _any_of(tags)
    return {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": not tools.parallel,
    }


def _text_and_calls(tools: Tools) -> Element:
    tags = _call_tags(tools)
    if not tools.format.begin:
        # The response is a call, or text that does not begin like one: with a name.
        text = {"type": "regex", "pattern": _not_beginning(f'{{"{tools.format.name_key}"')}
        return _any_of([*tags, _sequence([text, _ANY_TEXT])])
    return {
        "type": "triggered_tags",
        # The marker alone, so that what follows it must be a call in its exact form.
        "triggers": [tools.format.begin.strip()],
        "tags": tags,
        "stop_after_first": not tools.parallel,
    }
