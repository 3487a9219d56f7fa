"""Sampling all asks of a stage, whatever is there already: the log has a line for each ask that is finished."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from thinkserve.errors import EngineError
from thinkserve.eval.judging.progress import Progress
from thinkserve.eval.records import RecordLog
from thinkserve.training import records
from thinkserve.training.records import SampleRecord
from thinkserve.training.sampling.generator import Ask, Generator, Sampling


@runtime_checkable
class Batching(Protocol):
    """A generator whose outputs hang on what is in a batch with them, if only in the last bits of a float."""

    def batches(self, asks: Sequence[Ask], sampling: Sampling) -> list[list[Ask]]:
        """Divide asks into batches that must stay as they are.

        What is left when some whole batches are taken away is divided into the others, as they were.
        """


async def generate_all(
    generator: Generator, asks: Sequence[Ask], sampling: Sampling, log: Path, progress: Progress
) -> list[SampleRecord]:
    """Sample all asks, those left out that are in the log already.

    Args:
        generator: what generates.
        asks: all of the stage, each with another id, also those that are in the log: on them hangs how they are batched.
        sampling: how tokens are drawn.
        log: gets each record as soon as it is there.
        progress: told of all.

    Returns:
        A record for each ask, in their order.

    Raises:
        ThinkserveError: the engine failed; what is in the log is kept.
    """
    with RecordLog(log) as file:  # opened first, since that drops a line that was cut short
        found = records.by_id(records.read(log, SampleRecord))
        kept = {ask.id for ask in asks if ask.id in found}
        progress.begin(len(asks), len(kept))
        stream = generator.generate(_missing(generator, asks, sampling, kept), sampling)
        # Closed here, so that nothing is asked of the engine any more should the log's disk be full.
        async with aclosing(cast(AsyncGenerator[SampleRecord], stream)):
            async for record in stream:
                # Of a batch that was cut short some are there; they come out the same again.
                if record.id not in found:
                    file.append(records.to_json(record))
                    found[record.id] = record
                    progress.advance()
    lost = next((ask.id for ask in asks if ask.id not in found), None)
    if lost is not None:
        raise EngineError(f"{generator.name} gave no output for instruction {lost}; run again")
    return [found[ask.id] for ask in asks]


def _missing(generator: Generator, asks: Sequence[Ask], sampling: Sampling, kept: set[str]) -> Sequence[Ask]:
    if not kept or not isinstance(generator, Batching):
        return [ask for ask in asks if ask.id not in kept]
    return [
        ask
        for batch in generator.batches(asks, sampling)
        if not all(ask.id in kept for ask in batch)
        for ask in batch
    ]
