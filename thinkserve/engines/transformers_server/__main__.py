"""Serve a checkpoint with Hugging Face transformers on a Unix socket.

python -m thinkserve.engines.transformers_server CHECKPOINT --uds PATH --served-model-name NAME
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from thinkserve.errors import ThinkserveError

logger = logging.getLogger(__name__)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m thinkserve.engines.transformers_server",
        description="Serve a checkpoint with Hugging Face transformers on a Unix socket.",
    )
    add = parser.add_argument
    add("checkpoint", help="a folder, or a model id of the Hugging Face Hub")
    add("--uds", type=Path, required=True, help="the Unix socket to listen on")
    add("--served-model-name", required=True, help="what requests call the model")
    add("--max-concurrent", type=_positive, default=32, help="sequences decoded at once (default 32)")
    add(
        "--max-waiting",
        type=_positive,
        default=512,
        help="sequences that may wait; more get a 503 (default 512)",
    )
    add(
        "--max-model-len",
        type=_positive,
        help="tokens of prompt and output (default: all that the model has)",
    )
    add(
        "--max-kv-tokens",
        type=_positive,
        help="tokens the key-value cache may hold (default: by free memory)",
    )
    add(
        "--prefill-tokens",
        type=_positive,
        help="prompt tokens between two decode steps (default 512, GPU 4096)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: GPU bfloat16, CPU float32",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--device-map", help="spread the model over devices, for example `auto` (needs accelerate)")
    add("--shutdown-grace", type=float, default=25.0, help="seconds that running requests get after SIGTERM")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM (0), or until the engine cannot start or fails (1)."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # The checkpoint is local or cached; a hub id is resolved once, before anything runs.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    from thinkserve.engines.transformers_server.serve import serve

    try:
        with runner:
            return runner.run(serve(args))
    except (ThinkserveError, OSError, ValueError) as exc:
        # from_pretrained raises OSError and ValueError with messages made for users.
        print(f"error: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
