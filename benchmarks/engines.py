"""Tokens per second of the transformers engine and of vLLM, on the same checkpoint, one after the other.

    python benchmarks/engines.py [CHECKPOINT] [--engines transformers,vllm] [--streams 1,16] [--tokens 128] [--rounds 3]

Each engine is started as thinkserve starts it, warmed up, loaded with concurrent streaming chat requests of a fixed
number of tokens (`ignore_eos`), and stopped before the next one starts. The client runs in this process and shares
the cores with the engine, in the same way for both. The best round counts: other work only ever makes one slower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp

from thinkserve.engines.engine import Endpoint
from thinkserve.engines.transformers import TransformersEngine
from thinkserve.engines.vllm import VllmEngine

POCKET = Path(__file__).parents[1] / "thinkserve" / "pocket" / "checkpoint"
ENGINES: dict[str, type[TransformersEngine | VllmEngine]] = {
    "transformers": TransformersEngine,
    "vllm": VllmEngine,
}
MODEL = "benchmark"


async def stream(session: aiohttp.ClientSession, url: str, question: str, tokens: int) -> int:
    """One streaming request; the completion tokens that its usage reports."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 1.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    count = 0
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise SystemExit(f"the engine answered {response.status}: {await response.text()}")
        async for line in response.content:
            # Only the last chunk has no choices: decoding every chunk would measure this client.
            if b'"choices":[]' in line:
                count = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
    return count


async def measure(endpoint: Endpoint, streams: int, tokens: int) -> float:
    """Tokens per second of `streams` concurrent requests, from the first byte sent to the last byte read."""
    assert endpoint.uds is not None
    connector = aiohttp.UnixConnector(str(endpoint.uds), limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        began = time.perf_counter()
        questions = [f"copy {index}" for index in range(streams)]
        counts = await asyncio.gather(
            *(stream(session, endpoint.base_url, each, tokens) for each in questions)
        )
        return sum(counts) / (time.perf_counter() - began)


async def benchmark(name: str, args: argparse.Namespace) -> dict[int, float]:
    """The best tokens per second of one engine, by number of streams."""
    extra = ["--max-model-len", str(args.max_model_len)] if args.max_model_len else []
    engine = ENGINES[name](args.checkpoint, model_name=MODEL, extra_args=extra)
    best: dict[int, float] = {}
    began = time.perf_counter()
    await engine.start()
    print(f"{name}: ready after {time.perf_counter() - began:.1f} s", flush=True)
    try:
        for streams in args.streams:
            await measure(engine.endpoint, streams, args.tokens)  # warm-up
            rounds = [await measure(engine.endpoint, streams, args.tokens) for _ in range(args.rounds)]
            best[streams] = max(rounds)
            shown = ", ".join(f"{rate:.0f}" for rate in rounds)
            print(f"{name}: {streams:3d} streams {max(rounds):7.0f} tokens/s  (rounds: {shown})", flush=True)
    finally:
        await engine.stop()
    return best


async def main(argv: list[str] | None = None) -> int:
    """Measure the engines in turn and print the ratio of the first to the last."""
    parser = argparse.ArgumentParser(description="Tokens per second of thinkserve's engines.")
    parser.add_argument("checkpoint", nargs="?", default=str(POCKET))
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["transformers", "vllm"])
    parser.add_argument(
        "--streams", type=lambda text: [int(each) for each in text.split(",")], default=[1, 16]
    )
    parser.add_argument("--tokens", type=int, default=128, help="of each reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-model-len", type=int, help="passed to both engines")
    args = parser.parse_args(argv)
    rates = {name: await benchmark(name, args) for name in args.engines}
    first, last = args.engines[0], args.engines[-1]
    if first != last:
        for streams in args.streams:
            ratio = rates[first][streams] / rates[last][streams]
            print(f"{streams:3d} streams: {first} / {last} = {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
