"""A recipe's `dpo` in the words of TRL 1.16 and transformers 5.

What their names and defaults hide:

* `loss_type` is a list with weights. The likelihood term of IRPO is the loss `sft`, the mean over all chosen tokens of a
  batch on a device (not over outputs); `rpo_alpha` is gone, and so are max_prompt_length and max_completion_length.
* bf16 and gradient checkpointing are on unless they are turned off.
* `warmup_ratio` is gone: steps are counted here. The schedule "constant" would not warm up at all.
* A reference that is not precomputed is loaded again from the path in the model's configuration, whatever was done to the
  model since. Ours is precomputed, by the weights as they were loaded; that halves the forward passes of all epochs, too.
* `max_length` cuts (`keep_start`). None here: too long pairs were left out before.
* `trl.experimental.tpo.TPOTrainer` is Triple Preference Optimization, something else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig

from thinkserve.errors import UsageError
from thinkserve.training.recipe import DpoRecipe, LoraRecipe

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def dpo_config(
    recipe: DpoRecipe, *, out: Path, steps: int, seed: int, processes: int, revision: str | None = None
) -> Any:
    """A `DPOConfig`.

    Args:
        recipe: what is asked for.
        out: the folder of the trainer's state.
        steps: optimizer steps of all epochs.
        seed: of the order of pairs.
        processes: over which a batch is spread.
        revision: of a start model on the Hub.

    Raises:
        UsageError: the batch cannot be spread so, or a value is none that the libraries know.
    """
    losses: list[str] = [recipe.loss]
    weights = [1.0]
    if recipe.nll_weight:
        losses, weights = [*losses, "sft"], [*weights, recipe.nll_weight]
    on_gpu = torch.cuda.is_available()
    try:
        return DPOConfig(
            output_dir=str(out),
            model_init_kwargs={"dtype": "float32", "revision": revision or "main"},
            loss_type=losses,
            loss_weights=weights,
            beta=recipe.beta,
            precompute_ref_log_probs=True,
            disable_dropout=True,
            max_length=None,
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=_device_batch(recipe, processes),
            gradient_accumulation_steps=recipe.batch // (_device_batch(recipe, processes) * processes),
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=SCHEDULES[recipe.schedule],
            warmup_steps=math.ceil(recipe.warmup_share * steps),
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            optim=recipe.optimizer,
            bf16=recipe.bf16,
            gradient_checkpointing=recipe.gradient_checkpointing,
            seed=seed,
            data_seed=seed,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            save_strategy="epoch",
            # A line a step: with more steps a line, a run that goes on from an epoch would begin with another mean.
            logging_steps=1,
            # Else a loss that is no number is shown as the mean of those before it.
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
        )
    except (ValueError, TypeError, ImportError) as exc:
        raise UsageError(f"dpo: {str(exc).strip().partition(chr(10))[0]}") from exc


def _device_batch(recipe: DpoRecipe, processes: int) -> int:
    """Pairs on a device at once: not more than its share of a batch."""
    size = min(recipe.device_batch, max(1, recipe.batch // processes))
    if recipe.batch % (size * processes):
        raise UsageError(
            f"dpo.batch is {recipe.batch} and cannot be spread over {processes} processes with dpo.device_batch = "
            f"{recipe.device_batch} pairs at once; give a multiple of {size * processes}"
        )
    return size


def lora_config(recipe: LoraRecipe) -> Any:
    """A `LoraConfig`."""
    from peft import LoraConfig

    modules = recipe.target_modules
    return LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )
