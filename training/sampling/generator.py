"""What generates: one protocol over an engine of its own process, a server, and transformers in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from thinkserve.training.records import SampleRecord


@dataclass(frozen=True, slots=True)
class Ask:
    """One conversation to be continued."""

    id: str
    """Of the instruction."""
    message: str
    """The user's message: the instruction, in the thought prompt or as it is."""
    seed: int
    """Of its outputs."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy."""

    k: int
    """Outputs for each ask."""
    temperature: float
    top_p: float
    max_tokens: int


class Generator(Protocol):
    """Generates raw outputs: thought, marker and response as one text, without special tokens."""

    @property
    def name(self) -> str:
        """`vllm 0.32.0`, `transformers 5.19.0` or the URL: for the marker and the report."""

    @property
    def numbers(self) -> Mapping[str, Any]:
        """What was counted so far: prompt and output tokens, seconds of generating."""

    def generate(self, asks: Sequence[Ask], sampling: Sampling) -> AsyncIterator[SampleRecord]:
        """Generate for all asks, in any order.

        Raises:
            ThinkserveError: the engine died or refuses all; the message says what to do.
        """
