"""The model: loading it, and one forward pass over rows that stand at different positions.

Positions and the attention mask are ours, in full: position p of a sequence sees the columns 0 .. p of its own row
(fewer in a layer with a sliding window), so prefill, decode and padded rows are all the same call.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from thinkserve.engines.transformers_server.cache import BatchCache
from thinkserve.errors import EngineError

logger = logging.getLogger(__name__)

ATTENTION_TYPES = {"full_attention", "sliding_attention"}
# The largest difference between cached and uncached logits in the self-check, as a share of the largest logit. A
# cache that is not understood gives differences near 1; half precision alone gives up to a few hundredths.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What to load and where. `device_map` (for example `auto`: over all GPUs) needs the accelerate package."""

    checkpoint: str
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    max_model_len: int | None = None


class Decoder:
    """A causal language model that runs batches of rows against a `BatchCache`."""

    def __init__(self, model: Any, max_model_len: int | None = None) -> None:
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size: int = config.vocab_size
        self.max_model_len = _context_length(config, max_model_len)
        self._columns = torch.arange(self.max_model_len, device=self.device)
        self._layer_types, self._window = _attention_layers(config, self.max_model_len)

    @classmethod
    def load(cls, config: DecoderConfig) -> Decoder:
        """Load the checkpoint and prove that it can be batched.

        Raises:
            EngineError: the device is missing, or the model has a cache this server does not understand.
        """
        device = _pick_device(config.device)
        dtype = _pick_dtype(config.dtype, device)
        placement = {} if config.device_map is None else {"device_map": config.device_map}
        model = AutoModelForCausalLM.from_pretrained(config.checkpoint, dtype=dtype, **placement).eval()
        if config.device_map is None:
            model.to(device)
        decoder = cls(model, config.max_model_len)
        decoder.self_check()
        logger.info("loaded %s on %s in %s", config.checkpoint, decoder.device, decoder.dtype)
        return decoder

    @property
    def generation_defaults(self) -> dict[str, Any]:
        """What the checkpoint's generation_config.json sets."""
        defaults: dict[str, Any] = self.model.generation_config.to_diff_dict()
        return defaults

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        count: int = self.model.num_parameters()
        return count

    def kv_bytes_per_token(self) -> int:
        """Memory that one column of one row takes, over all layers."""
        cache = BatchCache(max_tokens=1)
        with torch.inference_mode():
            self.prefill(cache, [[0]])
        tensors = [*cache._keys, *cache._values]
        return sum(tensor.element_size() * tensor.numel() for tensor in tensors)

    def prefill(self, cache: BatchCache, token_ids: Sequence[Sequence[int]], start: int = 0) -> torch.Tensor:
        """Run prompts (or one chunk of one prompt, from position `start` on); logits after each one's last token.

        Rows shorter than the longest are padded on the right: what a padded position writes is right of all that a
        real one may see, and is overwritten when the sequence gets there.

        Returns:
            (rows, vocab), float32.
        """
        width = max(map(len, token_ids))
        if not cache.reserve(len(token_ids), start + width):
            raise EngineError(f"{len(token_ids)} prompts of {start + width} tokens are over the cache's size")
        cache.write_block(len(token_ids), start, width)
        padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in token_ids], device=self.device)
        positions = self._columns[start : start + width].expand(len(token_ids), width)
        last = torch.tensor([len(ids) - 1 for ids in token_ids], device=self.device)
        distinct, place = torch.unique(last, return_inverse=True)
        logits = self._forward(padded, positions, cache, start + width, distinct)
        return logits[torch.arange(len(token_ids), device=logits.device), place.to(logits.device)]

    def decode(
        self,
        cache: BatchCache,
        row_index: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        columns: int,
    ) -> torch.Tensor:
        """One token for each row: `tokens` and `positions` are (rows,); `columns` is the largest position plus one.

        Returns:
            (rows, vocab), float32.
        """
        cache.write_tokens(row_index, positions, columns)
        return self._forward(tokens[:, None], positions[:, None], cache, columns, 1)[:, 0]

    def _forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cache: BatchCache,
        columns: int,
        logits_to_keep: int | torch.Tensor,
    ) -> torch.Tensor:
        output = self.model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=self._mask(positions, columns),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        return output.logits.to(self.device, torch.float32)

    def _mask(self, positions: torch.Tensor, columns: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """What to add to the attention scores, (rows, 1, width, columns); one per kind of layer where they differ.

        A float mask, because from a boolean one each layer's attention would make its own float copy.
        """
        column = self._columns[:columns]
        last = positions[:, None, :, None]
        full = self._additive(column <= last)
        if self._window is None:
            return full
        sliding = self._additive((column <= last) & (column > last - self._window))
        if len(self._layer_types) == 1:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(visible.shape, dtype=self.dtype, device=self.device).masked_fill_(~visible, hidden)

    def self_check(self) -> None:
        """Compare batched, cached logits with plain ones on a few tokens; this also warms the model up.

        Raises:
            EngineError: they differ, so the model keeps its state in a way that rows cannot be batched with.
        """
        length = min(10, self.max_model_len)
        ids = [(7 * i + 3) % self.vocab_size for i in range(length)]
        with torch.inference_mode():
            plain = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
            expected = plain.logits[0].to(self.device, torch.float32)
            try:
                cached = self._replay(ids)
            except (
                AttributeError,
                TypeError,
                NotImplementedError,
                IndexError,
                RuntimeError,
                ValueError,
            ) as exc:
                raise EngineError(f"{_unsupported(self.model)} ({type(exc).__name__}: {exc})") from exc
        difference = float((cached - expected[-cached.shape[0] :]).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE.get(self.dtype, 0.1):
            raise EngineError(f"{_unsupported(self.model)} (cached logits are off by {difference:.2g})")

    def _replay(self, ids: list[int]) -> torch.Tensor:
        """The logits of the last half of `ids`, decoded in row 1 beside a row that is longer and ahead."""
        half = max(1, len(ids) // 2)
        cache = BatchCache(max_tokens=2 * self.max_model_len)
        cache.reserve(2, len(ids))
        found = [self.prefill(cache, [ids, ids[:half]])[1]]
        row_index = torch.arange(2, device=self.device)
        for position in range(half, len(ids)):
            tokens = torch.tensor([ids[-1], ids[position]], device=self.device)
            positions = torch.tensor([len(ids) - 1, position], device=self.device)
            found.append(self.decode(cache, row_index, tokens, positions, len(ids))[1])
        return torch.stack(found)


def _unsupported(model: Any) -> str:
    return (
        f"the transformers engine cannot batch {type(model).__name__}: it supports decoder-only models with a "
        "standard attention cache; serve this one with vllm"
    )


def _context_length(config: Any, wanted: int | None) -> int:
    longest = getattr(config, "max_position_embeddings", None)
    if wanted is None:
        return int(longest or 2048)
    if wanted < 2:
        raise EngineError(
            f"--max-model-len {wanted} leaves no room for a prompt and an answer; give 2 or more"
        )
    if longest is not None and wanted > longest:
        raise EngineError(f"--max-model-len {wanted} is more than the model's {longest} positions")
    return wanted


def _attention_layers(config: Any, max_model_len: int) -> tuple[set[str], int | None]:
    """The kinds of attention layer, and the window of the sliding ones; None where it never binds."""
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not layer_types <= ATTENTION_TYPES:
        names = ", ".join(sorted(layer_types - ATTENTION_TYPES))
        raise EngineError(f"the transformers engine does not support layers of type {names}; use vllm")
    window = getattr(config, "sliding_window", None)
    if layer_types == {"full_attention"} or window is None or window >= max_model_len:
        return layer_types, None
    return layer_types or {"sliding_attention"}, int(window)


def _pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(
            "--device cuda: torch finds no CUDA device; install a CUDA build of torch or use cpu"
        )
    return torch.device(name)


def _pick_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        # On a CPU bfloat16 was 2 to 3 times slower than float32 for a small model at 16 rows.
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype
