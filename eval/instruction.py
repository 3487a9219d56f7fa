"""What a model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

TOPIC = "topic"
"""The scheme of the paper's topics."""
CLUSTER = "cluster"
"""The scheme of Arena-Hard v0.1: two instructions each, too few to fit or to test anything."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a bench."""

    id: str
    """`question_id`, `uid`, or for benches that join by text: `id_of(text)`."""
    text: str
    """The user's message; all benches here have one turn."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """From scheme (`category`, `subcategory`, `cluster`, `dataset`, `topic`) to category."""
    position: int = 0
    """The row in the official file, from 0; the difficulties of AlpacaEval hang on it."""


def id_of(text: str) -> str:
    """The id of an instruction that has none of its own: 16 hex digits of its text's sha256."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
