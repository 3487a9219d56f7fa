"""The folder of a training run as a real one would leave it, made up from a seed, finished or stopped anywhere.

Records, pair statistics and results are made by the code that makes those of real runs; what is made up is what models
wrote and how it was scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import msgspec

from tests.eval.report_world import HOSTILE
from thinkserve.eval.instruction import Instruction, id_of
from thinkserve.eval.records import write_records, write_whole
from thinkserve.training import records
from thinkserve.training.folder import IterationFolder, Stage, TrainFolder
from thinkserve.training.pairs.audit import Made, audit
from thinkserve.training.pairs.candidates import candidates_of
from thinkserve.training.pairs.tuning import tune
from thinkserve.training.recipe import (
    Arm,
    ComputeRecipe,
    DpoRecipe,
    EvaluateRecipe,
    JudgeRecipe,
    Mode,
    PairsRecipe,
    PromptsRecipe,
    Recipe,
    SampleRecipe,
)
from thinkserve.training.recipe_file import dump_recipe
from thinkserve.training.records import (
    CutOutput,
    EvaluationRecord,
    OutputRecord,
    PairRecord,
    Problem,
    Sampled,
    SampleRecord,
    ScoreRecord,
)
from thinkserve.training.results import write_results
from thinkserve.training.split import numbers as split_numbers
from thinkserve.training.steps import Step, shared_steps, steps

SKILLS = {
    "copy": (0.93, 0.96, 0.95), "greet": (0.85, 0.97, 0.96), "tell": (0.9, 0.97, 0.97),
    "add": (0.06, 0.58, 0.05), "chain": (0.28, 0.82, 0.44), "count": (0.5, 0.9, 0.74), "trace": (0.15, 0.3, 0.19),
}  # fmt: skip
"""Category: the share that is right in thought mode at the start and at the end, and in direct mode."""
SECONDS: dict[Stage, float] = {
    "prompts": 3.0, "baseline": 12.0, "sample": 31.0, "split": 2.5, "score": 4.0, "pairs": 1.5, "dpo": 42.0,
    "validate": 18.0, "checkpoint": 1.2, "evaluate": 9.0,
}  # fmt: skip
SENTENCES = (
    "The user wants something short that can be checked.",
    "A first draft: list the two facts, then combine them.",
    "Evaluation: the draft is right but too long, and it repeats itself.",
    "So the answer should name the result first, and give one reason.",
    "Let me look at the edge case, which the draft has left out.",
)
BEGAN = 1_760_000_000.0


@dataclass(frozen=True)
class World:
    """What kind of run."""

    mode: Mode = "both"
    iterations: int = 3
    metric: str = "accuracy"
    instructions: int = 210
    skills: tuple[str, ...] = tuple(SKILLS)
    """Categories; names beyond those of `SKILLS` get numbers of their own, and no name at all no category."""
    gain: float = 1.0
    """How much of the thought arm's gain comes about."""
    sampled_noise: float = 0.1
    hostile: bool = False
    """Instructions, thoughts, responses and categories that try to break out of the page."""
    long: bool = False
    """Thoughts and responses as an 8B model writes them."""
    parallel: bool = True
    stop_before: Step | None = None
    """The step at which the run was killed; None: it is finished."""
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """Of the run."""
        pocket = JudgeRecipe(kind="function", function="thinkserve.training.pocket.judge:score")
        return Recipe(
            name=HOSTILE[0] if self.hostile else "pocket",
            model="pocket-seed",
            mode=self.mode,
            iterations=self.iterations,
            seed=self.seed,
            prompts=PromptsRecipe(
                source="pocket", per_iteration=60, evaluation=self.instructions, validation=40
            ),
            sample=SampleRecipe(k=4, temperature=1.0, top_p=1.0, max_tokens=96),
            judge=pocket if self.metric == "accuracy" else JudgeRecipe(),
            pairs=PairsRecipe(broken="fill"),
            dpo=DpoRecipe(epochs=3, batch=8, learning_rate=1e-4),
            evaluate=EvaluateRecipe(metric=self.metric, examples=12),  # type: ignore[arg-type]
            compute=ComputeRecipe(parallel_arms=self.parallel, threads=1),
            notes={"why": HOSTILE[1]} if self.hostile else {},
        )


def build(path: Path, world: World) -> Path:
    """Write the folder of a run."""
    recipe = world.recipe
    run = TrainFolder(path, recipe.mode)
    write_whole(run.recipe, dump_recipe(recipe).encode())
    instructions = _instructions(world, "evaluation", world.instructions)
    for step in _done(world):
        folder = step.folder(run)
        told = _stage(run, folder, world, step, instructions)
        write_marker(folder, step.stage, SECONDS[step.stage] * _factor(step), told)
        if step.stage == "evaluate":
            write_results(run, recipe)
    return path


def _done(world: World) -> list[Step]:
    found = list(shared_steps(world.recipe))
    arms = [list(steps(world.recipe, arm)) for arm in world.recipe.arms]
    if world.parallel:
        found += [step for both in zip(*arms, strict=True) for step in both]
    else:
        found += [step for arm in arms for step in arm]
    return found if world.stop_before is None else found[: found.index(world.stop_before)]


