"""Continuous batching against `model.generate` alone, on small random models of several families."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from thinkserve.engines.transformers_server.batch import BatchLimits, ContinuousBatch
from thinkserve.engines.transformers_server.decoder import Decoder
from thinkserve.engines.transformers_server.generation import Delta, Generation
from thinkserve.engines.transformers_server.prompt import TextTokenizer
from thinkserve.engines.transformers_server.request import ChatRequest
from thinkserve.engines.transformers_server.sequence import Sequence
from thinkserve.errors import EngineError

VOCAB = 60
CONTEXT = 256
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def qwen3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES))


def mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=16))


def gemma3() -> Any:
    """Layers with and without a sliding window."""
    kinds = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3TextConfig(**SIZES, sliding_window=16, layer_types=kinds)
    return transformers.Gemma3ForCausalLM(config)


FAMILIES = {"llama": llama, "qwen3": qwen3, "mistral": mistral, "gemma3": gemma3}


def make(build: Callable[[], Any]) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(build().eval())
    decoder.self_check()
    return decoder


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return make(llama)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    fast = Tokenizer(models.WordLevel({chr(65 + index): index for index in range(VOCAB)}, unk_token="A"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    return TextTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=fast))


class Run:
    """A batch driven by hand: sequences are added, steps are made, deltas are gathered."""

    def __init__(self, decoder: Decoder, tokenizer: TextTokenizer, **limits: int) -> None:
        self.batch = ContinuousBatch(
            decoder, BatchLimits(**{"rows": 8, "tokens": 4096, "prefill_tokens": 64, **limits})
        )
        self.replies: dict[tuple[Generation, int], Delta] = {}
        self.most_rows = 0
        self._tokenizer = tokenizer

    def add(self, prompt_ids: list[int], tokens: int, **fields: Any) -> Generation:
        body = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, **fields}
        request = ChatRequest.from_body(body, {})
        generation = Generation(request, prompt_ids, tokens)
        self.batch.waiting.extend(Sequence(generation, index, self._tokenizer) for index in range(request.n))
        return generation

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            events, failures = self.batch.step()
            assert not failures
            self.most_rows = max(self.most_rows, self.batch.running)
            for generation, index, delta in events:
                self.replies.setdefault((generation, index), Delta()).merge(delta)

    def finish(self) -> None:
        while self.batch.busy:
            self.step()

    def tokens(self, generation: Generation, index: int = 0) -> list[int]:
        return self.replies[generation, index].token_ids


def alone(decoder: Decoder, prompt_ids: list[int], tokens: int) -> list[int]:
    """What Hugging Face's own generate makes of the prompt, greedily."""
    with torch.inference_mode():
        output = decoder.model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
        )
    ids: list[int] = output[0, len(prompt_ids) :].tolist()
    return ids


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 31 + index * index * 7 + index) % VOCAB for index in range(length)]


@pytest.mark.parametrize("family", FAMILIES)
async def test_busy_batch_gives_the_tokens_of_generate_alone(family: str, tokenizer: TextTokenizer) -> None:
    decoder = make(FAMILIES[family])
    run = Run(decoder, tokenizer)
    wanted = [
        (prompt(1, 5), 30),
        (prompt(2, 40), 12),
        (prompt(3, 9), 50),
        (prompt(4, 150), 25),
        (prompt(5, 2), 3),
    ]
    generations = []
    for (
        ids,
        tokens,
    ) in wanted:  # each joins while the ones before it are at work, and they end at different steps
        generations.append(run.add(ids, tokens))
        run.step(4)
    run.finish()
    assert run.most_rows >= 3
    for generation, (ids, tokens) in zip(generations, wanted, strict=True):
        assert run.tokens(generation) == alone(decoder, ids, tokens)


async def test_long_prompt_is_read_in_pieces_while_others_go_on(
    decoder: Decoder, tokenizer: TextTokenizer
) -> None:
    run = Run(decoder, tokenizer, prefill_tokens=16)
    short = run.add(prompt(1, 4), 40)
    run.step(2)
    long = run.add(prompt(2, 100), 5)
    before = len(run.tokens(short))
    run.step(6)
    assert (long, 0) not in run.replies
    assert len(run.tokens(short)) == before + 6
    run.finish()
    assert run.tokens(long) == alone(decoder, prompt(2, 100), 5)


