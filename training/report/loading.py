"""What the report and the status read of a run's folder. The run may be at work: a file that is not there yet leaves out
what is shown of it, and a last line that was cut short is passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.records import read_bytes
from thinkserve.training.folder import STAGES, Decoding, IterationFolder, Stage, TrainFolder
from thinkserve.training.recipe import Arm, Recipe
from thinkserve.training.recipe_file import kept_recipe
from thinkserve.training.records import EvaluationRecord
from thinkserve.training.report.measures import Results, read_results

T = TypeVar("T")


class Marker(msgspec.Struct, frozen=True):
    """Of a finished stage."""

    seconds: float
    numbers: Mapping[str, Any] = {}


class Candidate(msgspec.Struct, frozen=True):
    """An epoch in validation; 0 is the model that the iteration started from."""

    epoch: int
    mean_score: float | None = None
    broken: float | None = None
    """Share of outputs without a readable response."""
    n: int | None = None


class Validation(msgspec.Struct, frozen=True):
    """How the epochs did."""

    candidates: tuple[Candidate, ...] = ()
    chosen: int | None = None
    reason: str | None = None


class Sampled(msgspec.Struct, frozen=True):
    """What the outputs that were sampled for training were like: the numbers of stage `split`."""

    outputs: int
    problems: Mapping[str, int] = {}
    """From why there is no readable response to how often."""
    parse_failures: float | None = None
    """Share of outputs without one, from 0 to 1."""
    mean_thought_tokens: float | None = None
    mean_response_tokens: float | None = None


class _SplitMarker(msgspec.Struct, frozen=True):
    numbers: Sampled


@dataclass(frozen=True, slots=True)
class IterationView:
    """What there is of one iteration of one arm."""

    arm: Arm
    number: int
    folder: IterationFolder

    @property
    def markers(self) -> dict[Stage, Marker]:
        """Of its finished stages, in order."""
        found = {stage: read_json(self.folder.marker(stage), Marker) for stage in STAGES}
        return {stage: marker for stage, marker in found.items() if marker is not None}

    @property
    def pair_statistics(self) -> Mapping[str, Any] | None:
        """What was counted in making the pairs."""
        return read_json(self.folder.pair_statistics, dict[str, Any])

    @property
    def validation(self) -> Validation | None:
        """How the epochs did."""
        return read_json(self.folder.validation, Validation)

    @property
    def training_log(self) -> list[Mapping[str, Any]]:
        """TRL's log."""
        # Not by msgspec: Python writes NaN, which is no JSON, where a loss came to nothing.
        return [json.loads(line) for line in whole_lines(self.folder.dpo_log)]

    def evaluation(self, decoding: Decoding) -> dict[str, EvaluationRecord]:
        """The measured outputs, by instruction."""
        decode = msgspec.json.Decoder(EvaluationRecord).decode
        return {r.id: r for r in decoded(self.folder.evaluation(decoding), decode)}

    @property
    def sampled(self) -> Sampled | None:
        """What the sampled outputs were like; None before they are cut."""
        marker = read_json(self.folder.marker("split"), _SplitMarker)
        return None if marker is None else marker.numbers


@dataclass(frozen=True, slots=True)
class TrainRun:
    """A training run, finished or not."""

    folder: TrainFolder
    recipe: Recipe
    results: Results | None

    @property
    def arms(self) -> tuple[Arm, ...]:
        """That the recipe runs."""
        return self.recipe.arms

    def iteration(self, arm: Arm, number: int) -> IterationView:
        """One iteration of one arm."""
        return IterationView(arm, number, self.folder.iteration(arm, number))

    def begun(self, arm: Arm) -> list[IterationView]:
        """The iterations of an arm that have a folder, from 0."""
        views = [self.iteration(arm, number) for number in range(self.recipe.iterations + 1)]
        return [view for view in views if view.folder.path.is_dir()]

    @property
    def prompts_report(self) -> Mapping[str, Any] | None:
        """Where the instructions came from."""
        return read_json(self.folder.prompts_report, dict[str, Any])

    @property
    def instructions(self) -> dict[str, Instruction]:
        """Those that iterations are measured on."""
        path = self.folder.prompts_of("evaluation")
        if not path.is_file() or not path.stat().st_size:
            return {}
        from thinkserve.training.prompts.stage import read_instructions

        return {instruction.id: instruction for instruction in read_instructions(path)}

    @property
    def iterations_done(self) -> int:
        """Iterations that every arm has trained and measured."""
        done = 0
        for number in range(1, self.recipe.iterations + 1):
            if any(not self.iteration(arm, number).folder.marker("evaluate").exists() for arm in self.arms):
                break
            done = number
        return done


def read_run(path: Path) -> TrainRun:
    """Look at a run's folder.

    Raises:
        UsageError: it is no training run's, or one of its files is malformed.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such folder")
    recipe_path = path / "recipe.yaml"
    if not recipe_path.is_file():
        raise UsageError(
            f"{path}: there is no recipe.yaml: name a folder that `thinkserve train` has written, or is writing"
        )
    recipe = kept_recipe(recipe_path)
    folder = TrainFolder(path, recipe.mode)
    return TrainRun(folder, recipe, read_results(folder.results))


def read_json(path: Path, kind: type[T]) -> T | None:
    """A file of one JSON value; None where it is not there.

    Raises:
        UsageError: it is malformed; names the field.
    """
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: cannot be read: {exc}") from exc


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that have their end; none where it is not there."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n") and line.strip())


def decoded(path: Path, decode: Any) -> Iterator[Any]:
    """The records of a file.

    Raises:
        UsageError: a whole line is malformed; names it.
    """
    for number, line in enumerate(whole_lines(path), 1):
        try:
            yield decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise UsageError(f"{path}:{number}: {exc}") from exc
