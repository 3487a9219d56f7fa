"""How much memory and disk a run takes: sampling, a reward model, and training by DPO.

Adam in single precision takes 16 bytes a weight: the weight, its gradient and two moments. Reference log-probabilities
are computed before training, so there is never a second model. All numbers are of one device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from thinkserve.errors import UsageError
from thinkserve.eval.records import read_bytes
from thinkserve.training.cost import outputs_at_once
from thinkserve.training.lengths import CHARACTERS_PER_TOKEN
from thinkserve.training.model_size import ModelSize, Shape
from thinkserve.training.planned_judge import PlannedJudge
from thinkserve.training.recipe import DpoRecipe, LoraRecipe, Recipe

HALF, SINGLE, ADAM = 2, 4, 8
_DTYPES = {"bfloat16": HALF, "float32": SINGLE}


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes memory."""

    name: str
    size: float | None
    """In bytes; None: not known."""
    how: str = ""
    """How it was computed."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a stage needs on one device."""

    name: str
    parts: tuple[Part, ...]

    @property
    def known(self) -> float:
        """The sum of what is known, in bytes."""
        return sum(part.size for part in self.parts if part.size is not None)

    @property
    def complete(self) -> bool:
        """Whether all is known."""
        return all(part.size is not None for part in self.parts)


def sampling_need(recipe: Recipe, model: ModelSize, tokens: float) -> Need:
    """Sampling: weights, and keys and values of the outputs that are written at once.

    Args:
        recipe: of the run.
        model: its size.
        tokens: of prompt and output together, on average.
    """
    shape, at_once = model.shape, outputs_at_once(recipe, recipe.sample.k)
    cache = None if shape is None else HALF * shape.cached_numbers * tokens * at_once
    return Need(
        "sample",
        (
            Part("weights", _times(HALF, model.parameters), "2 bytes a weight"),
            Part("keys and values", cache, f"{at_once:,} outputs at once of {tokens:,.0f} tokens"),
        ),
    )


def judge_need(name: str, judge: PlannedJudge) -> Need | None:
    """A reward model: its weights; a batch adds a few gigabytes at most. None: the judge runs elsewhere, or is none.

    Args:
        name: of the stage.
        judge: of that stage.
    """
    if judge.recipe.kind != "reward-model" or judge.size is None:
        return None
    each = _DTYPES[judge.recipe.dtype]
    return Need(name, (Part("weights", _times(each, judge.size.parameters), f"{each} bytes a weight"),))


def dpo_need(recipe: Recipe, model: ModelSize) -> Need:
    """Training, on each of its devices.

    Raises:
        UsageError: the accelerate configuration cannot be read.
    """
    dpo, size = recipe.dpo, model.parameters
    devices, stage = sharding(dpo)
    tokens = 2 * dpo.device_batch * dpo.max_length
    held = Part("activations", activations(dpo, model.shape), f"{tokens:,} tokens at once, roughly")
    if dpo.lora is not None:
        adapters = adapter_weights(dpo.lora, model.shape)
        return Need(
            "dpo",
            (
                Part("weights", _times(SINGLE, size), "4 bytes a weight, frozen"),
                Part("adapters", _times(2 * SINGLE + ADAM, adapters), "16 bytes a weight of theirs"),
                held,
            ),
        )
    copies = HALF if dpo.bf16 and stage < 3 else 0
    return Need(
        "dpo",
        (
            _shared("weights", SINGLE + copies, size, devices if stage >= 3 else 1),
            _shared("gradients", SINGLE, size, devices if stage >= 2 else 1),
            _shared("Adam's moments", ADAM, size, devices if stage >= 1 else 1),
            held,
        ),
    )


def _shared(name: str, each: int, size: float | None, devices: int) -> Part:
    over = f", over {devices} devices" if devices > 1 else ""
    copies = ", with a copy in bf16" if name == "weights" and each == SINGLE + HALF else ""
    return Part(name, _times(each, size, devices), f"{each} bytes a weight{copies}{over}")


