"""Keys and values of a batch: one row per sequence, every row starting at column 0.

A sequence's token at position p lies in column p, whatever its neighbours do: so a row needs no shifting when others
join, leave or grow, and padding is only what lies right of a row's last token, which the attention mask hides. This
is the `past_key_values` that the model's layers write to; `ContinuousBatch` decides which row belongs to whom.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache

COLUMN_STEP = 64  # columns are allocated in steps, so that a growing sequence rarely moves the whole cache


class BatchCache(Cache):  # type: ignore[misc]
    """Buffers of shape (rows, kv_heads, columns, head_dim), two per layer, made when the layer first writes.

    The heads come before the columns because a head's columns are then one run of memory: on a CPU this makes decode
    attention up to a third faster than (rows, columns, heads, head_dim).
    """

    def __init__(self, max_tokens: int) -> None:
        super().__init__(layers=[])
        self.max_tokens = max_tokens
        self.rows = 0
        self.columns = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._start = 0
        self._width = 1
        self._used_rows = 0
        self._used_columns = 0
        self._row_index: torch.Tensor | None = None
        self._positions: torch.Tensor | None = None

    def reserve(self, rows: int, columns: int) -> bool:
        """Make room for `rows` sequences of up to `columns` tokens; False if that is over `max_tokens`."""
        if rows <= self.rows and columns <= self.columns:
            return True
        if rows * columns > self.max_tokens:
            return False
        # Doubling the rows keeps the moves rare; both are given up when they do not fit.
        wanted_rows = max(self.rows, 1 << (rows - 1).bit_length())
        wanted_columns = max(self.columns, -(-columns // COLUMN_STEP) * COLUMN_STEP)
        if wanted_rows * wanted_columns > self.max_tokens:
            wanted_rows, wanted_columns = rows, columns
        self._resize(wanted_rows, wanted_columns)
        return True

    def _resize(self, rows: int, columns: int) -> None:
        kept_rows, kept_columns = min(rows, self.rows), min(columns, self.columns)
        self.rows, self.columns = rows, columns
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros((rows, old.shape[1], columns, old.shape[3]))
                new[:kept_rows, :, :kept_columns] = old[:kept_rows, :, :kept_columns]
                buffers[layer] = new

    def write_block(self, rows: int, start: int, width: int) -> None:
        """The next forward pass writes the columns `start .. start + width` of the first `rows` rows (prefill)."""
        self._row_index = None
        self._used_rows, self._start, self._width = rows, start, width
        self._used_columns = start + width

    def write_tokens(self, row_index: torch.Tensor, positions: torch.Tensor, columns: int) -> None:
        """The next forward pass writes one token a row, at `positions`, and attends to `columns` columns (decode)."""
        self._row_index, self._positions = row_index, positions
        self._used_rows, self._used_columns = row_index.shape[0], columns

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer: store (rows, kv_heads, width, head_dim), return all that is in use."""
        while len(self._keys) <= layer_idx:
            self._keys.append(_buffer(key_states, self.rows, self.columns))
            self._values.append(_buffer(value_states, self.rows, self.columns))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        rows, columns = self._used_rows, self._used_columns
        if self._row_index is None:
            block = slice(self._start, self._start + self._width)
            keys[:rows, :, block] = key_states
            values[:rows, :, block] = value_states
        else:
            assert self._positions is not None
            # Layers may lie on several devices; `to` costs nothing where they do not.
            row_index, positions = self._row_index.to(keys.device), self._positions.to(keys.device)
            keys[row_index, :, positions] = key_states[:, :, 0]
            values[row_index, :, positions] = value_states[:, :, 0]
        return keys[:rows, :, :columns], values[:rows, :, :columns]

    def copy_row(self, row: int, source: BatchCache, source_row: int, columns: int) -> None:
        """Overwrite a row's first columns with those of another row, of this cache or another."""
        if not self._keys:
            self._keys = [_buffer(keys, self.rows, self.columns) for keys in source._keys]
            self._values = [_buffer(values, self.rows, self.columns) for values in source._values]
        for mine, theirs in ((self._keys, source._keys), (self._values, source._values)):
            for own, other in zip(mine, theirs, strict=True):
                own[row, :, :columns] = other[source_row, :, :columns]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the ones of the next pass. Only asked by models that ignore the positions they are given."""
        return self._start if self._row_index is None else self._used_columns - 1


def _buffer(states: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    # Zeros, not empty: a masked column's weight is 0, and 0 * NaN would still be NaN.
    return states.new_zeros((rows, states.shape[1], columns, states.shape[3]))
