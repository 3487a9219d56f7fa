"""Constraints, held against xgrammar itself: what its matcher takes and refuses, with the pocket model's tokens.

The splitter reads the same outputs, since both must end the thought in the same place.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkserve.gateway.constraints import (
    MAX_EMPTY_LINES,
    Constraint,
    splitter_format,
    structured_outputs,
)
from thinkserve.gateway.tools import LLAMA3_JSON, CallParser, Tool, ToolFormat, ToolName, Tools
from thinkserve.pocket import CHECKPOINT
from thinkserve.thoughts import ThoughtFormat, get_format, split
from thinkserve.thoughts.format import BUILT_IN

xgrammar = pytest.importorskip("xgrammar", reason="needs xgrammar, which comes with vLLM")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers, which comes with vLLM")

SPECIFIC, GENERIC, TAGS = (get_format(name) for name in ("tpo-specific", "tpo-generic", "think-tags"))
EOS = 2
SCHEMA = Constraint(
    "json_schema", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
)
GET = Tool("get", "", {"properties": {"q": {"type": "string"}}, "required": ["q"]})
TOOLS = Tools((GET, Tool("get_all")))
CALL = '<tool_call>\n{"name": "get", "arguments": {"q": "x"}}\n</tool_call>'
CALL_ALL = '<tool_call>\n{"name": "get_all", "arguments": {"any": [1]}}\n</tool_call>'
NAMED = ToolName("get")


@cache
def token_ids() -> dict[str, int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    return dict(tokenizer.get_vocab())


@cache
def compiler() -> Any:
    vocabulary = sorted(token_ids(), key=token_ids().__getitem__)
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[EOS])
    return xgrammar.GrammarCompiler(info, max_threads=1)


class Matcher:
    """xgrammar's matcher of what `structured_outputs` has written."""

    def __init__(
        self,
        constraint: Constraint | None = None,
        tools: Tools | None = None,
        format: ThoughtFormat = SPECIFIC,
        *,
        direct: bool = False,
        guard: bool = False,
    ) -> None:
        outputs = structured_outputs(constraint, tools, format, direct=direct, guard=guard)
        assert outputs is not None
        assert outputs.keys() == {"structural_tag"}
        self._matcher = xgrammar.GrammarMatcher(compiler().compile_structural_tag(outputs["structural_tag"]))

    def next(self) -> set[int]:
        """The tokens that may come next."""
        count = len(token_ids())
        mask = xgrammar.allocate_token_bitmask(1, count)
        if not self._matcher.fill_next_token_bitmask(mask):
            return set(range(count))
        words = [int(word) & 0xFFFFFFFF for word in mask[0]]
        return {token for token in range(count) if words[token // 32] >> (token % 32) & 1}

    def take(self, *tokens: str) -> None:
        """Take some tokens, each of which must be allowed."""
        for token in tokens:
            assert token_ids()[token] in self.next()
            assert self._matcher.accept_token(token_ids()[token])

    def begins(self, text: str) -> bool:
        """Whether an output may begin so."""
        return bool(self._matcher.accept_string(text))

    def takes(self, text: str) -> bool:
        """Whether an output may be this, and end here."""
        return self.begins(text) and EOS in self.next()


def ids(*tokens: str) -> set[int]:
    return {token_ids()[token] for token in tokens}


def closing(format: ThoughtFormat) -> str:
    return ("\n" if format.line_start else "") + format.closing[0]


# The thought, and where it ends


@pytest.mark.parametrize("format", BUILT_IN.values(), ids=BUILT_IN)
def test_a_schema_binds_the_response_and_leaves_the_thought_free(format: ThoughtFormat) -> None:
    thought = 'So: {"b" <tool_call>\n' + "".join(f"{opening}\n" for opening in format.opening) + "so"
    lead = thought + closing(format)
    assert Matcher(SCHEMA, None, format).takes(f'{lead}\n{{"a": 1}}')
    assert not Matcher(SCHEMA, None, format).begins(f"{lead}\nSo")
    assert not Matcher(SCHEMA, None, format).begins(f'{lead}\n{{"b"')
    read = split(f'{lead}\n{{"a": 1}}', splitter_format(SCHEMA, None, format, direct=False))
    assert (read.thought.rstrip(), read.response, read.complete) == (thought, '{"a": 1}', True)


@pytest.mark.parametrize("format", BUILT_IN.values(), ids=BUILT_IN)
@pytest.mark.parametrize("thought", ["", "x", "x\n", "<", "Do", 'I write "'])
def test_an_output_cannot_end_inside_its_thought(format: ThoughtFormat, thought: str) -> None:
    assert not Matcher(None, None, format, guard=True).takes(thought)
    assert Matcher(None, None, format, guard=True).takes(f"{thought}{closing(format)} yes")


def test_only_the_end_of_the_output_is_not_allowed_in_a_thought() -> None:
    """And the one token that holds the marker and more: what is behind the marker is the response's."""
    prompt = next(token for token in token_ids() if "<R>" in token and token != "<R>")
    assert set(token_ids().values()) - Matcher(SCHEMA).next() == {EOS, *ids(prompt)}


def test_a_marker_may_be_spread_over_tokens() -> None:
    matcher = Matcher(SCHEMA)
    matcher.take("x", "<", "R", ">", "\n")
    assert matcher.next() == ids("{", "\n")


@pytest.mark.parametrize("gap", [" ", "\n", "\n\n"])
def test_white_space_behind_the_marker_is_no_part_of_the_response(gap: str) -> None:
    constraint = Constraint("choice", ["yes"])
    for format in BUILT_IN.values():
        output = f"x{closing(format)}{gap}yes"
        assert Matcher(constraint, None, format).takes(output)
        assert split(output, splitter_format(constraint, None, format, direct=False)).response == "yes"


def test_a_marker_in_quotation_signs_cannot_part_grammar_and_splitter() -> None:
    """For the splitter `"<R>"` is a mention, so a bound response must not begin with the quotation sign."""
    constraint = Constraint("json_schema", {"type": "string"})
    assert not Matcher(constraint).begins('I write "<R>"')
    output = 'I write "<R> "yes"'
    assert Matcher(constraint).takes(output)
    assert split(output, splitter_format(constraint, None, SPECIFIC, direct=False)).response == '"yes"'


def test_a_marker_may_begin_the_output() -> None:
    """No line end stands before it, and yet it ends the thought: for the grammar as for the splitter."""
    output = 'Here is my response:\n{"a": 1}'
    assert Matcher(SCHEMA, None, GENERIC).takes(output)
    assert not Matcher(SCHEMA, None, GENERIC).begins("Here is my response: well")
    assert split(output, splitter_format(SCHEMA, None, GENERIC, direct=False)).response == '{"a": 1}'
    openings = (
        "Here is my thought process:",
        "**Here is my thought process:**",
        "\n\nSo",
        "I say Here is my response: x",
    )
    for opening in openings:
        assert Matcher(SCHEMA, None, GENERIC).takes(f'{opening}\nHere is my response:\n{{"a": 1}}')


def test_a_marker_in_the_middle_of_a_line_ends_nothing() -> None:
    output = 'x Here is my response: y\nHere is my response:\n{"a": 1}'
    assert Matcher(SCHEMA, None, GENERIC).takes(output)
    assert split(output, splitter_format(SCHEMA, None, GENERIC, direct=False)).response == '{"a": 1}'


@pytest.mark.parametrize("written", ["**Here is my response:**", "## Here is my response:"])
def test_a_decorated_marker_ends_the_thought_too(written: str) -> None:
    """A model that has learned to decorate its marker could else never come to its response."""
    output = f'x\n{written}\n{{"a": 1}}'
    assert Matcher(SCHEMA, None, GENERIC).takes(output)
    assert split(output, splitter_format(SCHEMA, None, GENERIC, direct=False)).response == '{"a": 1}'
    assert Matcher(None, None, GENERIC, guard=True).takes(f"x\n{written}\nyes")
    assert not Matcher(SCHEMA, None, replace(GENERIC, variants=False)).takes(output)


def test_other_spellings_of_a_marker_end_a_bound_thought_for_neither() -> None:
    output = 'x</THINK>y</think>\n{"a": 1}'
    assert Matcher(SCHEMA, None, TAGS).takes(output)
    assert split(output, splitter_format(SCHEMA, None, TAGS, direct=False)).response == '{"a": 1}'


def test_each_closing_marker_ends_the_thought() -> None:
    format = replace(TAGS, closing=("</think>", "</reason>"))
    for marker in format.closing:
        assert Matcher(SCHEMA, None, format).takes(f'x{marker}\n{{"a": 1}}')
        assert not Matcher(SCHEMA, None, format).begins(f"x{marker}\nx")


def test_a_bound_response_is_no_thought_whatever_its_strings_hold() -> None:
    constraint = Constraint("json_schema", {"type": "string"})
    output = 'x</think>\n"<think> </think>"'
    assert Matcher(constraint, None, TAGS).takes(output)
    read = split(output, splitter_format(constraint, None, TAGS, direct=False))
    assert read.response == '"<think> </think>"'


def test_a_free_response_is_watched_for_thoughts_as_ever() -> None:
    for tools in (None, TOOLS):
        assert splitter_format(None, tools, TAGS, direct=False) is TAGS
    direct = splitter_format(SCHEMA, None, TAGS, direct=True)
    assert (direct.opening, direct.variants) == (TAGS.opening, False)


def test_a_thought_that_is_not_required_may_be_left_out() -> None:
    format = replace(TAGS, thought_required=False)
    for output in ('{"a": 1}', '<think>x</think>\n{"a": 1}'):
        assert Matcher(SCHEMA, None, format).takes(output)
        assert split(output, splitter_format(SCHEMA, None, format, direct=False)).response == '{"a": 1}'
    assert not Matcher(SCHEMA, None, format).begins("x")
    assert not Matcher(SCHEMA, None, format).takes("<think>x")
    guard = structured_outputs(None, None, format, direct=False, guard=True)
    assert guard is None


ODD = ThoughtFormat("odd", ("[^-]\\", "He:", "*/{}|"), line_start=True, variants=False)
FORMATS = [*BUILT_IN.values(), ODD]
_PARTS = st.sampled_from(
    ["\n", " ", '"', "**", "## ", ":", "x", "He", "He:", "Here is my", " response:", "Here is my response:"]
    + ["</", "think>", "</think>", "<think>", "<R>", "<", "R>", "[^-]\\", "[^", "-]\\", "*/{}|", "{"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_PARTS, max_size=8).map("".join), st.sampled_from(FORMATS))
def test_grammar_and_splitter_end_a_thought_in_the_same_place(thought: str, format: ThoughtFormat) -> None:
    """What the grammar takes as a whole output has exactly the response that it is bound to."""
    constraint = Constraint("choice", ['"a"', "b"])
    output = f"{thought}{closing(format)} b"
    read = split(output, splitter_format(constraint, None, format, direct=False))
    if Matcher(constraint, None, format).takes(output):
        assert (read.response, read.complete) == ("b", True)
    else:
        # A marker stood there before, or was mentioned; or the first character could be that of a marker.
        begun = output.lstrip("\n")[0] in {"*", "#", *(marker[0] for marker in format.closing)}
        barred = format.line_start and (begun or output.startswith("\n" * (MAX_EMPTY_LINES + 1)))
        assert read.response != "b" or barred or f'"{format.closing[0]}' in output


# What binds the response


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint("regex", "[0-9]+-[ab]"), "12-a", "12-c"),
        (Constraint("grammar", 'root ::= "yes" | "no" rest\nrest ::= "!"*'), "no!!", "yes!"),
        (Constraint("choice", ["yes", "no", "yes*[a]"]), "yes*[a]", "yess"),
        (Constraint("json_schema", {"type": "object"}), '{"x": {"y": [null]}}', "[1]"),
        (Constraint("json_schema", {}), '"x"', "x"),
    ],
)
def test_each_kind_of_constraint_binds(constraint: Constraint, good: str, bad: str) -> None:
    assert Matcher(constraint).takes(f"x<R> {good}")
    assert not Matcher(constraint).begins(f"x<R> {bad}")
    assert Matcher(constraint, direct=True).takes(good)
    assert not Matcher(constraint, direct=True).begins(bad)


