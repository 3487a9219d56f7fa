"""Which variants of a marker count: the table in `thinkserve/thoughts/markers.py`, row by row, and near misses."""

import re

import pytest

from thinkserve.thoughts import ThoughtFormat, ThoughtSplitter, get_format, split
from thinkserve.thoughts.markers import compile_scanner, emphasis_open_after, is_quoted

TOLERATED_CLOSINGS = [
    "Here is my response:",
    # other case
    "here is MY Response:",
    "HERE IS MY RESPONSE:",
    # emphasis or heading round it
    "**Here is my response:**",
    "**Here is my response**:",
    "*Here is my response:*",
    "***Here is my response:***",
    "__Here is my response__:",
    "__Here is my response:__",
    "_**Here is my response:**_",
    "## Here is my response:",
    "### **Here is my response:**",
    "> Here is my response:",
    "    Here is my response:",
    # several spaces, tabs or no-break spaces
    "Here  is my response:",
    "Here\tis\u00a0my    response:",
    # space before the colon, full-width colon
    "Here is my response :",
    "Here is my response\u00a0:",
    "Here is my response\uff1a",
    "**Here is my response** :",
    # no colon, where the line ends there
    "Here is my response\n",
    "Here is my response  \n",
    "Here is my response\r\n",
    "**Here is my response**\n",
    # the contraction
    "Here's my response:",
    "Here\u2019s my response:",
    "**here's my response**\n",
]
TOLERATED_OPENINGS = [
    re.sub("response", "thought process", marker, flags=re.IGNORECASE) for marker in TOLERATED_CLOSINGS
]


@pytest.mark.parametrize("name", ["tpo-generic", "granite"])
@pytest.mark.parametrize("marker", TOLERATED_CLOSINGS)
def test_tolerated_variant_of_a_closing_marker_is_cut_with_all_its_decoration(name: str, marker: str) -> None:
    output = split(f"Here is my thought process:\nplan\n{marker}\n42", name)
    assert (output.thought, output.response, output.complete) == ("\nplan\n", "42", True)


@pytest.mark.parametrize("marker", TOLERATED_OPENINGS)
def test_tolerated_variant_of_an_opening_marker_hides_what_follows(marker: str) -> None:
    output = split(f"Hi.\n{marker}plan\nHere is my response:\n42", "tpo-generic")
    assert output.thought.startswith("Hi.\n") and "plan" in output.thought and output.response == "42"


@pytest.mark.parametrize(
    "line",
    [
        "Here is my response to that",
        "Here is my responses:",
        "Here is my final response:",
        "There is my response:",
        "Hereis my response:",
        "Here is myresponse:",
        "Here is my",
        "Here is my response",  # and the output ends: no line end, so it may be half a sentence
        "Here is my response;",
        "Here is my response.",
        "Here is my response - 42",
        "Here      is my response:",  # six spaces
        "Here is my response     :",  # five spaces
        "Here is\nmy response:",
        "1. Here is my response:",
        "- Here is my response:",
        "* Here is my response:",
        "So: Here is my response:",
        '"Here is my response:"',
        "`Here is my response:`",
        "****Here is my response:",
        "Here's is my response:",
    ],
)
def test_near_miss_of_a_text_marker_ends_no_thought(line: str) -> None:
    text = f"Here is my thought process:\nplan\n{line}"
    output = split(text, "tpo-generic")
    assert (output.thought, output.response, output.complete) == (f"\nplan\n{line}", "", False)


@pytest.mark.parametrize("marker", ["<R>", "<r>", "**<R>**", "***<R>***", "_<R>_", "**<R>"])
def test_tolerated_variant_of_a_tag_is_cut(marker: str) -> None:
    output = split(f"plan {marker} 42", "tpo-specific")
    assert output.thought.strip(" *_") == "plan" and output.response == "42" and output.complete


@pytest.mark.parametrize(
    "text", ["a < R > b", "<R/>", "<R", "< R>", "<R >", "</R>", "<RR>", "<<R>", "[R]", "&lt;R&gt;", "<\nR>"]
)
def test_near_miss_of_a_tag_ends_no_thought(text: str) -> None:
    # "<<R>" holds the tag, so only what is in it counts; every other text is a thought without an end.
    output = split(f"plan {text} 42", "tpo-specific")
    assert (output.response, output.complete) == (("42", True) if text == "<<R>" else ("", False))


def test_scanner_without_markers_is_none() -> None:
    assert compile_scanner((), (), line_start=True) is None


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("so FINALLY it is FINAL 42", "42"),
        ("SEMIFINAL and FINALE, then final: 42", ": 42"),
        ("_FINAL_ 42", "42"),
        ("**FINAL** 42", "42"),
        ("\u601d\u8003FINAL\u56de\u7b54", "\u56de\u7b54"),  # nothing separates words there
        ("FINAL", ""),
    ],
)
def test_word_marker_counts_only_as_a_word_of_its_own(text: str, response: str) -> None:
    output = split(text, ThoughtFormat("final", closing=("FINAL",)))
    assert (output.response, output.complete) == (response, True)


