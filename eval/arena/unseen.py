"""An answer of which only the judgments are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from thinkserve.eval.answer import Answer
from thinkserve.thoughts import Response


@dataclass(frozen=True, slots=True)
class UnseenAnswer(Answer):
    """Stands where an answer was judged that nobody gave us: its response is empty, and says nothing of its length."""

    @classmethod
    def to(cls, id: str) -> Self:
        """The unseen answer to an instruction."""
        return cls(id, Response(""))
