"""The folder of a training run: which file is where.

recipe.yaml                        the recipe with all its keys, as it is run
prompts/iter-N.jsonl               {"id", "text", "categories"}: the instructions of iteration N, for both arms
prompts/validation.jsonl  evaluation.jsonl  report.json
prompts/baseline/greedy.jsonl  sampled.jsonl   the start model's direct responses, where win rates are measured
iter-0/                            the start model: only evaluation/ and stages/
iter-N/                            one iteration of the thought arm (or of the only arm):
    samples.jsonl                  K raw outputs an instruction
    outputs.jsonl                  the same, cut into thought and response
    scores.jsonl                   a score an output, from the judge; judgments/ has what an LLM judge said
    pairs.jsonl  pairs.json        the pairs, and what was counted in making them; pairs.html shows it
    dpo/epoch-E/  dpo/log.jsonl    weights after each epoch, and TRL's log
    validation.json                how the epochs did, and which was chosen; validation/ has their outputs
    checkpoint/                    complete: weights, tokenizer, chat template, thought format, model card
    evaluation/greedy.jsonl  evaluation/sampled.jsonl
    stages/STAGE.json              the marker of a finished stage, written last; stages/STAGE.progress.json while it runs
    logs/STAGE.log
direct/iter-N/                     the same for the direct arm, where both are run
results.json  report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from thinkserve.training.recipe import Arm, Mode

Stage = Literal[
    "prompts", "baseline", "sample", "split", "score", "pairs", "dpo", "validate", "checkpoint", "evaluate"
]
STAGES: tuple[Stage, ...] = get_args(Stage)
Decoding = Literal["greedy", "sampled"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
# What makes M_t out of M_(t-1), in order; `evaluate` measures it, and is all there is of iteration 0.
TRAINING_STAGES: tuple[Stage, ...] = STAGES[2:-1]


@dataclass(frozen=True, slots=True)
class IterationFolder:
    """The files of one iteration of one arm."""

    path: Path

    @property
    def samples(self) -> Path:
        """`SampleRecord`s."""
        return self.path / "samples.jsonl"

    @property
    def outputs(self) -> Path:
        """`OutputRecord`s."""
        return self.path / "outputs.jsonl"

    @property
    def scores(self) -> Path:
        """`ScoreRecord`s."""
        return self.path / "scores.jsonl"

    @property
    def judgments(self) -> Path:
        """What an LLM judge said: a folder."""
        return self.path / "judgments"

    @property
    def pairs(self) -> Path:
        """`PairRecord`s."""
        return self.path / "pairs.jsonl"

    @property
    def pair_statistics(self) -> Path:
        """What was counted in making the pairs."""
        return self.path / "pairs.json"

    @property
    def pair_page(self) -> Path:
        """The same as a page."""
        return self.path / "pairs.html"

    @property
    def dpo(self) -> Path:
        """The trainer's folder."""
        return self.path / "dpo"

    def epoch(self, number: int) -> Path:
        """The weights after an epoch, from 1."""
        return self.dpo / f"epoch-{number}"

    @property
    def dpo_log(self) -> Path:
        """TRL's log: a line a logging step."""
        return self.dpo / "log.jsonl"

    @property
    def validation(self) -> Path:
        """How the epochs did, and which was chosen."""
        return self.path / "validation.json"

    @property
    def validation_outputs(self) -> Path:
        """The outputs of each epoch: a folder."""
        return self.path / "validation"

    @property
    def checkpoint(self) -> Path:
        """The model that the iteration made."""
        return self.path / "checkpoint"

    def evaluation(self, decoding: Decoding) -> Path:
        """`EvaluationRecord`s."""
        return self.path / "evaluation" / f"{decoding}.jsonl"

    def marker(self, stage: Stage) -> Path:
        """There once the stage is finished."""
        return self.path / "stages" / f"{stage}.json"

    def progress(self, stage: Stage) -> Path:
        """How far a running stage is."""
        return self.path / "stages" / f"{stage}.progress.json"

    def log(self, stage: Stage) -> Path:
        """What the stage's process wrote."""
        return self.path / "logs" / f"{stage}.log"


class TrainFolder:
    """Where a run's files are."""

    def __init__(self, path: Path, mode: Mode) -> None:
        """Look at a run's folder.

        Args:
            path: of the run.
            mode: of its recipe: with `both`, the direct arm has a folder of its own.
        """
        self.path, self.mode = path, mode
        self.recipe = path / "recipe.yaml"
        self.prompts = path / "prompts"
        self.results = path / "results.json"
        self.report = path / "report.html"

    def iteration(self, arm: Arm, number: int) -> IterationFolder:
        """The folder of an iteration, from 0 (the start model)."""
        base = self.path / "direct" if self.mode == "both" and arm == "direct" else self.path
        return IterationFolder(base / f"iter-{number}")

    def prompts_of(self, part: int | Literal["validation", "evaluation"]) -> Path:
        """The instructions of an iteration, from 1, or of a held-out part."""
        return self.prompts / f"{part if isinstance(part, str) else f'iter-{part}'}.jsonl"

    def baseline(self, decoding: Decoding) -> Path:
        """What win rates are measured against: `OutputRecord`s with one output each."""
        return self.prompts / "baseline" / f"{decoding}.jsonl"

    @property
    def prompts_report(self) -> Path:
        """Where the instructions came from, and what was left out."""
        return self.prompts / "report.json"

    @property
    def run_iteration(self) -> IterationFolder:
        """Markers and logs of the stages that belong to no arm: `prompts` and `baseline`."""
        return IterationFolder(self.prompts)