def _factor(step: Step) -> float:
    return 1 + 0.03 * step.iteration - (0.4 if step.arm == "direct" else 0.0)


def write_marker(folder: IterationFolder, stage: Stage, seconds: float, told: dict[str, Any]) -> None:
    """Say that a stage is finished."""
    marker = {
        "schema": "thinkserve.stage/1", "version": records.VERSION, "stage": stage, "began": BEGAN,
        "seconds": seconds, "numbers": told,
    }  # fmt: skip
    write_whole(folder.marker(stage), msgspec.json.encode(marker))


def _instructions(world: World, part: str, count: int) -> list[Instruction]:
    random = Random(f"{world.seed} {part}")
    found = []
    for number in range(count):
        a, b = random.randrange(100, 999), random.randrange(100, 999)
        name = world.skills[number % len(world.skills)] if world.skills else None
        text = (
            f"{name or 'add'} {a} {b}, part {number}"
            if not world.long
            else f"Explain how {a} and {b} are related. " * 4
        )
        if world.hostile:
            text += f" {HOSTILE[number % len(HOSTILE)]}"
        found.append(Instruction(id_of(text), text, {} if name is None else {"category": name}, number))
    return found


def _write_prompts(path: Path, instructions: Sequence[Instruction]) -> None:
    lines = [{"id": one.id, "text": one.text, "categories": dict(one.categories)} for one in instructions]
    write_records(path, lines)


def _stage(
    run: TrainFolder, folder: IterationFolder, world: World, step: Step, evaluation: Sequence[Instruction]
) -> dict[str, Any]:
    if step.stage == "prompts":
        _write_prompts(run.prompts_of("evaluation"), evaluation)
        report = {
            "prompts": {"per_iteration": 60},
            "seed": world.seed,
            "source": {
                "kind": "hub", "name": HOSTILE[2] if world.hostile else "openbmb/UltraFeedback", "commit": "40b436560ca83",
                "counts": {"read": 5210, "bad_lines": 0, "too_long": 3, "duplicates": 31, "contaminated": 2, "left": 5174},
                "contamination": {
                    "benches": {"alpaca-eval": 2, "arena-hard": 0},
                    "examples": [{"id": "a1", "text": evaluation[0].text, "bench": "alpaca-eval"}],
                },
            },
            "evaluation_source": None,
            "sizes": {"validation": 40, "evaluation": len(evaluation)},
        }  # fmt: skip
        write_whole(run.prompts_report, msgspec.json.encode(report))
        return {"instructions": 450}
    if step.stage == "sample":
        return _sample(folder, world, step)
    if step.stage == "split":
        outputs = [one for record in records.read(folder.outputs, OutputRecord) for one in record.outputs]
        return split_numbers(outputs)
    if step.stage == "pairs":
        return _pairs(run, folder, world, step)
    if step.stage == "dpo":
        return _dpo(folder, world, step)
    if step.stage == "validate":
        return _validate(folder, step)
    if step.stage == "evaluate":
        for decoding in ("greedy", "sampled"):
            evaluated = [_evaluated(world, step, decoding, one) for one in evaluation]
            records.write(folder.evaluation(decoding), evaluated)
        return {"output_tokens": 9000}
    return {"generated_tokens": 4000} if step.stage == "baseline" else {}


def _chance(world: World, arm: Arm, iteration: int, category: str | None) -> float:
    start, end, direct = SKILLS.get(category or "count", (0.4, 0.6, 0.5))
    if arm == "direct":
        return direct + 0.01 * iteration
    part = math.pow(iteration / max(1, world.iterations), 0.6)
    return start + world.gain * (end - start) * part


def _cut(
    world: World, arm: Arm, iteration: int, right: float, draw: Random, text: str
) -> tuple[CutOutput, str]:
    """An output, and its raw text."""
    problem: Problem | None = None
    if draw.random() < (0.05 if arm == "thought" else 0.01) / (1 + iteration):
        problem = draw.choice(("unclosed", "truncated", "empty"))
    ok = draw.random() < right
    answer = str(draw.randrange(1000)) if not ok else str(sum(map(ord, text)) % 1000)
    thought = ""
    if arm == "thought":
        vague = draw.random() < 0.5 / (1 + iteration)
        thought = f"maybe {draw.randrange(1000)}" if vague else f"{answer[-1:]} carry 1, then {answer}"
    if world.long:
        thought = " ".join(draw.choices(SENTENCES, k=30 - 4 * iteration)) if arm == "thought" else ""
        answer = " ".join(draw.choices(SENTENCES, k=14))
    if world.hostile:
        answer += HOSTILE[draw.randrange(len(HOSTILE))]
        thought += HOSTILE[draw.randrange(len(HOSTILE))] if arm == "thought" else ""
    raw = f"{thought}<R>{answer}" if arm == "thought" else answer
    response = "" if problem else answer
    cut = CutOutput(
        thought, response, problem, len(thought.split()) + 1 if thought else 0, len(answer.split())
    )
    return cut, raw


