"""The ids that DPO trains on are those that an engine reads and samples, whatever template and tokenizer do."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.pocket import CHECKPOINT
from thinkserve.training.dpo.tokens import PairTokenizer
from thinkserve.training.pocket.tokenizer import THOUGHT_PROMPT

# As in Llama 3: contents are trimmed, and the template writes the beginning of the sequence.
LLAMA = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# As in Qwen 3 and DeepSeek R1: thoughts of the assistant's turns are dropped.
THINK = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{{ message['content'].split('</think>')[-1].lstrip() }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
)


def characters(template: str, *, double_newline: bool = False) -> Any:
    """A tokenizer of single characters, which begins every text with a token as that of Llama 3 does."""
    pieces = [*map(chr, (10, *range(32, 127))), "▁", *(["\n\n"] if double_newline else [])]
    backend = Tokenizer(models.WordLevel({piece: id for id, piece in enumerate(pieces)}, unk_token="?"))
    pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|[\s\S]" if double_newline else r"[\s\S]"), "isolated")
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(SPECIAL))
    begin = backend.token_to_id(SPECIAL[0])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", pair=f"{SPECIAL[0]} $A $B", special_tokens=[(SPECIAL[0], begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        chat_template=template,
    )


def id_of(tokenizer: Any, token: str) -> int:
    found: int = tokenizer.convert_tokens_to_ids(token)
    return found


def test_pocket_ids_are_the_prompt_of_the_engine_and_the_whole_output() -> None:
    """`<bos><user>..<assistant>` once, then thought, marker and response, and one `<eos>`."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    pairs = PairTokenizer(tokenizer, tokenizer.eos_token_id)
    message = THOUGHT_PROMPT + "Repeat abc"
    found = pairs.pair(message, "Let me see<R>abc", "OK<R>x", chosen_ended=True, rejected_ended=True)
    read = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
    )
    assert found.prompt == read
    assert found.prompt.count(tokenizer.bos_token_id) <= 1
    assert tokenizer.decode(found.chosen) == "Let me see<R>abc<eos>"
    assert tokenizer.decode(found.rejected) == "OK<R>x<eos>"
    assert found.longest == len(found.prompt) + len(found.chosen)
    assert found.total == 2 * len(found.prompt) + len(found.chosen) + len(found.rejected)


def test_llama_3_output_keeps_its_white_space_and_ends_with_the_token_of_the_template() -> None:
    """The tokenizer's own end is <|end_of_text|>, generation stops at <|eot_id|> too, and the chat ends turns with that."""
    tokenizer = characters(LLAMA)
    stops = [id_of(tokenizer, "<|end_of_text|>"), id_of(tokenizer, "<|eot_id|>")]
    pairs = PairTokenizer(tokenizer, stops)
    output = " \n thought <R> answer \n\n"
    found = pairs.pair(" hello ", output, "x", chosen_ended=True, rejected_ended=True)
    assert tokenizer.decode(found.chosen) == output + "<|eot_id|>"
    assert tokenizer.decode(found.prompt) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_thoughts_stay_where_a_template_drops_them_from_its_turns() -> None:
    tokenizer = characters(THINK)
    pairs = PairTokenizer(tokenizer, id_of(tokenizer, "<|im_end|>"))
    output = "<think>\nfirst\n</think>\n\nsecond"
    found = pairs.pair("q", output, "x", chosen_ended=True, rejected_ended=True)
    assert tokenizer.decode(found.chosen) == output + "<|im_end|>"


def test_what_the_token_limit_cut_off_has_no_end() -> None:
    tokenizer = characters(LLAMA)
    found = PairTokenizer(tokenizer, id_of(tokenizer, "<|eot_id|>")).pair(
        "q", "a", "b and so on", chosen_ended=True, rejected_ended=False
    )
    assert tokenizer.decode(found.rejected) == "b and so on"


@pytest.mark.parametrize("shown", ["<|eot_id|>", "<|end_of_text|>"])
def test_stop_token_that_the_engine_has_shown_does_not_come_twice(shown: str) -> None:
    tokenizer = characters(LLAMA)
    stops = [id_of(tokenizer, "<|end_of_text|>"), id_of(tokenizer, "<|eot_id|>")]
    found = PairTokenizer(tokenizer, stops).pair(
        "q", "a" + shown, "b", chosen_ended=True, rejected_ended=True
    )
    assert tokenizer.decode(found.chosen) == "a<|eot_id|>"


def test_prompt_is_whole_where_a_token_would_span_its_end() -> None:
    """The prompt ends with one newline and the output begins with one: two of them are one token, but not here."""
    template = "{{ messages[0]['content'] + ':\\n' }}"
    tokenizer = characters(template, double_newline=True)
    found = PairTokenizer(tokenizer, id_of(tokenizer, "<|eot_id|>")).pair(
        "q", "\na", "b", chosen_ended=True, rejected_ended=True
    )
    assert tokenizer.convert_ids_to_tokens(found.prompt) == ["q", ":", "\n"]
    assert tokenizer.convert_ids_to_tokens(found.chosen) == ["\n", "a", "<|eot_id|>"]


def test_output_gets_no_space_from_a_tokenizer_that_puts_one_before_every_text() -> None:
    """As those of SentencePiece do: "ab" alone is "▁", "a", "b"."""
    tokenizer = characters("{{ messages[0]['content'] }}:")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
        ]
    )
    assert tokenizer.tokenize("ab") == ["▁", "a", "b"]
    found = PairTokenizer(tokenizer, id_of(tokenizer, "<|eot_id|>")).pair(
        "q", "ab", "b", chosen_ended=True, rejected_ended=True
    )
    assert tokenizer.convert_ids_to_tokens(found.chosen) == ["a", "b", "<|eot_id|>"]


def test_trl_alone_would_train_on_other_tokens(tmp_path: Any) -> None:
    """Why its tokenizing is not used: a second beginning, another end, and one where the output was cut off."""
    tokenizer = characters(LLAMA)
    text, _ = PairTokenizer(tokenizer, [id_of(tokenizer, "<|eot_id|>")]).prompt("q")
    config = LlamaConfig(
        vocab_size=256, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    args = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], dataloader_pin_memory=False
    )
    from datasets import Dataset

    trainer = DPOTrainer(
        model=LlamaForCausalLM(config),
        ref_model=LlamaForCausalLM(config),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [text], "chosen": ["a"], "rejected": ["b"]}),
        processing_class=tokenizer,
    )
    row = trainer.train_dataset[0]
    assert row["prompt_ids"][:2] == [tokenizer.bos_token_id] * 2
    assert row["chosen_ids"][-1] == id_of(tokenizer, "<|end_of_text|>")
    assert row["rejected_ids"][-1] == id_of(tokenizer, "<|end_of_text|>")


def test_checkpoint_without_any_stop_token_is_refused() -> None:
    tokenizer = characters(LLAMA)
    tokenizer.eos_token = None
    with pytest.raises(ThinkserveError, match="has no stop token"):
        PairTokenizer(tokenizer, None)


def test_template_that_fails_is_named() -> None:
    tokenizer = characters("{{ raise_exception('no users here') }}")
    with pytest.raises(UsageError, match="chat template .* fails: no users here"):
        PairTokenizer(tokenizer, 5).prompt("q")
