"""Where the official data is, and small matches made by hand."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from thinkserve.eval.answer import Answer, Style
from thinkserve.eval.arena.verdict import verdict_of
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Game, Match, PlayedGame
from thinkserve.thoughts import Response

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("THINKSERVE_EVAL_DATA", ROOT.parent / "shared" / "data"))
V01, V20 = DATA / "arena_hard_v0.1", DATA / "arena_hard_v2.0"
V01_MODELS = ("gpt-3.5-turbo-0125", "qwen2.5-72b-instruct", "mistral-small-24b-2501")
V20_MODELS = ("sky-t1-32b", "llama3.1-8b-instruct")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the official data at {DATA}")
GAMES = (Game(0, model_first=False), Game(1, model_first=True))


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a packed file of JSON lines."""
    import gzip

    return [msgspec.json.decode(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def expected(folder: Path) -> Any:
    return msgspec.json.decode((folder / "expected.json").read_bytes())


def match(
    id: str,
    labels: Sequence[str | None],
    *,
    judge: str = "gpt-4.1",
    baseline: str = "o3-mini-2025-01-31",
    style: Style | None = None,
    complete: bool = True,
    **categories: str,
) -> Match:
    """A match with a label for each game; every two games are of one judge (`judge`, `judge'`, ...)."""
    games = tuple(
        PlayedGame(
            GAMES[number % 2],
            judge + "'" * (number // 2),
            verdict_of(label, GAMES[number % 2].model_first) if label else None,
        )
        for number, label in enumerate(labels)
    )
    answer = Answer(id, Response("four"), complete, style or Style(1, 0, 0, 0))
    other = Answer(id, Response("eight..."), True, Style(2, 0, 0, 0))
    return Match(Instruction(id, f"question {id}", categories), answer, other, baseline, games)
