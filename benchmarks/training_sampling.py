"""What sampling for training costs: tokens per second beside those of the bare libraries, in the same run.

    python benchmarks/training_sampling.py [CHECKPOINT] [--engines vllm,transformers] [--instructions 400] [--k 8]
                                           [--rounds 3] [--concurrency 512] [--vllm-args="--dtype float32"]

- **vllm**: one engine, started as the stage starts it. Bare is the `openai` package's `AsyncOpenAI` over the engine's Unix
  socket: `n` outputs a request, no seeds, as many requests at once. Ours asks for seeds and token ids too, and counts the
  tokens of each output.
- **transformers**: in this process, on one thread unless `--threads` says otherwise. Bare is `model.generate` with
  `num_return_sequences`, on batches of as many outputs, in the order of the instructions.

Both take turns, and the best round of each counts: other work only ever makes one slower. For the process's own work the
ratio of CPU times is given too, which neighbours disturb less. Exits 1 if one engine gives us less than 0.9 of the bare rate.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import torch

from thinkserve.engines.vllm import VllmEngine
from thinkserve.eval.judging.client import ChatClient
from thinkserve.pocket import CHECKPOINT
from thinkserve.training.pocket.tokenizer import FORMAT
from thinkserve.training.pocket.world import draw_distinct
from thinkserve.training.sampling.generator import Ask, Generator, Sampling
from thinkserve.training.sampling.local import LocalGenerator
from thinkserve.training.sampling.server import REQUEST_SECONDS, ServedModel, ServerGenerator

MODEL = "benchmark"
FLOOR = 0.9
Measure = Callable[[], Awaitable[int]]
"""Samples everything once; the number of output tokens."""


async def compare(name: str, bare: Measure, ours: Measure, rounds: int) -> float:
    """Let both take turns, and print the best rate of each and their ratio, which is returned."""
    await bare()  # warm-up
    best = {"bare": 0.0, "ours": 0.0}
    best_cpu = dict(best)
    for _ in range(rounds):
        for who, measure in (("bare", bare), ("ours", ours)):
            began, cpu = time.perf_counter(), time.process_time()
            tokens = await measure()
            rate = tokens / (time.perf_counter() - began)
            best[who] = max(best[who], rate)
            best_cpu[who] = max(best_cpu[who], tokens / (time.process_time() - cpu))
            print(f"{name}: {who} {rate:8,.0f} tokens/s ({tokens:,} tokens)", flush=True)
    print(
        f"{name}: ours / bare = {best['ours'] / best['bare']:.2f} (best of {rounds}: {best['ours']:,.0f} and "
        f"{best['bare']:,.0f} tokens/s); by this process's CPU time {best_cpu['ours'] / best_cpu['bare']:.2f}",
        flush=True,
    )
    return best["ours"] / best["bare"]


async def count(generator: Generator, asks: list[Ask], sampling: Sampling) -> int:
    """Sample all asks; the number of output tokens."""
    records = [record async for record in generator.generate(asks, sampling)]
    assert len(records) == len(asks)
    return sum(output.tokens for record in records for output in record.outputs)


async def vllm(args: argparse.Namespace, asks: list[Ask], sampling: Sampling) -> float:
    """Ours against a bare client of the same engine."""
    engine = VllmEngine(args.checkpoint, model_name=MODEL, extra_args=shlex.split(args.vllm_args))
    await engine.start()
    socket = engine.endpoint.uds
    url = f"{engine.endpoint.base_url}/v1"
    http: Any = openai.DefaultAioHttpClient()
    http._transport.uds = str(socket)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http, timeout=None, max_retries=0)
    limit = asyncio.Semaphore(args.concurrency)

    async def ask(one: Ask) -> int:
        async with limit:
            found = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": one.message}],
                n=sampling.k,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
            )
        assert found.usage is not None
        return found.usage.completion_tokens

    async def bare() -> int:
        return sum(await asyncio.gather(*map(ask, asks)))

    try:
        async with (
            client,
            ChatClient(url, MODEL, concurrency=args.concurrency, timeout=REQUEST_SECONDS, uds=socket) as chat,
        ):
            generator = ServerGenerator(chat, ServedModel("vllm", extensions=True))
            return await compare("vllm", bare, lambda: count(generator, asks, sampling), args.rounds)
    finally:
        await engine.stop()


async def transformers(args: argparse.Namespace, asks: list[Ask], sampling: Sampling) -> float:
    """Ours against `generate` of the same model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gpu = torch.cuda.is_available()
    loaded = AutoModelForCausalLM.from_pretrained(args.checkpoint, dtype="auto" if gpu else torch.float32)
    model, tokenizer = (
        loaded.to("cuda" if gpu else "cpu").eval(),
        AutoTokenizer.from_pretrained(args.checkpoint),
    )
    tokenizer.padding_side = "left"
    generator = LocalGenerator(model, tokenizer, rows=args.concurrency)
    size = max(1, args.concurrency // sampling.k)

    async def bare() -> int:
        return sum(generate(asks[at : at + size]) for at in range(0, len(asks), size))

    def generate(batch: list[Ask]) -> int:
        prompts = tokenizer.apply_chat_template(
            [[{"role": "user", "content": ask.message}] for ask in batch],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        with torch.inference_mode():
            whole = model.generate(
                **prompts,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                max_new_tokens=sampling.max_tokens,
                num_return_sequences=sampling.k,
            )
        new = whole[:, prompts["input_ids"].shape[1] :]
        tokenizer.batch_decode(new, skip_special_tokens=True)
        return int((new != tokenizer.pad_token_id).sum())

    return await compare("transformers", bare, lambda: count(generator, asks, sampling), args.rounds)


async def main(argv: list[str] | None = None) -> int:
    """Measure the engines in turn."""
    parser = argparse.ArgumentParser(description="Tokens per second of sampling for training.")
    parser.add_argument("checkpoint", nargs="?", default=str(CHECKPOINT), type=lambda text: str(Path(text)))
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["vllm", "transformers"])
    parser.add_argument("--instructions", type=int, default=400)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=72)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=512, help="requests, or rows of a batch")
    parser.add_argument("--threads", type=int, default=1, help="of torch in this process")
    parser.add_argument("--vllm-args", default="", help="in one string, as a shell would have them")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    texts = [task.instruction for task in draw_distinct(1, args.instructions)]
    asks = [Ask(str(place), FORMAT.thought_prompt(text), place * 100) for place, text in enumerate(texts)]
    sampling = Sampling(args.k, temperature=1.0, top_p=1.0, max_tokens=args.max_tokens)
    engines = {"vllm": vllm, "transformers": transformers}
    ratios = [await engines[name](args, asks, sampling) for name in args.engines]
    return 0 if min(ratios) >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
