"""One task of the pocket world, and what a category of tasks is.

A category draws instructions and reads them back: the gold answer is always computed from the instruction's text, so
the world can judge an instruction that a person typed exactly as it judges one that it drew itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Level = Literal["easy", "hard"]


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction with its gold answer."""

    category: str
    instruction: str
    answer: str
    scratchpad: str
    """The useful thought: the steps that lead to the answer."""


@dataclass(frozen=True, slots=True)
class Category:
    """A family of instructions of one form."""

    name: str
    level: Level
    pattern: re.Pattern[str]
    """The form; its groups go to `solve`."""
    solve: Callable[..., tuple[str, str] | None]
    """From the groups of the pattern to (answer, scratchpad); None where the instruction makes no sense."""
    draw: Callable[[Random], str]
    """A new random instruction."""

    def read(self, instruction: str) -> Task | None:
        """The task that an instruction sets, or None if it is not of this category."""
        match = self.pattern.fullmatch(instruction)
        solved = self.solve(*match.groups()) if match else None
        return Task(self.name, instruction, *solved) if solved else None
