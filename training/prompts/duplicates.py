"""Instructions that are there before: equal up to case, width and white space, or nearly equal in their word 5-grams.

Near duplicates are found exactly, not by chance as with MinHash: two sets with a Jaccard similarity of at least t share
one of the rarest shingles of each, so an index of these finds all candidates, and each candidate is counted out.
Source: Chaudhuri et al., A primitive operator for similarity joins (prefix filter); Xiao et al., Efficient similarity
joins for near duplicate detection (its filter by position).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from thinkserve.training.prompts.words import Ids, Shingles, normalized, shingles_of, words_of

# 0.7 * 10 is a little more than 7 in floating point; what is rounded up or compared gives way by so much.
SLACK = 1e-9


class NearIndex:
    """Texts that others are compared with.

    Args:
        shingles: of all texts, those that are compared and those that will be in the index.
        threshold: the Jaccard similarity from which two texts count as the same, more than 0; 1 turns it off, since
            equal texts are found without shingles.
    """

    def __init__(self, shingles: Shingles, threshold: float) -> None:
        self._sets, self._lonely, self._threshold = shingles.sets, shingles.lonely, threshold
        self._sizes = np.array([len(one) for one in shingles.sets], dtype=np.int64)
        self._holders: dict[int, list[int]] = {}
        """Which texts of the index have a shingle among their rarest."""

    def add(self, number: int) -> None:
        """Put a text into the index."""
        if self._threshold < 1:
            for shingle in self._rarest(number).tolist():
                if shingle >= self._lonely:  # nobody else has the others
                    self._holders.setdefault(shingle, []).append(number)

    def find(self, number: int) -> int | None:
        """A text of the index that is nearly the same, or None."""
        if self._threshold == 1:
            return None
        mine, threshold = self._sets[number], self._threshold
        rarest = self._rarest(number)
        seen: set[int] = set()
        for at in range(int(np.searchsorted(rarest, self._lonely)), len(rarest)):
            new = set(self._holders.get(int(rarest[at]), ())) - seen
            if not new:
                continue
            seen |= new
            others = np.array(sorted(new))
            sizes = self._sizes[others]
            # The shingles before this one are not in the others, or they had been found by these.
            most = np.minimum(sizes, len(mine) - at)
            enough = threshold / (1 + threshold) * (sizes + len(mine))
            for other in others[most >= enough - SLACK].tolist():
                if jaccard(mine, self._sets[other]) >= threshold:
                    return int(other)
        return None

    def _rarest(self, number: int) -> Ids:
        """So many that the rest alone is not enough for the threshold."""
        mine = self._sets[number]
        return mine[: len(mine) - max(1, ceil(self._threshold * len(mine) - SLACK)) + 1]


def jaccard(first: Ids, second: Ids) -> float:
    """The share of common elements among all of two sets, which are not both empty."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An instruction that is left out."""

    number: int
    of: int
    """The one that stays."""
    kind: Literal["exact", "near"]


def find_duplicates(texts: Sequence[str], threshold: float) -> list[Duplicate]:
    """Which texts are there before; of equal ones the first stays.

    Each is compared with those that stay, so a text that resembles only a duplicate stays too.

    Args:
        texts: in order.
        threshold: as `NearIndex` takes it.
    """
    normals = [normalized(text) for text in texts]
    shingles = shingles_of(words_of(normal) for normal in normals) if threshold < 1 else Shingles([], 0)
    index = NearIndex(shingles, threshold)
    first: dict[str, int] = {}
    found: list[Duplicate] = []
    for number, normal in enumerate(normals):
        if (equal := first.get(normal)) is not None:
            found.append(Duplicate(number, equal, "exact"))
        elif (near := index.find(number)) is not None:
            found.append(Duplicate(number, near, "near"))
        else:
            first[normal] = number
            index.add(number)
    return found
