"""The life of the process: load the model, listen, drain on SIGTERM, end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

import torch
from aiohttp import web

from thinkserve.engines.transformers_server.app import ChatServer
from thinkserve.engines.transformers_server.batch import BatchLimits, ContinuousBatch
from thinkserve.engines.transformers_server.decoder import Decoder, DecoderConfig
from thinkserve.engines.transformers_server.prompt import TextTokenizer
from thinkserve.engines.transformers_server.worker import DecodeThread

logger = logging.getLogger(__name__)

CPU_KV_SHARE = 0.25  # of the memory that is free after loading: other processes share the machine
GPU_KV_SHARE = 0.7  # the rest is for activations, prompts in prefill and the copy while the cache grows
# Parameters below which one thread is faster than several: waking the others costs more than they do. (A step of 16
# rows through 2 million parameters: 8 ms with one thread, 14 ms with two.) The event loop gets the other core.
SMALL_MODEL = 20_000_000
FAREWELL = 2.0  # seconds for handlers to write their last bytes


async def serve(args: argparse.Namespace) -> int:
    """Run the server; the process's exit code."""
    decoder = load(args)
    generation = decoder.generation_defaults
    tokenizer = TextTokenizer.load(args.checkpoint, generation.get("eos_token_id"))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    worker = DecodeThread(
        ContinuousBatch(decoder, limits(decoder, args)),
        tokenizer,
        loop,
        max_waiting=args.max_waiting,
        on_death=stop.set,
    )
    server = ChatServer(
        args.served_model_name, tokenizer, worker, max_model_len=decoder.max_model_len, defaults=generation
    )
    worker.start()
    runner = web.AppRunner(
        server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=FAREWELL
    )
    await runner.setup()
    try:
        await web.UnixSite(runner, str(args.uds)).start()
        logger.info("serving %s on %s", args.served_model_name, args.uds)
        await stop.wait()
        if worker.alive:
            await _drain(server, args.shutdown_grace)
    finally:
        failed = not worker.alive
        await runner.cleanup()
        worker.close()
    return 1 if failed else 0


def load(args: argparse.Namespace) -> Decoder:
    """The model, with torch's threads set to `OMP_NUM_THREADS`, or to what suits a model of its size."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    given = int(wanted) if wanted.isdigit() else 0
    torch.set_num_threads(given or cores)
    decoder = Decoder.load(
        DecoderConfig(
            checkpoint=args.checkpoint,
            dtype=args.dtype,
            device=args.device,
            device_map=args.device_map,
            max_model_len=args.max_model_len,
        )
    )
    if not given and decoder.parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    return decoder


def limits(decoder: Decoder, args: argparse.Namespace) -> BatchLimits:
    """What may run at once, within the memory that is free now."""
    gpu = decoder.device.type == "cuda"
    tokens = args.max_kv_tokens
    if tokens is None:
        free = (
            torch.cuda.mem_get_info(decoder.device)[0] * GPU_KV_SHARE
            if gpu
            else _free_memory() * CPU_KV_SHARE
        )
        tokens = int(free) // decoder.kv_bytes_per_token()
    most = args.max_concurrent * decoder.max_model_len
    return BatchLimits(
        rows=args.max_concurrent,
        tokens=max(min(tokens, most), decoder.max_model_len),
        prefill_tokens=args.prefill_tokens or (4096 if gpu else 512),
    )


def _free_memory() -> int:
    """Bytes that can be had without swapping, or without the container being killed; 4 GiB where nothing is known."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # "max" where the container has no limit
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(found, default=4 * 2**30))


async def _drain(server: ChatServer, grace: float) -> None:
    server.draining = True
    try:
        await asyncio.wait_for(server.drained(), grace)
    except TimeoutError:
        logger.warning("requests still run after %g s; they are cut off", grace)
