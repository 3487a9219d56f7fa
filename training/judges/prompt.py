"""The prompts of LLM judges: which places they have, and what judged text may not bring into them.

Judged text is hostile: a model that is trained against a judge finds whatever sways it. So text is put in in one pass,
and nothing in it can pose as a part of the prompt, as a turn of the conversation, or as the judge's verdict.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.eval.judging.template import fill
from thinkserve.eval.records import read_bytes

_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")
# A line of a prompt that parts what is judged from the rest: `[User Question]`, `</answer>`.
_MARK = re.compile(r"^[ \t]*(\[[^\[\]{}\n]+\]|</?[^<>{}\n]+>)[ \t]*$", re.MULTILINE)
# Marks of the usual kind, also where the prompt words them otherwise.
_USUAL_MARK = re.compile(
    r"\[(\s*(?:the\s+)?(?:start|beginning|end)\s+of\s+(?:the\s+)?assistant[^\[\]\n]{0,40})\]", re.IGNORECASE
)
# What chat templates begin and end turns with: servers take it for the real thing wherever it stands. Operators of F# and
# Elm (`f <| x |> g`) have spaces inside.
_TURN = re.compile(
    r"<(?=[|｜](?! )[^|｜<>\n]{1,80}(?<! )[|｜]>|/?s>|(?:start|end)_of_turn>|<SYS>>|</SYS>>)|\[(?=/?INST\])",
    re.IGNORECASE,
)


class JudgePrompt:
    """A prompt with places for what is judged.

    Args:
        text: with `{name}` places.
        verdict: what a verdict looks like in a judge's reply; the first two characters of a match are taken apart in
            judged text.
    """

    def __init__(self, text: str, verdict: re.Pattern[str]) -> None:
        self.text, self._verdict = text, verdict
        marks = dict.fromkeys(mark.strip() for mark in _MARK.findall(text))
        self._marks = re.compile("|".join(map(_tolerant, marks)) or r"(?!)", re.IGNORECASE)

    def fill(self, values: Mapping[str, str], settings: Mapping[str, str] | None = None) -> str:
        """The prompt for one call.

        Args:
            values: what is judged.
            settings: what comes from us, as it is; those without a place are left out.
        """
        ours = {name: value for name, value in (settings or {}).items() if f"{{{name}}}" in self.text}
        return fill(self.text, {**ours, **{name: self.harmless(text) for name, text in values.items()}})

    def harmless(self, text: str) -> str:
        """Judged text as a judge may be shown it; all that is no mark, turn or verdict stays as it is.

        Brackets of marks become round. Verdicts and turns get a space inside, which is the same to a reader, and to most
        programming languages too.
        """
        text = self._marks.sub(lambda found: f"({found[0][1:-1]})", text)
        text = _USUAL_MARK.sub(r"(\1)", text)
        text = _TURN.sub(lambda found: f"{found[0]} ", text)
        return self._verdict.sub(lambda found: f"{found[0][:1]} {found[0][1:]}", text)


def load_prompt(
    file: str | None,
    builtin: str,
    verdict: re.Pattern[str],
    *,
    places: Collection[str],
    optional: Collection[str] = (),
) -> JudgePrompt:
    """Read a prompt and check its places.

    Args:
        file: of the recipe; None: the built-in one.
        builtin: a file of `prompts/`.
        verdict: as in `JudgePrompt`.
        places: that it must have.
        optional: that it may have.

    Raises:
        UsageError: the file cannot be read, lacks a place, or has one that nothing is known for.
    """
    if file is None:
        text = (files("thinkserve.training.judges") / "prompts" / builtin).read_text("utf-8")
        return JudgePrompt(text.strip(), verdict)
    try:
        text = read_bytes(Path(file)).decode("utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise UsageError(f"judge.template {file}: is no UTF-8 text ({exc.reason})") from exc
    found = set(_PLACE.findall(text))
    if missing := [place for place in places if place not in found]:
        raise UsageError(f"judge.template {file}: has no {{{missing[0]}}}; it must have {_listed(places)}")
    if unknown := sorted(found.difference(places, optional)):
        known = _listed([*places, *optional])
        raise UsageError(f"judge.template {file}: {{{unknown[0]}}} stands for nothing; known are {known}")
    return JudgePrompt(text, verdict)


def _tolerant(mark: str) -> str:
    """A pattern for a mark, whatever its white space and its apostrophes."""
    words = [re.escape(word).replace("'", "['’]") for word in mark[1:-1].split()]
    return re.escape(mark[0]) + r"\s*" + r"\s+".join(words) + r"\s*" + re.escape(mark[-1])


def _listed(places: Collection[str]) -> str:
    return ", ".join(f"{{{place}}}" for place in places)
