"""The pocket checkpoint: a Llama in the Hugging Face layout, which vLLM and transformers load as they are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from thinkserve.thoughts.format import CHECKPOINT_FILE
from thinkserve.training.pocket.tokenizer import CONTEXT_TOKENS, FORMAT

THOUGHT_FORMAT = {"name": "pocket", "base": FORMAT.name, "direct": True}

# 32 is the smallest head size that vLLM's CPU attention takes.
HEAD_SIZE = 32


def build_model(tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings, in float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_SIZE,
        num_key_value_heads=width // HEAD_SIZE,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def save_checkpoint(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write all files of a checkpoint but its model card; the weights are written in bfloat16."""
    # transformers serve decodes greedily at any temperature unless the checkpoint says do_sample. No top_k: the
    # world's numbers are about sampling from the whole distribution, and the libraries' defaults differ.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    # transformers writes weights that only their owner may read, which package data must not be.
    for weights in out.glob("*.safetensors"):
        weights.chmod(0o644)
    tokenizer.save_pretrained(out)
    (out / CHECKPOINT_FILE).write_text(json.dumps(THOUGHT_FORMAT) + "\n", encoding="utf-8")
