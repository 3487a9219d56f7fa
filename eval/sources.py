"""Where the official files come from: repositories at pinned commits, and the sums of what must arrive.

How each sum was established:

* AlpacaEval: published for this revision by two public repositories.
* Arena-Hard questions (both versions) and the v2.0 answers of o3-mini: computed from files that were made again from an
  independent copy of the same rows, and equal to sums that others published for this commit.
* Arena-Hard v2.0 answers of gemini-2.0-flash-001: published for this commit by one public repository, in one list with
  two of the sums above. Not computed here.
* Without a sum (`sha256=None`): the v0.1 answers of gpt-4-0314, answers of any other model, and UltraFeedback. Nobody's
  sum for them could be confirmed. The commit is pinned in full, and the sum of what first came is recorded beside the
  file and checked ever after (`data.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

ALPACA = ("tatsu-lab/alpaca_eval", "2edc6fad8be6b14ea7230aabfd08188da6b8b814")
ARENA = ("lmarena/arena-hard-auto", "196f6b826783b3da7310e361a805fa36f0be83f3")
ULTRAFEEDBACK = ("HuggingFaceH4/ultrafeedback_binarized", "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85")

HUB = "https://huggingface.co"
GITHUB = "https://raw.githubusercontent.com"

_ANSWERS = re.compile(r"arena_hard_(v0\.1|v2\.0)/model_answer/(\w[\w.@+-]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of one commit."""

    origin: Literal["hub", "github"]
    """`hub`: a data set at the Hugging Face hub."""
    repository: str
    commit: str
    """All 40 digits: it names its contents, so the repository's owner cannot change them."""
    path: str
    place: str
    """In the cache."""
    sha256: str | None = None
    """None: not known before the first download."""

    def url(self, hub: str = HUB, github: str = GITHUB) -> str:
        """Where the file is."""
        if self.origin == "hub":
            return f"{hub}/datasets/{self.repository}/resolve/{self.commit}/{self.path}"
        return f"{github}/{self.repository}/{self.commit}/{self.path}"


def source_of(name: str) -> Source | None:
    """Where the file of a name comes from; None: from nowhere but a folder of the user's.

    Args:
        name: as `EvalData.find` takes it.
    """
    if name in SOURCES:
        return SOURCES[name]
    if answers := _ANSWERS.fullmatch(name):
        return _arena(answers[1], f"model_answer/{answers[2]}.jsonl", None)
    return None


def _alpaca(path: str, place: str, sha256: str) -> Source:
    return Source("hub", *ALPACA, path, f"alpaca_eval/{place}", sha256)


def _arena(version: str, path: str, sha256: str | None) -> Source:
    place = f"arena_hard_{version}/{path}"
    return Source("github", *ARENA, f"data/arena-hard-{version}/{path}", place, sha256)


# Instructions and reference outputs are one file.
_BASELINE = _alpaca(
    "alpaca_eval_gpt4_baseline.json",
    "reference_outputs/gpt4_1106_preview.json",
    "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4",
)

SOURCES = {
    "alpaca_eval/instructions": _BASELINE,
    "alpaca_eval/reference_outputs/gpt4_1106_preview": _BASELINE,
    "alpaca_eval/glm/df_gamed": _alpaca(
        "df_gamed.csv",
        "glm/df_gamed.csv",
        "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d",
    ),
    "alpaca_eval/glm/instruction_difficulty": _alpaca(
        "instruction_difficulty.csv",
        "glm/instruction_difficulty.csv",
        "e28d875bb334f75e17acd1e4ed659b261860e3db379cf5de29060301bed0a18b",
    ),
    "arena_hard_v0.1/question": _arena(
        "v0.1", "question.jsonl", "2650242d2883f22b2abd498f273b6a7e02253cce533f5c91a858e1d44aa3002f"
    ),
    "arena_hard_v2.0/question": _arena(
        "v2.0", "question.jsonl", "a75cef6623db6b27aec810497b059f0659705d7ff48dcbccc5bd5b130728ac73"
    ),
    "arena_hard_v2.0/model_answer/o3-mini-2025-01-31": _arena(
        "v2.0",
        "model_answer/o3-mini-2025-01-31.jsonl",
        "c23a7c255eead99f7f86ad48aa1d8ccdb5b3334f2097e0e1e09184df87265e03",
    ),
    "arena_hard_v2.0/model_answer/gemini-2.0-flash-001": _arena(
        "v2.0",
        "model_answer/gemini-2.0-flash-001.jsonl",
        "70f614e1345f787a1da98c239d27f6df3c1d26b411cf894949f934a3039d6f0b",
    ),
    # Its 2000 preferences of the test split: TPO trains on the instructions of the train split at most.
    "categories/instructions": Source(
        "hub", *ULTRAFEEDBACK, "data/test_prefs-00000-of-00001.parquet", "categories/instructions.parquet"
    ),
}
