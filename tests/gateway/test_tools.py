"""Tool calls: read out of a response in any chunking, told to the model, and written back into past turns."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkserve.errors import UsageError
from thinkserve.gateway.errors import ApiError
from thinkserve.gateway.tool_calls import new_call_id
from thinkserve.gateway.tools import (
    HERMES,
    LLAMA3_JSON,
    CallDelta,
    CallParser,
    Part,
    Tool,
    ToolFormat,
    ToolName,
    Tools,
    get_tool_format,
    past_calls,
    past_result,
    tool_prompt,
)

TOOLS = Tools((Tool("get", "Gets it."), Tool("get_all"), Tool("auto")))
LLAMA = Tools(TOOLS.tools, format=LLAMA3_JSON)

Call = tuple[str, str]


def one(name: str, arguments: str) -> str:
    """A call in hermes' exact form."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def deltas(pieces: Iterable[str], tools: Tools = TOOLS) -> tuple[str, list[CallDelta], CallParser]:
    """Feed a parser: the text it showed, the deltas it gave, and itself."""
    parts, parser = parsed(pieces, tools)
    shown = "".join(part for part in parts if isinstance(part, str))
    return shown, [part for part in parts if not isinstance(part, str)], parser


def parsed(pieces: Iterable[str], tools: Tools = TOOLS) -> tuple[list[Part], CallParser]:
    """Feed a parser: all that it gave, and itself."""
    ids = itertools.count()
    parser = CallParser(tools, new_id=lambda: f"id{next(ids)}")
    return [part for fed in (*map(parser.feed, pieces), parser.flush()) for part in fed], parser


def read(pieces: Iterable[str], tools: Tools = TOOLS) -> tuple[str, list[Call]]:
    """The text and the whole calls; the deltas must be in the order that clients rely on."""
    shown, given, parser = deltas(pieces, tools)
    calls: list[Call] = []
    for delta in given:
        if delta.id is not None:
            assert (delta.index, delta.id) == (len(calls), f"id{len(calls)}")
            assert delta.name is not None
            calls.append((delta.name, delta.arguments))
        else:
            assert delta.index == len(calls) - 1
            assert delta.name is None
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    assert parser.calls == len(calls)
    return shown, calls


