"""What the tests of AlpacaEval share: the official files, small files of their own, and the whole package to compare with."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.alpaca.bench import AlpacaEvalBench
from thinkserve.eval.answer import Answer
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict
from thinkserve.eval.records import read_records
from thinkserve.thoughts import Response

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("THINKSERVE_EVAL_DATA", ROOT.parent / "shared" / "data"))
OFFICIAL = DATA / "alpaca_eval"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the official data at {DATA}")

MODELS = (
    "claude-2.1",
    "gpt-3.5-turbo-1106",
    "gemma-7b-it",
    "FuseChat-Llama-3.1-8B-Instruct",
    "OpenHermes-2.5-Mistral-7B",
    "vicuna-7b",
    "NullModel",
    "alpaca-7b_concise",
)


class Folder:
    """The official files as they lie in a folder, by name without the ending."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, name: str) -> Path:
        folder = (self.path / name).parent
        for path in sorted(folder.glob(f"{Path(name).name}.*")):
            return path
        raise UsageError(f"{folder}: there is no {Path(name).name}")


@cache
def official_bench() -> AlpacaEvalBench:
    return AlpacaEvalBench(Folder(DATA))


@cache
def official_rows(model: str) -> Sequence[Mapping[str, Any]]:
    return [record.data for record in read_records(annotations_of(model))]


@cache
def expected() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((OFFICIAL / "expected.json").read_text())
    return found


def annotations_of(model: str) -> Path:
    return OFFICIAL / "annotations" / f"{model}.jsonl.gz"


def outputs_of(model: str) -> Path:
    return OFFICIAL / "model_outputs" / f"{model}.jsonl.gz"


def whole_package() -> Any:
    """`alpaca_eval` as its own `__init__` makes it, to compare with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources
        for name in ("completion_parsers", "metrics.glm_winrate", "utils"):
            importlib.import_module(f"alpaca_eval.{name}")
        return sys.modules["alpaca_eval"]


def instruction(text: str, position: int = 0, dataset: str = "koala") -> Instruction:
    return Instruction(id_of(text), text, {"dataset": dataset}, position)


def match(
    text: str,
    preference: float | None,
    response: str,
    baseline: str,
    *,
    position: int = 0,
    judge: str = "gpt-4-1106-preview",
    complete: bool = True,
    baseline_model: str = "gpt4_1106_preview",
) -> Match:
    asked = instruction(text, position)
    return Match(
        asked,
        Answer(asked.id, Response(response), complete),
        Answer(asked.id, Response(baseline)),
        baseline_model,
        (PlayedGame(Game(0, False), judge, None if preference is None else Verdict("M", preference)),),
    )
