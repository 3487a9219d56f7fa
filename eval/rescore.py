"""`thinkserve score`: scores of answers and judgments that are there already."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from rich.console import Console

from thinkserve.errors import UsageError
from thinkserve.eval.bench import Bench, Compat
from thinkserve.eval.comparison import compare
from thinkserve.eval.folder import RunFolder
from thinkserve.eval.judging.health import health_of
from thinkserve.eval.official import Files, read_matches
from thinkserve.eval.report.leaderboard import headline
from thinkserve.eval.results import MOST_COMPARED, filled_in, schemes_of
from thinkserve.eval.scores import Comparison, Scores, write_scores


def rescore(bench: Bench, files: Files, *, compat: Compat, seed: int, out: Path, console: Console) -> None:
    """Write `scores.json` in a folder.

    Raises:
        UsageError: a file is wrong, or the folder cannot be written; nothing was written then.
    """
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be 0 or more")
    with _collector_at_rest():
        scores = _scores(bench, files, compat=compat, seed=seed)
    folder = RunFolder(out)
    try:
        write_scores(folder.scores, scores)
    except OSError as exc:
        raise UsageError(f"--out {out}: {folder.scores} cannot be written: {exc.strerror}") from exc
    console.print(headline(scores))
    console.print(f"{folder.scores}; for a page: thinkserve report {out}", soft_wrap=True)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Importing pandas and scikit-learn makes so many objects that the collector took a seventh of the whole time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _scores(bench: Bench, files: Files, *, compat: Compat, seed: int) -> Scores:
    matches, notes = read_matches(bench, files, compat)
    scores = bench.score(matches, compat=compat, seed=seed)
    comparisons: tuple[Comparison, ...] = ()
    if len(matches) <= MOST_COMPARED:
        schemes = schemes_of(match for found in matches.values() for match in found)
        comparisons = tuple(
            compare(a, b, matches[a], matches[b], seed=seed, schemes=schemes)
            for a, b in combinations(matches, 2)
        )
    return replace(
        scores,
        models=filled_in(scores.models, matches, seed),
        comparisons=comparisons,
        health={model: health_of(found, ()) for model, found in matches.items()},
        notes=(*scores.notes, *notes),
    )
