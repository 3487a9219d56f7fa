"""`thinkserve score`: scores of answers and judgments that are there already."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

from rich.console import Console

from thinkserve.eval.bench import Bench, Compat
from thinkserve.eval.comparison import compare
from thinkserve.eval.folder import RunFolder
from thinkserve.eval.judging.health import health_of
from thinkserve.eval.official import Files, read_matches
from thinkserve.eval.report.leaderboard import headline
from thinkserve.eval.results import MOST_COMPARED, schemes_of, with_topics
from thinkserve.eval.scores import Comparison, write_scores


def rescore(bench: Bench, files: Files, *, compat: Compat, seed: int, out: Path, console: Console) -> None:
    """Write `scores.json` in a folder.

    Raises:
        UsageError: a file is wrong; nothing was written then.
    """
    matches, notes = read_matches(bench, files, compat)
    scores = bench.score(matches, compat=compat, seed=seed)
    comparisons: tuple[Comparison, ...] = ()
    if len(matches) <= MOST_COMPARED:
        schemes = schemes_of(match for found in matches.values() for match in found)
        comparisons = tuple(
            compare(a, b, matches[a], matches[b], seed=seed, schemes=schemes)
            for a, b in combinations(matches, 2)
        )
    scores = replace(
        scores,
        models=with_topics(scores.models, matches, seed),
        comparisons=comparisons,
        health={model: health_of(found, ()) for model, found in matches.items()},
        notes=(*scores.notes, *notes),
    )
    folder = RunFolder(out)
    write_scores(folder.scores, scores)
    console.print(headline(scores))
    console.print(f"{folder.scores}; for a page: thinkserve report {out}", soft_wrap=True)