@pytest.mark.parametrize(
    ("response", "text", "calls"),
    [
        pytest.param("hello ", "hello ", [], id="text"),
        pytest.param("", "", [], id="nothing"),
        pytest.param(one("get", '{"a": 1}'), "", [("get", '{"a": 1}')], id="a call"),
        pytest.param("I look.\n\n" + one("get", "{}"), "I look.", [("get", "{}")], id="text, then a call"),
        pytest.param(
            one("get", "{}") + "\n" + one("get_all", '{"b": [1, {"c": "}"}]}'),
            "",
            [("get", "{}"), ("get_all", '{"b": [1, {"c": "}"}]}')],
            id="two calls",
        ),
        pytest.param(
            f"a {one('get', '{}')} \n b {one('auto', '{}')}  c ",
            "a\nb\nc ",
            [("get", "{}"), ("auto", "{}")],
            id="text around calls",
        ),
        pytest.param(
            one("get", '{"code": "a } \\" </tool_call> \\\\"}') + "x",
            "x",
            [("get", '{"code": "a } \\" </tool_call> \\\\"}')],
            id="markers, brackets and quotes in a string",
        ),
        pytest.param(
            one("get", '{"a":  1,\n "b": "\\u00e9é"}'),
            "",
            [("get", '{"a":  1,\n "b": "\\u00e9é"}')],
            id="arguments stay as they are",
        ),
        pytest.param(
            '<tool_call>{"name":"get","arguments":{"a": 1e300, "b": 123456789012345678901234}}</tool_call>',
            "",
            [("get", '{"a": 1e300, "b": 123456789012345678901234}')],
            id="other white space",
        ),
        pytest.param(
            'x <tool_call>\n{"arguments": {"a": {}}, "id": 3, "name": "get"} </tool_call>\n',
            "x",
            [("get", '{"a": {}}')],
            id="other order, other keys",
        ),
        pytest.param(
            '<tool_call>\n{"name": "get", "arguments": {"a": 1}, "id": "}"}\n</tool_call>\nbye',
            "bye",
            [("get", '{"a": 1}')],
            id="more keys behind the arguments",
        ),
        pytest.param(
            '<tool_call>\n{"name": "get", "arguments": {"a": 1}\n</tool_call> bye',
            "bye",
            [("get", '{"a": 1}')],
            id="outer brace left out",
        ),
        pytest.param(
            '<tool_call>\n{"name": "get", "arguments": {}} bye',
            "bye",
            [("get", "{}")],
            id="end marker left out",
        ),
        pytest.param(
            '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_', "", [("get", "{}")], id="cut end"
        ),
        pytest.param("a < b <tool b", "a < b <tool b", [], id="no marker"),
        pytest.param("a <tool_call", "a <tool_call", [], id="marker cut off"),
        pytest.param("a <tool_call>", "a <tool_call>", [], id="marker alone"),
        pytest.param(
            "Write <tool_call> so. " + one("get", "{}"),
            "Write <tool_call> so.",
            [("get", "{}")],
            id="a mention, then a call",
        ),
        pytest.param("x " + one("nope", "{}") + " y", "x " + one("nope", "{}") + " y", [], id="unknown tool"),
        pytest.param(
            "x\n" + one("get", "[1]") + " y",
            "x\n" + one("get", "[1]") + " y",
            [],
            id="no object of arguments",
        ),
        pytest.param(
            '<tool_call>\n{"name": "get", "args": {}}</tool_call>',
            '<tool_call>\n{"name": "get", "args": {}}</tool_call>',
            [],
            id="no arguments",
        ),
        pytest.param(
            '<tool_call>{"name": get}</tool_call>' + one("get", "{}"),
            '<tool_call>{"name": get}</tool_call>',
            [("get", "{}")],
            id="broken JSON, then a call",
        ),
        pytest.param(
            '<tool_call>{"name": "get", "arguments": {"a" 1}}</tool_call>',
            '<tool_call>{"name": "get", "arguments": {"a" 1}}</tool_call>',
            [],
            id="broken JSON in the arguments",
        ),
        pytest.param(
            'a <tool_call>{"name": "get", "arguments": {"a": "',
            'a <tool_call>{"name": "get", "arguments": {"a": "',
            [],
            id="never closed",
        ),
        pytest.param(
            '<tool_call>{"a": ' + "[" * 5000 + "]" * 5000 + "}</tool_call>",
            '<tool_call>{"a": ' + "[" * 5000 + "]" * 5000 + "}</tool_call>",
            [],
            id="nested too deep",
        ),
        pytest.param("[1, <tool_call>\n\n", "[1, <tool_call>\n\n", [], id="white space behind the marker"),
    ],
)
def test_calls_and_text_are_told_apart_in_any_chunking(response: str, text: str, calls: list[Call]) -> None:
    assert read([response]) == (text, calls)
    assert read(response) == (text, calls)  # a character at a time
    assert read(re.findall(r"[\s\S]{1,7}", response)) == (text, calls)


_PARTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "\n",
        " ",
        "{",
        "}",
        '{"name": "get", "arguments": ',
        '{"name": "nope", "arguments": ',
        '{"arguments": {}, "name": "auto"}',
        '{"name": "get", "parameters": ',
        "<|python_tag|>",
        '{"a": "\\"}"}',
        '"',
        "\\",
        "é",
        "word",
        ",",
        "[1]",
        one("get_all", '{"x": [{}]}'),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([TOOLS, LLAMA, Tools(TOOLS.tools, parallel=False)]))
def test_any_chunking_gives_the_same_result(data: st.DataObject, tools: Tools) -> None:
    response = "".join(data.draw(st.lists(_PARTS, max_size=12)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(response)), max_size=8)))
    pieces = [response[a:b] for a, b in itertools.pairwise([0, *cuts, len(response)])]
    assert read(pieces, tools) == read([response], tools)


@settings(max_examples=200, deadline=None)
@given(st.lists(_PARTS, max_size=12))
def test_without_calls_the_text_is_verbatim(parts: list[str]) -> None:
    response = "".join(parts)
    nothing = Tools(TOOLS.tools, choice="none")
    assert read([response], nothing) == (response, [])
    text, calls = read([response])
    assert calls or text == response


def test_no_beginning_of_a_call_is_shown() -> None:
    parser = CallParser(TOOLS)
    fed = [part for character in "Hi.\n" + one("get", '{"a": 1}') for part in parser.feed(character)]
    assert "".join(part for part in fed if isinstance(part, str)) == "Hi."


def test_arguments_stream_as_they_come() -> None:
    parser = CallParser(TOOLS, lambda: "id")
    pieces = ['<tool_call>\n{"name": "get", "arg', 'uments": {"a": "b', 'c"', "}}\n</tool_call>"]
    fed = [parser.feed(piece) for piece in pieces]
    begun = [CallDelta(0, "id", "get", ""), CallDelta(0, None, None, '{"a": "b')]
    assert fed == [[], begun, [CallDelta(0, None, None, 'c"')], [CallDelta(0, None, None, "}")]]


