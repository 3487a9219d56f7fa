"""Small DPO stages for tests: pairs of the pocket world for the pocket seed, and the files they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.training import records
from thinkserve.training.folder import Stage, TrainFolder
from thinkserve.training.pocket.tokenizer import THOUGHT_PROMPT
from thinkserve.training.pocket.world import draw_distinct
from thinkserve.training.recipe import ComputeRecipe, DpoRecipe, Recipe, SampleRecipe
from thinkserve.training.records import PairRecord, Sampled, SampleRecord
from thinkserve.training.stage import StageContext

SMALL = DpoRecipe(
    epochs=2,
    batch=16,
    device_batch=16,
    learning_rate=1e-4,
    schedule="linear",
    warmup_share=0.0,
    nll_weight=1.0,
    max_length=512,
    bf16=False,
    gradient_checkpointing=False,
)


def context(
    out: Path,
    *,
    model: str = "pocket-seed",
    iteration: int = 1,
    stage: Stage = "dpo",
    dpo: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> StageContext:
    """A stage of a small run; `dpo` and `recipe` change its recipe."""
    sample = SampleRecipe(temperature=0.9, top_p=0.95)
    asked = Recipe(
        name="small",
        model=model,
        dpo=replace(SMALL, **(dpo or {})),
        sample=sample,
        compute=ComputeRecipe(threads=1),
    )
    asked = replace(asked, **recipe)
    return StageContext(TrainFolder(out, asked.mode), asked, asked.arms[0], iteration, stage)


def pair(
    id: str, prompt: str, chosen: str, rejected: str, *, chosen_index: int = 0, rejected_index: int = 1
) -> PairRecord:
    """A pair; what DPO does not read is filled in."""
    return PairRecord(
        id=id,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_index=chosen_index,
        rejected_index=rejected_index,
        chosen_score=1.0,
        rejected_score=0.0,
        chosen_value=1.0,
        rejected_value=0.0,
        chosen_length=3,
        rejected_length=3,
    )


def pocket_pairs(count: int, *, seed: int = 5) -> list[PairRecord]:
    """Pairs of different lengths: the right answer after a thought against a wrong one."""
    tasks = draw_distinct(seed, count)
    return [
        pair(
            str(number),
            THOUGHT_PROMPT + task.instruction,
            "Let me see" * (1 + number % 3) + f"<R>{task.answer}",
            "OK<R>no idea",
        )
        for number, task in enumerate(tasks)
    ]


def write_pairs(context: StageContext, pairs: Sequence[PairRecord], *, cut: Sequence[str] = ()) -> None:
    """Write pairs and their samples; the rejected outputs of the ids in `cut` ran into the token limit."""
    records.write(context.folder.pairs, pairs)
    samples = [
        SampleRecord(
            id=one.id,
            outputs=(
                Sampled(one.chosen, "stop", 4),
                Sampled(one.rejected, "length" if one.id in cut else "stop", 4),
            ),
        )
        for one in pairs
    ]
    records.write(context.folder.samples, samples)


def log_lines(context: StageContext) -> list[dict[str, Any]]:
    """The lines of TRL's log."""
    return [msgspec.json.decode(line) for line in context.folder.dpo_log.read_bytes().splitlines()]


def digests(context: StageContext) -> dict[str, str]:
    """From file to sha256, of what a DPO stage comes to: epochs and log."""
    folder = context.folder.dpo
    files = [*folder.glob("epoch-*/*"), folder / "log.jsonl"]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
