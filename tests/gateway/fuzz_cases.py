"""Cases for the fuzzer: what the model writes, how it is cut into chunks, and what a client asks, from one number each.

Whatever is thought holds `EYE`, a character that stands nowhere else. An output is built so that the rules of the splitter
hide all of its thought: a closing marker stands in a thought only as a mention (in quotes or backticks, or with text
before it where the format asks for line starts), or misspelt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.gateway.scripted import JSON, Delta, Die, End, ErrorEvent, Finish, Raw, Script, Step
from thinkserve.thoughts import ThoughtFormat, get_format, split

EYE = "ꙮ"
FORMATS = ("tpo-generic", "tpo-specific", "think-tags", "think-tags-in-prompt")
ENDPOINTS = ("chat", "completions", "responses", "messages")
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "%s"}}\n</tool_call>'
SCHEMA: JSON = {"type": "object", "properties": {"at": {"type": "string"}}}


@dataclass(frozen=True, slots=True)
class Case:
    """One request and what the engine answers."""

    seed: int
    format: ThoughtFormat
    endpoint: str
    output: str
    script: Script
    body: JSON
    headers: dict[str, str] = field(default_factory=dict)
    plain: bool = False
    """Whether nothing is asked that changes the response: it must then be what the splitter says."""

    @property
    def response(self) -> str:
        """What the client may see of the output."""
        return str(split(self.output, self.format).response)


def make_case(seed: int) -> Case:
    """The case of a number."""
    random = Random(seed)
    format = get_format(random.choice(FORMATS))
    broken = random.random() < 0.15
    endpoint = random.choice(ENDPOINTS)
    prompt = f"case {seed}" + random.choice(["", "", f"\n{format.closing[0]}\nx", ' "<R>" </think>'])
    body, plain = _BODIES[endpoint](random, prompt)
    # Where a grammar leaves no room for a second thought there is none. (A client's regex leaves room.)
    output = _output(random, format, broken=broken, again=_CLOSING.isdisjoint(body))
    failing = random.random() < 0.15
    steps: list[Step] = [*_chunks(random, output)]
    if failing:
        steps = _failing(random, steps)
    elif random.random() < 0.3:
        steps.append(Finish(random.choice(["stop", "length", "tool_calls", "abort", "eos"])))
    script = Script(
        steps, events_per_write=random.choice([1, 1, 3, 50]), write_size=random.choice([None, None, None, 17])
    )
    body["stream"] = random.random() < 0.6
    headers = random.choice([{}, {}, {}, {"thinkserve-reveal": random.choice(["1", "yes", "0"])}])
    return Case(
        seed=seed,
        format=format,
        endpoint=endpoint,
        output=output,
        script=script,
        body=body,
        headers=headers,
        plain=plain and not (failing or broken or headers or _ended(steps)),
    )


def _ended(steps: list[Step]) -> bool:
    return isinstance(steps[-1], Finish) and steps[-1].reason in ("length", "abort")


_CLOSING = {"response_format", "text"}

# What the model writes


def _output(random: Random, format: ThoughtFormat, *, broken: bool, again: bool) -> str:
    opening = format.opening[0] + "\n" if format.opening and not format.opening_in_prompt else ""
    if opening and random.random() < 0.2:
        opening = random.choice([f"Sure! {EYE}\n", "", "\n"]) + random.choice([opening, opening.upper()])
    thought = _thought(random, format)
    if broken:
        return random.choice([opening + thought, thought, ""])
    text = opening + thought + _marker(random, format) + _response(random)
    if again and format.opening and random.random() < 0.15:  # it thinks again
        text += (
            f"\n{format.opening[0]}\n{_thought(random, format)}{_marker(random, format)}{_response(random)}"
        )
    return text


def _marker(random: Random, format: ThoughtFormat) -> str:
    closing = format.closing[0]
    if format.line_start:
        return random.choice([f"\n{closing}\n", f"\n{closing} ", f"\n**{closing}**\n", f"\n## {closing}\n"])
    return random.choice([closing, f"\n{closing}\n", f" {closing} "])


def _thought(random: Random, format: ThoughtFormat) -> str:
    closing = format.closing[0]
    pieces: list[Callable[[], str]] = [
        lambda: f"{EYE}{random.choice(['Hm', 'wait', 'é', '日本', ''])} ",
        lambda: f" {EYE} \n{EYE}",
        lambda: f'{EYE} "{closing}" {EYE}',
        lambda: f"{EYE} `{closing}` {EYE}",
        lambda: f"{EYE}{closing[: random.randrange(1, len(closing))]}{EYE}",
        lambda: f"{EYE}{CALL % EYE}{EYE}",
        lambda: f'{EYE}{{"at": "{EYE}"}}{EYE}',
        lambda: f"{EYE}data: [DONE]\n\n{EYE}",
    ]
    if format.line_start:
        pieces.append(lambda: f"{EYE} then {closing} {EYE}\n{EYE}")
    return "".join(random.choice(pieces)() for _ in range(random.randrange(1, 6))) + EYE


def _response(random: Random) -> str:
    pieces = [
        "Hello",
        " world",
        "\n\n",
        "é",
        "日本 ",
        "STOP",
        '{"at": "x"}',
        " 1 < 2",
        CALL % "x",
        "<tool_",
        "`code` ",
    ]
    return "A" + "".join(random.choice(pieces) for _ in range(random.randrange(0, 6)))


def _chunks(random: Random, text: str) -> list[Step]:
    most = random.choice([1, 2, 5, 20, 400])
    steps: list[Step] = []
    at = 0
    while at < len(text):
        size = random.randrange(1, most + 1)
        piece = text[at : at + size]
        at += size
        # One token, or several in a chunk as engines send them that are ahead.
        tokens = list(piece) if random.random() < 0.3 else None
        steps.append(Delta(piece, tokens=tokens))
    return steps


def _failing(random: Random, steps: list[Step]) -> list[Step]:
    message = {"message": f"{EYE} broke", "type": "InternalServerError", "code": random.choice([500, 400])}
    bad: list[Step] = [
        Die(),
        End(),
        ErrorEvent(message),
        Raw(f"data: {{{EYE}}}\n\n".encode()),
        Raw(f'data: {{"choices": [{{"delta": {{"content": ["{EYE}"]}}}}]}}\n\n'.encode()),
        Raw(f'data: {{"choices":[{{"delta":{{"reasoning_content":"{EYE}"}}}}]}}\n\n'.encode()),
    ]
    at = random.randrange(0, len(steps) + 1)
    return [*steps[:at], random.choice(bad), *steps[at:]]


# What the client asks


def _pick(random: Random, fields: dict[str, list[Any]]) -> tuple[JSON, bool]:
    chosen = {name: random.choice(values) for name, values in fields.items() if random.random() < 0.12}
    return chosen, not chosen


_TOOL = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
_JUNK: dict[str, list[Any]] = {
    "include_reasoning": [True],
    "return_token_ids": [True],
    "echo": [True],
    "stop_token_ids": [[1]],
    "unknown": [EYE],
    "logit_bias": [{"1": 1}],
}


def _chat(random: Random, prompt: str) -> tuple[JSON, bool]:
    chosen, plain = _pick(
        random,
        {
            "n": [2, 3],
            "stop": ["STOP", ["world", "\n\n"], EYE],
            "max_tokens": [1, 3, 10],
            "max_completion_tokens": [1, 5, 30],
            "logprobs": [True],
            "reasoning_effort": ["low"],
            "thinking_token_budget": [3],
            "tools": [[{"type": "function", "function": _TOOL}]],
            "response_format": [{"type": "json_object"}],
            "structured_outputs": [{"regex": "a+"}],
            "stream_options": [{"include_usage": True}],
            "seed": [1],
            **_JUNK,
        },
    )
    messages: list[JSON] = [{"role": "user", "content": prompt}]
    if random.random() < 0.2:
        past = {"role": "assistant", "content": "x", "reasoning_content": EYE}
        messages = [{"role": "user", "content": "before"}, past, *messages]
    return {"messages": messages, **chosen}, plain


def _completions(random: Random, prompt: str) -> tuple[JSON, bool]:
    chosen, plain = _pick(
        random,
        {
            "n": [2],
            "stop": ["STOP", EYE],
            "max_tokens": [1, 3, 10],
            "logprobs": [0, 2],
            "echo": [True],
            "thinking_token_budget": [3],
            **{name: values for name, values in _JUNK.items() if name != "echo"},
        },
    )
    return {"prompt": prompt, **chosen}, plain


def _responses(random: Random, prompt: str) -> tuple[JSON, bool]:
    chosen, plain = _pick(
        random,
        {
            "max_output_tokens": [16, 40],
            "include": [["message.output_text.logprobs"], ["reasoning.encrypted_content"]],
            "instructions": ["Be brief."],
            "reasoning": [{"effort": "low"}],
            "tools": [[{"type": "function", **_TOOL}]],
            "text": [{"format": {"type": "json_object"}}],
            "enable_response_messages": [True],
            "store": [True],
            **_JUNK,
        },
    )
    return {"input": prompt, **chosen}, plain


def _messages(random: Random, prompt: str) -> tuple[JSON, bool]:
    chosen, plain = _pick(
        random,
        {
            "stop_sequences": [["STOP"], [EYE]],
            "thinking": [{"type": "enabled", "budget_tokens": 1024}],
            "system": ["Be brief."],
            "tools": [[{"name": "look", "description": "Looks.", "input_schema": SCHEMA}]],
            "temperature": [0.5],
            **_JUNK,
        },
    )
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4000, **chosen}, plain


_BODIES: dict[str, Callable[[Random, str], tuple[JSON, bool]]] = {
    "chat": _chat,
    "completions": _completions,
    "responses": _responses,
    "messages": _messages,
}
