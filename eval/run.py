"""One run of `thinkserve eval`: models answer, judges judge, scores are made, the report is written.

Every stage takes up what is in the run's folder already, so the same command again goes on where the last one ended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from thinkserve.errors import UsageError
from thinkserve.eval.baselines import one_baseline, own_baselines
from thinkserve.eval.bench import Bench
from thinkserve.eval.benches.categories import CategoriesBench
from thinkserve.eval.config import RunConfig, claim
from thinkserve.eval.entries import find_entries, find_judges
from thinkserve.eval.folder import RunFolder
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.official import read_answers, write_official
from thinkserve.eval.records import write_records
from thinkserve.eval.report.leaderboard import headline
from thinkserve.eval.report.writing import write_report
from thinkserve.eval.results import assemble
from thinkserve.eval.scores import write_scores
from thinkserve.eval.selection import select
from thinkserve.eval.stages import Answering, Judging, write_answers
from thinkserve.eval.topics import with_topics

LISTED = 25


async def run(config: RunConfig, bench: Bench, console: Console) -> Path:
    """Do all that is still to be done; returns the page of the report.

    Raises:
        ThinkserveError: anything that the user must mend; what was done until then is kept.
    """
    judges = await find_judges(config, bench)
    folder = RunFolder(config.out)
    judging = Judging(config, bench, judges, folder, _asking(console))
    if isinstance(bench, CategoriesBench) and bench.unsorted:
        claim(folder.run, config)
        asked = select(bench.unsorted, config.limit, config.seed)
        bench = judging.bench = bench.with_topics(await judging.topics(asked))
    entries = await find_entries(config, bench, lambda path: read_answers(bench, path))
    instructions = select(_in_categories(bench, config.categories), config.limit, config.seed)
    baselines = own_baselines(bench, instructions) if entries.baseline is None else None
    claim(folder.run, config)
    if config.topics and not isinstance(bench, CategoriesBench):
        instructions = with_topics(instructions, await judging.topics(instructions))
    write_records(folder.instructions, [_instruction_json(one) for one in instructions])

    judging.check_cost_before_answers(len(entries.models), instructions, baselines)
    answering = Answering(config, folder, instructions)
    answers = await answering.answers(entries.models)
    if entries.baseline is not None:
        baselines = one_baseline((await answering.answers([entries.baseline]))[entries.baseline.name])
    assert baselines is not None
    for found in baselines.answers.values():
        write_answers(folder, found, instructions)
    results = await judging.judge(instructions, answers, baselines, entries.modes)

    notes = []
    if len(instructions) < len(bench.instructions):
        notes.append(
            f"{len(instructions)} of {len(bench.instructions)} instructions, drawn with seed {config.seed}"
        )
    scores = assemble(bench, folder, results, compat=config.compat, seed=config.seed, notes=notes)
    write_official(folder, bench, instructions, {**answers, **baselines.answers}, results)
    write_scores(folder.scores, scores)
    page, _ = write_report([config.out], None)
    console.print(headline(scores))
    console.print(str(page), soft_wrap=True)
    return page


def _in_categories(bench: Bench, wanted: Sequence[str]) -> Sequence[Instruction]:
    """The instructions of some categories, of whichever scheme; all where none is named.

    Raises:
        UsageError: the bench has no such category.
    """
    known = {name for one in bench.instructions for name in one.categories.values()}
    for name in wanted:
        if name not in known:
            listed = ", ".join(sorted(known)[:LISTED]) or "none"
            raise UsageError(
                f"--category {name!r}: {bench.name} has {listed}{' ...' if len(known) > LISTED else ''}"
            )
    if not wanted:
        return bench.instructions
    return [one for one in bench.instructions if set(wanted) & set(one.categories.values())]


def _asking(console: Console) -> Callable[[str], bool] | None:
    """How the user is asked; None where nobody is there."""
    if not sys.stdin.isatty():
        return None
    return lambda question: console.input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _instruction_json(instruction: Instruction) -> dict[str, object]:
    return {"id": instruction.id, "text": instruction.text, "categories": dict(instruction.categories)}
