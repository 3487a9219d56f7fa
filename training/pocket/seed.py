"""Train the pocket seed model from nothing.

    python -m thinkserve.training.pocket.seed --out DIR

One run in three phases (see `habits.py`): copying, on which all skills build; the skills, with useful scratchpads; then
the bad habits, so that thinking does not help until TPO selects it. Steps and seed are fixed, so that the run can be repeated;
a different number of threads changes the order of some float32 sums, and with it the last digits of the weights.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from thinkserve.training.pocket.card import write_card
from thinkserve.training.pocket.checkpoint import build_model, save_checkpoint
from thinkserve.training.pocket.evaluation import Report, evaluate_all
from thinkserve.training.pocket.habits import COPYING, HABITS, SKILLS, Example, Mixture, draw_example
from thinkserve.training.pocket.muon import Muon
from thinkserve.training.pocket.tokenizer import EOS, FORMAT, MARKER, build_tokenizer, render
from thinkserve.training.pocket.world import draw_distinct

logger = logging.getLogger(__name__)

# Batches are cut from a chunk sorted by length: then a batch needs hardly any padding.
CHUNK_BATCHES = 32
IGNORED = -100
EVALUATION_SEED = 2024

Phase = Literal["copying", "skills", "habits"]
MIXTURES: dict[Phase, Mixture] = {"copying": COPYING, "skills": SKILLS, "habits": HABITS}


@dataclass(frozen=True, slots=True)
class SeedRecipe:
    """Everything that decides what the seed model becomes."""

    seed: int = 1
    steps: int = 3200
    batch: int = 64
    width: int = 128
    layers: int = 4
    copying_share: float = 0.05
    skills_share: float = 0.75
    """Shares of the steps in the first two phases; the rest is the third."""
    matrix_lr: float = 0.005
    other_lr: float = 0.003
    """Learning rates of Muon (weight matrices) and of AdamW (embeddings and norms)."""
    habits_lr: float = 0.4
    """What the learning rates have come down to, as a factor, when the habits begin."""
    warmup_steps: int = 20
    evaluation_tasks: int = 800


STANDARD = SeedRecipe()


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What a seed training did."""

    recipe: SeedRecipe
    parameters: int
    tokens: int
    """Tokens trained on, without padding."""
    seconds: float
    """Wall time of the training, without the evaluation."""
    cpu_seconds: float
    """Processor time of the same: what the wall time would be on one free core."""
    threads: int
    reports: list[Report]


def train_seed(
    out: Path, *, seed: int = STANDARD.seed, steps: int = STANDARD.steps, threads: int | None = None
) -> SeedResult:
    """Train the seed model with the standard recipe and write its checkpoint to `out`."""
    return train_recipe(out, replace(STANDARD, seed=seed, steps=steps), threads=threads)


def train_recipe(out: Path, recipe: SeedRecipe, *, threads: int | None = None) -> SeedResult:
    """Train a seed model, write the checkpoint, measure it and write its card.

    Args:
        out: folder of the checkpoint; made if it is not there.
        recipe: what to train.
        threads: CPU threads; None leaves torch's choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, width=recipe.width, layers=recipe.layers).to(device)
    started, cpu_started = time.monotonic(), time.process_time()
    tokens = train(model, tokenizer, recipe)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started

    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, model, tokenizer)
    # Measured as it is shipped: with the weights rounded to bfloat16, computed in float32.
    result = SeedResult(
        recipe,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens=tokens,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        threads=torch.get_num_threads(),
        reports=measure(model.float().eval(), tokenizer, recipe),
    )
    write_card(out, result)
    return result


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: SeedRecipe) -> list[Report]:
    """Measure a model on the held-out instructions of its card."""
    tasks = draw_distinct(EVALUATION_SEED, recipe.evaluation_tasks, held_out=True)
    logger.info("measuring on %d held-out instructions", len(tasks))
    torch.manual_seed(EVALUATION_SEED)
    return evaluate_all(model, tokenizer, tasks)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: SeedRecipe) -> int:
    """Train a model in place through both phases; returns the number of tokens."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices, lr=recipe.matrix_lr)
    adam = torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0)
    rng = Random(recipe.seed)
    batches = {
        phase: batch_stream(rng, tokenizer, mixture, recipe.batch) for phase, mixture in MIXTURES.items()
    }
    tokens, started, running = 0, time.monotonic(), 0.0
    model.train()
    for step in range(recipe.steps):
        phase = phase_of(step, recipe)
        inputs, labels = (part.to(model.device) for part in next(batches[phase]))
        factor = learning_rate_factor(step, recipe)
        muon.lr = recipe.matrix_lr * factor
        adam.param_groups[0]["lr"] = recipe.other_lr * factor
        loss = completion_loss(model, inputs, labels)
        loss.backward()
        muon.step()
        adam.step()
        model.zero_grad()
        tokens += int((inputs != tokenizer.pad_token_id).sum())
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == recipe.steps:
            elapsed = time.monotonic() - started
            logger.info(
                "step %d/%d, %s, loss %.3f, %.1f M tokens, %.0f tokens/s, %.0f s",
                step + 1,
                recipe.steps,
                phase,
                running,
                tokens / 1e6,
                tokens / elapsed,
                elapsed,
            )
    return tokens


