"""Keys and values of the rows of a batch, which are filled from prompts, and closed up as rows finish.

One cache serves all batches in turn: on a CPU, getting the memory anew takes a quarter of a batch's time.
"""

from __future__ import annotations

import sys

import torch

from thinkserve.engines.transformers_server.cache import BatchCache


class RowCache(BatchCache):
    """A `BatchCache` whose rows are written and moved many at once; only the device's memory bounds it."""

    def __init__(self) -> None:
        super().__init__(max_tokens=sys.maxsize)

    def spread(self, source: BatchCache, source_rows: torch.Tensor, first: int, columns: int) -> None:
        """Write rows of another cache, some of them several times, into this one's from `first` on.

        Args:
            source: of the same model.
            source_rows: (rows,), which row of the source each row gets.
            first: the row of the first one.
            columns: so many are written, from the left.
        """
        if not self._keys:
            self._keys = [self._like(keys) for keys in source._keys]
            self._values = [self._like(values) for values in source._values]
        rows = slice(first, first + len(source_rows))
        for mine, theirs in ((self._keys, source._keys), (self._values, source._values)):
            for own, other in zip(mine, theirs, strict=True):
                own[rows, :, :columns] = other[source_rows.to(other.device), :, :columns]

    def move(self, sources: torch.Tensor, targets: torch.Tensor, columns: int) -> None:
        """Overwrite the first columns of some rows (`targets`) with those of as many others (`sources`)."""
        for own in (*self._keys, *self._values):
            own[targets.to(own.device), :, :columns] = own[sources.to(own.device), :, :columns]

    def _like(self, states: torch.Tensor) -> torch.Tensor:
        # Zeros, not empty: a masked column's weight is 0, and 0 * NaN would still be NaN.
        return states.new_zeros((self.rows, states.shape[1], self.columns, states.shape[3]))