def _evaluated(world: World, step: Step, decoding: str, asked: Instruction) -> EvaluationRecord:
    name = asked.categories.get("category")
    # The same instructions are hard for all models, so that pairs tell more than two rates.
    hard = Random(f"{world.seed} {asked.id}").random()
    draw = Random(f"{world.seed} {asked.id} {step.arm} {step.iteration} {decoding}")
    chance = _chance(world, step.arm, step.iteration, name) - (
        world.sampled_noise if decoding == "sampled" else 0
    )
    right = hard * 0.6 + draw.random() * 0.4 < chance
    cut, _ = _cut(world, step.arm, step.iteration, float(right), draw, asked.text)
    value = float(right and cut.problem is None)
    if world.metric == "win_rate" and cut.problem is None and draw.random() < 0.1:
        value = 0.5
    score = None if cut.problem else round(0.3 + 0.7 * value - 0.1 * draw.random() * (value < 1), 3)
    categories = dict(asked.categories)
    if world.hostile and name is not None:
        categories = {"category": f"{name} {HOSTILE[len(name) % len(HOSTILE)]}"}
    return EvaluationRecord(
        asked.id, cut.thought, cut.response, cut.problem, cut.thought_tokens, cut.response_tokens, score, value,
        categories,
    )  # fmt: skip


def _sample(folder: IterationFolder, world: World, step: Step) -> dict[str, Any]:
    samples, cuts, scored = [], [], []
    for asked in _instructions(world, f"iter-{step.iteration}", 60):
        draw = Random(f"{world.seed} {asked.id} {step.arm}")
        right = _chance(world, step.arm, step.iteration, asked.categories.get("category"))
        found = [_cut(world, step.arm, step.iteration, right, draw, asked.text) for _ in range(4)]
        samples.append(SampleRecord(asked.id, tuple(Sampled(raw, "stop", 8) for _, raw in found)))
        cuts.append(OutputRecord(asked.id, tuple(cut for cut, _ in found)))
        scores = tuple(None if cut.problem else round(draw.random(), 1) for cut, _ in found)
        scored.append(ScoreRecord(asked.id, scores))
    records.write(folder.samples, samples)
    records.write(folder.outputs, cuts)
    records.write(folder.scores, scored)
    return {"engine": "transformers 5.19.0", "prompt_tokens": 5400, "output_tokens": 61_000 + step.iteration}


def _pairs(run: TrainFolder, folder: IterationFolder, world: World, step: Step) -> dict[str, Any]:
    instructions = _instructions(world, f"iter-{step.iteration}", 60)
    outputs = records.read(folder.outputs, OutputRecord)
    groups = [
        candidates_of(sample, cut, scored, world.recipe.pairs, folder.scores)
        for sample, cut, scored in zip(
            records.read(folder.samples, SampleRecord),
            outputs,
            records.read(folder.scores, ScoreRecord),
            strict=True,
        )
    ]
    tuning = tune(groups, world.recipe.pairs, world.seed)
    statistics = audit(Made(instructions, outputs, groups, tuning), world.recipe, world.seed)
    statistics = {"arm": step.arm, "iteration": step.iteration, **statistics}
    write_whole(folder.pair_statistics, msgspec.json.encode(statistics))
    records.write(folder.pairs, list[PairRecord]())
    return {"pairs": statistics["counts"]["pairs"], "rho": statistics["rho"]}


def _dpo(folder: IterationFolder, world: World, step: Step) -> dict[str, Any]:
    lines = []
    draw = Random(f"{world.seed} {step}")
    for number in range(1, 151):
        grown = 1 - math.exp(-number / 50)
        margin = (1.6 if step.arm == "thought" else 0.7) * grown + draw.gauss(0, 0.15)
        lines.append(
            {
                "loss": round(0.69 - 0.3 * grown, 4), "rewards/chosen": round(margin / 3, 4),
                "rewards/rejected": round(-2 * margin / 3, 4), "rewards/margins": round(margin, 4),
                "rewards/accuracies": round(min(1.0, 0.5 + 0.3 * grown + draw.gauss(0, 0.05)), 4),
                "learning_rate": 1e-4, "step": number, "epoch": round(number / 50, 3),
            }
        )  # fmt: skip
    write_records(folder.dpo_log, lines)
    return {"pairs": 55, "tokens": 88_000, "steps": 150, "device": "cpu", "peak_memory_bytes": None}


def _validate(folder: IterationFolder, step: Step) -> dict[str, Any]:
    base = 0.5 + 0.05 * step.iteration
    found = [
        {"epoch": epoch, "n": 40, "mean_score": round(base + gained, 4), "broken": round(0.02 * epoch, 3)}
        for epoch, gained in enumerate((0.0, 0.04, 0.06, 0.055))
    ]
    state = {"candidates": found, "chosen": 2, "reason": "the best mean score of 3 epochs"}
    write_whole(folder.validation, msgspec.json.encode(state))
    return {"chosen": 2, "mean_score": fmean([base, base + 0.06])}


def stopped(world: World, arm: Arm, iteration: int, stage: Stage) -> World:
    """The same run, killed in a stage."""
    return replace(world, stop_before=Step(arm, iteration, stage))
