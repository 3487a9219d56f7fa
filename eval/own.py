"""The files of a run's own folder as the formats of a bench that has no official ones."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answers
from thinkserve.eval.baselines import Baselines
from thinkserve.eval.bench import Bench
from thinkserve.eval.folder import answers_in
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Match, PlayedGame
from thinkserve.eval.records import read_bytes, read_records
from thinkserve.eval.report.loading import read_judgments


def read_own(path: Path) -> Answers:
    """Answers as a run writes them, whose lines name the model.

    Raises:
        UsageError: the file is malformed, or of several models.
    """
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    records = read_records(path)
    first, *others = records
    named = first.get("model", stem)
    if not isinstance(named, str):
        raise first.error("model", "must be a string")
    for record in others:
        if (name := record.get("model", named)) != named:
            raise record.error(
                "model", f"is {name!r}, and was {named!r} before: give one file for each model"
            )
    return answers_in(records, named)


def read_matches(
    bench: Bench, answers: Sequence[Answers], baseline_answers: Sequence[Answers], judgments: Sequence[Path]
) -> tuple[dict[str, list[Match]], tuple[str, ...]]:
    """The matches that judgments are about, with the answers that were judged; and notes on what is missing.

    Args:
        bench: that was asked.
        answers: of the models that were judged; a baseline's may be among them.
        baseline_answers: where the bench has none of its own.
        judgments: files of a run.

    Raises:
        UsageError: a file is malformed, the answers of a model are missing, or its judges are not those of another.
    """
    by_model = _by_model(bench, judgments)
    known = _by_name("--answers", answers)
    baselines = {**known, **_by_name("--baseline-answers", baseline_answers)}
    matches: dict[str, list[Match]] = {}
    notes = []
    for model, found in by_model.items():
        if model not in known:
            raise UsageError(
                f"{found[0].path}: field 'model' is {model!r}, and there are no answers of it: give its file with "
                "--answers"
            )
        of = _baselines(bench, baselines, known[model], found)
        for placed in found:
            _check_answered(placed, known[model], of)
        played = _matches(bench, known[model], of, [placed.judgment for placed in found])
        if missing := len(bench.instructions) - len(played):
            notes.append(f"{model}: {missing} of {len(bench.instructions)} instructions have no answer")
        matches[model] = played
    return matches, tuple(notes)


def _by_name(option: str, answers: Sequence[Answers]) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for some in answers:
        if some.model in found:
            raise UsageError(f"{option}: two files have the answers of {some.model!r}; give one")
        found[some.model] = some
    return found


@dataclass(frozen=True, slots=True)
class _Placed:
    """A judgment, and where it is."""

    judgment: Judgment
    path: Path
    number: int
    """Among the lines of the file that are not blank, from 0."""

    def error(self, field: str, problem: str) -> UsageError:
        """The error to raise about a field."""
        lines = read_bytes(self.path).split(b"\n")
        line = [place for place, line in enumerate(lines, 1) if line.strip()][self.number]
        return UsageError(f"{self.path}:{line}: field {field!r} {problem}")


def _by_model(bench: Bench, files: Sequence[Path]) -> dict[str, list[_Placed]]:
    ids = {instruction.id for instruction in bench.instructions}
    found: dict[str, list[_Placed]] = {}
    for path in files:
        judgments = read_judgments(path)
        if not judgments:
            raise UsageError(f"{path}: the file is empty")
        for number, judgment in enumerate(judgments):
            placed = _Placed(judgment, path, number)
            _check(placed, ids, bench.name, judgments[0])
            found.setdefault(judgment.model, []).append(placed)
    judges = {model: {placed.judgment.judge for placed in some} for model, some in found.items()}
    first, *others = judges
    for model in others:
        if judges[model] != judges[first]:
            raise UsageError(
                f"{found[model][0].path}: mixed judges: field 'judge' is {', '.join(sorted(judges[model]))} for {model}, "
                f"and {', '.join(sorted(judges[first]))} for {first}; models are compared by the same judges"
            )
    return found


def _check(placed: _Placed, ids: Container[str], bench: str, first: Judgment) -> None:
    judgment, verdict = placed.judgment, placed.judgment.verdict
    if judgment.id not in ids:
        raise placed.error(
            "id",
            f"is {judgment.id!r}, which is no instruction of {bench} (of another bench, or another --seed?)",
        )
    if judgment.model == judgment.baseline:
        raise placed.error(
            "baseline", f"is {judgment.baseline!r}, and so is model: a model judged against itself"
        )
    for field in ("model", "judge"):
        here, before = getattr(judgment, field), getattr(first, field)
        if here != before:
            raise placed.error(field, f"is {here!r}, and was {before!r} before: give one file for each")
    if verdict is not None and not (0 <= verdict.preference <= 1 and verdict.weight >= 1):
        raise placed.error("verdict", "must have a preference from 0 to 1, and a weight of at least 1")


def _check_answered(placed: _Placed, answers: Answers, baselines: Baselines) -> None:
    id = placed.judgment.id
    if id not in answers.by_id:
        raise placed.error(
            "id", f"is {id!r}, to which {answers.model} has no answer: what was judged is not there"
        )
    if id not in baselines.names:
        raise placed.error("id", f"is {id!r}, to which the baseline {placed.judgment.baseline} has no answer")


def _baselines(
    bench: Bench, given: Mapping[str, Answers], answers: Answers, judgments: Sequence[_Placed]
) -> Baselines:
    """Those that the judgments name; where an answer was not judged yet, the bench's own or the only one."""
    judged: dict[str, str] = {}
    for placed in judgments:
        name = placed.judgment.baseline
        if judged.setdefault(placed.judgment.id, name) != name:
            raise placed.error(
                "baseline", f"is {name!r}, and was {judged[placed.judgment.id]!r}: score one at a time"
            )
    only = judgments[0].judgment.baseline if len(set(judged.values())) == 1 else None
    asked = [instruction for instruction in bench.instructions if instruction.id in answers.by_id]
    names = {one.id: judged.get(one.id) or only or bench.baseline_of(one) for one in asked}
    known = dict(given)
    if own := [
        one for one in asked if names[one.id] not in given and names[one.id] == bench.baseline_of(one)
    ]:
        known |= bench.baseline_answers(own)
    for placed in judgments:
        if placed.judgment.baseline not in known:
            raise placed.error(
                "baseline",
                f"is {placed.judgment.baseline!r}, and there are no answers of it: give its file with "
                "--baseline-answers",
            )
    there = {
        id: name
        for id, name in names.items()
        if name is not None and name in known and id in known[name].by_id
    }
    return Baselines(there, {name: known[name] for name in dict.fromkeys(there.values())})


