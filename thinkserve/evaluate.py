"""What `thinkserve eval` and `thinkserve score` do: choose the bench, then hand over to `thinkserve.eval`.

It stands outside of `eval/` because the pocket bench belongs to the training package, which `eval/` does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from thinkserve.errors import UsageError
from thinkserve.eval.bench import Bench, Compat
from thinkserve.eval.config import RunConfig
from thinkserve.eval.data import EvalData

# What the pocket bench asks without --limit; a number here, since scoring other benches must not load its world.
POCKET_INSTRUCTIONS = 200
NAMES = ("alpaca-eval", "arena-hard", "arena-hard-v0.1", "categories", "pocket")


def find_bench(
    name: str,
    data: Path | None,
    *,
    seed: int = 0,
    limit: int | None = None,
    categories: Sequence[str] = (),
    verdicts: Literal["logprobs", "text"] = "logprobs",
) -> Bench:
    """The bench of a name, or of a file of instructions.

    Args:
        name: as on the command line.
        data: a folder with official files; None: they are fetched.
        seed: of what a bench draws.
        limit: how many instructions will be asked, for a bench that makes its own.
        categories: which of them will be asked; empty: all.
        verdicts: of AlpacaEval's judge.

    Raises:
        UsageError: there is no such bench and no such file, or its data is not at hand.
    """
    files = EvalData(data)
    if name == "alpaca-eval":
        from thinkserve.eval.alpaca.bench import AlpacaEvalBench

        return AlpacaEvalBench(files, verdicts=verdicts)
    if name in ("arena-hard", "arena-hard-v0.1"):
        from thinkserve.eval.arena.bench import ArenaHardBench

        return ArenaHardBench("v2.0" if name == "arena-hard" else "v0.1", files)
    if name == "categories":
        from thinkserve.eval.benches.categories import CategoriesBench

        return CategoriesBench(files, seed=seed)
    if name == "pocket":
        from thinkserve.training.pocket.bench import MOST_INSTRUCTIONS, PocketBench
        from thinkserve.training.pocket.world import CATEGORIES

        count = limit or POCKET_INSTRUCTIONS
        if limit is not None and categories and limit <= MOST_INSTRUCTIONS:
            count = min(limit * len(CATEGORIES), MOST_INSTRUCTIONS)  # its categories come in turn
        return PocketBench(count=count, seed=seed)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"--bench {name!r} is no benchmark and no file; choose {', '.join(NAMES)}, or a file of instructions"
        )
    from thinkserve.eval.benches.file import FileBench

    return FileBench(path)


async def evaluate(config: RunConfig, console: Console) -> Path:
    """Run `thinkserve eval`; returns the page of the report.

    Raises:
        ThinkserveError: anything that the user must mend; what was done until then is kept in the run's folder.
    """
    from thinkserve.eval.run import run

    bench = find_bench(
        config.bench,
        config.data,
        seed=config.seed,
        limit=config.limit,
        categories=config.categories,
        verdicts=config.verdicts,
    )
    return await run(config, bench, console)


def score(
    name: str,
    *,
    answers: Sequence[Path],
    baseline_answers: Sequence[Path],
    judgments: Sequence[Path],
    data: Path | None,
    compat: Compat,
    seed: int,
    out: Path,
    console: Console,
) -> None:
    """Run `thinkserve score`.

    Raises:
        UsageError: a file is wrong; nothing was written then.
    """
    from thinkserve.eval.official import Files
    from thinkserve.eval.records import read_records
    from thinkserve.eval.rescore import rescore

    files = Files(answers, baseline_answers, judgments)
    # The pocket bench has as many instructions as are asked for; the first ones are always the same.
    limit = max(POCKET_INSTRUCTIONS, len(read_records(answers[0]))) if name == "pocket" and answers else None
    rescore(
        find_bench(name, data, seed=seed, limit=limit),
        files,
        compat=compat,
        seed=seed,
        out=out,
        console=console,
    )
