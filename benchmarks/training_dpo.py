"""The DPO stage beside TRL's trainer as it comes, in the same run with the same settings: tokens a second.

    python benchmarks/training_dpo.py [--rounds 2] [--threads 1] [--bf16] [--pairs 256]

A Llama of 3.7 M parameters with 2048 tokens, pairs of about 120 tokens a side, 16 pairs a step, DPO with the likelihood
term, the reference's log-probabilities computed before, one epoch. Both begin with pairs as text and end with weights on
disk. Tokens are those of both sides, prompt included; wall time is that of all of it, processor time that of training
alone. The processor's time is the one to compare on a machine that others use. Exits 1 if the stage has less than 0.9 of
TRL's speed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from thinkserve.training import records
from thinkserve.training.dpo.stage import run
from thinkserve.training.folder import TrainFolder
from thinkserve.training.recipe import DpoRecipe, Recipe
from thinkserve.training.records import PairRecord
from thinkserve.training.stage import StageContext

VOCABULARY = 2048
SPECIAL = ("<eos>", "<pad>", "<user>", "<assistant>")
PROMPT_WORDS, OUTPUT_WORDS = 38, 80
FLOOR = 0.9
TARGET = 7_000  # tokens a second, bf16, on a CPU that has it


@dataclass(frozen=True)
class Measured:
    """One run of one of the two."""

    seconds: float
    """All of it."""
    training_seconds: float
    processor_seconds: float
    """Of training."""
    reference_seconds: float
    """Loading, tokenizing and the reference."""


def make_model(out: Path) -> None:
    """Write the start model."""
    words = {f"w{number}": number for number in range(VOCABULARY - len(SPECIAL))}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template="<user> {{ messages[0]['content'] }} <assistant>",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_pairs(count: int) -> list[PairRecord]:
    """Random words, of lengths that differ by a fifth."""
    rng = random.Random(0)

    def words(length: int) -> str:
        spread = length // 5
        return " ".join(
            f"w{rng.randrange(VOCABULARY - len(SPECIAL))}"
            for _ in range(rng.randint(length - spread, length + spread))
        )

    nothing: dict[str, Any] = dict.fromkeys(
        ("chosen_index", "chosen_score", "rejected_score", "chosen_value", "rejected_value"), 0
    ) | {"rejected_index": 1, "chosen_length": 1, "rejected_length": 1}
    return [
        PairRecord(
            id=str(number),
            prompt=words(PROMPT_WORDS),
            chosen=words(OUTPUT_WORDS),
            rejected=words(OUTPUT_WORDS),
            **nothing,
        )
        for number in range(count)
    ]


@contextmanager
def timed_training(found: dict[str, float]) -> Any:
    """Time `Trainer.train`, of whichever trainer runs."""
    from transformers import Trainer

    original: Callable[..., Any] = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        found["began"] = time.monotonic()
        clock = time.process_time()
        result = original(self, *args, **kwargs)
        found["processor"] = time.process_time() - clock
        found["training"] = time.monotonic() - found["began"]
        return result

    Trainer.train = train
    try:
        yield
    finally:
        Trainer.train = original


def measure(work: Callable[[], object]) -> Measured:
    """Run one of the two."""
    found: dict[str, float] = {}
    began = time.monotonic()
    with timed_training(found):
        work()
    return Measured(time.monotonic() - began, found["training"], found["processor"], found["began"] - began)


def stage(model: Path, pairs: list[PairRecord], out: Path, recipe: DpoRecipe) -> None:
    """Ours."""
    whole = Recipe(name="benchmark", model=str(model), dpo=recipe)
    context = StageContext(TrainFolder(out, whole.mode), whole, "thought", 1, "dpo")
    records.write(context.folder.pairs, pairs)
    run(context)


def bare(model: Path, pairs: list[PairRecord], out: Path, recipe: DpoRecipe) -> None:
    """TRL as its documentation has it: strings, its own tokenizing, the model by its path, saved at the end."""
    rows = {
        "prompt": [f"<user> {pair.prompt} <assistant> " for pair in pairs],
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
    }
    config = DPOConfig(
        str(out),
        use_cpu=not torch.cuda.is_available(),
        bf16=recipe.bf16,
        gradient_checkpointing=recipe.gradient_checkpointing,
        loss_type=[recipe.loss, "sft"],
        loss_weights=[1.0, recipe.nll_weight],
        precompute_ref_log_probs=True,
        max_length=None,
        per_device_train_batch_size=recipe.device_batch,
        gradient_accumulation_steps=recipe.batch // recipe.device_batch,
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.epochs,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = DPOTrainer(model=str(model), args=config, train_dataset=Dataset.from_dict(rows))
    trainer.train()
    trainer.save_model(str(out))


def main() -> int:
    """Compare, print, and say whether it is fast enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--bf16", action="store_true", help="slow on CPUs without bfloat16 units")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = DpoRecipe(
        epochs=1,
        batch=16,
        device_batch=16,
        learning_rate=1e-4,
        nll_weight=1.0,
        bf16=options.bf16,
        gradient_checkpointing=False,
    )
    pairs = make_pairs(options.pairs)
    tokens = sum(
        2 * (len(pair.prompt.split()) + 2) + len(f"{pair.chosen} {pair.rejected}".split()) + 2
        for pair in pairs
    )
    best: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model)
        for name in ("warm-up", *("TRL", "stage") * options.rounds):
            out = Path(folder) / "out"
            shutil.rmtree(out, ignore_errors=True)
            work, some = (stage if name == "stage" else bare), (pairs[:16] if name == "warm-up" else pairs)
            found = measure(partial(work, model, some, out, recipe))
            if name != "warm-up":
                best[name] = fastest(best.get(name, found), found)
    return report(best, tokens, bf16=options.bf16)


def fastest(a: Measured, b: Measured) -> Measured:
    """The shorter of each time."""
    return replace(
        a,
        seconds=min(a.seconds, b.seconds),
        training_seconds=min(a.training_seconds, b.training_seconds),
        processor_seconds=min(a.processor_seconds, b.processor_seconds),
        reference_seconds=min(a.reference_seconds, b.reference_seconds),
    )


def report(best: dict[str, Measured], tokens: int, *, bf16: bool) -> int:
    """Print the table; 1 if the stage is too slow."""
    print(f"{tokens:,} tokens, {'bf16' if bf16 else 'fp32'}, {torch.get_num_threads()} threads, best of each")
    print(
        f"{'':8}{'all, s':>10}{'before, s':>12}{'training, s':>13}{'processor, s':>14}{'training, tok/s':>17}"
    )
    for name, found in best.items():
        print(
            f"{name:8}{found.seconds:10.1f}{found.reference_seconds:12.1f}{found.training_seconds:13.1f}"
            f"{found.processor_seconds:14.1f}{tokens / found.training_seconds:17,.0f}"
        )
    trl, ours = best["TRL"], best["stage"]
    ratios = {
        "all": trl.seconds / ours.seconds,
        "training": trl.training_seconds / ours.training_seconds,
        "training, processor time": trl.processor_seconds / ours.processor_seconds,
    }
    print(
        "speed of the stage over TRL's: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items())
    )
    speed = tokens / ours.training_seconds
    if bf16:
        print(f"{speed:,.0f} tokens/s, wanted {TARGET:,} (on a CPU with bfloat16 units)")
    return 0 if max(ratios["training"], ratios["training, processor time"]) >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
