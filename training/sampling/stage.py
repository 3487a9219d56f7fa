"""The stage that samples: K outputs for each instruction of the iteration, from the model that it starts from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thinkserve.thoughts import ThoughtFormat
from thinkserve.training import records
from thinkserve.training.models import format_of, resolve, revision_of
from thinkserve.training.prompts.stage import read_instructions
from thinkserve.training.records import Sampled, SampleRecord
from thinkserve.training.sampling.collect import generate_all
from thinkserve.training.sampling.generator import Ask, Generator, Sampling
from thinkserve.training.sampling.opening import open_generator
from thinkserve.training.split import cut
from thinkserve.training.stage import StageContext


def run(context: StageContext) -> Mapping[str, Any]:
    """Sample all instructions of an iteration; what earlier attempts sampled is kept."""
    return asyncio.run(_run(context))


async def _run(context: StageContext) -> Mapping[str, Any]:
    recipe, path = context.recipe, context.folder.samples
    if path.exists():  # written as a whole, and killed before the marker was
        return _numbers(records.read(path, SampleRecord))
    format = format_of(recipe)
    asks = make_asks(context, format)
    async with open_generator(
        recipe.sample,
        resolve(context.start_model),
        threads=recipe.compute.threads,
        chat_template=recipe.chat_template,
        revision=revision_of(recipe, context.start_model),
        format=format,
    ) as generator:
        sampled = await _sample(context, generator, asks, format)
        counted = {"engine": generator.name, **generator.numbers}
    records.write(path, sampled)
    for log in _logs(context):
        log.unlink(missing_ok=True)
    # Both of this process alone: an earlier one's time is not known.
    tokens, seconds = counted.pop("output_tokens"), counted["seconds"]
    rate = tokens / seconds if seconds else None
    return {**_numbers(sampled), **counted, "tokens_per_second": rate}


def _numbers(sampled: Sequence[SampleRecord]) -> dict[str, Any]:
    outputs = [output for record in sampled for output in record.outputs]
    return {
        "prompts": len(sampled),
        "outputs": len(outputs),
        "output_tokens": sum(output.tokens for output in outputs),
    }


def make_asks(context: StageContext, format: ThoughtFormat) -> list[Ask]:
    """What the model is asked: each instruction in the thought prompt, or in the direct arm as it is."""
    instructions = read_instructions(context.run.prompts_of(context.iteration))
    return [
        Ask(
            one.id,
            format.thought_prompt(one.text) if context.arm == "thought" else one.text,
            context.seed(f"sampling {one.id}"),
        )
        for one in instructions
    ]


async def _sample(
    context: StageContext, generator: Generator, asks: Sequence[Ask], format: ThoughtFormat
) -> list[SampleRecord]:
    recipe = context.recipe.sample
    sampling = Sampling(recipe.k, recipe.temperature, recipe.top_p, recipe.max_tokens)
    first, *again = _logs(context)
    with context.progress("instructions") as progress:
        sampled = await generate_all(generator, asks, sampling, first, progress)
    for attempt, log in enumerate(again, 1):
        broken = {
            (place, number): replace(
                asks[place],
                id=f"{record.id}#{number}",
                seed=context.seed(f"sampling {record.id}#{number} again, attempt {attempt}"),
            )
            for place, record in enumerate(sampled)
            for number, output in enumerate(record.outputs)
            if is_broken(output, format, direct=context.arm == "direct")
        }
        if not broken:
            break
        with context.progress("broken outputs") as progress:
            found = await generate_all(
                generator, list(broken.values()), replace(sampling, k=1), log, progress
            )
        for (place, number), record in zip(broken, found, strict=True):
            outputs = list(sampled[place].outputs)
            outputs[number] = record.outputs[0]
            sampled[place] = SampleRecord(sampled[place].id, tuple(outputs))
    return sampled


def is_broken(output: Sampled, format: ThoughtFormat, *, direct: bool) -> bool:
    """Whether an output has no readable response, and another try may give one.

    What had no room for a single token has none the next time either.
    """
    return output.tokens > 0 and cut(output, format, len, direct=direct).problem is not None


def _logs(context: StageContext) -> list[Path]:
    """The work in progress: of the first attempt, and of each time that broken outputs are sampled again."""
    path = context.folder.samples
    retries = range(1, context.recipe.sample.retry_broken + 1)
    return [path.with_suffix(".log.jsonl"), *(path.with_suffix(f".again-{n}.log.jsonl") for n in retries)]
