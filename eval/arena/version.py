"""What the two versions of Arena-Hard differ in, as data: names, judges, baselines, prompts and settings.

Source: lm-sys/arena-hard-auto@efc012e `config/judge_config.yaml` (v0.1); lmarena/arena-hard-auto@196f6b8
`utils/judge_utils.py`, `config/arena-hard-v2.0.yaml` (v2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from thinkserve.errors import UsageError
from thinkserve.eval.instruction import Instruction

Version = Literal["v0.1", "v2.0"]


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How a judge is sampled."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Edition:
    """One version of the bench."""

    version: Version
    bench: str
    """Its name on the command line."""
    folder: str
    """Of its files in a data folder."""
    judges: tuple[str, ...]
    """Whose verdicts the published numbers are made of; the first is the default."""
    settings: JudgeSettings
    settings_of: Mapping[str, JudgeSettings] = field(default_factory=dict)
    """Of judges that are sampled otherwise, by the beginning of their name."""
    baselines: Mapping[str, str] = field(default_factory=dict)
    """From category to the model that others are judged against; "" where there are no categories."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """From category to the judge's system prompt, a file in `prompts/`."""
    follow_up: bool = False
    """Whether a judge that gave no verdict is asked once more."""
    ci_level: float = 0.95
    """Of the interval that the authors print."""

    def category_of(self, instruction: Instruction) -> str:
        """The category that decides about baseline and prompt.

        Raises:
            UsageError: the bench has no such category.
        """
        category = instruction.categories.get("category", "") if "" not in self.baselines else ""
        if category not in self.baselines:
            raise UsageError(
                f"instruction {instruction.id}: field 'category' is {category!r}, and {self.bench} has "
                f"{', '.join(self.baselines)}"
            )
        return category

    def baseline_of(self, instruction: Instruction) -> str:
        """The model that others are judged against on an instruction."""
        return self.baselines[self.category_of(instruction)]

    def sampling_of(self, judge: str | None) -> JudgeSettings:
        """How a judge is sampled; every judge that the authors did not use is sampled as their first one."""
        name = (judge or self.judges[0]).rsplit("/", 1)[-1]
        special = (settings for start, settings in self.settings_of.items() if name.startswith(start))
        return next(special, self.settings)


EDITIONS: Mapping[Version, Edition] = {
    "v0.1": Edition(
        version="v0.1",
        bench="arena-hard-v0.1",
        folder="arena_hard_v0.1",
        judges=("gpt-4-1106-preview",),
        settings=JudgeSettings(temperature=0.0, max_tokens=4096),
        baselines={"": "gpt-4-0314"},
        prompts={"": "own_answer.txt"},
        follow_up=True,
    ),
    "v2.0": Edition(
        version="v2.0",
        bench="arena-hard",
        folder="arena_hard_v2.0",
        judges=("gpt-4.1", "gemini-2.5"),
        settings=JudgeSettings(temperature=0.0, max_tokens=16000),
        settings_of={"gemini-2.5": JudgeSettings(temperature=1.0, max_tokens=32000)},
        baselines={"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"},
        prompts={"hard_prompt": "own_answer.txt", "creative_writing": "creative_writing.txt"},
        ci_level=0.9,
    ),
}
