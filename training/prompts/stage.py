"""The stage `prompts`: read instructions, clean them, deal them out, and say in a report what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.records import read_bytes, read_records, write_whole
from thinkserve.training.folder import TrainFolder
from thinkserve.training.prompts.cleaning import Cleaned, clean
from thinkserve.training.prompts.contamination import bench_instructions
from thinkserve.training.prompts.dealing import Part, Parts, deal, deal_evaluation
from thinkserve.training.prompts.pocket import NAME as POCKET
from thinkserve.training.prompts.pocket import deal_pocket, draw_evaluation
from thinkserve.training.prompts.source import Source, read_source
from thinkserve.training.recipe import PromptsRecipe, Recipe
from thinkserve.training.stage import StageContext, StageProgress

EVALUATION_SOURCE = "evaluation_source"
"""Instructions that are measured on, in the report among the benches that are not trained on."""


def run(context: StageContext) -> Mapping[str, Any]:
    """Write the instructions of all iterations and of the held-out parts, and the report.

    A run that is given more iterations gets its old files again, and the new ones beside them: a dataset on the Hub is
    read at the commit that was read first.

    Raises:
        UsageError: a source cannot be had, has bad lines or too few instructions, or would now give other instructions
            than those that the run has used.
    """
    folder = context.run
    before = _earlier_report(folder.prompts_report)
    with StageProgress(folder.run_iteration.progress("prompts"), "prompts", "steps") as progress:
        dealt = _deal(context.recipe, before, progress)
    files = {part: _lines(instructions) for part, instructions in dealt.parts.items()}
    if folder.run_iteration.marker("prompts").exists():  # iterations may have used what is there
        _refuse_other_instructions(folder, files)
    sizes = {str(part): len(instructions) for part, instructions in dealt.parts.items()}
    asked = msgspec.to_builtins(context.recipe.prompts)
    report = {"prompts": asked, "seed": context.recipe.seed, **dealt.report, "sizes": sizes}
    # First, so that the commit stays the same after a kill; the last iteration is last, by which a longer run sees that
    # its prompts are all there.
    write_whole(folder.prompts_report, msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    for part, content in files.items():
        write_whole(folder.prompts_of(part), content)
    return {**dealt.counts, "dealt": sum(sizes.values())}


def read_instructions(path: Path) -> list[Instruction]:
    """The instructions of a file that the stage wrote; none of an empty one.

    Raises:
        UsageError: it is not there or malformed.
    """
    if path.exists() and not path.stat().st_size:
        return []
    instructions = []
    for position, record in enumerate(read_records(path)):
        categories = record.get("categories", {})
        if not isinstance(categories, dict):
            raise record.error("categories", "must be an object")
        instructions.append(Instruction(record.text("id"), record.text("text"), categories, position))
        if record.text("id") != id_of(record.text("text")):
            raise record.error("id", "is not that of the text; the file was changed")
    return instructions


@dataclass(frozen=True, slots=True)
class _Dealt:
    parts: Parts
    report: Mapping[str, Any]
    counts: Mapping[str, int]


def _deal(recipe: Recipe, before: Mapping[str, Any], progress: StageProgress) -> _Dealt:
    prompts = recipe.prompts
    progress.begin(3)  # what is not trained on, what is trained on, and the cleaning and dealing
    evaluation: tuple[Instruction, ...] | None = None
    report: dict[str, Any] = {"source": None, EVALUATION_SOURCE: None}
    pocket = _is_pocket(prompts.source)
    # First what may be missing, before a large source is fetched and read.
    benches = {} if pocket else bench_instructions(prompts.decontaminate)
    if prompts.evaluation_source is not None:
        evaluation, report[EVALUATION_SOURCE] = _evaluation(recipe, prompts.evaluation_source, before)
        benches[EVALUATION_SOURCE] = evaluation
    progress.advance()
    if pocket:
        progress.advance()
        parts = deal_pocket(recipe, evaluation=evaluation)
        progress.advance()
        return _Dealt(parts, {**report, "source": {"kind": POCKET}}, {})
    source = read_source(prompts.source, prompts, commit=_commit(before, prompts, "source"))
    progress.advance()
    cleaned = clean(source, prompts, benches)
    parts = deal(cleaned.instructions, recipe, evaluation=evaluation, counted=str(cleaned))
    progress.advance()
    return _Dealt(parts, {**report, "source": _described(source, cleaned)}, cleaned.counts)


def _evaluation(
    recipe: Recipe, name: str, before: Mapping[str, Any]
) -> tuple[tuple[Instruction, ...], Mapping[str, Any]]:
    if _is_pocket(name):
        return draw_evaluation(recipe), {"kind": POCKET}
    commit = _commit(before, recipe.prompts, EVALUATION_SOURCE)
    source = read_source(name, recipe.prompts, key=EVALUATION_SOURCE, commit=commit)
    cleaned = clean(source, recipe.prompts, {})
    return deal_evaluation(cleaned.instructions, recipe, str(cleaned)), _described(source, cleaned)


def _is_pocket(name: str) -> bool:
    return name == POCKET and not Path(name).is_file()


def _described(source: Source, cleaned: Cleaned) -> dict[str, Any]:
    return {**source.description, "counts": cleaned.counts, **cleaned.details}


def _earlier_report(path: Path) -> Mapping[str, Any]:
    return msgspec.json.decode(read_bytes(path), type=dict[str, Any]) if path.exists() else {}


def _commit(before: Mapping[str, Any], prompts: PromptsRecipe, key: str) -> str | None:
    """The commit of a dataset that the run has read already, if the recipe still asks for the same."""
    asked = before.get("prompts", {})
    if (asked.get(key), asked.get("revision")) != (getattr(prompts, key), prompts.revision):
        return None
    commit: str | None = before[key].get("commit")
    return commit


def _refuse_other_instructions(folder: TrainFolder, files: Mapping[Part, bytes]) -> None:
    for part, content in files.items():
        path = folder.prompts_of(part)
        if path.exists() and path.read_bytes() != content:
            raise UsageError(
                f"{path}: would come out different now: the source, a bench or the recipe's `prompts` has changed since; "
                f"put back what was there, or begin in a new --out (or remove {folder.prompts}, if no iteration has begun)"
            )


def _lines(instructions: Any) -> bytes:
    encode = msgspec.json.Encoder().encode
    rows = ({"id": one.id, "text": one.text, "categories": one.categories} for one in instructions)
    return b"".join(encode(row) + b"\n" for row in rows)
