"""The folds of the GLM's cross-validation, on which the third digit of an official number hangs.

The GLM chooses its C over five folds of rows. scikit-learn sorts the rows by how many they are in their group (all the
same), so the folds are whatever its sort makes of equal keys: until scikit-learn 1.5 that was numpy's quicksort, since
then it is a stable sort. Nearly all of the leaderboard was computed with the former. Another fold may choose a
neighbouring C, and move a length-controlled win rate by 0.01 to 0.15 points.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

Folds = Literal["official", "stable"]

SMALL = 16
"""So many rows and fewer, numpy sorts by insertion, which leaves equal keys as they are."""


@cache
def fold_of(groups: int, folds: Folds, n_splits: int = 5) -> tuple[int, ...]:
    """The fold of each group, where all groups are of the same size."""
    order = _quicksorted(groups) if folds == "official" else list(range(groups))
    fold = [0] * groups
    for place, group in enumerate(reversed(order)):
        fold[group] = place % n_splits  # the lightest fold so far, the first of equals
    return tuple(fold)


def _quicksorted(count: int) -> list[int]:
    """What numpy < 2 (without its AVX512 sort) makes of `argsort` over equal keys.

    Source: aquicksort_ in numpy/core/src/npysort/quicksort.cpp, v1.26. No key is less than another, so of its
    comparisons only the swaps that need none are left: the pivot is moved beside the end, and both scans stop at every
    element. The halves are so even that it never falls back to heapsort.
    """
    order = list(range(count))
    stretches = [(0, count - 1)]
    while stretches:
        low, high = stretches.pop()
        if high - low < SMALL:
            continue
        middle = low + (high - low) // 2
        order[middle], order[high - 1] = order[high - 1], order[middle]
        left, right = low + 1, high - 2
        while left < right:
            order[left], order[right] = order[right], order[left]
            left, right = left + 1, right - 1
        order[left], order[high - 1] = order[high - 1], order[left]
        stretches += [(low, left - 1), (left + 1, high)]
    return order


def group_k_fold(folds: Folds) -> type:
    """A class to stand for scikit-learn's `GroupKFold`, with the folds of `fold_of`."""
    import numpy as np
    from sklearn.model_selection import GroupKFold

    class OfFolds(GroupKFold):  # type: ignore[misc]  # scikit-learn has no types
        def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]:
            _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
            if len(set(sizes)) != 1:
                raise ValueError("the groups are not of one size")
            fold = np.array(fold_of(len(sizes), folds, self.n_splits))[group]
            for number in range(self.n_splits):
                yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)

    return OfFolds