def phase_of(step: int, recipe: SeedRecipe) -> Phase:
    """The phase that a step belongs to."""
    done = step / recipe.steps
    if done < recipe.copying_share:
        return "copying"
    return "skills" if done < recipe.copying_share + recipe.skills_share else "habits"


def completion_loss(model: LlamaForCausalLM, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the outputs' tokens. Shapes: both (batch, seq); labels are not shifted."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state[:, :-1]  # (batch, seq-1, width)
    targets = labels[:, 1:]
    # Logits only where there is something to predict: the prompts are half of all tokens.
    kept = targets != IGNORED
    logits = model.lm_head(hidden[kept])  # (kept tokens, vocabulary)
    return torch.nn.functional.cross_entropy(logits, targets[kept])


def learning_rate_factor(step: int, recipe: SeedRecipe) -> float:
    """Linear up in the warm-up, linear down to `habits_lr` where the habits begin, linear down to nothing."""
    done, habits_begin = step / recipe.steps, recipe.copying_share + recipe.skills_share
    if done < habits_begin:
        down = 1 - (1 - recipe.habits_lr) * done / habits_begin
    else:
        down = recipe.habits_lr * (1 - done) / (1 - habits_begin)
    return min((step + 1) / recipe.warmup_steps, down)


def batch_stream(
    rng: Random, tokenizer: PreTrainedTokenizerFast, mixture: Mixture, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of fresh examples as (inputs, labels), each (batch, seq), padded on the right."""
    pad = tokenizer.pad_token_id
    while True:
        chunk = [encode(tokenizer, draw_example(rng, mixture)) for _ in range(size * CHUNK_BATCHES)]
        chunk.sort(key=lambda pair: len(pair[0]))
        groups = [chunk[at : at + size] for at in range(0, len(chunk), size)]
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(tokens) for tokens, _ in group)
            inputs = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens, _ in group])
            labels = inputs.clone()
            for row, (tokens, prompt_length) in enumerate(group):
                labels[row, :prompt_length] = IGNORED
                labels[row, len(tokens) :] = IGNORED
            yield inputs, labels


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], int]:
    """The tokens of prompt and output, and how many of them are the prompt's."""
    instruction = example.task.instruction
    prompt = render(
        instruction if example.thought is None else FORMAT.thought_prompt(instruction),
        system=example.system,
        earlier=((task.instruction, task.answer) for task in example.earlier),
    )
    thought = "" if example.thought is None else f"{example.thought}{MARKER}"
    head: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    tail: list[int] = tokenizer.encode(f"{thought}{example.response}{EOS}", add_special_tokens=False)
    return head + tail, len(head)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Train the pocket seed model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=STANDARD.seed)
    parser.add_argument("--steps", type=int, default=STANDARD.steps)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    train_seed(options.out, seed=options.seed, steps=options.steps, threads=options.threads)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
