"""The pairs of an iteration as a data set of token ids, in the order of their file.

A pair with a longer side than `dpo.max_length` is left out and counted. TRL would cut it: an output without its end
teaches to stop nowhere, and a thought without its response teaches nothing that was judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from datasets import Dataset, disable_progress_bars

from thinkserve.errors import ThinkserveError
from thinkserve.training import records
from thinkserve.training.dpo.tokens import PairTokenizer, PairTokens
from thinkserve.training.folder import IterationFolder
from thinkserve.training.records import PairRecord, SampleRecord

# TRL's names.
PROMPT, CHOSEN, REJECTED = "prompt_ids", "chosen_ids", "rejected_ids"


class PairCounts(msgspec.Struct, frozen=True):
    """What is trained on."""

    pairs: int
    too_long: int
    """Pairs that were left out."""
    tokens: int
    """In an epoch: both sides of each pair, prompt included."""
    longest: int
    """Tokens of the longest side."""


def write_pairs(folder: IterationFolder, tokenizer: PairTokenizer, max_length: int, out: Path) -> PairCounts:
    """Tokenize an iteration's pairs into a folder that `datasets` loads.

    Raises:
        ThinkserveError: no pair is left.
    """
    pairs = records.read(folder.pairs, PairRecord)
    if not pairs:
        raise ThinkserveError(
            f"{folder.pairs} has no pairs, so there is nothing to train on; see {folder.pair_statistics} for why "
            "(ties, scores without spread), and lower pairs.min_spread or give more instructions"
        )
    samples = records.by_id(records.read(folder.samples, SampleRecord)) if folder.samples.exists() else {}
    tokenized = [_tokenize(pair, tokenizer, samples) for pair in pairs]
    kept = [pair for pair in tokenized if pair.longest <= max_length]
    if not kept:
        shortest = min(pair.longest for pair in tokenized)
        raise ThinkserveError(
            f"all {len(pairs)} pairs of {folder.pairs} are longer than dpo.max_length = {max_length} tokens (the shortest "
            f"has {shortest}); raise it, or lower sample.max_tokens"
        )
    columns = {
        # 4 bytes a token: as Python lists, pairs of long thoughts would not fit in memory.
        PROMPT: [np.array(pair.prompt, dtype=np.int32) for pair in kept],
        CHOSEN: [np.array(pair.chosen, dtype=np.int32) for pair in kept],
        REJECTED: [np.array(pair.rejected, dtype=np.int32) for pair in kept],
    }
    disable_progress_bars()
    Dataset.from_dict(columns).save_to_disk(out)
    return PairCounts(
        pairs=len(kept),
        too_long=len(pairs) - len(kept),
        tokens=sum(pair.total for pair in kept),
        longest=max(pair.longest for pair in kept),
    )


def _tokenize(pair: PairRecord, tokenizer: PairTokenizer, samples: Mapping[str, SampleRecord]) -> PairTokens:
    return tokenizer.pair(
        pair.prompt,
        pair.chosen,
        pair.rejected,
        chosen_ended=_ended(samples.get(pair.id), pair.chosen_index),
        rejected_ended=_ended(samples.get(pair.id), pair.rejected_index),
    )


def _ended(sample: SampleRecord | None, index: int) -> bool:
    """Whether the model ended an output itself; what ran into the token limit did not."""
    return sample is None or sample.outputs[index].finish_reason != "length"
