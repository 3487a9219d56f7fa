"""What scoring AlpacaEval 2 costs as a whole process, beside the package's own function behind its own import.

    python benchmarks/alpaca_scoring.py --data ../shared/data           # prints the table
    python benchmarks/alpaca_scoring.py --data ../shared/data --gate    # and exits 1 where the gate is missed

805 judgments of one model, checked against its answers and the baseline's. Each is a process of its own, the best of
three; both find the same numbers. The package's own script reads the judgments, and is spared the hub.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GATE_SECONDS = 3.0
ROUNDS = 3
MODEL = "claude-2.1"
PACKAGE = """
import gzip, json, sys
import alpaca_eval.metrics.glm_winrate as glm
glm.hf_hub_download = lambda **_: sys.argv[2]
with gzip.open(sys.argv[1], "rt") as file:
    rows = [json.loads(line) for line in file]
found = glm.get_length_controlled_winrate(rows, save_weights_dir=None)
print(json.dumps([found["win_rate"], found["length_controlled_winrate"]]))
"""


def best(command: list[str]) -> tuple[float, str]:
    """Seconds of the quickest of some runs, and what it printed."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds), done.stdout


def main() -> None:
    """Measure both, print them, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--gate", action="store_true")
    options = parser.parse_args()
    folder = options.data / "alpaca_eval"
    judgments = folder / "annotations" / f"{MODEL}.jsonl.gz"
    with tempfile.TemporaryDirectory() as out:
        ours, _ = best(
            [
                *(
                    sys.executable,
                    "-m",
                    "thinkserve.cli",
                    "score",
                    "--bench",
                    "alpaca-eval",
                    "--compat",
                    "official",
                ),
                *("--data", str(options.data), "--judgments", str(judgments), "--out", out),
                *("--answers", str(folder / "model_outputs" / f"{MODEL}.jsonl.gz")),
                *("--baseline-answers", str(folder / "reference_outputs" / "gpt4_1106_preview.jsonl.gz")),
            ]
        )
        group = json.loads((Path(out) / "scores.json").read_bytes())["models"][MODEL]
    package, printed = best(
        [sys.executable, "-c", PACKAGE, str(judgments), str(folder / "glm" / "df_gamed.csv.gz")]
    )
    win_rate, controlled = json.loads(printed)
    print(f"{'':<28}{'seconds':>9}{'win rate':>14}{'LC win rate':>14}")
    print(
        f"{'thinkserve score':<28}{ours:>9.2f}{group['win_rate']:>14.6f}{group['length_controlled_win_rate']:>14.6f}"
    )
    print(f"{'alpaca_eval alone':<28}{package:>9.2f}{win_rate:>14.6f}{controlled:>14.6f}")
    met = ours <= GATE_SECONDS
    print(f"gate: {GATE_SECONDS:g} s, {'ok' if met else 'missed'}")
    if options.gate and not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
