"""What scoring Arena-Hard v2.0 with style control costs: ours beside the original's method, with both their numbers.

    python benchmarks/arena_scoring.py --data ../shared/data           # prints the table
    python benchmarks/arena_scoring.py --data ../shared/data --gate    # and exits 1 where a gate is missed

Two models, one judge, hard prompts, 100 bootstraps: from battles to scores and intervals; reading the files is timed
apart. The original's method (lmarena/arena-hard-auto@196f6b8 show_result.py) is written anew here: one row for each battle, one
fit by `torch.optim.LBFGS` for each bootstrap. Needs torch, and the data folder of the project's evaluation.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinkserve.eval.arena.files import read_matches, read_questions
from thinkserve.eval.arena.scoring import score_arena
from thinkserve.eval.bench import Compat

MODELS = ("sky-t1-32b", "llama3.1-8b-instruct")
JUDGE, BASELINE, CATEGORY = "synthetic-judge-a", "o3-mini-2025-01-31", "hard_prompt"
ROUNDS, STEPS, RATE = 100, 50, 0.1
GATE_SPEED = 20.0
GATE_POINTS = 0.25
OUTCOMES = {"A>>B": [1.0] * 3, "A>B": [1.0], "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
OUTCOMES |= {"B<<A": OUTCOMES["A>>B"], "B<A": [1.0], "B=A": [0.5], "A<B": [0.0], "A<<B": OUTCOMES["B>>A"]}


@dataclass(frozen=True)
class Result:
    """What was found, and in how many seconds."""

    reading: float
    scoring: float
    scores: dict[str, float]
    cis: dict[str, tuple[float, float]]


def ours(folder: Path, compat: Compat) -> Result:
    begin = time.perf_counter()
    instructions = read_questions("v2.0", folder / "question.jsonl.gz")
    everything = read_matches(
        "v2.0",
        instructions,
        [folder / "model_answer" / f"{name}.jsonl.gz" for name in MODELS],
        [folder / "model_answer" / f"{BASELINE}.jsonl.gz"],
        [folder / "model_judgment" / JUDGE / f"{name}.jsonl.gz" for name in MODELS],
        compat=compat,
    )
    matches = {
        name: [match for match in found if match.instruction.categories["category"] == CATEGORY]
        for name, found in everything.matches.items()
    }
    read = time.perf_counter()
    groups = score_arena("v2.0", matches, compat=compat, seed=0, bootstraps=ROUNDS).models
    return Result(
        read - begin,
        time.perf_counter() - read,
        {name: group.style_controlled_score or 0.0 for name, group in groups.items()},
        {name: group.style_controlled_ci or (0.0, 0.0) for name, group in groups.items()},
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def original(folder: Path) -> Result:
    """The original's method; the point is its fit to all battles, the interval from 5 to 95 % of the bootstraps."""
    import torch

    begin = time.perf_counter()
    styles = {
        name: {
            row["uid"]: _style(row["metadata"]) for row in rows(folder / "model_answer" / f"{name}.jsonl.gz")
        }
        for name in (*MODELS, BASELINE)
    }
    fighters, model, baseline, outcomes = sorted((*MODELS, BASELINE)), [], [], []
    for name in MODELS:
        for row in rows(folder / "model_judgment" / JUDGE / f"{name}.jsonl.gz"):
            games = row["games"]
            if row["category"] == CATEGORY and all(game and game["score"] for game in games):
                found = OUTCOMES[games[1]["score"]] + [1 - won for won in OUTCOMES[games[0]["score"]]]
                for won in found:
                    model.append((fighters.index(name), *styles[name][row["uid"]]))
                    baseline.append(styles[BASELINE][row["uid"]])
                    outcomes.append(won)
    read = time.perf_counter()
    theirs, others = torch.tensor(model), torch.tensor(baseline)
    who, mine = theirs[:, 0].long(), theirs[:, 1:]
    length = (mine[:, :1] - others[:, :1]) / (mine[:, :1] + others[:, :1])
    dense, sparse = (counts[:, 1:] / (counts[:, :1] + 1) for counts in (mine, others))
    features = torch.cat([length, (dense - sparse) / (dense + sparse + 1)], dim=1)
    features = (features - features.mean(0)) / features.std(0)
    one_hot = torch.nn.functional.one_hot(who, len(fighters)).float()
    one_hot[:, fighters.index(BASELINE)] = -1.0
    design, won = torch.cat([one_hot, features], dim=1), torch.tensor(outcomes)

    def fit(design: torch.Tensor, won: torch.Tensor) -> torch.Tensor:
        weights = torch.full((design.shape[1],), 0.5, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights], lr=RATE, max_iter=STEPS, tolerance_grad=1e-9, tolerance_change=1e-9
        )

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            total = torch.nn.functional.binary_cross_entropy_with_logits(
                design @ weights, won, reduction="sum"
            )
            total.backward()
            return total

        optimizer.step(loss)
        strengths = weights.detach()[: len(fighters)]
        return 100 * torch.sigmoid(strengths - strengths[fighters.index(BASELINE)])

    point = fit(design, won)
    rng = np.random.default_rng(0)
    draws = [torch.from_numpy(rng.integers(len(won), size=len(won))) for _ in range(ROUNDS)]
    rounds = torch.stack([fit(design[drawn], won[drawn]) for drawn in draws])
    low, high = torch.quantile(rounds, 0.05, dim=0), torch.quantile(rounds, 0.95, dim=0)
    place = {name: fighters.index(name) for name in MODELS}
    return Result(
        read - begin,
        time.perf_counter() - read,
        {name: float(point[at]) for name, at in place.items()},
        {name: (float(low[at]), float(high[at])) for name, at in place.items()},
    )


def _style(metadata: dict[str, Any]) -> tuple[float, ...]:
    return tuple(
        float(metadata["token_len"] if name == "token_len" else sum(metadata[name].values()))
        for name in ("token_len", "header_count", "list_count", "bold_count")
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder with arena_hard_v2.0 in it")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a gate is missed")
    args = parser.parse_args()
    folder = args.data / "arena_hard_v2.0"
    ours(folder, "official")  # imports and caches
    results = {
        "original": original(folder),
        "official": min((ours(folder, "official") for _ in range(3)), key=lambda found: found.scoring),
        "aligned": min((ours(folder, "aligned") for _ in range(3)), key=lambda found: found.scoring),
    }
    print(f"{'':<10}{'reading':>9}{'scoring':>9}{'faster':>9}  " + "".join(f"{name:>34}" for name in MODELS))
    theirs, missed = results["original"], []
    for name, found in results.items():
        cells = [f"{found.scores[m]:.3f} ({found.cis[m][0]:.1f} - {found.cis[m][1]:.1f})" for m in MODELS]
        speed = theirs.scoring / found.scoring
        print(
            f"{name:<10}{found.reading:>8.2f}s{found.scoring:>8.2f}s{speed:>8.0f}x  "
            + "".join(f"{cell:>34}" for cell in cells)
        )
        apart = max(abs(found.scores[m] - theirs.scores[m]) for m in MODELS)
        if name != "original" and speed < GATE_SPEED:
            missed.append(f"{name}: {speed:.0f}x is less than {GATE_SPEED:.0f}x")
        if apart > GATE_POINTS:
            missed.append(f"{name}: {apart:.3f} points from the original")
    print(
        "\n".join(missed) if missed else f"all within {GATE_POINTS} points, at least {GATE_SPEED:.0f}x faster"
    )
    return 1 if missed and args.gate else 0


if __name__ == "__main__":
    sys.exit(main())
