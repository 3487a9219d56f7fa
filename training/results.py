"""`results.json`: how good each iteration's model is, arm by arm, and what thinking adds, with paired intervals.

All shares, accuracies, win rates and differences are from 0 to 1 (differences from -1 to 1), lengths are in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from thinkserve.eval.records import write_whole
from thinkserve.eval.statistics import bootstrap_mean_ci, holm, paired_bootstrap
from thinkserve.training import records
from thinkserve.training.folder import DECODINGS, Decoding, TrainFolder
from thinkserve.training.prompts.row import CATEGORY
from thinkserve.training.recipe import Arm, Recipe
from thinkserve.training.records import EvaluationRecord
from thinkserve.training.split import mean

SCHEMA = "thinkserve.train/1"


def write_results(run: TrainFolder, recipe: Recipe) -> dict[str, Any]:
    """Write what is measured so far, and return it."""
    results = make_results(run, recipe)
    write_whole(run.results, msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    return results


def make_results(run: TrainFolder, recipe: Recipe) -> dict[str, Any]:
    """The results of all iterations that were measured in any arm; an arm that was not is absent."""
    iterations = []
    for number in range(recipe.iterations + 1):
        measured = {
            arm: {name: records.read(_path(run, arm, number, name), EvaluationRecord) for name in DECODINGS}
            for arm in recipe.arms
            if run.iteration(arm, number).marker("evaluate").exists()
        }
        if measured:
            iterations.append({"iteration": number, **_iteration(measured, recipe)})
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "metric": recipe.evaluate.metric,
        "recipe": msgspec.to_builtins(recipe),
        "iterations": iterations,
    }


def _path(run: TrainFolder, arm: Arm, number: int, decoding: Decoding) -> Any:
    return run.iteration(arm, number).evaluation(decoding)


def _iteration(
    measured: Mapping[Arm, Mapping[Decoding, Sequence[EvaluationRecord]]], recipe: Recipe
) -> dict[str, Any]:
    found: dict[str, Any] = {
        arm: {name: measure(some, recipe.evaluate.metric, recipe.seed) for name, some in by_decoding.items()}
        for arm, by_decoding in measured.items()
    }
    if len(measured) == 2:
        found["paired"] = {
            name: compare(measured["thought"][name], measured["direct"][name], recipe.seed)
            for name in DECODINGS
        }
    return found


def measure(found: Sequence[EvaluationRecord], metric: str, seed: int) -> dict[str, Any]:
    """M: the numbers of one model in one way of decoding.

    Args:
        found: one record an instruction.
        metric: the name of what the values mean: `accuracy` or `win_rate`.
        seed: of the bootstrap.
    """
    readable = [record for record in found if record.problem is None]
    return {
        **_rate(found, metric, seed),
        "parse_failures": mean([float(record.problem is not None) for record in found]),
        "mean_thought_tokens": mean([record.thought_tokens for record in readable]),
        "mean_response_tokens": mean([record.response_tokens for record in readable]),
        "categories": {
            name: _rate(some, metric, seed) for name, some in _by_category(found, lambda one: one).items()
        },
    }


def _rate(found: Sequence[EvaluationRecord], metric: str, seed: int) -> dict[str, Any]:
    values = [record.value for record in found if record.value is not None]
    scores = [record.score for record in found if record.score is not None]
    return {
        "n": len(found),
        "unscored": len(found) - len(values),
        metric: mean(values),
        "ci": bootstrap_mean_ci(values, seed=seed) if values else None,
        "score": mean(scores),
    }


Pair = tuple[EvaluationRecord, EvaluationRecord]
T = TypeVar("T")


def compare(
    thought: Sequence[EvaluationRecord], direct: Sequence[EvaluationRecord], seed: int
) -> dict[str, Any]:
    """How much better thought mode is, instruction by instruction, overall and by category.

    Instructions that are unscored for one of the two are left out of both.
    """
    other = {record.id: record for record in direct}
    pairs = [
        (record, other[record.id])
        for record in thought
        if record.id in other and record.value is not None and other[record.id].value is not None
    ]
    if not pairs:
        return {"n": 0, "difference": None, "ci": None, "p": None, "categories": {}}
    categories = {
        name: _difference(some, seed) for name, some in _by_category(pairs, lambda pair: pair[0]).items()
    }
    corrected = holm({name: found["p"] for name, found in categories.items()})
    return {
        **_difference(pairs, seed),
        "categories": {name: {**found, "p_holm": corrected[name]} for name, found in categories.items()},
    }


def _difference(pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    result = paired_bootstrap([(one.value or 0.0) - (two.value or 0.0) for one, two in pairs], seed=seed)
    return {"n": len(pairs), "difference": result.difference, "ci": result.ci, "p": result.p}


def _by_category(found: Sequence[T], record: Callable[[T], EvaluationRecord]) -> dict[str, list[T]]:
    members: dict[str, list[T]] = {}
    for one in found:
        if (name := record(one).categories.get(CATEGORY)) is not None:
            members.setdefault(name, []).append(one)
    return members
