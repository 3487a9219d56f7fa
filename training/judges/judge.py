"""Judges of samples: what scores the responses to one instruction. There is no way for a thought to reach one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from thinkserve.thoughts import Response


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one instruction, as a judge gets them."""

    id: str
    instruction: str
    """The instruction itself, without any thought prompt."""
    responses: tuple[Response, ...]

    def __post_init__(self) -> None:
        for response in self.responses:
            if not isinstance(response, Response):
                raise TypeError(
                    f"a response to {self.id} is a {type(response).__name__}, not a Response: only what a thought was cut "
                    "from may be judged"
                )


@dataclass(frozen=True, slots=True)
class GroupScores:
    """A score for each response of a group, in their order; higher is better."""

    id: str
    scores: tuple[float | None, ...]
    """None: no score could be had. Never NaN and never infinite."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the report may show: battles, unreadable judgments, and under `reasons` a text for each missing score."""


class Judge(Protocol):
    """What scores."""

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that a score hangs on beside what is judged."""

    @property
    def numbers(self) -> Mapping[str, Any]:
        """What was counted so far: calls, tokens, cut conversations."""

    def score(self, groups: Sequence[Group]) -> AsyncIterator[GroupScores]:
        """Score all groups, in any order; a group with one response, or none, too.

        Raises:
            ThinkserveError: nothing can be scored; the message says what to do.
        """
