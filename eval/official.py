"""The file formats of a bench: answers and judgments are read from its official ones and written in them.

A run's own files are read as well; benches without official formats have no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from thinkserve.errors import UsageError
from thinkserve.eval import own
from thinkserve.eval.alpaca.bench import AlpacaEvalBench
from thinkserve.eval.alpaca.files import read_answers as read_alpaca_answers
from thinkserve.eval.alpaca.files import write_annotations
from thinkserve.eval.alpaca.files import write_answers as write_alpaca_answers
from thinkserve.eval.alpaca.matches import read_matches as read_alpaca_matches
from thinkserve.eval.answer import Answers
from thinkserve.eval.arena.bench import ArenaHardBench
from thinkserve.eval.arena.files import read_answers as read_arena_answers
from thinkserve.eval.arena.files import read_matches as read_arena_matches
from thinkserve.eval.arena.files import write_answers as write_arena_answers
from thinkserve.eval.arena.files import write_judgments as write_arena_judgments
from thinkserve.eval.bench import Bench, Compat
from thinkserve.eval.folder import RunFolder, file_name
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.kinds import Format, format_of
from thinkserve.eval.match import Match
from thinkserve.eval.results import Results


class Files(NamedTuple):
    """What `thinkserve score` was given."""

    answers: Sequence[Path]
    baseline_answers: Sequence[Path]
    judgments: Sequence[Path]


def read_answers(bench: Bench, path: Path) -> Answers:
    """The answers of one model.

    Raises:
        UsageError: the file is malformed, or of another bench.
    """
    if format_of(path, "answers", "--answers", bench.name, _formats(bench)) == "run":
        return own.read_own(path)
    if isinstance(bench, AlpacaEvalBench):
        return read_alpaca_answers(path, bench.instructions)
    assert isinstance(bench, ArenaHardBench)
    return read_arena_answers(path, bench.all_instructions)


def _formats(bench: Bench) -> tuple[Format, ...]:
    """Those that a bench's files may have, the likeliest first."""
    if isinstance(bench, AlpacaEvalBench):
        return ("alpaca-eval", "run")
    return ("arena-hard", "run") if isinstance(bench, ArenaHardBench) else ("run",)


def read_matches(
    bench: Bench, files: Files, compat: Compat
) -> tuple[Mapping[str, Sequence[Match]], tuple[str, ...]]:
    """The matches of each judged model, and notes on what is missing.

    Raises:
        UsageError: a file is malformed, or they do not fit together; names file, line and field.
    """
    if not files.judgments:
        raise UsageError("there are no judgments to score: give --judgments FILE")
    formats = _formats(bench)
    first, *others = files.judgments
    format = format_of(first, "judgments", "--judgments", bench.name, formats)
    for path in others:
        format_of(path, "judgments", "--judgments", bench.name, (format,))
    if format == "run":
        return own.read_matches(
            bench,
            [read_answers(bench, path) for path in _once("--answers", files.answers)],
            [read_answers(bench, path) for path in _once("--baseline-answers", files.baseline_answers)],
            files.judgments,
        )
    for path in _once("--answers", files.answers):
        format_of(path, "answers", "--answers", bench.name, (format,))
    for path in _once("--baseline-answers", files.baseline_answers):
        format_of(path, "answers", "--baseline-answers", bench.name, (format,))
    if isinstance(bench, AlpacaEvalBench):
        return _alpaca_matches(bench, files)
    assert isinstance(bench, ArenaHardBench)
    return _arena_matches(bench, files, compat)


def _once(option: str, paths: Sequence[Path]) -> Sequence[Path]:
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise UsageError(f"{path}: is given twice with {option}")
    return paths


def _alpaca_matches(bench: AlpacaEvalBench, files: Files) -> tuple[dict[str, list[Match]], tuple[str, ...]]:
    if len(files.baseline_answers) > 1:
        raise UsageError(
            f"{files.baseline_answers[1]}: alpaca-eval has one baseline; give --baseline-answers once"
        )
    baseline = files.baseline_answers[0] if files.baseline_answers else None
    matches, _, notes = read_alpaca_matches(bench.instructions, files.answers, baseline, files.judgments)
    return matches, tuple(notes)


def _arena_matches(
    bench: ArenaHardBench, files: Files, compat: Compat
) -> tuple[dict[str, list[Match]], tuple[str, ...]]:
    # Style control needs the baselines' answers; where nobody gives them, those of the data are as good.
    baselines = files.baseline_answers or (bench.baseline_files() if files.answers else ())
    version, instructions = bench.edition.version, bench.all_instructions
    found = read_arena_matches(
        version, instructions, files.answers, baselines, files.judgments, compat=compat
    )
    return found.matches, found.notes


def write_official(
    folder: RunFolder,
    bench: Bench,
    instructions: Sequence[Instruction],
    answers: Mapping[str, Answers],
    results: Results,
) -> None:
    """Write answers and judgments of a run in the bench's official formats, if it has any.

    AlpacaEval: `official/MODEL/model_outputs.json`, `official/MODEL/JUDGE/annotations.json`. Arena-Hard:
    `official/model_answer/MODEL.jsonl`, `official/model_judgment/JUDGE/MODEL.jsonl`.
    """
    if isinstance(bench, AlpacaEvalBench):
        _write_alpaca(folder.official, instructions, answers, results)
    if isinstance(bench, ArenaHardBench):
        _write_arena(folder.official, bench, instructions, answers, results)


def _write_alpaca(
    folder: Path, instructions: Sequence[Instruction], answers: Mapping[str, Answers], results: Results
) -> None:
    for model, found in answers.items():
        write_alpaca_answers(folder / file_name(model) / "model_outputs.json", found, instructions)
    for model, judged in results.by_model.items():
        for judge, one in zip(results.judges, judged, strict=True):
            path = folder / file_name(model) / file_name(judge) / "annotations.json"
            write_annotations(path, model, judge, one.matches, _logprobs(one.judgments))


def _logprobs(judgments: Sequence[Judgment]) -> dict[str, Mapping[str, float]]:
    return {one.id: one.top_logprobs for one in judgments if one.top_logprobs is not None}


def _write_arena(
    folder: Path,
    bench: ArenaHardBench,
    instructions: Sequence[Instruction],
    answers: Mapping[str, Answers],
    results: Results,
) -> None:
    version = bench.edition.version
    for model, found in answers.items():
        path = folder / "model_answer" / f"{file_name(model)}.jsonl"
        write_arena_answers(path, version, instructions, found)
    for model, judged in results.by_model.items():
        for judge, one in zip(results.judges, judged, strict=True):
            path = folder / "model_judgment" / file_name(judge) / f"{file_name(model)}.jsonl"
            write_arena_judgments(path, version, model, judge, one.matches, one.judgments)
