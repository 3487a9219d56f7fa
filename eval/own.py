"""The files of a run's own folder as the formats of a bench that has no official ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answers
from thinkserve.eval.baselines import Baselines, one_baseline, own_baselines
from thinkserve.eval.bench import Bench
from thinkserve.eval.folder import read_answers
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Match, PlayedGame
from thinkserve.eval.records import read_records
from thinkserve.eval.report.loading import read_judgments


def read_own(path: Path) -> Answers:
    """Answers as a run writes them, whose lines name the model.

    Raises:
        UsageError: the file is malformed.
    """
    named = read_records(path)[0].get("model")
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    return read_answers(path, named if isinstance(named, str) else stem)


def is_own(path: Path) -> bool:
    """Whether a file of answers is as a run writes them."""
    return "response" in read_records(path)[0].data


def is_judgments(path: Path) -> bool:
    """Whether a file of judgments is as a run writes them."""
    return "key" in read_records(path)[0].data


def read_matches(
    bench: Bench, answers: Sequence[Path], baseline_answers: Sequence[Path], judgments: Sequence[Path]
) -> tuple[dict[str, list[Match]], tuple[str, ...]]:
    """The matches that judgments are about, with the answers that were judged; and notes on what is missing.

    Raises:
        UsageError: a file is malformed, the answers of a model are missing, or its judges are not those of another.
    """
    by_model = _by_model(judgments)
    models = {found.model: found for found in map(read_own, answers)}
    baselines = {found.model: found for found in map(read_own, baseline_answers)}
    matches: dict[str, list[Match]] = {}
    notes = []
    for model, found in by_model.items():
        if model not in models:
            raise UsageError(f"there are judgments of {model!r} and no answers: give its file with --answers")
        played = _matches(bench, models[model], _baselines(bench, baselines, found), found)
        if missing := len(bench.instructions) - len(played):
            notes.append(f"{model}: {missing} of {len(bench.instructions)} instructions have no answer")
        matches[model] = played
    return matches, tuple(notes)


def _by_model(files: Sequence[Path]) -> dict[str, list[Judgment]]:
    found: dict[str, list[Judgment]] = {}
    for path in files:
        judgments = read_judgments(path)
        if not judgments:
            raise UsageError(f"{path}: the file is empty")
        for judgment in judgments:
            found.setdefault(judgment.model, []).append(judgment)
    judges = {model: {judgment.judge for judgment in some} for model, some in found.items()}
    first, *others = judges
    for model in others:
        if judges[model] != judges[first]:
            raise UsageError(
                f"mixed judges: {first} was judged by {', '.join(sorted(judges[first]))}, and {model} by "
                f"{', '.join(sorted(judges[model]))}; models are compared by the same judges"
            )
    return found


def _baselines(bench: Bench, given: Mapping[str, Answers], judgments: Sequence[Judgment]) -> Baselines:
    names = {judgment.baseline for judgment in judgments}
    if len(names) > 1:
        raise UsageError(
            f"{judgments[0].model} was judged against {', '.join(sorted(names))}; score one at a time"
        )
    (name,) = names
    if name in given:
        return one_baseline(given[name])
    own = own_baselines(bench, bench.instructions)
    if set(own.answers) != names:
        raise UsageError(
            f"the answers of the baseline {name!r} are missing: give them with --baseline-answers"
        )
    return own


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
