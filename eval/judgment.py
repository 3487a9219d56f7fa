"""A judgment: the record of one call of a judge, as it is kept for good.

Verdicts are looked up by `key_of`, so whatever a verdict hangs on is in the key: an answer that changed is judged
again, and one that did not is never paid for twice, in this run or in any other that has the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from thinkserve.eval.answer import Answer
from thinkserve.eval.match import Game, Verdict


@dataclass(frozen=True, slots=True)
class Judgment:
    """One call of a judge (or, with a `follow_up`, the calls that were needed for one verdict)."""

    key: str
    id: str
    """Of the instruction."""
    game: int
    model_first: bool
    model: str
    baseline: str
    judge: str
    request_sha256: str
    """Of messages and settings as they were sent."""
    raw: str | None = None
    """All that the judge said; None where it never answered."""
    top_logprobs: Mapping[str, float] | None = None
    verdict: Verdict | None = None
    failure: str | None = None
    """Why there is no verdict: a kind of `Unreadable`, or `timeout`, `http 429`, `http 500`, `bad json` ..."""
    attempts: int = 1
    """Calls that this judgment took, failed ones included."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    created: float | None = None
    """Seconds since 1970."""
    failures: tuple[str, ...] = ()
    """The kinds of all failed attempts, in order, also where a later one brought the verdict; else `failure` is last."""


def key_of(
    bench: str,
    configuration: Mapping[str, Any],
    prompt_sha256: str,
    answer: Answer,
    baseline: Answer,
    game: Game,
) -> str:
    """The key of a verdict.

    Args:
        bench: its name.
        configuration: of the judge: model, protocol, settings; what can be written as JSON.
        prompt_sha256: of the instruction's text.
        answer: of the model.
        baseline: of its baseline.
        game: which game.
    """
    parts = [
        bench,
        configuration,
        prompt_sha256,
        answer.sha256,
        baseline.sha256,
        game.number,
        game.model_first,
    ]
    return sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def to_json(judgment: Judgment) -> dict[str, Any]:
    """As a line of the file."""
    data: dict[str, Any] = msgspec.to_builtins(judgment)
    return {name: value for name, value in data.items() if value is not None and value != ()}
