"""Which models may be ranked together: those of runs with the same bench, judge, baseline and compat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinkserve.eval.report.loading import Run
from thinkserve.eval.report.metrics import headline_metric, value
from thinkserve.eval.scores import Group


@dataclass(frozen=True, slots=True)
class Entry:
    """A model in a ranking."""

    name: str
    """As shown: with its run where two runs have a model of the same name."""
    model: str
    """As its run calls it."""
    run: Run
    group: Group


@dataclass(frozen=True, slots=True)
class Ranking:
    """Models whose numbers may be put side by side, the best first."""

    bench: str
    judge: str
    baseline: str
    compat: str
    metric: str
    """The key of `Group` that they are ranked by."""
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    """What a reader must know: of the runs, and of their being put together."""
    apart: str | None = None
    """Why its models are not ranked with those of another ranking of the same bench."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Whose models are in it."""
        return tuple({id(entry.run): entry.run for entry in self.entries}.values())

    @property
    def scored(self) -> tuple[int, int]:
        """The least and the most instructions that any model has scores for."""
        counts = [entry.group.n for entry in self.entries]
        return min(counts), max(counts)


def rank(runs: Sequence[Run]) -> tuple[Ranking, ...]:
    """Put together what can be, in the order of the runs."""
    together: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        scores = run.scores
        key = (scores.bench, scores.judge, scores.baseline, scores.compat)
        together.setdefault(key, []).append(run)
    keys = list(together)
    return tuple(_ranking(key, found, _apart(key, keys)) for key, found in together.items())


def _apart(key: tuple[str, str, str, str], keys: Sequence[tuple[str, str, str, str]]) -> str | None:
    others = [other for other in keys if other[0] == key[0] and other != key]
    if not others:
        return None
    words = ("bench", "judge", "baseline", "compat")
    differing = [word for at, word in enumerate(words) if any(other[at] != key[at] for other in others)]
    values = ", ".join(f"{word} {key[words.index(word)]}" for word in differing)
    return (
        f"Ranked apart from the other runs of {key[0]}, because numbers with another "
        f"{' or '.join(differing)} cannot be compared. Here: {values}."
    )


def _ranking(key: tuple[str, str, str, str], runs: Sequence[Run], apart: str | None) -> Ranking:
    bench, judge, baseline, compat = key
    metric = headline_metric(bench, [group for run in runs for group in run.scores.models.values()])
    entries = sorted(_entries(runs), key=lambda entry: _rank_of(entry, metric))
    notes = dict.fromkeys(note for run in runs for note in run.scores.notes)
    for note in _notes_on_putting_together(runs, entries, metric):
        notes[note] = None
    return Ranking(bench, judge, baseline, compat, metric, tuple(entries), tuple(notes), apart)


def _rank_of(entry: Entry, metric: str) -> tuple[float, str]:
    found = value(entry.group, metric)
    return (float("inf") if found is None else -found, entry.name)


def _entries(runs: Sequence[Run]) -> list[Entry]:
    names = [model for run in runs for model in run.scores.models]
    found = []
    taken: set[str] = set()
    for run in runs:
        for model, group in run.scores.models.items():
            name = model if names.count(model) == 1 else f"{model} ({run.name})"
            name = f"{model} ({run.folder.path})" if name in taken else name  # two folders of one name
            taken.add(name)
            found.append(Entry(name, model, run, group))
    return found


def _notes_on_putting_together(runs: Sequence[Run], entries: Sequence[Entry], metric: str) -> list[str]:
    notes = []
    totals = {entry.group.n + entry.group.unscored for entry in entries}
    if len(totals) > 1:
        notes.append(
            f"The models were not asked the same instructions: between {min(totals):,} and {max(totals):,} of them."
        )
    if len(runs) > 1 and metric == "style_controlled_score":
        notes.append(
            "Style-controlled scores depend on the models that were scored together; these come from "
            f"{len(runs)} runs, so small differences between runs mean little."
        )
    if any(value(entry.group, metric) is None for entry in entries):
        notes.append("Models without the number that the ranking goes by come last.")
    return notes
