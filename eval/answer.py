"""What a model answered. A thought has no place in it: `response` is a `Response`, and its length is kept elsewhere.

`Answer` is all that judges, length features and scores ever get. What is known of the thought (how long it was, never
its text) is an `OutputLength` in a file of its own, which the report reads and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from thinkserve.thoughts import Response


@dataclass(frozen=True, slots=True)
class Style:
    """Length and markdown of a response, as Arena-Hard counts them (`metadata` in its answer files)."""

    token_len: int
    headers: int
    lists: int
    bold: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One response of one model."""

    id: str
    """Of the instruction."""
    response: Response
    complete: bool = True
    """False: the thought never ended, so there is no response. That is a loss, and no judge is asked."""
    style: Style | None = None
    """As an official file gave it; None means: count it from the response."""

    def __post_init__(self) -> None:
        if not isinstance(self.response, Response):
            raise TypeError(
                f"the answer to {self.id} is a {type(self.response).__name__}, not a Response: only what a thought was "
                "cut from may be judged"
            )

    @property
    def sha256(self) -> str:
        """Of the response; a verdict hangs on it, so a changed answer is judged again."""
        return sha256(self.response.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one model to a bench, by the instruction's id."""

    model: str
    by_id: Mapping[str, Answer]


@dataclass(frozen=True, slots=True)
class OutputLength:
    """How long one output was and took; for the report alone."""

    id: str
    thought_tokens: int | None
    thought_characters: int | None
    response_tokens: int | None
    response_characters: int
    seconds: float | None
