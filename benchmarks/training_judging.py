"""How fast a reward model scores beside a bare loop over the same batches: transformers alone, sorted by length.

    python benchmarks/training_judging.py           # prints the table
    python benchmarks/training_judging.py --gate    # and exits 1 where the gate is missed

The model is small and random, on the CPU; each side has its own copy. Both are given the same conversations as text, and
tokenize, batch and score them in this process, in turns; the middle one of the rounds' ratios counts, since the machine
may be busy. There are two blocks of responses, of which the judge sorts each; the bare loop sorts all at once, which
leaves the least padding. Both must find the same scores.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from random import Random
from statistics import median

import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from thinkserve.thoughts import Response
from thinkserve.training.judges.judge import Group
from thinkserve.training.judges.reward_model import RewardModelJudge, open_reward_model
from thinkserve.training.pocket.tokenizer import build_tokenizer
from thinkserve.training.recipe import JudgeRecipe

GATE = 0.9
ROUNDS = 5
GROUPS, K = 150, 8
BATCH_TOKENS = 4096

Scores = dict[tuple[str, int], float]
"""By the group and the position in it."""


def save_model(folder: str) -> None:
    """Save a random classifier of 0.5 M weights."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.1,
    )
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def draw_groups() -> list[Group]:
    """Instructions with K responses each, of lengths that differ as those of chat models do."""
    random = Random(0)

    def text(median: int) -> str:
        length = min(int(random.lognormvariate(0, 0.6) * median) + 1, 600)
        return "".join(random.choices("abcdefghij ", k=length))

    return [
        Group(str(number), text(40), tuple(Response(text(120)) for _ in range(K))) for number in range(GROUPS)
    ]


def bare(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, groups: Sequence[Group]
) -> tuple[float, Scores]:
    """Seconds and scores of the bare loop."""
    began = time.perf_counter()
    places = [(group, at) for group in groups for at in range(K)]
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": group.instruction},
                {"role": "assistant", "content": group.responses[at]},
            ],
            tokenize=False,
        )
        for group, at in places
    ]
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(places)), key=lambda at: -len(tokens[at]))
    scores: Scores = {}
    with torch.inference_mode():
        while order:
            size = max(1, BATCH_TOKENS // len(tokens[order[0]]))
            batch, order = order[:size], order[size:]
            inputs = tokenizer.pad(
                {"input_ids": [tokens[at] for at in batch]}, padding_side="right", return_tensors="pt"
            )
            logits = model(**inputs, use_cache=False).logits[:, 0].tolist()
            scores |= {
                (places[at][0].id, places[at][1]): score for at, score in zip(batch, logits, strict=True)
            }
    return time.perf_counter() - began, scores


async def ours(judge: RewardModelJudge, groups: Sequence[Group]) -> tuple[float, Scores]:
    """Seconds and scores of the judge."""
    began = time.perf_counter()
    found = [scores async for scores in judge.score(groups)]
    seconds = time.perf_counter() - began
    return seconds, {
        (one.id, at): score for one in found for at, score in enumerate(one.scores) if score is not None
    }


async def measure(folder: str) -> bool:
    """Measure both, print them, and tell whether the gate is met."""
    groups = draw_groups()
    tokenizer = build_tokenizer()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    recipe = JudgeRecipe(model=folder, dtype="float32", batch_tokens=BATCH_TOKENS)
    judge_seconds, bare_seconds = [], []
    async with open_reward_model(recipe, ["cpu"]) as judge:
        for _ in range(ROUNDS):
            seconds, scores = await ours(judge, groups)
            judge_seconds.append(seconds)
            seconds, expected = bare(model, tokenizer, groups)
            bare_seconds.append(seconds)
        padding = 1 - judge.numbers["tokens"] / judge.numbers["padded_tokens"]
    assert scores.keys() == expected.keys()
    apart = max(abs(scores[place] - expected[place]) for place in expected)
    ratio = median(theirs / own for own, theirs in zip(judge_seconds, bare_seconds, strict=True))
    print(f"{'':<20}{'responses/s':>14}")
    print(
        f"{'reward model judge':<20}{len(expected) / min(judge_seconds):>14.1f}   ({100 * padding:.1f} % padding)"
    )
    print(f"{'bare loop':<20}{len(expected) / min(bare_seconds):>14.1f}")
    print(f"largest difference of a score: {apart:.1e}")
    met = ratio >= GATE and apart < 1e-3
    print(f"ratio {ratio:.2f}, gate {GATE:g}, {'ok' if met else 'missed'}")
    return met


def main() -> None:
    """Make the model, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gate", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        met = asyncio.run(measure(folder))
    if options.gate and not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
