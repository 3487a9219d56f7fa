"""Official files as a whole: questions, answers and judgments read into matches, and written.

Whatever does not fit together is refused in one line that names file, line and field: rows that occur twice, rows of
another bench, several judges where one is meant, a model against itself, answers that lack what was judged. What was
not judged is noted.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.arena.protocol import BASELINE_FIRST, MODEL_FIRST
from thinkserve.eval.arena.rows import (
    StoredGame,
    StoredJudgment,
    answer_row,
    id_field,
    judgment_row,
    read_answer,
    read_judgment,
    read_question,
)
from thinkserve.eval.arena.tokens import token_counter
from thinkserve.eval.arena.unseen import UnseenAnswer
from thinkserve.eval.arena.verdict import normalised, official_verdict, read_label, verdict_of
from thinkserve.eval.arena.version import EDITIONS, Version
from thinkserve.eval.bench import Compat, Unreadable
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict
from thinkserve.eval.records import Record, first_record, read_records, write_whole

LISTED = 5
"""Ids and labels that a note names; of more ids it says only how many they are."""
JudgmentsById = Mapping[str, Sequence[StoredJudgment]]


@dataclass(frozen=True, slots=True)
class _AnswersFile:
    """A file of one model's answers."""

    path: Path
    answers: Answers

    def error(self, problem: str) -> UsageError:
        """The error to raise about the model's name."""
        record = first_record(self.path)
        return record.error("model_id" if "model_id" in record.data else "model", problem)


class ReadMatches(NamedTuple):
    """What judgment and answer files say together."""

    matches: dict[str, list[Match]]
    judge: str
    """Several that judged every model: joined by `+`."""
    notes: tuple[str, ...]


def read_questions(version: Version, path: Path) -> tuple[Instruction, ...]:
    """The instructions of question.jsonl, in its order.

    Raises:
        UsageError: the file is malformed, has an id twice, or is of the other version.
    """
    instructions = []
    lines: dict[str, str] = {}
    for position, record in enumerate(read_records(path)):
        instruction = read_question(record, position)
        EDITIONS[version].category_of(instruction)
        _once(lines, instruction.id, record)
        instructions.append(instruction)
    return tuple(instructions)


def read_answers(path: Path, instructions: Sequence[Instruction]) -> Answers:
    """The answers of one model.

    Raises:
        UsageError: the file is malformed, has an id twice, is of several models or of another bench.
    """
    known = {instruction.id for instruction in instructions}
    found: dict[str, Answer] = {}
    lines: dict[str, str] = {}
    model = None
    for record in read_records(path):
        name, answer = read_answer(record)
        if model is not None and name != model:
            field = "model_id" if "model_id" in record.data else "model"
            raise record.error(field, f"is {name!r}, and was {model!r} before: give one file for each model")
        _known(known, answer.id, record)
        _once(lines, answer.id, record)
        model, found[answer.id] = name, answer
    return Answers(model or "", found)


def _read_all(paths: Iterable[Path], instructions: Sequence[Instruction]) -> dict[str, _AnswersFile]:
    """Files of answers by model."""
    found: dict[str, _AnswersFile] = {}
    for path in paths:
        file = _AnswersFile(path, read_answers(path, instructions))
        name = file.answers.model
        if name in found:
            raise file.error(f"is {name!r}, as in {found[name].path}: give one file for each model")
        found[name] = file
    return found


def read_matches(
    version: Version,
    instructions: Sequence[Instruction],
    answers_files: Iterable[Path],
    baseline_answer_files: Iterable[Path],
    judgments_files: Iterable[Path],
    *,
    compat: Compat = "aligned",
) -> ReadMatches:
    """The matches of all judged models.

    Answers are optional (style control needs them, of model and baseline). Where there are none an `UnseenAnswer`
    stands. A verdict is read from the judge's text where the file has one, and else from its stored `score`; with
    `official` always from the `score`, as the authors' code does, and the matches keep the file's order.

    Raises:
        UsageError: the files are malformed or do not fit together.
    """
    judgments, judges = _read_judgments(version, instructions, judgments_files)
    models = _read_all(answers_files, instructions)
    baselines = _read_all(baseline_answer_files, instructions)
    official = set(EDITIONS[version].baselines.values())
    for name in models.keys() - judgments.keys():
        if name not in official:
            raise models[name].error(
                f"is {name!r}, and the judgments are of {', '.join(map(repr, judgments))}"
            )
        baselines[name] = models[name]
    for name in baselines.keys() - official:
        raise baselines[name].error(
            f"is {name!r}, and the baseline of {EDITIONS[version].bench} is {' and '.join(sorted(official))}"
        )
    for model, rows in judgments.items():
        _check_answered(version, instructions, rows, models.get(model), baselines)
    matches: dict[str, list[Match]] = {}
    notes: list[str] = []
    for model, rows in judgments.items():
        judged = _judged(instructions, rows, compat)
        answers = models[model].answers if model in models else None
        matches[model] = [
            _match(version, instruction, rows, answers, baselines, compat) for instruction in judged
        ]
        notes += _notes(version, model, instructions, rows, answers, compat)
    return ReadMatches(matches, "+".join(judges), tuple(notes))