def _matches(
    bench: Bench, answers: Answers, baselines: Baselines, judgments: Sequence[Judgment]
) -> list[Match]:
    """In the order of the instructions; of several judgments of a game the last with a verdict counts."""
    latest: dict[tuple[str, str, int], Judgment] = {}
    for judgment in judgments:
        key = (judgment.judge, judgment.id, judgment.game)
        if judgment.verdict is not None or key not in latest:
            latest[key] = judgment
    judges = list(dict.fromkeys(judgment.judge for judgment in judgments))
    return [
        _match(bench, instruction, answers, baselines, judges, latest)
        for instruction in bench.instructions
        if instruction.id in answers.by_id and instruction.id in baselines.names
    ]


def _match(
    bench: Bench,
    instruction: Instruction,
    answers: Answers,
    baselines: Baselines,
    judges: Sequence[str],
    latest: Mapping[tuple[str, str, int], Judgment],
) -> Match:
    name, baseline = baselines.of(instruction)
    answer = answers.by_id[instruction.id]
    games = []
    for judge in judges:
        protocol = bench.protocol_of(judge)
        for game in protocol.games(instruction):
            if answer.complete and baseline.complete:
                judgment = latest.get((judge, instruction.id, game.number))
                verdict = None if judgment is None else judgment.verdict
            else:
                verdict = protocol.forfeit(game, answer.complete, baseline.complete)
            games.append(PlayedGame(game, judge, verdict))
    return Match(instruction, answer, baseline, name, tuple(games))
