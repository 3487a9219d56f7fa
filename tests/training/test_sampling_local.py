"""Sampling in this process: the same tokens as transformers' own, the right shares, and nothing that hangs on the batch."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.training.sampling_world import asks_of, sample, with_special_marker
from thinkserve.errors import EngineError, UsageError
from thinkserve.pocket import CHECKPOINT
from thinkserve.training.sampling.generator import Ask, Sampling
from thinkserve.training.sampling.local import LocalGenerator

GREEDY = Sampling(k=1, temperature=0.0, top_p=1.0, max_tokens=72)


def tiny_qwen() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 295}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    return Qwen2ForCausalLM(Qwen2Config(**shape, **heads, pad_token_id=0)).eval()


def tiny_gemma() -> Any:
    """With a sliding window shorter than most prompts, in every other layer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 295}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
    }
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, **heads, **layers, pad_token_id=0)).eval()


def pocket() -> Any:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def generator(tokenizer: Any) -> LocalGenerator:
    return LocalGenerator(pocket(), tokenizer, rows=64)


def prompt_of(tokenizer: Any, ask: Ask) -> Any:
    """As a user of transformers would make it."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": ask.message}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def greedily(model: Any, prompt: Any, tokens: int) -> list[int]:
    """New tokens of transformers' own `generate`."""
    with torch.inference_mode():
        whole = model.generate(**prompt, do_sample=False, max_new_tokens=tokens)[0]
    new: list[int] = whole[prompt["input_ids"].shape[1] :].tolist()
    return new


@pytest.mark.parametrize("make", [pocket, tiny_qwen, tiny_gemma])
async def test_greedy_outputs_are_those_of_transformers(make: Any, tokenizer: Any) -> None:
    """With a list for `eos_token_id`, as Llama 3 has it: the second one is a token that the model does write."""
    model, asks = make(), asks_of(14)
    settings = model.generation_config
    settings.pad_token_id, settings.eos_token_id = 0, [tokenizer.eos_token_id]
    written = [greedily(model, prompt_of(tokenizer, ask), 20) for ask in asks]
    settings.eos_token_id.append(written[0][3])
    sampling = Sampling(k=1, temperature=0.0, top_p=1.0, max_tokens=20)
    found = await sample(LocalGenerator(model, tokenizer, rows=5), asks, sampling)
    ends = set()
    for ask in asks:
        tokens = greedily(model, prompt_of(tokenizer, ask), 20)
        (output,) = found[ask.id].outputs
        ended = tokens[-1] in settings.eos_token_id
        text = tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        assert (output.text, output.tokens) == (text, len(tokens))
        assert output.finish_reason == ("stop" if ended else "length")
        ends.add(tokens[-1])
    assert written[0][3] in ends


async def test_tokens_are_drawn_with_the_probabilities_of_the_model(
    generator: LocalGenerator, tokenizer: Any
) -> None:
    """4,000 first tokens at T = 0.8: each share within 4 standard errors of its softmax(logits / 0.8)."""
    (ask,) = asks_of(1)
    count = 4000
    found = await sample(generator, [ask], Sampling(k=count, temperature=0.8, top_p=1.0, max_tokens=1))
    drawn = Counter(output.text for output in found[ask.id].outputs)
    prompt = prompt_of(tokenizer, ask)
    with torch.inference_mode():
        shares = torch.softmax(pocket()(**prompt).logits[0, -1] / 0.8, -1)
    for id, share in enumerate(shares.tolist()):
        if share > 0.01:
            error = (share * (1 - share) / count) ** 0.5
            assert abs(drawn[tokenizer.decode([id])] / count - share) < 4 * error
    assert len(drawn) > 3


async def test_top_p_leaves_out_what_is_beyond_the_nucleus(generator: LocalGenerator, tokenizer: Any) -> None:
    (ask,) = asks_of(1)
    prompt = prompt_of(tokenizer, ask)
    with torch.inference_mode():
        shares = torch.softmax(pocket()(**prompt).logits[0, -1], -1).sort(descending=True)
    size = int((shares.values.cumsum(0) < 0.5).sum()) + 1
    nucleus = {tokenizer.decode([id]) for id in shares.indices[:size].tolist()}
    found = await sample(generator, [ask], Sampling(k=500, temperature=1.0, top_p=0.5, max_tokens=1))
    assert {output.text for output in found[ask.id].outputs} == nucleus


async def test_outputs_hang_on_their_seed_and_not_on_the_batch(tokenizer: Any) -> None:
    sampling = Sampling(k=4, temperature=1.0, top_p=1.0, max_tokens=72)
    asks = asks_of(24)
    model = pocket()
    narrow, wide = (LocalGenerator(model, tokenizer, rows=rows) for rows in (8, 96))
    first = await sample(wide, asks, sampling)
    assert await sample(narrow, asks, sampling) == first
    assert await sample(wide, asks[::-1], sampling) == first
    outputs = [output.text for record in first.values() for output in record.outputs]
    assert len(set(outputs)) > len(asks)  # the outputs of one ask are drawn apart
    other = [Ask(ask.id, ask.message, ask.seed + 1) for ask in asks]
    assert await sample(wide, other, sampling) != first


async def test_what_is_left_is_batched_as_it_was(generator: LocalGenerator) -> None:
    """64 rows and K = 8 make batches of 8 asks; without the second and the fourth, the others stay as they are."""
    asks, sampling = asks_of(50), Sampling(k=8, temperature=1.0, top_p=1.0, max_tokens=72)
    batches = generator.batches(asks, sampling)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 8, 2]
    assert sorted(ask.id for batch in batches for ask in batch) == sorted(ask.id for ask in asks)
    left = [batch for place, batch in enumerate(batches) if place not in (1, 3)]
    assert generator.batches([ask for batch in left for ask in batch], sampling) == left


