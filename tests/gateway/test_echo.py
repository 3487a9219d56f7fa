"""Responses that repeat their thought: measured as by the definition, and redacted the same however they are cut."""

from __future__ import annotations

import random
import re
import time
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thinkserve.gateway.echo import MOST_WORDS, REDACTED, EchoGuard, EchoMode, echo_share

THOUGHT = "Plan: the cat sat on the mat. Then say hello to all of you, dear friends."
# Few words, so that runs are common; of each kind, in spellings that are one word.
TEXTS = st.lists(
    st.sampled_from(
        ["a", "A", "bc", "B", "b", "cab", "\u732b", "\u72ac", "x1", " ", " ", " ", "\n", ", ", "*", "!"]
    ),
    max_size=60,
).map("".join)
CUTS = st.lists(st.integers(0, 200), max_size=30)


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    """A text, cut."""
    ends = sorted({cut for cut in cuts if cut < len(text)})
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def guarded(
    thought: Sequence[str], response: Sequence[str], longest: int, mode: EchoMode = "redact"
) -> tuple[str, int]:
    """What a guard shows of a response, and how many repeats it counts."""
    guard = EchoGuard(longest, mode)
    for text in thought:
        guard.thought(text)
    shown = "".join(map(guard.feed, response)) + guard.flush()
    return shown, guard.repeats


