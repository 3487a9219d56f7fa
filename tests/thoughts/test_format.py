"""Thought formats: the built-in ones, a user's own from a file, a checkpoint's, and every way to get one wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from thinkserve.errors import ThoughtFormatError, UsageError
from thinkserve.thoughts import BUILT_IN, ThoughtFormat, get_format, split

GENERIC = (
    "Respond to the following user query in a comprehensive and detailed way. You can write down your thought "
    'process before responding. Write your thoughts after "Here is my thought process:" and write your response '
    'after "Here is my response:".\n\nUser query: Why is the sky blue?'
)
SPECIFIC = (
    "Respond to the following user query in a comprehensive and detailed way. But first write down your internal "
    "thoughts. This must include your draft response and its evaluation. After this, write your final response "
    'after "<R>".\n\nUser query: Why is the sky blue?'
)


@pytest.mark.parametrize(("name", "prompt"), [("tpo-generic", GENERIC), ("tpo-specific", SPECIFIC)])
def test_thought_prompt_is_the_paper_s_to_the_letter(name: str, prompt: str) -> None:
    assert get_format(name).thought_prompt("Why is the sky blue?") == prompt


@pytest.mark.parametrize("name", ["think-tags", "think-tags-in-prompt", "granite"])
def test_format_without_a_prompt_leaves_the_instruction_alone(name: str) -> None:
    assert get_format(name).prompt is None
    assert get_format(name).thought_prompt("Why?") == "Why?"


def test_instruction_that_holds_the_place_itself_comes_out_as_it_went_in() -> None:
    format = ThoughtFormat("f", closing=("<R>",), prompt="Think. {instruction} Go.")
    assert format.thought_prompt("{instruction} {name} {0}") == "Think. {instruction} {name} {0} Go."


def test_built_in_formats_are_these() -> None:
    assert list(BUILT_IN) == ["tpo-generic", "tpo-specific", "think-tags", "think-tags-in-prompt", "granite"]


@pytest.mark.parametrize(
    ("name", "starts_in_thought", "allows_direct"),
    [
        ("tpo-generic", False, True),
        ("tpo-specific", True, False),
        ("think-tags", False, True),
        ("think-tags-in-prompt", True, False),
        ("granite", False, True),
    ],
)
def test_built_in_format_knows_where_an_output_begins(
    name: str, starts_in_thought: bool, allows_direct: bool
) -> None:
    format = get_format(name)
    assert (format.starts_in_thought, format.allows_direct) == (starts_in_thought, allows_direct)
    assert format.thought_required


def test_single_marker_may_be_a_string() -> None:
    format = ThoughtFormat("f", closing="</a>", opening="<a>")  # type: ignore[arg-type]
    assert (format.opening, format.closing) == (("<a>",), ("</a>",))


def test_direct_overrides_what_the_opening_marker_suggests() -> None:
    assert ThoughtFormat("f", closing=("<R>",), direct=True).allows_direct
    assert not ThoughtFormat("f", closing=("</a>",), opening=("<a>",), direct=False).allows_direct


def test_format_passes_through_get_format() -> None:
    format = ThoughtFormat("f", closing=("<R>",))
    assert get_format(format) is format


TOML = """
name = "mine"
opening = "[plan]"
closing = ["[answer]", "[reply]"]
prompt = "Plan, then answer: {instruction}"
line_start = true
thought_required = false
direct = false
"""
MINE = ThoughtFormat(
    "mine",
    closing=("[answer]", "[reply]"),
    opening=("[plan]",),
    prompt="Plan, then answer: {instruction}",
    line_start=True,
    thought_required=False,
    direct=False,
)


def test_format_is_read_from_toml(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    assert get_format(tmp_path / "mine.toml") == MINE
    assert get_format(str(tmp_path / "mine.toml")) == MINE


def test_format_is_read_from_json(tmp_path: Path) -> None:
    definition = {"name": "m", "closing": "\u7b54\uff1a", "opening": [], "opening_in_prompt": False}
    (tmp_path / "m.json").write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    assert get_format(tmp_path / "m.json") == ThoughtFormat("m", closing=("\u7b54\uff1a",))


def test_format_from_a_file_cuts(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    output = split("[plan]\nsums\n[reply] 42", get_format(tmp_path / "mine.toml"))
    assert (output.thought, output.response) == ("\nsums\n", "42")


def test_base_starts_from_a_built_in_format(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"base": "think-tags", "name": "mine", "opening_in_prompt": true}')
    format = get_format(tmp_path / "b.json")
    assert (format.name, format.opening, format.opening_in_prompt) == ("mine", ("<think>",), True)


@pytest.mark.parametrize(
    "definition", ['{"format": "tpo-specific"}', '{"base": "tpo-specific"}', '"tpo-specific"']
)
def test_checkpoint_names_its_format(tmp_path: Path, definition: str) -> None:
    (tmp_path / "thought_format.json").write_text(definition)
    assert get_format(tmp_path) == get_format("tpo-specific")


def test_checkpoint_defines_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "thought_format.json").write_text('{"name": "own", "closing": "<answer>"}')
    assert get_format(str(tmp_path)) == ThoughtFormat("own", closing=("<answer>",))


def test_checkpoint_without_a_format_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ThoughtFormatError, match=r"thought_format\.json"):
        get_format(tmp_path)


@pytest.mark.parametrize("name", ["tpo", "", "granite.toml", "x" * 5000, "no/such/file.json", "\0"])
def test_unknown_format_is_named_in_the_error(name: str) -> None:
    with pytest.raises(ThoughtFormatError) as caught:
        get_format(name)
    assert name[:100] in str(caught.value) or repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("definition", "named"),
    [
        ({"name": "m"}, ["closing"]),
        ({"closing": "<R>"}, ["name"]),
        ({}, ["name", "closing"]),
        ({"name": 7, "closing": "<R>"}, ["name", "7"]),
        ({"name": "m", "closing": ""}, ["closing", "''"]),
        ({"name": "m", "closing": " \n"}, ["closing", r"' \n'"]),
        ({"name": "m", "closing": []}, ["'m'", "closing"]),
        ({"name": "m", "closing": 7}, ["closing", "7"]),
        ({"name": "m", "closing": ["<R>", 7]}, ["closing", "7"]),
        ({"name": "m", "closing": ["<R>", ""]}, ["closing", "''"]),
        ({"name": "m", "closing": {"a": 1}}, ["closing", "{'a': 1}"]),
        ({"name": "m", "closing": "<R>", "opening": "  "}, ["opening", "'  '"]),
        ({"name": "m", "closing": "x" * 101}, ["closing", "100"]),
        ({"name": "m", "closing": "<R>", "opening": None}, ["opening", "None"]),
        ({"name": "m", "closing": "<R>", "opening_in_prompt": True}, ["opening_in_prompt"]),
        ({"name": "m", "closing": "<R>", "opening_in_prompt": "yes"}, ["opening_in_prompt", "'yes'"]),
        ({"name": "m", "closing": "<R>", "thought_required": False}, ["thought_required"]),
        ({"name": "m", "closing": "<R>", "thought_required": 1}, ["thought_required", "1"]),
        ({"name": "m", "closing": "<R>", "line_start": "true"}, ["line_start", "'true'"]),
        ({"name": "m", "closing": "<R>", "direct": 0}, ["direct", "0"]),
        ({"name": "m", "closing": "<R>", "prompt": "Think."}, ["prompt", "0 times"]),
        ({"name": "m", "closing": "<R>", "prompt": "{instruction}{instruction}"}, ["prompt", "2 times"]),
        ({"name": "m", "closing": "<R>", "prompt": ["{instruction}"]}, ["prompt", "['{instruction}']"]),
        ({"name": "m", "closing": "<R>", "marker": "<R>"}, ["marker"]),
        ({"base": "tpo"}, ["base", "'tpo'", "tpo-generic"]),
        ({"base": ["tpo-generic"]}, ["base", "['tpo-generic']"]),
        ({"format": {}}, ["base", "{}"]),
        ({"base": "granite", "format": "granite"}, ["format"]),
        ({"base": "tpo-specific", "thought_required": False}, ["thought_required"]),
        ([{"name": "m"}], ["list"]),
        (7, ["int"]),
        (None, ["NoneType"]),
    ],
)
def test_malformed_definition_is_refused_with_the_value_in_the_message(
    tmp_path: Path, definition: Any, named: list[str]
) -> None:
    path = tmp_path / "thought_format.json"
    path.write_text(json.dumps(definition))
    with pytest.raises(ThoughtFormatError) as caught:
        get_format(path)
    assert [word for word in named if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("m.toml", b"name = "),
        ("m.json", b"{"),
        ("m.json", b""),
        ("m.json", b"\xff\xfe"),
        ("m.toml", b"\xff"),
        ("m.json", b"[" * 100_000),
        ("m.yaml", b"name: m\nclosing: <R>\n"),
    ],
)
def test_unreadable_file_is_refused_with_its_path_in_the_message(
    tmp_path: Path, file: str, content: bytes
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ThoughtFormatError, match=file):
        get_format(tmp_path / file)


def test_format_error_is_the_user_s_error() -> None:
    assert issubclass(ThoughtFormatError, UsageError) and ThoughtFormatError.exit_code == 2


def test_longest_marker_still_compiles_deep_in_the_stack() -> None:
    format = ThoughtFormat("long", closing=("y" * 100,), opening=("[" * 100,), line_start=True)

    def at_depth(depth: int) -> str:
        return split(f"{'[' * 100}T\n{'y' * 100} R", format).response if depth == 0 else at_depth(depth - 1)

    assert at_depth(300) == "R"


@pytest.mark.parametrize("name", ["tpo-generic", "tpo-specific", "think-tags"])
def test_an_exact_format_counts_no_variants(name: str) -> None:
    """Where a grammar goes over to the response at the exact marker, a decorated one may not end the thought before."""
    format = get_format(name).exact
    marker = format.closing[0]
    assert not split(f"a\n{marker.swapcase()}\nb", format).complete
    assert split(f"a\n{marker.swapcase()}\nb", name).complete
    assert split(f"a\n{marker}\nb", format).response == "b"
