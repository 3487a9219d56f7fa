"""Against whom models are judged, instruction by instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.bench import Bench
from thinkserve.eval.instruction import Instruction


@dataclass(frozen=True, slots=True)
class Baselines:
    """The baseline of each instruction (Arena-Hard v2.0 has one a category), and their answers."""

    names: Mapping[str, str]
    """From an instruction's id to the baseline's name."""
    answers: Mapping[str, Answers]
    """From a baseline's name to its answers."""

    def of(self, instruction: Instruction) -> tuple[str, Answer]:
        """The baseline of an instruction and its answer."""
        name = self.names[instruction.id]
        return name, self.answers[name].by_id[instruction.id]


def own_baselines(bench: Bench, instructions: Sequence[Instruction]) -> Baselines:
    """The bench's own baselines.

    Raises:
        UsageError: their answers are not at hand, or one is missing.
    """
    names = {instruction.id: bench.baseline_of(instruction) for instruction in instructions}
    answers = bench.baseline_answers(instructions)
    known: dict[str, str] = {}
    for id, name in names.items():
        if name is None or name not in answers or id not in answers[name].by_id:
            raise UsageError(
                f"{bench.name}: the baseline {name} has no answer to instruction {id}; name another with --baseline"
            )
        known[id] = name
    return Baselines(known, {name: answers[name] for name in dict.fromkeys(known.values())})


def one_baseline(answers: Answers) -> Baselines:
    """One model as the baseline of all that it answered."""
    return Baselines(dict.fromkeys(answers.by_id, answers.model), {answers.model: answers})