def test_a_call_in_another_form_comes_whole() -> None:
    pieces = ['<tool_call>{"name": "get", ', '"arguments": {"a"', ": 1}", "}", "</tool_call>"]
    parser = CallParser(TOOLS, lambda: "id")
    fed = [parser.feed(piece) for piece in pieces]
    assert fed == [[], [], [], [CallDelta(0, "id", "get", '{"a": 1}')], []]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("between", ["", "\n\n"])
def test_text_and_calls_come_in_the_order_of_the_response(between: str, size: int) -> None:
    """With a line end between two texts on the sides of a call, and none where there is but one."""
    call = between + one("get", "{}") + between
    for response, order in {
        f"a{call}b": ["a", "call", "\nb"],
        f"{call}b": ["call", "b"],
        f"a{call}": ["a", "call"],
        f"a{call}{call}b{call}c": ["a", "call", "call", "\nb", "call", "\nc"],
    }.items():
        parts, _ = parsed(response[at : at + size] for at in range(0, len(response), size))
        seen: list[str] = []
        for part in parts:
            if isinstance(part, str) and seen and seen[-1] != "call":
                seen[-1] += part
            elif isinstance(part, str) or part.id is not None:
                seen.append(part if isinstance(part, str) else "call")
        assert seen == order


@pytest.mark.parametrize(
    ("response", "arguments"),
    [
        ('<tool_call>\n{"name": "get", "arguments": {"a": "b', '{"a": "b'),
        ('<tool_call>\n{"name": "get", "arguments": {"a": oops}}\n</tool_call>', '{"a": '),
        ('<tool_call>\n{"name": "get", "arguments": {"a": 1}', '{"a": 1}'),
    ],
)
def test_a_call_that_streams_stays_where_it_breaks_off(response: str, arguments: str) -> None:
    _, given, _ = deltas([response])
    assert "".join(delta.arguments for delta in given) == arguments


@pytest.mark.parametrize(
    "second", [one("get_all", "{}"), '<tool_call>{"name":"auto","arguments":{}}</tool_call>']
)
def test_calls_behind_the_first_are_dropped_where_one_is_allowed(second: str) -> None:
    tools = Tools(TOOLS.tools, parallel=False)
    response = f"a {one('get', '{}')}{second} b"
    assert read([response], tools) == read(response, tools) == ("a\nb", [("get", "{}")])


def test_only_the_tool_that_is_named_may_be_called() -> None:
    tools = Tools(TOOLS.tools, choice=ToolName("auto"))
    assert tools.bind
    assert tools.allowed == ("auto",)
    response = one("get", "{}") + "\n" + one("auto", "{}")
    assert read(response, tools) == (one("get", "{}"), [("auto", "{}")])


