"""Instructions that are in a benchmark: who trains on them has nothing left to measure there.

An instruction is left out if one of the benchmark's is the same (as `duplicates.py` tells it, exactly or nearly), or if
they share 13 words in a row, the usual rule; a benchmark's instruction of 8 to 12 words must be in it as a whole. Shorter
ones are found only as duplicates. Source of the bounds: Brown et al., Language Models are Few-Shot Learners, appendix C.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction
from thinkserve.evaluate import find_bench
from thinkserve.training.prompts.duplicates import NearIndex
from thinkserve.training.prompts.words import SHINGLE, normalized, shingles_of, words_of

LONG, SHORTEST = 13, 8
DATA_VARIABLE = "THINKSERVE_EVAL_DATA"
"""The environment variable of `thinkserve eval --data`: a folder of official files; not set: they are fetched."""


@dataclass(frozen=True, slots=True)
class Contaminated:
    """An instruction that is left out."""

    number: int
    bench: str
    instruction: Instruction
    """Of the bench: the one that matches."""
    kind: Literal["exact", "near", "passage"]


def bench_instructions(names: Sequence[str]) -> dict[str, Sequence[Instruction]]:
    """All instructions of some benches.

    Args:
        names: as `thinkserve eval --bench` takes them.

    Raises:
        UsageError: there is no such bench, or its data is not at hand.
    """
    folder = os.environ.get(DATA_VARIABLE)
    return {name: _instructions(name, Path(folder) if folder else None) for name in names}


def _instructions(name: str, data: Path | None) -> Sequence[Instruction]:
    try:
        bench = find_bench(name, data)
        # `categories` asks those that have a topic, and a model would have to say which.
        found: Sequence[Instruction] = getattr(bench, "candidates", None) or bench.instructions
        return found
    except UsageError as exc:
        raise UsageError(
            f"prompts.decontaminate: the instructions of {name!r} cannot be had: {exc}. For a training run, set "
            f"{DATA_VARIABLE} to the folder of --data, or leave the bench out of prompts.decontaminate"
        ) from exc


def find_contaminated(
    texts: Sequence[str], benches: Mapping[str, Sequence[Instruction]], threshold: float
) -> list[Contaminated]:
    """Which texts are in benches. One that is in two is found twice; within one, the clearest kind is told.

    Args:
        texts: the instructions to train on.
        benches: by name.
        threshold: the Jaccard similarity from which two count as the same, as `NearIndex` takes it.

    Returns:
        In the order of the texts, then of the benches.
    """
    normals = [normalized(text) for text in texts]
    words = [words_of(normal) for normal in normals]
    asked = [(name, one) for name, instructions in benches.items() for one in instructions]
    theirs = [normalized(one.text) for _, one in asked]
    their_words = [words_of(normal) for normal in theirs]
    shingles = shingles_of(chain(words, their_words))
    found: list[Contaminated] = []
    for name in benches:
        members = [at for at, (bench, _) in enumerate(asked) if bench == name]
        equals = {theirs[at]: at for at in reversed(members)}
        near = NearIndex(shingles, threshold)
        passages = Passages()
        for at in members:
            near.add(len(texts) + at)
            passages.add(at, their_words[at])
        for number, normal in enumerate(normals):
            kind: Literal["exact", "near", "passage"] = "exact"
            match = equals.get(normal)
            if match is None and (resembling := near.find(number)) is not None:
                kind, match = "near", resembling - len(texts)
            if match is None:
                kind, match = "passage", passages.find(words[number])
            if match is not None:
                found.append(Contaminated(number, name, asked[match][1], kind))
    return sorted(found, key=lambda one: one.number)  # stable: the benches stay in order


class Passages:
    """The long word n-grams of some texts."""

    def __init__(self) -> None:
        self._passages: dict[tuple[str, ...], int] = {}
        self._lengths: dict[tuple[str, ...], set[int]] = {}
        """Of the passages that begin with some words."""

    def add(self, number: int, words: Sequence[str]) -> None:
        """Put the passages of a text in: all of 13 words, or the whole text if it has 8 to 12."""
        length = min(LONG, len(words))
        if length < SHORTEST:
            return
        for at in range(len(words) - length + 1):
            passage = tuple(words[at : at + length])
            self._passages.setdefault(passage, number)
            self._lengths.setdefault(passage[:SHINGLE], set()).add(length)

    def find(self, words: Sequence[str]) -> int | None:
        """The first text with a passage that is in these words, or None."""
        for at, start in enumerate(zip(*(words[more:] for more in range(SHINGLE)), strict=False)):
            for length in sorted(self._lengths.get(start, ())):
                match = self._passages.get(tuple(words[at : at + length]))
                if match is not None:
                    return match
        return None


def counts_of(
    found: Sequence[Contaminated], benches: Mapping[str, Sequence[Instruction]]
) -> dict[str, dict[str, int]]:
    """How many instructions each bench took away, by kind; one that is in two benches counts in both."""
    counts = Counter((one.bench, one.kind) for one in found)
    return {
        name: {
            "instructions": len(instructions),
            "removed": sum(counts[name, kind] for kind in ("exact", "near", "passage")),
            **{kind: counts[name, kind] for kind in ("exact", "near", "passage")},
        }
        for name, instructions in benches.items()
    }
