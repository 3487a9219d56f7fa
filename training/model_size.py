"""How large a model is: from its files if they are here, else from its name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `8B`, `1.5B` or `135M` as a word of its own: not the 7B of 8x7B, nor the A3B of 30B-A3B, nor the 4b of 4bit.
_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)
_UNITS = {"B": 1e9, "M": 1e6}
# That of the format.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that memory hangs on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int

    @property
    def cached_numbers(self) -> int:
        """Keys and values that are kept for each token."""
        return 2 * self.layers * self.key_value_heads * self.head_size

    @property
    def linear_layers(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of each block, by the names that they usually have."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What is known of a model's size."""

    name: str
    parameters: float | None
    """None: not known."""
    source: str
    """Where that is from: `its files` or `its name`; `unknown` where it is not."""
    shape: Shape | None = None
    """None: not known before its config.json is here."""


def size_of(model: str, revision: str | None = None) -> ModelSize:
    """The size of a checkpoint folder or of a model on the Hub; nothing is downloaded.

    Args:
        model: as `thinkserve.training.models.resolve` gives it.
        revision: of a model on the Hub, to find it among what was downloaded before.
    """
    folder = Path(model) if Path(model).is_dir() else _downloaded(model, revision)
    shape = _shape(folder) if folder else None
    parameters = _count(folder.glob("*.safetensors")) if folder else None
    if parameters:
        return ModelSize(model, parameters, "its files", shape)
    found = _IN_NAME.search(model.rpartition("/")[2])
    if found is None:
        return ModelSize(model, None, "unknown", shape)
    return ModelSize(model, float(found[1]) * _UNITS[found[2].upper()], "its name", shape)


def _downloaded(name: str, revision: str | None) -> Path | None:
    """The folder of a model in the Hub's cache, if its config.json is there."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(
            name, "config.json", cache_dir=constants.HF_HUB_CACHE, revision=revision
        )
    except HFValidationError:  # it is no name on the Hub
        return None
    return Path(found).parent if isinstance(found, str) else None


def _shape(folder: Path) -> Shape | None:
    try:
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_bytes())
        config = config.get("text_config", config)
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            intermediate=config["intermediate_size"],
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or hidden // heads,
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _count(files: Iterable[Path]) -> int | None:
    """All numbers in some safetensors files, from their headers alone."""
    total = 0
    for file in files:
        try:
            with open(file, "rb") as content:
                size = int.from_bytes(content.read(8), "little")
                header = json.loads(content.read(min(size, _LONGEST_HEADER)))
            total += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
        except (
            OSError,
            ValueError,
            AttributeError,
            TypeError,
            KeyError,
        ):  # a damaged file is found when it is loaded
            return None
    return total or None
