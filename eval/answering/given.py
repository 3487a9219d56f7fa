"""Answers that were made before, by whoever: no thought gets past here either.

A file of answers holds responses, or whole outputs with the thoughts in them. What it holds is told by its markers: where
one can be seen, all of the file is cut by the format that was named, and without a format nothing of it is judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers, OutputLength
from thinkserve.eval.answering.answerer import cut
from thinkserve.eval.answering.exposure import visible_marker
from thinkserve.thoughts import ThoughtFormat


@dataclass(frozen=True, slots=True)
class Given:
    """The answers of a file, cut, and how long what was cut off was."""

    answers: Answers
    lengths: tuple[OutputLength, ...] = ()
    """Empty where there was nothing to cut."""


def without_thoughts(answers: Answers, where: str, format: ThoughtFormat | None) -> Given:
    """The same answers as responses alone.

    Args:
        answers: as they were found.
        where: the file, for messages.
        format: how thoughts are marked; None: nobody said that there are any.

    Raises:
        UsageError: a thought can be seen, and there is no format.
    """
    if format is None:
        for answer in answers.by_id.values():
            if (marker := visible_marker(answer.response)) is not None:
                raise UsageError(
                    f"{where}: the answer to instruction {answer.id} has the marker {marker!r} of a thought in it, and no "
                    "judge may see that; say how thoughts are marked with --thought-format NAME, and they are cut off"
                )
        return Given(answers)
    if not any(_is_whole_output(answer.response, format) for answer in answers.by_id.values()):
        return Given(answers)
    found = [_cut(answer, format) for answer in answers.by_id.values()]
    by_id = {answer.id: answer for answer, _ in found}
    return Given(replace(answers, by_id=by_id), tuple(length for _, length in found))


def _is_whole_output(text: str, format: ThoughtFormat) -> bool:
    answer, thought = cut("", text, format)
    return visible_marker(text) is not None or (answer.complete and thought > 0)


def _cut(given: Answer, format: ThoughtFormat) -> tuple[Answer, OutputLength]:
    """Its style was counted with the thought in it, so it is counted anew."""
    if not given.complete:
        return given, OutputLength(given.id, None, None, None, len(given.response), None)
    answer, thought = cut(given.id, given.response, format)
    return answer, OutputLength(given.id, None, thought, None, len(answer.response), None)