def _read_judgments(
    version: Version, instructions: Sequence[Instruction], paths: Iterable[Path]
) -> tuple[dict[str, JudgmentsById], tuple[str, ...]]:
    """Judgments by model and instruction, judge by judge, and the judges."""
    by_id = {instruction.id: instruction for instruction in instructions}
    judgments: dict[str, dict[str, list[StoredJudgment]]] = {}
    judges: dict[str, dict[str, Record]] = {}
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths:
        first = None
        for record in read_records(path):
            row = read_judgment(record)
            first = first or row
            if row.judge != first.judge:
                raise record.error("judge", f"is {row.judge!r}, and was {first.judge!r} before: mixed judges")
            _known(by_id.keys(), row.id, record)
            _opponents(version, by_id[row.id], row)
            if row.model != first.model:
                raise record.error(
                    "model", f"is {row.model!r}, and was {first.model!r} before: give one file for each model"
                )
            _once(lines.setdefault((row.judge, row.model), {}), row.id, record)
            judges.setdefault(row.model, {}).setdefault(row.judge, record)
            judgments.setdefault(row.model, {}).setdefault(row.id, []).append(row)
    if not judgments:
        raise UsageError("there are no judgments to score: name a file of them with --judgments")
    (name, expected), *others = judges.items()
    for model, found in others:
        if found.keys() != expected.keys():
            raise next(iter(found.values())).error(
                "judge",
                f"mixes judges: {model!r} was judged by {', '.join(found)}, and {name!r} by {', '.join(expected)}; every "
                "model needs the same",
            )
    return {model: found for model, found in judgments.items()}, tuple(expected)


def _opponents(version: Version, instruction: Instruction, row: StoredJudgment) -> None:
    baseline = EDITIONS[version].baseline_of(instruction)
    if row.baseline is not None and row.baseline != baseline:
        raise row.record.error("baseline", f"is {row.baseline!r}, and must be {baseline!r} for {row.id}")
    if row.model == baseline:
        raise row.record.error("model", f"is {row.model!r}, which is the baseline: a model against itself")


def _once(lines: dict[str, str], id: str, record: Record) -> None:
    if id in lines:
        raise record.error(id_field(record), f"is {id!r} a second time, after {lines[id]}")
    lines[id] = record.where


def _known(known: Iterable[str], id: str, record: Record) -> None:
    if id not in known:
        raise record.error(
            id_field(record), f"is {id!r}, which is no question of this bench (a file of another?)"
        )


def _judged(instructions: Sequence[Instruction], rows: JudgmentsById, compat: Compat) -> list[Instruction]:
    """The instructions that have a row; in the file's order for `official`."""
    judged = [instruction for instruction in instructions if instruction.id in rows]
    if compat == "official":
        place = {id: number for number, id in enumerate(rows)}
        judged.sort(key=lambda instruction: place[instruction.id])
    return judged


def _check_answered(
    version: Version,
    instructions: Sequence[Instruction],
    rows: JudgmentsById,
    answers: _AnswersFile | None,
    baselines: Mapping[str, _AnswersFile],
) -> None:
    """Refuse files of answers that lack what was judged; no file at all is another matter."""
    for instruction in instructions:
        files = (answers, baselines.get(EDITIONS[version].baseline_of(instruction)))
        for row in rows.get(instruction.id, ()):
            for file in files:
                if file is not None and row.id not in file.answers.by_id:
                    raise row.record.error(
                        id_field(row.record),
                        f"is {row.id!r}, and has no row in {file.path}: what was judged is not there",
                    )