def activations(dpo: DpoRecipe, shape: Shape | None) -> float | None:
    """Roughly the bytes that the backward pass wants, for both sides of the pairs on a device.

    Inside a block, in bf16 under autocast: about 10 tensors of the hidden size and 4 of the intermediate one. With
    gradient checkpointing the inputs of all blocks are kept and one block at a time is computed again. The log-probabilities
    are computed in chunks, so there are no logits.
    """
    if shape is None:
        return None
    each = HALF if dpo.bf16 else SINGLE
    block = each * (10 * shape.hidden + 4 * shape.intermediate)
    token = (
        SINGLE * shape.hidden * shape.layers + block if dpo.gradient_checkpointing else shape.layers * block
    )
    return float(2 * dpo.device_batch * dpo.max_length * token)


def adapter_weights(lora: LoraRecipe, shape: Shape | None) -> int | None:
    """How many weights the adapters have: r for each input and each output; None: modules of unknown size."""
    if shape is None:
        return None
    sizes = shape.linear_layers
    names = sizes if lora.target_modules == "all-linear" else lora.target_modules
    if isinstance(names, str) or not set(names) <= set(sizes):
        return None
    return shape.layers * lora.r * sum(sum(sizes[name]) for name in names)


def sharding(dpo: DpoRecipe) -> tuple[int, int]:
    """Over how many processes training is spread, and how far: 0 nothing, 1 the optimizer, 2 gradients, 3 weights too.

    Raises:
        UsageError: the accelerate configuration cannot be read.
    """
    if dpo.accelerate_config is None:
        return dpo.processes or 1, 0
    path = Path(dpo.accelerate_config)
    try:
        config = yaml.safe_load(read_bytes(path))
    except yaml.YAMLError as exc:
        raise UsageError(f"dpo.accelerate_config: {path} is no YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(config, Mapping):
        raise UsageError(f"dpo.accelerate_config: {path} has no keys; make it with `accelerate config`")
    return dpo.processes or int(config.get("num_processes", 1)), _stage(config)


def _stage(config: Mapping[str, Any]) -> int:
    kind = config.get("distributed_type")
    if kind == "FSDP":
        return 3
    if kind == "DEEPSPEED":
        stage = (config.get("deepspeed_config") or {}).get("zero_stage", 2)
        return stage if isinstance(stage, int) else 2  # it may be in a file of DeepSpeed's own
    return 0


def disk_parts(recipe: Recipe, model: ModelSize, output_tokens: float) -> tuple[Part, ...]:
    """What lies on disk at most, at the end of the last iteration's training.

    Args:
        recipe: of the run.
        model: its size.
        output_tokens: sampled in the whole run.
    """
    size, epochs = model.parameters, recipe.dpo.epochs
    arms, iterations = len(recipe.arms), recipe.iterations
    # Arms that take turns have no open epochs at the same time.
    at_once = arms if recipe.compute.parallel_arms else 1
    if recipe.compute.keep_epochs:
        kept, how = arms * iterations * epochs, f"{epochs} in each of {arms * iterations} iterations"
    else:
        kept, how = at_once * epochs, f"{epochs} in each iteration, until one is chosen"
    # An epoch's state is removed when that of the next one is there.
    states = 0 if recipe.dpo.lora else 2 * at_once
    state = Part(
        "trainer's state", _times((SINGLE + ADAM) * states, size), "to go on from; two while one is written"
    )
    return (
        Part(
            "checkpoints", _times(HALF * arms * iterations, size), f"{arms * iterations} x 2 bytes a weight"
        ),
        Part("epochs", _times(HALF * kept, size), how),
        *([state] if states else []),
        # As they were sampled, as they were cut, and the pairs.
        Part("outputs and pairs", 3 * CHARACTERS_PER_TOKEN * output_tokens, "text"),
    )


def _times(each: float, count: float | None, devices: int = 1) -> float | None:
    return None if count is None else each * count / devices