def test_json_cannot_go_on_with_white_space_for_ever() -> None:
    assert Matcher(SCHEMA, direct=True).begins("{" + " " * 32 + '"a"')
    assert not Matcher(SCHEMA, direct=True).begins("{" + " " * 33)


@pytest.mark.parametrize("tools", [None, Tools(TOOLS.tools, "none")])
@pytest.mark.parametrize(("direct", "guard"), [(True, True), (False, False)])
def test_where_nothing_is_asked_for_nothing_binds(tools: Tools | None, direct: bool, guard: bool) -> None:
    bound = structured_outputs(None, tools, SPECIFIC, direct=direct, guard=guard)
    assert bound is None


def test_the_guard_leaves_the_response_free() -> None:
    for response in ("", "hello", CALL, "<think>", "second <R>"):
        assert Matcher(guard=True).takes(f"x<R>{response}")


# Tools


def offered(choice: str, *, parallel: bool = True) -> Tools:
    return Tools(TOOLS.tools, choice, parallel)


@pytest.mark.parametrize(
    ("tools", "response", "taken"),
    [
        (offered("auto"), "hello", True),
        (offered("auto"), f"I look.\n{CALL}\n{CALL_ALL} so", True),
        (offered("auto"), "<tool_call> is", False),
        (offered("auto", parallel=False), f"I look. {CALL}", True),
        (offered("auto", parallel=False), f"{CALL}\n", False),
        (offered("required"), "hello", False),
        (offered("required"), CALL, True),
        (offered("required"), f"{CALL}\n{CALL_ALL}", True),
        (offered("required"), f"{CALL} and", False),
        (offered("required", parallel=False), CALL_ALL, True),
        (offered("required", parallel=False), f"{CALL}\n", False),
        (offered(NAMED), CALL, True),
        (offered(NAMED), CALL_ALL, False),
        (offered(NAMED), f"{CALL}\n{CALL}", False),
    ],
)
@pytest.mark.parametrize("lead", ["", "x<R> "])
def test_calls_are_made_as_the_choice_says(tools: Tools, response: str, taken: bool, lead: str) -> None:
    assert Matcher(None, tools, direct=not lead).takes(lead + response) is taken


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
@pytest.mark.parametrize(
    "wrong", [('"q"', '"z"'), ('"x"', "1"), ('{"q": "x"}', "{}"), ("get", "nope"), (">\n{", "> {")]
)
def test_calls_have_the_exact_form_and_fit_their_schema(choice: str, wrong: tuple[str, str]) -> None:
    assert not Matcher(None, offered(choice)).begins("x<R> " + CALL.replace(*wrong, 1))


def test_what_looks_like_a_call_in_a_thought_is_free() -> None:
    for choice in ("auto", "required", NAMED):
        thought = '<tool_call>\n{"name": "nope", oops </tool_call>'
        assert Matcher(None, offered(choice)).takes(f"{thought}<R>\n{CALL}")


def test_a_bound_call_is_one_that_is_read() -> None:
    for tools in (offered("required"), replace(offered(NAMED), format=LLAMA3_JSON)):
        response = tools.format.call("get", '{"q": "</tool_call>"}')
        assert Matcher(None, tools).takes(f"x<R> {response}")
        parser = CallParser(tools)
        parts = parser.feed(response) + parser.flush()
        assert [part if isinstance(part, str) else part.name for part in parts] == ["get", None]


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"properties": {}}])
def test_arguments_are_an_object_also_where_the_schema_does_not_say_so(
    parameters: dict[str, Any] | None,
) -> None:
    tools = Tools((Tool("get", "", parameters),), NAMED)
    assert Matcher(None, tools).takes("<R> " + tools.format.call("get", "{}"))
    assert not Matcher(None, tools).begins('<R> <tool_call>\n{"name": "get", "arguments": "')


@pytest.mark.parametrize(
    ("response", "taken"),
    [
        ('{"name": "get", "parameters": {"q": "x"}}', True),
        ('{"name": "get", "parameters": {"z"', False),
        ('{"name": "Bob"', False),
        ('{"age": 3}', True),
        ("hello", True),
        ("{}", True),
    ],
)
def test_a_format_without_markers_binds_what_begins_like_a_call(response: str, taken: bool) -> None:
    assert Matcher(None, replace(TOOLS, format=LLAMA3_JSON)).takes(f"x<R>{response}") is taken