def words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text of these tests, and where they stand."""
    found = re.finditer("[\u732b\u72ac]|[a-zA-Z0-9]+", text)
    return [(match[0].lower(), match.start(), match.end()) for match in found]


def by_definition(thought: str, response: str, longest: int) -> tuple[str, int]:
    """A word is redacted if it is one of `longest` in a row that stand in the thought in a row."""
    said = [word for word, _, _ in words(thought)]
    runs = {tuple(said[at : at + longest]) for at in range(len(said) - longest + 1)}
    found = words(response)
    redacted = {
        at + offset
        for at in range(len(found) - longest + 1)
        if tuple(word for word, _, _ in found[at : at + longest]) in runs
        for offset in range(longest)
    }
    starts = [at for at in sorted(redacted) if at - 1 not in redacted]
    for start in reversed(starts):
        end = start
        while end + 1 in redacted:
            end += 1
        response = response[: found[start][1]] + REDACTED + response[found[end][2] :]
    return response, len(starts)


def share_by_definition(thought: str, response: str) -> float:
    """The longest common run, by comparing every word with every other."""
    said = [word for word, _, _ in words(thought)]
    found = [word for word, _, _ in words(response)]
    best = 0
    for start in range(len(found)):
        for at in range(len(said)):
            length = 0
            while found[start + length : start + length + 1] == said[at + length : at + length + 1] != []:
                length += 1
            best = max(best, length)
    return best / len(found) if found else 0.0


# The share


@pytest.mark.parametrize(
    ("thought", "response", "share"),
    [
        ("one two three four", "so: two three it is", 2 / 5),
        ("one two three four", "One, TWO\n\n**three** four!", 1.0),
        ("one two three four", "four three two one", 1 / 4),
        ("one two three", "none of it", 0.0),
        ("one two three", "onetwo threes", 0.0),
        ("", "one two", 0.0),
        ("one two", "", 0.0),
        ("one two", " ... ", 0.0),
        ("STRA\u00dfE zwei", "strasse zwei", 1.0),
        ("\u732b\u304c\u597d\u304d\u3002", "\u72ac\u304c\u597d\u304d", 3 / 4),
        (
            "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e\u0964",
            "\u0928\u092e\u0938\u094d\u0924\u0947",
            1.0,
        ),
    ],
)
def test_the_share_is_the_longest_run_by_the_response(thought: str, response: str, share: float) -> None:
    """In words; characters where a script sets no words apart."""
    assert echo_share(thought, response) == share


@given(TEXTS, TEXTS)
@example("a b a a b a b", "a a b a b b a")
def test_the_share_is_as_by_definition(thought: str, response: str) -> None:
    assert echo_share(thought, response) == share_by_definition(thought, response)


@settings(max_examples=500)
@given(st.text("ab", max_size=40), st.text("ab", max_size=40))
def test_the_share_is_as_by_definition_where_runs_overlap_in_all_ways(thought: str, response: str) -> None:
    """Two words only: nearly every run of them is the end of another."""
    thought, response = " ".join(thought), " ".join(response)
    assert echo_share(thought, response) == share_by_definition(thought, response)


def natural(words: int, seed: int) -> str:
    """A text whose words are as unevenly common as those of a language."""
    vocabulary = [f"word{number}" for number in range(20000)]
    weights = [1 / (number + 2) for number in range(20000)]
    return " ".join(random.Random(seed).choices(vocabulary, weights, k=words))


# A loop of one word, of two, few words at random: where runs are many and long, a method may be quadratic.
LONG = {
    "natural": (natural(16000, 1), natural(4000, 2)),
    "the whole response": (natural(16000, 1), natural(4000, 1)),
    "one word": ("wait " * 16000, "wait " * 4000),
    "nearly a loop": ("a a b " * 5300, "a a a b " * 1000),
    "two words": tuple(" ".join(random.Random(3).choices("ab", k=length)) for length in (16000, 4000)),
    "long runs": ("a " * 8000 + "b " + "a " * 8000, ("a " * 2000 + "b ") * 2),
}


@pytest.mark.parametrize("name", LONG)
def test_long_texts_take_little_time(name: str) -> None:
    """8 to 20 ms for the share where nothing else runs; 5 to 10 us a delta for the guard. Ten times that is far too much."""
    thought, response = LONG[name]
    start = time.thread_time()
    echo_share(thought, response)
    assert time.thread_time() - start < 0.2
    guard = EchoGuard(20, "redact")
    guard.thought(thought)
    start = time.thread_time()
    guard.feed("")
    assert time.thread_time() - start < 0.2
    deltas = re.findall(r"\s*\S+", response)
    start = time.thread_time()
    for delta in deltas:
        guard.feed(delta)
    guard.flush()
    assert (time.thread_time() - start) / len(deltas) < 100e-6


def test_a_guard_keeps_little_more_than_the_thought_itself() -> None:
    """Six bytes a word, and its vocabulary; twice the thought of the same words takes twice that."""

    def kept(words: int) -> int:
        guard = EchoGuard(20)
        tracemalloc.start()
        for at in range(words):
            guard.thought(f" word{at % 500}")
        guard.feed("")
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept

    once, twice = kept(10000), kept(20000)
    assert once < 10000 * 20
    assert twice - once < 10000 * 8


# The guard


def test_a_repeat_is_redacted_and_what_stands_around_it_is_not() -> None:
    """Its own case and punctuation do not matter; those around it are kept as they are."""
    response = "Sure:\n\n THE cat  sat, on -- the mat!!  And *say hello to* you."
    assert guarded([THOUGHT], [response], 4) == ("Sure:\n\n [redacted]!!  And *say hello to* you.", 1)
    assert guarded([THOUGHT], [response], 3) == ("Sure:\n\n [redacted]!!  And *[redacted]* you.", 2)


def test_a_run_that_is_one_word_too_short_is_kept() -> None:
    assert guarded([THOUGHT], ["the cat sat on a mat"], 5) == ("the cat sat on a mat", 0)
    assert guarded([THOUGHT], ["the cat sat on a mat"], 4) == ("[redacted] a mat", 1)


def test_two_quotes_are_two_repeats_unless_they_touch() -> None:
    """Where the end of one is the beginning of another, no word between them is its own."""
    between = "cat sat on and say hello to"
    assert guarded([THOUGHT], [between], 3) == ("[redacted] and [redacted]", 2)
    assert guarded([THOUGHT], ["cat sat on, say hello to"], 3) == ("[redacted]", 1)
    assert guarded(["one two three. Two three four."], ["one two three four"], 3) == ("[redacted]", 1)


def test_a_run_whose_first_words_belong_to_another_is_found() -> None:
    """`the the cat`: the second `the` begins it. And one that the thought has twice, going on in two ways."""
    assert guarded([THOUGHT], ["the the cat sat"], 3) == ("the [redacted]", 1)
    assert guarded(["a b c d. a b c e f."], ["a b c e f"], 5) == ("[redacted]", 1)
    assert guarded(["a b a b c d"], ["b a b a b c d"], 4) == ("b [redacted]", 1)


@pytest.mark.parametrize("mode", ["flag", "redact"])
def test_flag_changes_and_delays_nothing(mode: EchoMode) -> None:
    """Both count the same."""
    guard = EchoGuard(3, mode)
    guard.thought(THOUGHT)
    shown = [guard.feed(text) for text in ("the c", "at ", "sat on ", "the", " mat")]
    shown.append(guard.flush())
    assert guard.repeats == 1
    if mode == "flag":
        assert shown == ["the c", "at ", "sat on ", "the", " mat", ""]
    else:
        assert "".join(shown) == "[redacted]"


def test_text_is_held_only_while_a_run_is_growing() -> None:
    """A word that the thought does not have goes out at once, though more of it may come; and releases what was held."""
    guard = EchoGuard(4, "redact")
    guard.thought(THOUGHT)
    steps = [
        ("Yes", "Yes"),  # no word of the thought begins so
        ("terday, t", "terday, "),
        ("h", ""),
        ("is", "this"),
        (" is ", " is "),
        ("the cat sat", ""),
        (" down", "the cat sat down"),
        (" the the cat ", " the "),  # the first of them is in no run that can go on
        ("sat on", ""),
        (" t", REDACTED),  # `on` has ended, and with it the fourth word of the run
        ("opping", " topping"),
    ]
    for text, shown in steps:
        assert guard.feed(text) == shown
    assert (guard.flush(), guard.repeats) == ("", 1)


def test_what_is_held_at_the_end_is_shown_unless_it_is_a_repeat() -> None:
    """The last word is whole then."""
    for text, shown in (
        ("the cat sat", "the cat sat"),
        ("the cat sat o", "the cat sat o"),
        ("the cat sat on", REDACTED),
        ("the cat sat on  ", REDACTED + "  "),
        ("the cat sat on the", REDACTED),
    ):
        guard = EchoGuard(4, "redact")
        guard.thought(THOUGHT)
        assert guard.feed(text) + guard.flush() == shown
        assert guard.feed("") + guard.flush() == ""


@given(TEXTS, TEXTS, st.integers(1, 5), CUTS, CUTS)
@example("a b a b a", "b a b a b a", 3, [], [])
@example("ab c", "ab c", 2, [1], [1])
@example("a b", "a b b", 2, [], [])
def test_any_cutting_gives_what_the_definition_says(
    thought: str, response: str, longest: int, thought_cuts: list[int], cuts: list[int]
) -> None:
    expected = by_definition(thought, response, longest)
    assert guarded(pieces(thought, thought_cuts), pieces(response, cuts), longest) == expected
    assert guarded([thought], list(response), longest) == expected
    assert guarded([thought], pieces(response, cuts), longest, "flag") == (response, expected[1])


@given(TEXTS, TEXTS, st.integers(2, 5))
def test_nothing_is_held_back_but_a_growing_run(thought: str, response: str, longest: int) -> None:
    """Between two words: no more than the longest end of the response so far that stands in the thought."""
    guard = EchoGuard(longest, "redact")
    guard.thought(thought)
    said = " ".join(["", *(word for word, _, _ in words(thought)), ""])
    shown, taken = "", ""
    for part in re.findall(r"[a-zA-Z0-9]+[^a-zA-Z0-9]*|[^a-zA-Z0-9]+", response):
        taken += part + " "
        shown += guard.feed(part + " ")
        last = [word for word, _, _ in words(taken)]
        run = next(n for n in range(len(last), -1, -1) if " ".join(["", *last[len(last) - n :], ""]) in said)
        whole, _ = by_definition(thought, taken, longest)
        assert whole.startswith(shown)
        held = whole[len(shown) :]
        assert len(words(held.replace(REDACTED, ""))) <= min(run, longest - 1)
        assert run or not held
    assert shown + guard.flush() == by_definition(thought, taken, longest)[0]


@given(st.integers(1, 400), CUTS, CUTS)
def test_words_without_an_end_are_cut_the_same_however_they_come(
    length: int, thought_cuts: list[int], cuts: list[int]
) -> None:
    """A key or a picture in base64 counts as several words; so its repeat is found, and its beginning is not held."""
    long = "".join(random.Random(7).choices("abcdefghijklmnop", k=length))
    thought, response = f"see {long} and {long[:70]}", f"no: {long} {long[64:]} x{long}"
    whole = guarded([thought], [response], 2)
    assert guarded(pieces(thought, thought_cuts), pieces(response, cuts), 2) == whole
    assert guarded([thought], list(response), 2) == whole
    if length > 64:
        assert whole[0].startswith(f"no: {REDACTED} ") and whole[1] >= 1


def test_the_beginning_of_an_endless_word_goes_out_at_once() -> None:
    guard = EchoGuard(2, "redact")
    guard.thought(THOUGHT)
    for _ in range(1000):
        assert guard.feed("zzz") == "zzz"


def test_scripts_without_spaces_are_compared_by_the_character() -> None:
    """As one word a sentence would never be long enough."""
    thought = "\u732b\u304c\u597d\u304d\u3067\u3059\u3002"
    response = "\u306f\u3044\u3001\u732b\u304c\u597d\u304d\u3067\u3059\u3088"
    assert guarded([thought], list(response), 6) == (f"\u306f\u3044\u3001{REDACTED}\u3088", 1)


def test_a_thought_that_goes_on_later_counts_from_then_on() -> None:
    """Some outputs hold a second thought behind the beginning of their response."""
    guard = EchoGuard(2, "redact")
    guard.thought("one two")
    assert guard.feed("three four, one ") == "three four, "
    guard.thought("three four")
    assert guard.feed("two three four. ") == REDACTED
    assert guard.flush() == ". "
    assert guard.repeats == 1


def test_without_a_thought_there_is_nothing_to_repeat() -> None:
    guard = EchoGuard(2, "redact")
    assert [guard.feed(text) for text in ("Hello", " wor", "ld")] == ["Hello", " wor", "ld"]
    assert guard.flush() == "" and guard.repeats == 0


@pytest.mark.parametrize("longest", [0, -1, MOST_WORDS + 1])
def test_a_length_that_is_none_is_refused(longest: int) -> None:
    with pytest.raises(ValueError, match=str(longest)):
        EchoGuard(longest)
