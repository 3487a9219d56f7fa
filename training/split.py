"""The stage that cuts raw outputs into thought and response. From here on, judges get the response alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from thinkserve.thoughts import ThoughtFormat, split
from thinkserve.training import records
from thinkserve.training.models import format_of, resolve, revision_of
from thinkserve.training.records import CutOutput, OutputRecord, Sampled, SampleRecord
from thinkserve.training.stage import StageContext

Count = Callable[[str], int]
# Short responses come many times.
REMEMBERED = 100_000


def cut(sampled: Sampled, format: ThoughtFormat, count: Count, *, direct: bool) -> CutOutput:
    """Cut one output.

    Args:
        sampled: the raw output.
        format: how it marks its thought.
        count: the number of tokens in a text.
        direct: the model was asked for a response without a thought.
    """
    output = split(sampled.text, format, direct=direct)
    response_tokens = min(count(output.response), sampled.tokens)
    problem: records.Problem | None = None
    if sampled.finish_reason == "length":
        problem = "truncated"
    elif not output.complete:
        problem = "unclosed"
    elif not output.response.strip():
        problem = "empty"
    return CutOutput(
        thought=output.thought,
        response=str(output.response),
        problem=problem,
        thought_tokens=sampled.tokens - response_tokens if output.thought else 0,
        response_tokens=response_tokens,
    )


def token_counter(model: str, revision: str | None = None) -> Count:
    """Counts tokens as a model's tokenizer does; special tokens that a template adds are not counted.

    Args:
        model: a folder, a name on the Hub, or one of the pocket models.
        revision: on the Hub.
    """
    file = Path(resolve(model)) / "tokenizer.json"
    if file.is_file():  # so that transformers, which takes seconds to import, is not needed
        fast = Tokenizer.from_file(str(file))
        return lru_cache(REMEMBERED)(lambda text: len(fast.encode(text, add_special_tokens=False).ids))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(model), revision=revision)
    return lru_cache(REMEMBERED)(lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))


def run(context: StageContext) -> Mapping[str, Any]:
    """Cut all outputs of an iteration."""
    recipe, model = context.recipe, context.start_model
    format, count = format_of(recipe), token_counter(model, revision_of(recipe, model))
    direct = context.arm == "direct"
    sampled = records.read(context.folder.samples, SampleRecord)
    with context.progress("instructions") as progress:
        progress.begin(len(sampled))
        found = []
        for record in sampled:
            outputs = tuple(cut(output, format, count, direct=direct) for output in record.outputs)
            found.append(OutputRecord(record.id, outputs))
            progress.advance()
    records.write(context.folder.outputs, found)
    return numbers([output for record in found for output in record.outputs])


def numbers(outputs: list[CutOutput]) -> dict[str, Any]:
    """What is counted of cut outputs: how many, their problems, and their mean lengths in tokens."""
    problems = Counter(output.problem for output in outputs if output.problem is not None)
    readable = [output for output in outputs if output.problem is None]
    return {
        "outputs": len(outputs),
        "problems": dict(sorted(problems.items())),
        "parse_failures": mean([float(output.problem is not None) for output in outputs]),
        "mean_thought_tokens": mean([output.thought_tokens for output in readable]),
        "mean_response_tokens": mean([output.response_tokens for output in readable]),
    }


def mean(values: list[float] | list[int]) -> float | None:
    """The mean; None where there is nothing."""
    return sum(values) / len(values) if values else None
