"""Sampling, judging and DPO, each beside the bare library in the same run; exits 1 if one has less than 0.9 of its speed.

    python benchmarks/training.py [--vllm-args="--dtype float32"]

The three have scripts of their own, with more to say and to set: `training_sampling.py` (a bare client of the same vLLM,
transformers' `generate`), `training_judging.py` (a bare loop over a reward model) and `training_dpo.py` (TRL's trainer).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vllm-args",
        default="--dtype float32",
        help="for vLLM; bfloat16 is slow on CPUs without units for it",
    )
    options = parser.parse_args()
    scripts = {
        "training_sampling.py": [f"--vllm-args={options.vllm_args}"],
        "training_judging.py": ["--gate"],
        "training_dpo.py": [],
    }
    # Threads that spin while they wait would take the cores from the engine.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    missed = []
    for script, arguments in scripts.items():
        print(f"== {script}", flush=True)
        done = subprocess.run([sys.executable, HERE / script, *arguments], env=environment, check=False)
        if done.returncode != 0:
            missed.append(script)
    print(
        f"missed or failed: {', '.join(missed)}"
        if missed
        else "all have at least 0.9 of the bare library's speed"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
