"""Measuring a pocket checkpoint on held-out instructions: thought and direct mode, greedy and sampled at T = 1.

The number is exact-match accuracy of the response, by category. For thought mode also: which habits of thought the
model shows, and how often it is right after each. Generation is `transformers`' own, so that what is measured is the
checkpoint and not a sampler written for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from thinkserve.thoughts import Output, Response, split
from thinkserve.training.pocket.habits import style_of
from thinkserve.training.pocket.judge import is_right, score
from thinkserve.training.pocket.task import Task
from thinkserve.training.pocket.tokenizer import FORMAT
from thinkserve.training.pocket.world import CATEGORIES

Mode = Literal["thought", "direct"]
MODES: tuple[Mode, ...] = ("thought", "direct")

# The longest output of the world is below 60 tokens; what runs longer has lost its way.
MAX_NEW_TOKENS = 72
BATCH = 200


@dataclass(frozen=True, slots=True)
class Report:
    """What a model did with some tasks in one mode, at one temperature."""

    mode: Mode
    temperature: float
    accuracy: dict[str, float]
    """Share of exactly right responses, by category and over `all`."""
    mean_score: float
    broken: float
    """Share of outputs without a closing marker or with an end that never came."""
    styles: dict[str, float]
    """Share of each style of thought; empty in direct mode."""
    accuracy_after: dict[str, float]
    """Share of right responses after each style of thought."""


def generate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    instructions: Sequence[str],
    mode: Mode,
    *,
    temperature: float = 0.0,
) -> list[Output]:
    """Generate one output an instruction; temperature 0 is greedy."""
    outputs: list[Output] = []
    for at in range(0, len(instructions), BATCH):
        outputs += _generate_batch(model, tokenizer, instructions[at : at + BATCH], mode, temperature)
    return outputs


def _generate_batch(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    instructions: Sequence[str],
    mode: Mode,
    temperature: float,
) -> list[Output]:
    prompts = [FORMAT.thought_prompt(text) if mode == "thought" else text for text in instructions]
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    # top_k 0: transformers would otherwise cut to the 50 likeliest tokens.
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    )
    with torch.inference_mode():
        tokens = model.generate(**inputs, **sampling, max_new_tokens=MAX_NEW_TOKENS)
    new = tokens[:, inputs["input_ids"].size(1) :]
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    ended = (new == tokenizer.eos_token_id).any(dim=1).tolist()
    return [_cut(text, mode, end) for text, end in zip(texts, ended, strict=True)]


def _cut(text: str, mode: Mode, ended: bool) -> Output:
    if mode == "direct":
        return Output("", Response(text), complete=ended)
    output = split(text, FORMAT)
    return Output(output.thought, output.response, complete=output.complete and ended)


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    mode: Mode,
    *,
    temperature: float = 0.0,
) -> Report:
    """Generate an output for each task and count what is right."""
    outputs = generate(model, tokenizer, [t.instruction for t in tasks], mode, temperature=temperature)
    by_category: dict[str, list[bool]] = defaultdict(list)
    by_style: dict[str, list[bool]] = defaultdict(list)
    total = 0.0
    for task, output in zip(tasks, outputs, strict=True):
        right = output.complete and is_right(task, output.response)
        total += score(task, output.response) if output.complete else 0.0
        by_category[task.category].append(right)
        by_category["all"].append(right)
        if mode == "thought":
            by_style[style_of(task, output.thought)].append(right)
    broken = Counter(output.complete for output in outputs)[False]
    return Report(
        mode,
        temperature,
        accuracy={name: _share(by_category[name]) for name in (*CATEGORIES, "all") if name in by_category},
        mean_score=total / len(tasks),
        broken=broken / len(tasks),
        styles={name: len(rights) / len(tasks) for name, rights in sorted(by_style.items())},
        accuracy_after={name: _share(rights) for name, rights in sorted(by_style.items())},
    )


def evaluate_all(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task]
) -> list[Report]:
    """Both modes, greedy and at T = 1."""
    return [
        evaluate(model, tokenizer, tasks, mode, temperature=temperature)
        for mode in MODES
        for temperature in (0.0, 1.0)
    ]


def _share(rights: Sequence[bool]) -> float:
    return sum(rights) / len(rights)
