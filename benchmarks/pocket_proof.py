"""The pocket proof: TPO and the direct baseline over several seeds, and the ablations; writes the tables of docs/pocket.md.

    python benchmarks/pocket_proof.py --out DIR [--seed-model SECOND_SEED] [--only NAME ...]

Every run is `thinkserve train pocket` with one thing changed, in a folder of its own under DIR; a run that is finished is
not run again, so the script can be stopped and started. Runs of one arm go two at a time, each on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkserve.training import records
from thinkserve.training.folder import Decoding, TrainFolder
from thinkserve.training.pocket.habits import style_of
from thinkserve.training.pocket.world import CATEGORIES, solve
from thinkserve.training.records import EvaluationRecord

SAMPLING_SEEDS = (0, 1, 2)
DECODINGS: tuple[Decoding, ...] = ("greedy", "sampled")
TITLES = {"greedy": "greedy", "sampled": "T = 1"}
STYLES = ("useful", "vague", "draft", "other")
TRUE_JUDGE = '{"kind": "function", "function": "thinkserve.training.pocket.judge:score"}'
NOISE = (
    "judge.function=thinkserve.training.pocket.judge:noise",
    f"evaluate.judge={TRUE_JUDGE}",
)


@dataclass(frozen=True)
class Run:
    """One run: the pocket recipe with some keys changed."""

    name: str
    changes: tuple[str, ...]
    title: str = ""

    @property
    def both(self) -> bool:
        """Whether both arms are run, so that it takes two cores."""
        return "mode=thought" not in self.changes


ABLATIONS = (
    Run("noise", (*NOISE, "mode=thought"), "a judge that returns noise"),
    Run("rho-0", ("pairs.rho=0", "mode=thought"), "rho 0 (no length control)"),
    Run("k-2", ("sample.k=2", "mode=thought"), "K = 2"),
    Run("k-4", ("sample.k=4", "mode=thought"), "K = 4"),
    Run("nll-0", ("dpo.nll_weight=0", "mode=thought"), "NLL weight 0"),
    Run("nll-1", ("dpo.nll_weight=1", "mode=thought"), "NLL weight 1"),
)


def main_runs(second: Path | None) -> list[Run]:
    """Each seed model with each sampling seed, both arms."""
    models = {"a": "pocket-seed"} | ({"b": str(second.resolve())} if second else {})
    return [
        Run(f"{name}-{seed}", (f"model={model}", f"seed={seed}"))
        for name, model in models.items()
        for seed in SAMPLING_SEEDS
    ]


def execute(run: Run, out: Path) -> None:
    """Run it, or go on with it."""
    command = [sys.executable, "-m", "thinkserve.cli", "train", "pocket", "--out", str(out / run.name)]
    for change in run.changes:
        command += ["--set", change]
    with open(out / f"{run.name}.log", "a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    print(f"{run.name}: {'done' if code == 0 else f'failed ({code}), see {log.name}'}", flush=True)


def results_of(out: Path, run: Run) -> dict[str, Any]:
    """Its results.json."""
    found: dict[str, Any] = json.loads((out / run.name / "results.json").read_text(encoding="utf-8"))
    return found


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean and range in points of 100."""
    points = [100 * value for value in values]
    mean = f"{statistics.mean(points):{'+' if sign else ''}.1f}"
    if len(points) == 1:
        return mean
    return f"{mean} ({min(points):{'+' if sign else ''}.1f} to {max(points):{'+' if sign else ''}.1f})"


def by_iteration(found: Sequence[dict[str, Any]]) -> list[str]:
    """The table of accuracies by iteration."""
    lines = [
        "| iteration | decoding | thought | direct | difference | clear of 0 |",
        "|---|---|---|---|---|---|",
    ]
    for iteration in range(len(found[0]["iterations"])):
        rows = [results["iterations"][iteration] for results in found]
        for decoding in DECODINGS:
            thought, direct = (
                [row[arm][decoding]["accuracy"] for row in rows] for arm in ("thought", "direct")
            )
            paired = [row["paired"][decoding] for row in rows]
            above = sum(one["ci"][0] > 0 for one in paired)
            below = sum(one["ci"][1] < 0 for one in paired)
            lines.append(
                f"| {iteration} | {TITLES[decoding]} | {spread(thought)} | {spread(direct)} | "
                f"{spread([one['difference'] for one in paired], sign=True)} | "
                f"{above} above, {below} below, of {len(paired)} |"
            )
    return lines


