"""What came of each instruction for one model: its judgments put together, and how far the judge preferred the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from thinkserve.eval.answer import Answer
from thinkserve.eval.judgment import Judgment


@dataclass(frozen=True, slots=True)
class Outcome:
    """One instruction, for one model."""

    id: str
    judgments: tuple[Judgment, ...]
    """One a game and judge, in the order of the games."""
    baseline: str
    forfeit: bool = False
    """The thought never ended: there was no response, and no judge was asked."""
    baseline_forfeit: bool = False

    @property
    def preference(self) -> float | None:
        """How far the model was preferred, 0.0 to 1.0; None where no judgment could be read.

        Games weigh the same here, as in comparisons: every instruction is one value.
        """
        if self.forfeit or self.baseline_forfeit:
            return 0.5 if self.forfeit and self.baseline_forfeit else float(self.baseline_forfeit)
        found = [judgment.verdict.preference for judgment in self.judgments if judgment.verdict is not None]
        return fmean(found) if found else None

    @property
    def spread(self) -> float:
        """How far games of the match contradict each other, 0.0 to 1.0; a game that counts more weighs more."""
        verdicts = [judgment.verdict for judgment in self.judgments if judgment.verdict is not None]
        leans = [(verdict.preference - 0.5) * verdict.weight for verdict in verdicts]
        if not leans or max(leans) <= 0 or min(leans) >= 0:
            return 0.0
        return (max(leans) - min(leans)) / max(verdict.weight for verdict in verdicts)


def outcomes_of(
    judgments: Iterable[Judgment],
    answers: Mapping[str, Answer],
    baselines: Mapping[str, Mapping[str, Answer]],
    baseline: str,
) -> dict[str, Outcome]:
    """The outcome of each instruction that was judged, or lost without a judge.

    Args:
        judgments: about the model.
        answers: of the model.
        baselines: the answers of the baselines that are at hand, by model.
        baseline: of an instruction without a judgment.
    """
    games: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        games.setdefault(judgment.id, []).append(judgment)
    forfeits = {id for id, answer in answers.items() if not answer.complete}
    found = {}
    for id in dict.fromkeys([*games, *forfeits]):
        ordered = tuple(sorted(games.get(id, ()), key=lambda judgment: (judgment.judge, judgment.game)))
        other = ordered[0].baseline if ordered else baseline
        theirs = baselines.get(other, {}).get(id)
        found[id] = Outcome(id, ordered, other, id in forfeits, theirs is not None and not theirs.complete)
    return found
