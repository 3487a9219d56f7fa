"""What a run will cost, worked out before the first call, and asked about once.

Before anything is generated, everything that a judge will be asked is counted, with answers that are still to come taken
to be as long as the baseline's. What is counted again later, when the answers are there, is only asked about where it is
much more than what was agreed to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.baselines import Baselines
from thinkserve.eval.bench import Estimate, JudgeRequest
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.cost import confirm, estimate_requests, together
from thinkserve.eval.judging.stage import Pair
from thinkserve.thoughts import Response

Ask = Callable[[str], bool]

# Of a response in characters, where nothing is known that could tell: about 500 tokens.
TYPICAL_RESPONSE = 2000
# Of the name of a topic, with a few words around it.
TYPICAL_TOPIC_TOKENS = 50
# An estimate is one, so this much more than what was agreed to is not asked about again.
MARGIN = 1.5


@dataclass(slots=True)
class Budget:
    """What was planned, and what the user agreed to.

    Args:
        limit: dollars up to which nobody is asked.
        yes: the user said yes beforehand.
        ask: puts a question to the user; None where nobody is there.
    """

    limit: float
    yes: bool
    ask: Ask | None
    _agreed: float = 0.0
    _planned: list[Estimate] = field(default_factory=list)

    def foresee(self, estimates: Iterable[Estimate]) -> None:
        """Ask about all that will come.

        Raises:
            ThinkserveError: it is too much, and the user said no, or nobody is there.
        """
        self._confirm(list(estimates))

    def plan(self, estimates: Iterable[Estimate]) -> None:
        """Ask about what comes next, together with what was planned before.

        Raises:
            ThinkserveError: as `foresee`.
        """
        self._planned += estimates
        self._confirm(self._planned)

    def _confirm(self, estimates: Sequence[Estimate]) -> None:
        whole = together(estimates)
        if whole.dollars is not None and whole.dollars > MARGIN * self._agreed:
            confirm(whole, self.limit, yes=self.yes, ask=self.ask)
            self._agreed = max(self._agreed, whole.dollars)


def estimate_sorting(requests: Sequence[JudgeRequest], model: str) -> Estimate:
    """What it will cost to have instructions sorted into topics.

    Args:
        requests: for topics that are not known yet.
        model: that is asked, by its name at its server.
    """
    return estimate_requests(requests, model, typical_completion=TYPICAL_TOPIC_TOKENS)


def foreseen_pairs(
    instructions: Sequence[Instruction], model: str, answers: Answers | None, baselines: Baselines | None
) -> list[Pair]:
    """What will be judged, with what is known of it in its place.

    Args:
        instructions: that are asked.
        model: its name.
        answers: of the model, if they are there already.
        baselines: None: their answers are still to come.
    """
    return [
        _pair(one, model, {} if answers is None else answers.by_id, baselines)
        for one in instructions
        if answers is None or one.id in answers.by_id
    ]


def _pair(
    instruction: Instruction, model: str, given: Mapping[str, Answer], baselines: Baselines | None
) -> Pair:
    if baselines is not None and instruction.id in baselines.names:
        name, other = baselines.of(instruction)
    else:
        name, other = "baseline", Answer(instruction.id, Response("x" * TYPICAL_RESPONSE))
    # One character more, since equal responses are not judged.
    answer = given.get(instruction.id) or Answer(instruction.id, Response(other.response + "\n"))
    return Pair(instruction, model, answer, name, other)
