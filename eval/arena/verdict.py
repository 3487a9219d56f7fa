"""Labels: from what a judge said to a verdict, seen from the model.

Two readers. `read_label` is ours: it looks behind the judge's own thoughts, and is tolerant where a verdict is beyond
doubt (`[[A>> B]]`, `[[a<b]]`). `official_label` is the authors', kept to the letter, to check files of theirs and to
reproduce published numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from thinkserve.eval.arena.version import Version
from thinkserve.eval.bench import Reply, Unreadable
from thinkserve.eval.match import Verdict

# From label to the preference for A.
PREFERENCES: Mapping[str, float] = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}
SPELLINGS: Mapping[str, str] = {
    **{label: label for label in PREFERENCES},
    "A<<B": "B>>A",
    "A<B": "B>A",
    "B=A": "A=B",
    "B<A": "A>B",
    "B<<A": "A>>B",
}
MUCH_BETTER = 3

_DOUBLE = re.compile(r"\[\[([AB<>=\s]+)\]\]")
_SINGLE = re.compile(r"\[([AB<>=\s]+)\]")
_THOUGHT_BEGINS = re.compile(r"^[ \t]*<think>", re.MULTILINE | re.IGNORECASE)
_THOUGHT_ENDS = re.compile(r"</think>", re.IGNORECASE)


def last_mark(reply: Reply, marks: re.Pattern[str]) -> Any | Unreadable:
    """The last mark behind the judge's own thoughts, as `findall` gives it, or why there is none.

    A reply that was cut off has none: a mark in it may be one that the judge only considered, or quoted.
    """
    if not reply.text.strip():
        return Unreadable("empty")
    if reply.finish_reason == "length":
        return Unreadable("truncated")
    found = marks.findall(without_thoughts(reply.text))
    return found[-1] if found else Unreadable("no verdict")


def verdict_of(label: str, model_first: bool) -> Verdict:
    """The verdict of a label in one of its spellings.

    Args:
        label: of `SPELLINGS`.
        model_first: whether the model was shown as A.
    """
    label = SPELLINGS[label]
    preference = PREFERENCES[label]
    return Verdict(label, preference if model_first else 1 - preference, MUCH_BETTER if ">>" in label else 1)


def normalised(label: str) -> str | None:
    """A label as the bench spells it: without spaces, upper-case, with `>`; None where it is none (`A>>A`, `A`)."""
    return SPELLINGS.get("".join(label.split()).upper())


def without_thoughts(text: str) -> str:
    """What a judge said after its own thoughts; "" where they never end.

    A `<think>` further down is a thought only for a judge that began with one: others may quote the word.
    """
    *thoughts, said = _THOUGHT_ENDS.split(text)
    if thoughts or _THOUGHT_BEGINS.match(text.lstrip()):
        return _THOUGHT_BEGINS.split(said)[0]
    return said


def read_label(text: str, finish_reason: str | None = None) -> str | Unreadable:
    """The label of a judgment, normalised; the last one counts.

    Labels in single brackets count where there is none in double ones, and must then be real ones: `[A]` may be a
    line of code or a reference.
    """
    if not text.strip():
        return Unreadable("empty")
    said = without_thoughts(text).upper()
    found = [label for label in _DOUBLE.findall(said) if label.strip()]
    if not found:
        found = [label for label in _SINGLE.findall(said) if normalised(label)]
    label = normalised(found[-1]) if found else None
    if label is not None:
        return label
    return Unreadable("truncated" if finish_reason == "length" else "no verdict")


def official_label(text: str, version: Version) -> str | Unreadable:
    """The `score` that the authors' code writes for a judgment, as the judge spelled it (so it may be `A>>A`).

    Source: `get_score` in gen_judgment.py of lm-sys/arena-hard-auto@efc012e (v0.1: labels that differ are none) and
    lmarena/arena-hard-auto@196f6b8 (v2.0: the last one).
    """
    if version == "v0.1":
        found = re.findall(r"\[\[([AB<>=]+)\]\]", text)
        if len(set(found)) > 1:
            return Unreadable("two verdicts")
    else:
        found = re.findall(r"\[\[([AB<>=]+)\]\]", text.upper())
        found = found or re.findall(r"\[([AB<>=]+)\]", text.upper())
    if found:
        return str(found[-1])
    return Unreadable("no verdict" if text.strip() else "empty")


def official_verdict(score: str | None, version: Version, model_first: bool) -> Verdict | None:
    """The verdict that the authors' show_result.py takes from a stored `score`; None where it takes none.

    v0.1 passes over all but the five labels; v2.0 takes the other spellings too, and crashes on anything else, which
    is None here.
    """
    known = PREFERENCES if version == "v0.1" else SPELLINGS
    return verdict_of(score, model_first) if score is not None and score in known else None
