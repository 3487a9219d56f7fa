"""What was sampled is never sampled again, and a run that is cut anywhere ends with the same records."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training.sampling_world import asks_of
from thinkserve.errors import EngineError
from thinkserve.eval.judging.progress import Progress
from thinkserve.pocket import CHECKPOINT
from thinkserve.training.records import Sampled, SampleRecord
from thinkserve.training.sampling.collect import generate_all
from thinkserve.training.sampling.generator import Ask, Sampling
from thinkserve.training.sampling.local import LocalGenerator

SAMPLING = Sampling(k=4, temperature=1.0, top_p=1.0, max_tokens=72)


class Echo:
    """A generator that gives each ask's seed, from the last ask to the first, and may die on the way."""

    name = "echo"
    numbers: Mapping[str, Any] = {}

    def __init__(self, die_after: int = 10**6, lose: str = "") -> None:
        self.asked: list[str] = []
        self.closed = False
        self._die_after, self._lose = die_after, lose

    async def generate(self, asks: Sequence[Ask], sampling: Sampling) -> AsyncIterator[SampleRecord]:
        try:
            for ask in reversed(asks):
                if len(self.asked) == self._die_after:
                    raise EngineError("it died")
                self.asked.append(ask.id)
                if ask.id != self._lose:
                    yield SampleRecord(ask.id, (Sampled(str(ask.seed), "stop", 1),) * sampling.k)
        finally:
            self.closed = True


def progress() -> Progress:
    return Progress("sampling", unit="instructions", stream=io.StringIO())


async def test_records_come_in_the_order_of_the_asks(tmp_path: Path) -> None:
    found = await generate_all(Echo(), asks_of(4), SAMPLING, tmp_path / "log", progress())
    assert [record.id for record in found] == ["i0", "i1", "i2", "i3"]
    assert [record.outputs[0].text for record in found] == ["0", "1000", "2000", "3000"]


async def test_what_is_in_the_log_is_not_asked_again(tmp_path: Path) -> None:
    log, asks = tmp_path / "log", asks_of(5)
    with pytest.raises(EngineError, match="it died"):
        await generate_all(Echo(die_after=2), asks, SAMPLING, log, progress())
    with log.open("ab") as file:
        file.write(b'{"id":"i2","outp')  # killed in the middle of a line
    again, shown = Echo(), progress()
    found = await generate_all(again, asks, SAMPLING, log, shown)
    assert again.asked == ["i2", "i1", "i0"]
    assert (shown.total, shown.kept, shown.done) == (5, 2, 5)
    assert found == await generate_all(Echo(), asks, SAMPLING, tmp_path / "other", progress())


async def test_a_generator_that_loses_an_ask_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="echo gave no output for instruction i1; run again"):
        await generate_all(Echo(lose="i1"), asks_of(3), SAMPLING, tmp_path / "log", progress())


async def test_the_generator_is_closed_when_the_disk_is_full(tmp_path: Path) -> None:
    generator = Echo()
    with pytest.raises(OSError):
        await generate_all(generator, asks_of(3), SAMPLING, Path("/dev/full"), progress())
    assert generator.closed and generator.asked == ["i2"]


async def test_a_run_that_is_cut_anywhere_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """24 asks in batches of 4: cut between batches, inside one, and inside a line. What is asked again are whole
    batches, so that no float is rounded in other company."""
    generator, asks = LocalGenerator.load(str(CHECKPOINT), rows=16), asks_of(24)
    whole = tmp_path / "whole"
    expected = await generate_all(generator, asks, SAMPLING, whole, progress())
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 24
    for kept, part in ((0, 9), (1, 0), (4, 0), (7, 20), (22, 0), (24, 0)):
        log = tmp_path / str(kept)
        log.write_bytes(b"".join(lines[:kept]) + b"".join(lines[kept : kept + 1])[:part])
        before = generator.numbers["prompt_tokens"]
        assert await generate_all(generator, asks, SAMPLING, log, progress()) == expected
        assert log.read_bytes() == whole.read_bytes()
        batches = generator.batches(asks, SAMPLING)
        left = [ask for batch in batches[kept // 4 :] for ask in batch]
        prompts = generator.numbers["prompt_tokens"] - before
        assert prompts == sum(len(generator._prompts[ask.message]) for ask in left)
