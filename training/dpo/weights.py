"""The weights of an epoch, made from the trainer's files alone, in the precision of the start model.

The model in memory is left alone: TRL has patched its forward, it may be spread over processes, and adapters that are
merged into it and taken out again would leave it changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from thinkserve.errors import ThinkserveError
from thinkserve.training.dpo.start_model import StartModel

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"


def write_weights(state: Path, out: Path, start: StartModel) -> None:
    """Write an epoch's weights.

    Args:
        state: the trainer's folder of that epoch, with full weights (float32) or an adapter.
        out: where to.
        start: the model that an adapter belongs to, and whose precision is used.

    Raises:
        ThinkserveError: weights are missing, or are no numbers.
    """
    if (state / ADAPTER).exists():
        _merge(state, out, start)
    else:
        _convert(state, out, start.dtype())


def _convert(state: Path, out: Path, dtype: torch.dtype) -> None:
    files = sorted(state.glob("model*.safetensors"))
    if not files:
        raise ThinkserveError(
            f"the trainer left no weights in {state}; with FSDP set fsdp_state_dict_type: FULL_STATE_DICT, with DeepSpeed "
            "stage 3 zero3_save_16bit_model: true, in the file of dpo.accelerate_config"
        )
    size = 0
    for file in files:
        tensors = {}
        with safe_open(file, "pt") as source:
            for name in source.keys():  # noqa: SIM118 - no dict
                tensors[name] = _checked(name, source.get_tensor(name), dtype)
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        size += sum(tensor.nbytes for tensor in tensors.values())
    if (state / INDEX).exists():
        index: dict[str, Any] = json.loads((state / INDEX).read_bytes())
        index["metadata"]["total_size"] = size
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _merge(state: Path, out: Path, start: StartModel) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    base = AutoModelForCausalLM.from_pretrained(start.path, revision=start.revision, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(state)).merge_and_unload()
    dtype = start.dtype()
    for name, parameter in merged.named_parameters():
        _checked(name, parameter.data, dtype)
    merged.generation_config = (
        GenerationConfig()
    )  # ours is written later; transformers refuses some of others
    merged.to(dtype).save_pretrained(out)


def _checked(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise ThinkserveError(
            f"the weights {name} have become NaN or infinite (as {dtype}), so this epoch is not kept; try a lower "
            "dpo.learning_rate, or dpo.max_grad_norm = 1"
        )
    return tensor