def test_ids_are_like_openais_and_all_different() -> None:
    ids = {new_call_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", id) for id in ids)
    [first, *_] = CallParser(TOOLS).feed(one("get", "{}"))
    assert isinstance(first, CallDelta) and first.id not in ids


def test_reading_takes_time_in_proportion_to_the_response() -> None:
    """Begin markers inside of what began like a call are not read again and again."""

    def seconds(unit: str, times: int) -> float:
        begin = time.process_time()
        read(re.findall(r"[\s\S]{1,40}", unit * times))
        return time.process_time() - begin

    for unit in ('<tool_call>{"', "<tool_call>[", '<tool_call>{"a":', "<tool_call>\n{", "<tool_call>", "\\"):
        assert seconds(unit, 8000) < 2


# llama3-json: the response is the call


@pytest.mark.parametrize(
    ("response", "text", "calls"),
    [
        ('{"name": "get", "parameters": {"a": "}"}}', "", [("get", '{"a": "}"}')]),
        (' <|python_tag|> {"name": "get", "parameters": {}}\n', "", [("get", "{}")]),
        ('<|python_tag|>{"parameters": {"a": 1}, "name": "auto"}', "", [("auto", '{"a": 1}')]),
        ('{"name": "get", "parameters": {}} done', "done", [("get", "{}")]),
        ('{"name": "get", "arguments": {}}', '{"name": "get", "arguments": {}}', []),
        ('{"name": "nope", "parameters": {}}', '{"name": "nope", "parameters": {}}', []),
        (' {"a": 1} ', ' {"a": 1} ', []),
        ('So: {"name": "get", "parameters": {}}', 'So: {"name": "get", "parameters": {}}', []),
        ("<|python_tag|>print()", "<|python_tag|>print()", []),
        ("<|python", "<|python", []),
        (" \n", " \n", []),
        ('{"name": "get", "par', '{"name": "get", "par', []),
    ],
)
def test_a_response_may_be_a_call_without_markers(response: str, text: str, calls: list[Call]) -> None:
    assert read([response], LLAMA) == read(response, LLAMA) == (text, calls)


# Formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.toml", 'begin = "[CALL] "\nend = "[/CALL]"\nname_key = "tool"\narguments_key = "args"\n'),
        ("mine.json", '{"begin": "[CALL] ", "end": "[/CALL]", "name_key": "tool", "arguments_key": "args"}'),
    ],
)
def test_a_format_of_a_users_own_is_read_from_a_file(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    format = get_tool_format(path)
    assert format == ToolFormat(str(path), "[CALL] ", "[/CALL]", "tool", "args")
    response = format.call("get", '{"a": 1}')
    assert response == '[CALL] {"tool": "get", "args": {"a": 1}}[/CALL]'
    assert read(f"x {response} y", Tools(TOOLS.tools, format=format)) == ("x\ny", [("get", '{"a": 1}')])


def test_the_built_in_formats_have_names() -> None:
    assert get_tool_format("hermes") is HERMES
    assert get_tool_format("llama3-json") is LLAMA3_JSON


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('begun = "x"', "unknown key 'begun'; known are begin, end"),
        ("begin = 3", "begin is 3; give a string"),
        ('begin = " "', "begin is only white space"),
        ('end = "x"', "has an end and no begin"),
        ('name_key = "arguments"', "two different keys"),
        (f'begin = "{"x" * 101}"', "at most 100 characters"),
        ("begin = ", "cannot read the tool format"),
    ],
)
def test_a_bad_format_is_refused_in_one_line_that_names_the_file(
    tmp_path: Path, content: str, told: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=re.escape(told)) as raised:
        get_tool_format(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_format_file_must_hold_a_table_and_be_there(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UsageError, match="a table of keys, not list"):
        get_tool_format(tmp_path / "list.json")
    with pytest.raises(UsageError, match="no tool format 'herms'; choose from hermes, llama3-json, or give"):
        get_tool_format("herms")


# The prompt, and past turns


def test_the_model_is_told_its_tools_and_how_to_call_them() -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    prompt = tool_prompt(Tools((Tool("weather", "Tells the weather – today.", parameters),)))
    lines = prompt.split("\n")
    told = json.loads(lines[lines.index("<tools>") + 1])
    assert told == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather – today.",
            "parameters": parameters,
        },
    }
    assert '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' in prompt
    assert "must" not in prompt


@pytest.mark.parametrize(
    ("choice", "parallel", "told"),
    [
        ("required", True, "You must call a function."),
        (ToolName("get"), False, "You must call the function get."),
        ("auto", False, "Call at most one function."),
    ],
)
def test_the_prompt_says_what_is_asked_for(choice: str, parallel: bool, told: str) -> None:
    assert tool_prompt(Tools(TOOLS.tools, choice, parallel)).endswith(f"\n{told}")


def test_a_tool_that_may_not_be_called_is_not_told() -> None:
    assert tool_prompt(Tools(TOOLS.tools, "none")) == ""
    assert "get_all" not in tool_prompt(Tools(TOOLS.tools, ToolName("get")))


def message(*calls: Sequence[str]) -> dict[str, object]:
    return {
        "role": "assistant",
        "tool_calls": [{"id": "i", "function": {"name": name, "arguments": args}} for name, args in calls],
    }


@pytest.mark.parametrize("tools", [TOOLS, LLAMA])
def test_past_calls_are_written_as_they_are_read(tools: Tools) -> None:
    written = past_calls(message(("get", ' {"a": "b"} ')), tools.format)
    assert read([written], tools) == ("", [("get", '{"a": "b"}')])


def test_several_past_calls_stand_one_behind_the_other() -> None:
    written = past_calls(message(("get", "{}"), ("auto", "{}")))
    assert written == one("get", "{}") + "\n" + one("auto", "{}")


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "null", "[" * 100_000])
def test_past_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    with pytest.raises(ApiError, match="^messages holds the call 'i', whose arguments must be") as raised:
        past_calls(message(("get", arguments)))
    assert raised.value.status == 400


def test_past_results_are_written_as_text() -> None:
    assert past_result({"role": "tool", "content": "12 C"}) == "<tool_response>\n12 C\n</tool_response>"
    parts = {"role": "tool", "content": [{"type": "text", "text": "12"}, {"type": "text", "text": " C"}]}
    assert past_result(parts, LLAMA3_JSON) == "The function returned:\n12 C"