def scores_table(found: Sequence[dict[str, Any]]) -> list[str]:
    """The mean judge score, the parse failures and the lengths by iteration."""
    lines = [
        "| iteration | decoding | judge score, thought | judge score, direct | broken, thought | thought tokens | "
        + "response tokens, thought | response tokens, direct |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for iteration in range(len(found[0]["iterations"])):
        rows = [results["iterations"][iteration] for results in found]
        for decoding in DECODINGS:
            thought, direct = ([row[arm][decoding] for row in rows] for arm in ("thought", "direct"))
            lengths = (
                f"{statistics.mean(one[key] for one in some):.1f}"
                for some, key in (
                    (thought, "mean_thought_tokens"),
                    (thought, "mean_response_tokens"),
                    (direct, "mean_response_tokens"),
                )
            )
            lines.append(
                f"| {iteration} | {TITLES[decoding]} | {spread([one['score'] for one in thought])} | "
                f"{spread([one['score'] for one in direct])} | "
                f"{spread([one['parse_failures'] for one in thought])} | {' | '.join(lengths)} |"
            )
    return lines


def by_category(found: Sequence[dict[str, Any]], decoding: Decoding) -> list[str]:
    """The table of categories: before, and after the last iteration."""
    lines = [
        "| category | thought, iteration 0 | direct, iteration 0 | thought, last | direct, last | difference, last | "
        + "clear of 0 (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for category in CATEGORIES:
        cells = [
            spread(
                [
                    results["iterations"][at][arm][decoding]["categories"][category]["accuracy"]
                    for results in found
                ]
            )
            for at in (0, -1)
            for arm in ("thought", "direct")
        ]
        paired = [results["iterations"][-1]["paired"][decoding]["categories"][category] for results in found]
        above = sum(one["p_holm"] < 0.05 and one["difference"] > 0 for one in paired)
        below = sum(one["p_holm"] < 0.05 and one["difference"] < 0 for one in paired)
        lines.append(
            f"| {category} | {' | '.join(cells)} | {spread([one['difference'] for one in paired], sign=True)} | "
            f"{above} above, {below} below, of {len(paired)} |"
        )
    return lines


def styles(out: Path, runs: Iterable[Run]) -> list[str]:
    """The table of thought styles by iteration, sampled."""
    lines = [f"| iteration | {' | '.join(STYLES)} |", f"|{'---|' * (1 + len(STYLES))}"]
    shares: dict[int, list[Counter[str]]] = {}
    for run in runs:
        folder = TrainFolder(out / run.name, "both")
        for iteration in range(len(results_of(out, run)["iterations"])):
            instructions = {
                one["id"]: one["text"]
                for one in map(json.loads, folder.prompts_of("evaluation").read_text("utf-8").splitlines())
            }
            found = records.read(
                folder.iteration("thought", iteration).evaluation("sampled"), EvaluationRecord
            )
            counted = Counter[str]()
            for record in found:
                task = solve(instructions[record.id])
                assert task is not None, f"{record.id} is no instruction of the pocket world"
                counted[style_of(task, record.thought)] += 1
            shares.setdefault(iteration, []).append(counted)
    for iteration, some in shares.items():
        cells = [spread([one[style] / one.total() for one in some]) for style in STYLES]
        lines.append(f"| {iteration} | {' | '.join(cells)} |")
    return lines


def ablations(out: Path, base: Run, runs: Sequence[Run]) -> list[str]:
    """The table of ablations: thought mode after the last iteration."""
    lines = [
        "| run | greedy | T = 1 | change at T = 1 from iteration 0 | broken, T = 1 | response tokens, T = 1 |",
        "|---|---|---|---|---|---|",
    ]
    for run in (base, *runs):
        found = results_of(out, run)["iterations"]
        last = found[-1]["thought"]
        change = last["sampled"]["accuracy"] - found[0]["thought"]["sampled"]["accuracy"]
        lines.append(
            f"| {run.title or 'as the recipe has it'} | {spread([last['greedy']['accuracy']])} | "
            f"{spread([last['sampled']['accuracy']])} | {spread([change], sign=True)} | "
            f"{spread([last['sampled']['parse_failures']])} | {last['sampled']['mean_response_tokens']:.2f} |"
        )
    return lines


def report(out: Path, runs: Sequence[Run], ablation_runs: Sequence[Run]) -> str:
    """All tables of what is finished."""
    done = [run for run in runs if (out / run.name / "results.json").exists()]
    parts = []
    for letter in sorted({run.name[0] for run in done}):
        some = [run for run in done if run.name[0] == letter]
        found = [results_of(out, run) for run in some]
        parts += [
            f"### Seed model {letter.upper()}, {len(some)} sampling seeds",
            "",
            *by_iteration(found),
            "",
        ]
        parts += [*scores_table(found), "", "#### By category, T = 1", "", *by_category(found, "sampled"), ""]
        parts += ["#### By category, greedy", "", *by_category(found, "greedy"), ""]
        parts += ["#### Styles of thought, T = 1", "", *styles(out, some), ""]
    finished = [run for run in ablation_runs if (out / run.name / "results.json").exists()]
    if finished:
        parts += ["### Ablations", "", *ablations(out, runs[0], finished)]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seed-model", type=Path, help="a second seed: thinkserve train pocket-seed --seed 2 --out DIR"
    )
    parser.add_argument("--only", nargs="*", help="names of runs, such as a-0 or noise")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = main_runs(options.seed_model)
    wanted = [run for run in (*runs, *ABLATIONS) if not options.only or run.name in options.only]
    for run in wanted:
        if run.both:
            execute(run, options.out)
    with ThreadPoolExecutor(2) as two:
        list(two.map(lambda run: execute(run, options.out), (run for run in wanted if not run.both)))
    tables = report(options.out, runs, ABLATIONS)
    (options.out / "tables.md").write_text(tables, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
