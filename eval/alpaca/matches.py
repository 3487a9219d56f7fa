"""The matches of `thinkserve score`: files of annotations, checked against the answers that they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.eval.alpaca.files import Annotations, read_annotations, read_answers
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Match
from thinkserve.eval.records import first_record

LISTED = 10


def read_matches(
    instructions: Sequence[Instruction],
    answers_files: Sequence[Path],
    baseline_file: Path | None,
    judgments_files: Sequence[Path],
) -> tuple[dict[str, list[Match]], str, list[str]]:
    """The matches of several models, a file of annotations each, checked against the answers that are given.

    Returns:
        From model to its matches, in the order of its file; the judge; and notes about missing rows.

    Raises:
        UsageError: a file is malformed, they do not fit together, or an answer is another one than was judged.
    """
    found: dict[str, Annotations] = {}
    for path in judgments_files:
        read = read_annotations(path, instructions)
        if read.model in found:
            raise UsageError(
                f"{read.where[0]}: field 'generator_2' is {read.model!r}, as in {found[read.model].path}: give one file "
                "for each model"
            )
        for other in found.values():
            _same(other, read, "annotator", other.judge, read.judge)
            _same(other, read, "generator_1", other.baseline, read.baseline)
        found[read.model] = read
    if not found:
        raise UsageError("there are no judgments to score: give --judgments FILE")
    answered: dict[str, Path] = {}
    for path in answers_files:
        answers = read_answers(path, instructions)
        if answers.model in answered:
            raise first_record(path).error(
                "generator",
                f"is {answers.model!r}, as in {answered[answers.model]}: give one file for each model",
            )
        _check_model(found, path, answers)
        answered[answers.model] = path
    if baseline_file is not None:
        answers = read_answers(baseline_file, instructions)
        for annotations in found.values():
            _check_baseline(annotations, baseline_file, answers)
    notes = [note for annotations in found.values() if (note := _missing(annotations, instructions))]
    judge = next(iter(found.values())).judge
    return {model: list(annotations.matches) for model, annotations in found.items()}, judge, notes


def _same(first: Annotations, second: Annotations, field: str, one: str, other: str) -> None:
    if one != other:
        raise UsageError(
            f"{second.where[0]}: field {field!r} is {other!r}, and {one!r} in {first.path}: "
            "models are compared by one judge against one baseline"
        )


def _check_model(found: Mapping[str, Annotations], path: Path, answers: Answers) -> None:
    if answers.model not in found:
        raise first_record(path).error(
            "generator", f"is {answers.model!r}, and the judgments are about {', '.join(found)}"
        )
    annotations = found[answers.model]
    for match, where in zip(annotations.matches, annotations.where, strict=True):
        _check_row(where, "output_2", match.answer, path, answers)


def _check_baseline(annotations: Annotations, path: Path, answers: Answers) -> None:
    if answers.model != annotations.baseline:
        raise UsageError(
            f"{annotations.where[0]}: field 'generator_1' is {annotations.baseline!r}, and the baseline's answers in "
            f"{path} are by {answers.model!r}"
        )
    for match, where in zip(annotations.matches, annotations.where, strict=True):
        _check_row(where, "output_1", match.baseline, path, answers)


def _check_row(where: str, field: str, judged: Answer, path: Path, answers: Answers) -> None:
    answer = answers.by_id.get(judged.id)
    if answer is None:
        raise UsageError(
            f"{where}: field 'instruction' has no row in {path}, so what was judged is not there"
        )
    if answer.response != judged.response:
        raise UsageError(f"{where}: field {field!r} is not the output in {path}: answers of another run")


def _missing(annotations: Annotations, instructions: Sequence[Instruction]) -> str | None:
    judged = {match.instruction.id for match in annotations.matches}
    missing = [str(instruction.position) for instruction in instructions if instruction.id not in judged]
    if not missing:
        return None
    listed = ", ".join(missing[:LISTED]) + (" ..." if len(missing) > LISTED else "")
    return (
        f"{annotations.model}: {len(missing)} of {len(instructions)} instructions have no row in {annotations.path.name} "
        f"(counted from 0: {listed})"
    )
