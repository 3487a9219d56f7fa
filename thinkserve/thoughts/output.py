"""What a model's output is cut into: pieces while it streams, an `Output` when it is whole.

`Response` is the type that everything outside the operator's reach is given: clients, judges, length features. It is
text and nothing else, so there is no field through which a thought could travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["thought", "response"]


class Response(str):
    """The visible part of an output: a `str` that a judge can ask for by type, and that holds no thought."""

    __slots__ = ()


class Piece(NamedTuple):
    """A stretch of an output; `start` is its offset in characters in the whole output.

    The stretches between pieces are markers with their decoration and the white space that a closing marker takes
    with it: they belong to neither side.
    """

    kind: Kind
    text: str
    start: int


@dataclass(frozen=True, slots=True)
class Output:
    """A whole output, cut. `complete` is False where the thought never ended or the format was broken."""

    thought: str
    response: Response
    complete: bool
