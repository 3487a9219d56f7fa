"""All that the runs of a ranking know of a model beyond its scores: answers, outcomes, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinkserve.eval.answer import Answer, OutputLength
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.report.loading import Run
from thinkserve.eval.report.outcomes import Outcome, outcomes_of
from thinkserve.eval.report.rankings import Entry, Ranking


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one model of a ranking."""

    entry: Entry
    series: int
    """Which colour and mark it has in every chart."""
    answers: Mapping[str, Answer]
    outcomes: Mapping[str, Outcome]
    lengths: Mapping[str, OutputLength]
    baselines: Mapping[str, Mapping[str, Answer]]
    """The answers of the baselines of its run, by model; those whose file is there."""

    @property
    def name(self) -> str:
        """Of the model, as shown."""
        return self.entry.name

    def instruction(self, id: str) -> Instruction | None:
        """An instruction of its run."""
        return self.entry.run.instructions.get(id)

    def baseline_answer(self, outcome: Outcome) -> Answer | None:
        """What it was judged against."""
        return self.baselines.get(outcome.baseline, {}).get(outcome.id)


def gather(ranking: Ranking) -> tuple[Evidence, ...]:
    """Read what there is about the models of a ranking, in its order."""
    judged = {id(entry): entry.run.judgments(entry.model) for entry in ranking.entries}
    baselines: dict[int, dict[str, Mapping[str, Answer]]] = {}
    for run in ranking.runs:
        of_run = [judged[id(entry)] for entry in ranking.entries if entry.run is run]
        baselines[id(run)] = _baselines(run, of_run)
    found = []
    for series, entry in enumerate(ranking.entries):
        answers = entry.run.answers(entry.model)
        against = baselines[id(entry.run)]
        outcomes = outcomes_of(judged[id(entry)], answers, against, ranking.baseline)
        lengths = entry.run.lengths(entry.model)
        found.append(Evidence(entry, series, answers, outcomes, lengths, against))
    return tuple(found)


def _baselines(run: Run, judged: Sequence[Sequence[Judgment]]) -> dict[str, Mapping[str, Answer]]:
    names = {judgment.baseline for judgments in judged for judgment in judgments} | {run.scores.baseline}
    found = {name: run.answers(name) for name in sorted(names)}
    return {name: answers for name, answers in found.items() if answers}