def _match(
    version: Version,
    instruction: Instruction,
    rows: JudgmentsById,
    answers: Answers | None,
    baselines: Mapping[str, _AnswersFile],
    compat: Compat,
) -> Match:
    id = instruction.id
    baseline = EDITIONS[version].baseline_of(instruction)
    games = tuple(
        PlayedGame(game, row.judge, _verdict(version, game, stored, compat))
        for row in rows.get(id, ())
        for game, stored in zip((BASELINE_FIRST, MODEL_FIRST), row.games, strict=True)
    )
    answer = answers.by_id.get(id) if answers else None
    theirs = baselines[baseline].answers.by_id.get(id) if baseline in baselines else None
    return Match(instruction, answer or UnseenAnswer.to(id), theirs or UnseenAnswer.to(id), baseline, games)


def _verdict(version: Version, game: Game, stored: StoredGame | None, compat: Compat) -> Verdict | None:
    if stored is None:
        return None
    if compat == "official":
        return official_verdict(stored.score, version, game.model_first)
    label = _label(stored)
    return verdict_of(label, game.model_first) if label else None


def _label(stored: StoredGame) -> str | None:
    """The label of a game as we read it."""
    if not (stored.text or "").strip():
        return normalised(stored.score or "")
    label = read_label(stored.text or "")
    return None if isinstance(label, Unreadable) else label


def _notes(
    version: Version,
    model: str,
    instructions: Sequence[Instruction],
    rows: JudgmentsById,
    answers: Answers | None,
    compat: Compat,
) -> Iterable[str]:
    """What is missing or was read otherwise than the file says."""
    category_of = EDITIONS[version].category_of
    touched = {category_of(instruction) for instruction in instructions if instruction.id in rows}
    asked = [instruction.id for instruction in instructions if category_of(instruction) in touched]
    if missing := [id for id in asked if id not in rows]:
        yield f"{model}: no judgments of {_listed(missing, len(asked))}; they do not count"
    if answers is None:
        yield f"{model}: its answers were not given, so nothing is said of length and style"
    games = [game for found in rows.values() for row in found for game in row.games if game]
    if odd := sorted({game.score for game in games if game.score and not normalised(game.score)}):
        count = sum(game.score in odd for game in games)
        what = (
            "1 game has a stored label that is"
            if count == 1
            else f"{count} games have stored labels that are"
        )
        yield f"{model}: {what} none: {', '.join(odd[:LISTED])}"
    stored = [official_verdict(game.score, version, True) for game in games]
    ours = [_verdict(version, MODEL_FIRST, game, "aligned") for game in games]
    pairs = list(zip(stored, ours, strict=True))
    if differ := sum(theirs != mine for theirs, mine in pairs):
        found = sum(theirs is None for theirs, mine in pairs if theirs != mine)
        lost = sum(mine is None for theirs, mine in pairs if theirs != mine)
        took = "the stored ones count" if compat == "official" else "the texts count"
        yield (
            f"{model}: {differ} verdicts read from the judge's text are not the stored ones ({found} are stored as none, "
            f"{lost} are none in the text); {took}"
        )


def _listed(ids: Sequence[str], total: int) -> str:
    named = f" ({', '.join(ids)})" if len(ids) <= LISTED else ""
    return f"{len(ids)} of {total} instructions{named}"


def write_answers(
    path: Path, version: Version, instructions: Sequence[Instruction], answers: Answers
) -> None:
    """Write an answer file, in the order of the instructions; packed if its name ends in `.gz`."""
    _, count_tokens = token_counter()
    _write(
        path,
        (
            answer_row(version, instruction, answers.model, answers.by_id[instruction.id], count_tokens)
            for instruction in instructions
            if instruction.id in answers.by_id
        ),
    )


def write_judgments(
    path: Path,
    version: Version,
    model: str,
    judge: str,
    matches: Iterable[Match],
    judgments: Iterable[Judgment],
) -> None:
    """Write the judgment file of one judge about one model; packed if its name ends in `.gz`.

    Args:
        path: of the file.
        version: of the bench.
        model: its name.
        judge: its name.
        matches: of the model, with this judge's games alone. Those that were lost without a judge are written too.
        judgments: what the judge said; of several judgments of the same game the last counts.
    """
    said: dict[str, dict[int, str]] = {}
    for judgment in judgments:
        if judgment.raw is not None:
            said.setdefault(judgment.id, {})[judgment.game] = judgment.raw
    _write(
        path,
        (judgment_row(version, model, judge, match, said.get(match.instruction.id, {})) for match in matches),
    )


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    encode = msgspec.json.Encoder().encode
    content = b"".join(encode(row) + b"\n" for row in rows)
    write_whole(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