async def test_choices_share_the_prefill_and_differ_in_their_draws(
    decoder: Decoder, tokenizer: TextTokenizer
) -> None:
    run = Run(decoder, tokenizer)
    sampled = run.add(prompt(3, 10), 20, n=4, temperature=2.0, seed=5)
    greedy = run.add(prompt(3, 10), 20, n=2)
    run.finish()
    outputs = {tuple(run.tokens(sampled, index)) for index in range(4)}
    assert len(outputs) == 4
    assert run.tokens(greedy, 0) == run.tokens(greedy, 1) == alone(decoder, prompt(3, 10), 20)


async def test_seeded_choice_is_the_same_in_any_batch(decoder: Decoder, tokenizer: TextTokenizer) -> None:
    def seeded(neighbours: int) -> list[int]:
        run = Run(decoder, tokenizer)
        for index in range(neighbours):
            run.add(prompt(index, 3 + 5 * index), 60, temperature=1.5)
        run.step(neighbours)
        generation = run.add(prompt(9, 8), 30, temperature=1.0, seed=11)
        run.finish()
        return run.tokens(generation)

    assert seeded(0) == seeded(3) == seeded(6)


async def test_no_more_rows_run_than_allowed_and_none_overtakes(
    decoder: Decoder, tokenizer: TextTokenizer
) -> None:
    run = Run(decoder, tokenizer, rows=2)
    generations = [run.add(prompt(index, 4), 6) for index in range(5)]
    run.finish()
    assert run.most_rows == 2
    assert [generation for generation, _ in run.replies] == generations


async def test_more_choices_than_rows_still_all_come(decoder: Decoder, tokenizer: TextTokenizer) -> None:
    run = Run(decoder, tokenizer, rows=3)
    generation = run.add(prompt(1, 4), 6, n=8)
    run.finish()
    assert run.most_rows == 3
    expected = alone(decoder, prompt(1, 4), 6)
    assert [run.tokens(generation, index) for index in range(8)] == [expected] * 8


async def test_sequence_that_no_longer_fits_comes_back_unchanged(
    decoder: Decoder, tokenizer: TextTokenizer
) -> None:
    """Three rows of 20 (and room to grow by 64) fit into 256 tokens, three of 86 do not: the newest must wait."""
    run = Run(decoder, tokenizer, tokens=256)
    generations = [run.add(prompt(index, 20), 80) for index in range(3)]
    run.step(3)
    assert run.batch.running == 3
    run.step(70)
    assert run.batch.running == 2
    run.finish()
    for index, generation in enumerate(generations):
        assert run.tokens(generation) == alone(decoder, prompt(index, 20), 80)


async def test_cancelled_generation_leaves_at_the_next_step(
    decoder: Decoder, tokenizer: TextTokenizer
) -> None:
    run = Run(decoder, tokenizer, rows=2)
    first, second, third = (run.add(prompt(index, 4), 200) for index in range(3))
    run.step(3)
    first.cancelled = third.cancelled = True
    run.step()
    assert run.batch.running == 1
    assert not run.batch.waiting
    second.cancelled = True
    run.step()
    assert not run.batch.busy


async def test_failed_prefill_fails_only_its_own_request(
    decoder: Decoder, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(decoder, tokenizer)
    running = run.add(prompt(1, 4), 20)
    run.step(2)
    real = Decoder.prefill

    def prefill(self: Decoder, cache: Any, token_ids: Any, start: int = 0) -> Any:
        if len(token_ids[0]) == 33:
            raise torch.OutOfMemoryError("no memory for this prompt")
        return real(self, cache, token_ids, start)

    monkeypatch.setattr(Decoder, "prefill", prefill)
    bad = run.add(prompt(2, 33), 20)
    _, failures = run.batch.step()
    assert [generation for generation, _ in failures] == [bad]
    run.finish()
    assert run.replies[running, 0].finish_reason == "length"


async def test_merged_deltas_reach_a_slow_reader_in_one(decoder: Decoder, tokenizer: TextTokenizer) -> None:
    run = Run(decoder, tokenizer)
    generation = run.add(prompt(1, 4), 10)
    while run.batch.busy:
        for each, index, delta in run.batch.step()[0]:
            each.push(index, delta)
    steps = [deltas async for deltas in generation.deltas()]
    assert len(steps) == 1
    assert steps[0][0].token_ids == alone(decoder, prompt(1, 4), 10)
    assert await asyncio.wait_for(anext(generation.deltas(), None), 1) is None


def test_recurrent_model_is_refused() -> None:
    config = transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(EngineError, match="vllm"):
        Decoder(transformers.MambaForCausalLM(config).eval()).self_check()


def test_context_longer_than_the_model_is_refused() -> None:
    with pytest.raises(EngineError, match="256 positions"):
        Decoder(llama(), max_model_len=257)
