"""One run of `thinkserve eval`: models answer, judges judge, scores are made, the report is written.

Every stage takes up what is in the run's folder already, so the same command again goes on where the last one ended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from thinkserve.errors import UsageError
from thinkserve.eval.answering.given import without_thoughts
from thinkserve.eval.baselines import Baselines, one_baseline, own_baselines
from thinkserve.eval.bench import Bench
from thinkserve.eval.benches.categories import CategoriesBench
from thinkserve.eval.benches.file import FileBench
from thinkserve.eval.config import RunConfig, claim
from thinkserve.eval.entries import Entries, find_entries, find_judges
from thinkserve.eval.folder import RunFolder
from thinkserve.eval.instruction import TOPIC, Instruction
from thinkserve.eval.official import read_answers, write_official
from thinkserve.eval.records import write_records
from thinkserve.eval.report.leaderboard import headline
from thinkserve.eval.report.writing import write_report
from thinkserve.eval.results import assemble
from thinkserve.eval.scores import write_scores
from thinkserve.eval.selection import select
from thinkserve.eval.stages import Answering, Judging, check_given, write_answers
from thinkserve.eval.topics import with_topics
from thinkserve.thoughts import get_format

LISTED = 25


async def run(config: RunConfig, bench: Bench, console: Console) -> Path:
    """Do all that is still to be done; returns the page of the report.

    Raises:
        ThinkserveError: anything that the user must mend; what was done until then is kept.
    """
    judges = await find_judges(config, bench)
    folder = RunFolder(config.out)
    judging = Judging(config, bench, judges, folder, _asking(console))
    sorting = bench if isinstance(bench, CategoriesBench) and bench.unsorted else None
    instructions = _chosen(bench, config) if sorting is None else _candidates(sorting, config)
    entries = await find_entries(config, bench, instructions, lambda path: read_answers(bench, path))
    baselines = _known_baselines(config, bench, instructions, entries)
    unsorted = (
        [one for one in instructions if TOPIC not in one.categories]
        if sorting is not None or config.topics
        else []
    )
    if unsorted:
        judging.check_topics()
    if sorting is None:
        check_given(entries.all, instructions)
    claim(folder.run, config)
    judging.check_cost(entries, instructions, baselines, unsorted)

    topics = await judging.topics(unsorted)
    if sorting is not None:
        bench = judging.bench = sorting.with_topics(topics)
        instructions = _chosen(bench, config)
        check_given(entries.all, instructions)
    instructions = with_topics(instructions, topics)
    write_records(folder.instructions, [_instruction_json(one) for one in instructions])
    answering = Answering(config, folder, instructions)
    answers = await answering.answers(entries.models)
    if entries.baseline is not None:
        baselines = one_baseline((await answering.answers([entries.baseline]))[entries.baseline.name])
    assert baselines is not None
    if entries.baseline is None:
        for found in baselines.answers.values():
            write_answers(folder, found, instructions)
    results = await judging.judge(instructions, answers, baselines, entries.modes)

    scores = assemble(
        bench,
        folder,
        results,
        compat=config.compat,
        seed=config.seed,
        notes=_notes(bench, config, len(instructions)),
        rival=None if entries.baseline is None else entries.baseline.name,
    )
    write_official(folder, bench, instructions, {**answers, **baselines.answers}, results)
    write_scores(folder.scores, scores)
    page, _ = write_report([config.out], None)
    console.print(headline(scores))
    console.print(str(page), soft_wrap=True)
    return page


def _candidates(bench: CategoriesBench, config: RunConfig) -> Sequence[Instruction]:
    """Those that may be asked, once it is known what they are about: all with a topic, and `--limit` of the others."""
    known = [one for one in bench.candidates if TOPIC in one.categories]
    return (*known, *select(bench.unsorted, config.limit, config.seed))


def _chosen(bench: Bench, config: RunConfig) -> Sequence[Instruction]:
    return select(_in_categories(bench, config.categories), config.limit, config.seed)


def _known_baselines(
    config: RunConfig, bench: Bench, instructions: Sequence[Instruction], entries: Entries
) -> Baselines | None:
    """The bench's own, or those of a file; None where they are still to be generated.

    Raises:
        UsageError: they are not at hand, or have thoughts in them.
    """
    if entries.baseline is not None:
        given = entries.baseline.given
        return None if given is None else one_baseline(given.answers)
    found = own_baselines(bench, instructions)
    if not isinstance(bench, FileBench):
        return found
    # References are a user's own, so what models are asked about thoughts is asked about them.
    format = None if config.thought_format is None else get_format(config.thought_format)
    answers = {
        name: without_thoughts(some, str(bench.path), format).answers for name, some in found.answers.items()
    }
    return Baselines(found.names, answers)


def _notes(bench: Bench, config: RunConfig, asked: int) -> list[str]:
    whole = len(bench.instructions)
    if asked == whole:
        return []
    of = f" of {', '.join(config.categories)}" if config.categories else ""
    drawn = "" if config.limit is None else f", drawn with seed {config.seed}"
    return [f"{asked} of {whole} instructions{of}{drawn}"]


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
    return lambda question: console.input(f"{question} [y/N] ", markup=False).strip().lower() in ("y", "yes")


def _instruction_json(instruction: Instruction) -> dict[str, object]:
    return {"id": instruction.id, "text": instruction.text, "categories": dict(instruction.categories)}