async def test_greedy_outputs_are_generated_once(tokenizer: Any) -> None:
    generator, asks = LocalGenerator(pocket(), tokenizer, rows=64), asks_of(6)
    found = await sample(generator, asks, Sampling(k=3, temperature=0.0, top_p=1.0, max_tokens=72))
    assert all(len(record.outputs) == 3 and len(set(record.outputs)) == 1 for record in found.values())
    assert generator.numbers["output_tokens"] == sum(each.outputs[0].tokens for each in found.values())


async def test_an_output_ends_at_its_limit(generator: LocalGenerator) -> None:
    sampling = Sampling(k=2, temperature=1.0, top_p=1.0, max_tokens=3)
    found = await sample(generator, asks_of(20), sampling)
    outputs = [output for record in found.values() for output in record.outputs]
    assert all(output.tokens == 3 for output in outputs if output.finish_reason == "length")
    assert "length" in {output.finish_reason for output in outputs}


async def test_prompt_and_output_fill_the_context_and_no_more(tokenizer: Any) -> None:
    """The template adds 3 tokens: 10 letters leave 256 - 13 tokens, 252 leave one, 253 none."""
    model = tiny_qwen()
    generator = LocalGenerator(model, tokenizer, rows=64)
    asks = [Ask(str(length), "a" * length, 0) for length in (10, 252, 253, 400)]
    found = await sample(generator, asks, Sampling(k=2, temperature=1.0, top_p=1.0, max_tokens=10**6))
    assert max(output.tokens for output in found["10"].outputs) <= 243
    assert [output.tokens for output in found["252"].outputs] == [1, 1]
    for id in ("253", "400"):
        assert [(one.text, one.finish_reason, one.tokens) for one in found[id].outputs] == [
            ("", "length", 0)
        ] * 2
    assert generator.numbers["prompts_too_long"] == 2


async def test_special_tokens_are_left_out_but_markers_stay(tmp_path: Path) -> None:
    """A model that writes nothing but `<user>` and `<R>`, both special, and only one of them a marker."""
    tokenizer = AutoTokenizer.from_pretrained(with_special_marker(tmp_path / "special"))
    ids = tokenizer.convert_tokens_to_ids(["<user>", "<R>"])
    model = tiny_qwen()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(295).index_fill(0, torch.tensor(ids), 50.0))
    sampling, asks = Sampling(k=8, temperature=1.0, top_p=1.0, max_tokens=6), [Ask("a", "copy x", 0)]
    found = await sample(LocalGenerator(model, tokenizer, rows=8, markers=("<R>",)), asks, sampling)
    texts = [output.text for output in found["a"].outputs]
    assert all(text == "<R>" * (len(text) // 3) and len(text) <= 18 for text in texts)
    assert 0 < sum(map(len, texts)) < 8 * 18
    found = await sample(LocalGenerator(model, tokenizer, rows=8), asks, sampling)
    assert {output.text for output in found["a"].outputs} == {""}


async def test_a_batch_too_large_for_the_device_is_halved_until_it_fits(tokenizer: Any) -> None:
    """A device with memory for four rows; the prompts themselves come in twos."""
    model, asks = pocket(), asks_of(4)
    sampling = Sampling(k=8, temperature=1.0, top_p=1.0, max_tokens=72)
    expected = await sample(LocalGenerator(model, tokenizer, rows=16), asks, sampling)
    generator = LocalGenerator(model, tokenizer, rows=16)

    def full(_: Any, args: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[0] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    room = 4
    model.register_forward_pre_hook(full, with_kwargs=True)
    assert await sample(generator, asks, sampling) == expected
    room = 0
    with pytest.raises(EngineError, match="no memory for one output of 72 tokens; lower sample.max_tokens"):
        await sample(generator, asks, sampling)


async def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    with pytest.raises(UsageError, match="no chat template; set `chat_template: FILE`"):
        LocalGenerator(tiny_qwen(), tokenizer, rows=8)
    tiny_qwen().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "given.jinja"
    file.write_text(template, encoding="utf-8")
    generator = LocalGenerator.load(str(tmp_path), rows=8, chat_template=str(file))
    assert len(await sample(generator, asks_of(2), GREEDY)) == 2


async def test_a_template_that_refuses_the_message_is_named(tokenizer: Any) -> None:
    own = AutoTokenizer.from_pretrained(CHECKPOINT)
    own.chat_template = "{{ raise_exception('no users here') }}"
    generator = LocalGenerator(tiny_qwen(), own, rows=8)
    with pytest.raises(UsageError, match="its chat template refused a message: no users here"):
        await sample(generator, asks_of(1), GREEDY)


async def test_nothing_goes_on_in_the_background_when_it_is_cancelled(tokenizer: Any) -> None:
    """A model that never ends, cancelled in its first batch: the thread stops within a step, not at 100,000 tokens."""
    model = tiny_qwen()
    model.config.max_position_embeddings = 200_000
    steps, loop, running = 0, asyncio.get_running_loop(), asyncio.Event()

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            loop.call_soon_threadsafe(running.set)

    generator = LocalGenerator(model, tokenizer, rows=8)
    generator._eos_ids = frozenset()
    model.register_forward_pre_hook(count)
    sampling = Sampling(k=1, temperature=1.0, top_p=1.0, max_tokens=100_000)
    task = asyncio.create_task(sample(generator, asks_of(2), sampling))
    await running.wait()
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.1)
    stopped = steps
    await asyncio.sleep(0.2)
    assert steps == stopped
