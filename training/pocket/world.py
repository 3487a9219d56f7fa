"""The pocket world: instructions in eight categories, their gold answers, and which of them are held out.

The held-out tenth is chosen by the instruction's md5, so seed training, TPO and evaluation agree on it for ever
without a list: nothing held out is ever trained on, by anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import md5
from random import Random

from thinkserve.training.pocket.easy import EASY
from thinkserve.training.pocket.hard import HARD
from thinkserve.training.pocket.task import Category, Task

CATEGORIES: Mapping[str, Category] = {category.name: category for category in (*EASY, *HARD)}
MOST_TRIES = 1000


def solve(instruction: str) -> Task | None:
    """Read an instruction and work out its answer; None if it is not an instruction of this world."""
    text = instruction.strip()
    return next((task for category in CATEGORIES.values() if (task := category.read(text))), None)


def is_held_out(instruction: str) -> bool:
    """Whether an instruction is kept for evaluation (about one in ten)."""
    return md5(instruction.encode(), usedforsecurity=False).digest()[0] < 26


def draw(rng: Random, category: str | None = None, *, held_out: bool = False) -> Task:
    """Draw a task from one side of the split, from any category unless one is named."""
    family = CATEGORIES[category or rng.choice(list(CATEGORIES))]
    while is_held_out(instruction := family.draw(rng)) != held_out:
        pass
    task = family.read(instruction)
    assert task is not None, f"category {family.name} cannot read its own instruction {instruction!r}"
    return task


def draw_distinct(seed: int, count: int, *, held_out: bool = False) -> list[Task]:
    """Draw `count` different tasks, the categories in turn: the same ones for the same seed."""
    return [task for _, task in zip(range(count), _stream(seed, held_out), strict=False)]


def examples(per_category: int = 1, seed: int = 0) -> list[str]:
    """Instructions to show or to try, category by category."""
    return [task.instruction for task in draw_distinct(seed, per_category * len(CATEGORIES), held_out=True)]


def _stream(seed: int, held_out: bool) -> Iterator[Task]:
    rng = Random(seed)
    seen: set[str] = set()
    while True:
        for category in CATEGORIES:
            yield (task := _new(rng, category, held_out, seen))
            seen.add(task.instruction)


def _new(rng: Random, category: str, held_out: bool, seen: set[str]) -> Task:
    for _ in range(MOST_TRIES):
        if (task := draw(rng, category, held_out=held_out)).instruction not in seen:
            return task
    raise ValueError(
        f"category {category} has hardly any instructions left after {len(seen)} tasks; ask for fewer"
    )