def test_a_format_without_markers_makes_one_call() -> None:
    tools = replace(offered("required"), format=LLAMA3_JSON)
    call = '{"name": "get", "parameters": {"q": "x"}}'
    assert Matcher(None, tools).takes(f"x<R> {call}")
    assert not Matcher(None, tools).begins(f"x<R> {call}\n")
    assert not Matcher(None, tools).begins("x<R> hello")


def test_a_format_of_a_users_own_binds_calls() -> None:
    tools = Tools(TOOLS.tools, "required", format=ToolFormat("mine", "[CALL] ", "", "tool", "args"))
    assert Matcher(None, tools).takes('x<R> [CALL] {"tool": "get_all", "args": {"a": 1}}')


@pytest.mark.parametrize(
    ("response", "taken"), [(CALL, True), ('{"a": 1}', True), ("hello", False), (CALL + '{"a": 1}', False)]
)
def test_with_a_schema_and_tools_the_response_is_calls_or_json(response: str, taken: bool) -> None:
    assert Matcher(SCHEMA, TOOLS).takes(f"x<R> {response}") is taken


def test_calls_that_must_be_made_leave_no_room_for_a_schema() -> None:
    assert Matcher(SCHEMA, offered("required")).takes(f"x<R> {CALL}")
    assert not Matcher(SCHEMA, offered("required")).begins('x<R> {"a"')


# What xgrammar refuses, so that vLLM answers 400

REFUSED: list[tuple[Any, Any]] = [
    ("json_schema", {"type": "strange"}),
    ("json_schema", {"$ref": "#/$defs/none"}),
    ("json_schema", {"type": "string", "pattern": "["}),
    ("json_schema", {"enum": []}),
    ("json_schema", {"type": "integer", "minimum": 5, "maximum": 1}),
    ("json_schema", False),
    ("regex", "("),
    ("regex", "a(?=b)"),
    ("regex", ""),
    ("grammar", "root = x"),
    ("grammar", 'start ::= "x"'),
]


@pytest.mark.parametrize(("kind", "value"), REFUSED, ids=[json.dumps(value) for _, value in REFUSED])
def test_a_constraint_that_cannot_be_is_refused_by_xgrammar(kind: Any, value: Any) -> None:
    with pytest.raises(RuntimeError):
        Matcher(Constraint(kind, value))
