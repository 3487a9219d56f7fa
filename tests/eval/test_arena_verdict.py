"""Labels in what judges said, ours and the authors' reading, and the verdicts made of them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.eval.arena_data import V01, V20, expected, needs_data, rows
from thinkserve.eval.arena.verdict import (
    SPELLINGS,
    normalised,
    official_label,
    official_verdict,
    read_label,
    verdict_of,
)
from thinkserve.eval.arena.version import Version
from thinkserve.eval.bench import Unreadable
from thinkserve.eval.match import Verdict


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("My final verdict is: [[A>B]]", "A>B"),
        ("[[A>> B]]", "A>>B"),
        ("[[ B >> A ]].", "B>>A"),
        ("[[a=b]]", "A=B"),
        ("[[A<B]]", "B>A"),
        ("[[B<<A]]", "A>>B"),
        ("[[B<A]]", "A>B"),
        ("[[A<<B]]", "B>>A"),
        ("[[B=A]]", "A=B"),
        ("first I thought [[A>B]], but [[B>A]]", "B>A"),
        ("verdict: [B>A]", "B>A"),
        ("[A>B] at first, in the end [[A=B]], not [B>A]", "A=B"),
        ("verdict: [A>B], where [B] is wrong", "A>B"),
        ("<think>[[A>>B]]</think>I say [[B>A]]", "B>A"),
        ("[[A>>B]] so\n</think>\n[[B>A]]", "B>A"),
        ("\n<think>\nno\n</think>\nhm\n<THINK>[[A>B]]</think>[[A=B]]", "A=B"),
        ("Assistant A shows its <think> tag. [[B>A]]", "B>A"),
        ("Assistant A begins with\n<think>\nand never ends. [[B>>A]]", "B>>A"),
    ],
)
def test_a_label_is_read_as_it_was_meant(said: str, label: str) -> None:
    assert read_label(said) == label


@pytest.mark.parametrize(
    ("said", "finish_reason", "kind"),
    [
        ("", "stop", "empty"),
        (" \n", "length", "empty"),
        ("Both are good.", "stop", "no verdict"),
        ("[[A>>A]]", "stop", "no verdict"),
        ("[[A]]", "stop", "no verdict"),
        ("[[A>B]] or rather [[B>>B]]", "stop", "no verdict"),
        ("x = [A] + [B]", "stop", "no verdict"),
        ("<think>surely [[A>B]]", "stop", "no verdict"),
        ("<think>surely [[A>B]]", "length", "truncated"),
        ("<think>x</think>\nhm\n<think>surely [[A>B]]", "stop", "no verdict"),
        ("<think>[[A>B]]</think>", "stop", "no verdict"),
        ("Assistant A is", "length", "truncated"),
    ],
)
def test_what_has_no_verdict_is_named(said: str, finish_reason: str, kind: str) -> None:
    assert read_label(said, finish_reason) == Unreadable(kind)


def test_a_verdict_is_seen_from_the_model() -> None:
    assert verdict_of("A>>B", model_first=True) == Verdict("A>>B", 1.0, 3)
    assert verdict_of("A>>B", model_first=False) == Verdict("A>>B", 0.0, 3)
    assert verdict_of("A<B", model_first=True) == Verdict("B>A", 0.0, 1)
    assert verdict_of("B=A", model_first=False) == Verdict("A=B", 0.5, 1)


def test_swapped_games_mirror_each_other() -> None:
    for label in SPELLINGS:
        seen = verdict_of(label, True)
        assert verdict_of(label, False) == Verdict(seen.label, 1 - seen.preference, seen.weight)


def test_the_authors_versions_differ_in_what_they_read() -> None:
    assert official_label("[[A>B]] no, [[B>A]]", "v0.1") == Unreadable("two verdicts")
    assert official_label("[[A>B]] no, [[B>A]]", "v2.0") == "B>A"
    assert official_label("[[A>B]] yes, [[A>B]]", "v0.1") == "A>B"
    assert official_label("[[A>> B]]", "v0.1") == Unreadable("no verdict")
    assert official_label("[a>b]", "v2.0") == "A>B"
    assert official_label("[[A>>A]]", "v2.0") == "A>>A"
    assert official_label("\n\n", "v0.1") == Unreadable("empty")


def test_the_authors_versions_differ_in_what_they_count() -> None:
    assert official_verdict("A<B", "v0.1", True) is None
    assert official_verdict("A<B", "v2.0", True) == Verdict("B>A", 0.0, 1)
    assert official_verdict("A>>A", "v2.0", True) is None
    assert official_verdict(None, "v0.1", True) is None


@given(st.text("AB<>=[] \nx</think>"), st.sampled_from([None, "stop", "length"]))
def test_no_text_makes_the_reader_fail(text: str, finish_reason: str | None) -> None:
    found = read_label(text, finish_reason)
    assert isinstance(found, Unreadable) or found in SPELLINGS.values()


@needs_data
@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_real_judgments_are_read_as_their_authors_read_them(version: Version) -> None:
    """The strict reader equals every stored score, and ours never contradicts one."""
    games = 0
    for path in sorted(((V01 if version == "v0.1" else V20) / "real_verdict_texts").glob("*.gz")):
        scores: Counter[str] = Counter()
        for game in (game for row in rows(path) for game in row["games"]):
            text = game["judgment"] if version == "v0.1" else game["judgment"]["answer"]
            strict, ours = official_label(text, version), read_label(text)
            assert (None if isinstance(strict, Unreadable) else strict) == game["score"]
            if game["score"] is not None:
                assert ours == normalised(game["score"])
            scores[str(game["score"])] += 1
            games += 1
        known = expected(path.parent)
        if version == "v0.1":
            assert scores == known[path.name.removesuffix(".jsonl.gz")]["scores"]
    assert games == (912 if version == "v0.1" else 70)