@pytest.mark.parametrize(
    "text", ["FINALLY 42", "FINALE", "SEMIFINAL 42", "FINAL\u00c4 42", "FINAL7", "7FINAL"]
)
def test_word_marker_inside_a_longer_word_is_text(text: str) -> None:
    assert split(text, ThoughtFormat("final", closing=("FINAL",))).response == ""


@pytest.mark.parametrize("text", ["a      b|42", "a  b|42", "a\tb|42"])
def test_marker_with_a_long_gap_matches_itself_and_shorter_gaps(text: str) -> None:
    assert split(text, ThoughtFormat("gap", closing=("a      b|",))).response == "42"


def test_marker_over_two_lines_is_found() -> None:
    two_lines = ThoughtFormat("lines", closing=("---\nAnswer:",), line_start=True)
    assert split("plan\n---\nAnswer: 42", two_lines).response == "42"
    assert split("plan\n---\r\nAnswer: 42", two_lines).response == "42"


@pytest.mark.parametrize("colon", [":", "\uff1a", " :", "\n"])
def test_marker_with_a_full_width_colon_takes_every_colon(colon: str) -> None:
    chinese = ThoughtFormat("zh", closing=("\u6211\u7684\u56de\u7b54\uff1a",), line_start=True)
    assert split(f"\u601d\u8003\n\u6211\u7684\u56de\u7b54{colon}\u597d", chinese).response == "\u597d"


def test_marker_with_an_ideographic_space_matches_itself() -> None:
    wide = ThoughtFormat("wide", closing=("\u56de\u7b54\u3000\u59cb",), line_start=True)
    assert split("x\n\u56de\u7b54\u3000\u59cb\uff01", wide).response == "\uff01"


@pytest.mark.parametrize("apostrophe", ["'", "\u2019"])
def test_marker_that_begins_with_an_apostrophe_takes_both_forms_in_a_stream_too(apostrophe: str) -> None:
    splitter = ThoughtSplitter(ThoughtFormat("quote", closing=("'end'",)))
    pieces = [piece for character in f"x {apostrophe}end{apostrophe}y" for piece in splitter.feed(character)]
    assert [piece.text for piece in pieces if piece.kind == "response"] == ["y"]


@pytest.mark.parametrize("text", ["Here i\u017f my re\u017fpon\u017fe:", "<thin\u212a>"])
def test_letters_that_fold_to_ascii_are_the_same_letters(text: str) -> None:
    """U+017F folds to s and U+212A to k: reading them as a marker hides, it never shows."""
    name = "think-tags" if text.startswith("<") else "tpo-generic"
    assert text not in split(f"plan\n{text}\n42", name).response


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ('"<R>"', True),
        ("'<R>'", True),
        ("`<R>`", True),
        ("``<R>``", True),
        ("\u201c<R>\u201d", True),
        ("\u2018<R>\u2019", True),
        ("\u00ab<R>\u00bb", True),
        ('("<R>")', True),
        ('"<R>,"', True),
        ('"<R>."', True),
        ('"<R>,', None),
        ('"<R>', None),
        ('"<R> x', False),
        ('"<R>,x', False),
        ('"<R>,,"', False),
        ('"yes"<R>"no"', False),
        ('"yes."<R>"no"', False),
        ('"<R>`', False),
        ('<R>"', False),
        ("<R>", False),
    ],
)
def test_quote_signs_count_only_directly_round_the_marker(text: str, quoted: bool | None) -> None:
    begin = text.index("<R>")
    assert is_quoted(text, begin, begin + 3) is quoted


@pytest.mark.parametrize(
    ("text", "closes"),
    [
        ("\n**<R>", "**"),
        (" _**<R>", "**_"),
        ("#**<R>", "**"),
        ("\n<R>", ""),
        ("Done.**<R>", ""),  # closes the thought's own emphasis
        (" ****<R>", ""),
        ("x_<R>", ""),
    ],
)
def test_emphasis_before_a_marker_is_closed_in_reverse(text: str, closes: str) -> None:
    assert emphasis_open_after(text, len(text), len(text) - 3) == closes


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("**Done.**<R>**Answer:** 4", "**Answer:** 4"),
        ("plan\n**<R>****Answer:** 4", "**Answer:** 4"),
        ("plan\n**<R>** 4", "4"),
        ("plan\n**<R>*4*", "4*"),
    ],
)
def test_emphasis_of_the_response_survives(text: str, response: str) -> None:
    """The last row is ambiguous: `**` was opened and one `*` of it closed."""
    assert split(text, "tpo-specific").response == response


def test_emphasis_does_not_reach_over_the_end_of_the_marker_line() -> None:
    assert split("T\n**Here is my response\n**Answer:** 4", "granite").response == "**Answer:** 4"


def test_scanners_are_compiled_once_a_format() -> None:
    format = get_format("granite")
    assert format.scan_thought is format.scan_thought
