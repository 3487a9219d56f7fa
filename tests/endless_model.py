"""A tiny random checkpoint that never ends by itself at temperature 0: for tests that interrupt an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_endless_checkpoint(folder: Path, *, context: int = 4096, layers: int = 2) -> Path:
    """Write a random Llama over printable ASCII, in the Hugging Face layout.

    The row of the end-of-sequence token in its output matrix is zero: some other token's logit is always above it.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: at for at, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        model.lm_head.weight[:3] = 0
    model.generation_config = GenerationConfig(do_sample=True, eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
