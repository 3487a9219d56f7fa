"""What types cannot say of a recipe: which numbers are possible, and which keys go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from thinkserve.training.recipe import JudgeRecipe, Recipe
from thinkserve.training.recipe_values import Origin

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a key may have."""

    low: float
    high: float | None = None
    low_included: bool = True
    high_included: bool = True

    def holds(self, value: float) -> bool:
        """Whether a number is in it."""
        above = value >= self.low if self.low_included else value > self.low
        if self.high is None:
            return above
        return above and (value <= self.high if self.high_included else value < self.high)

    def __str__(self) -> str:
        low = f"at least {self.low:g}" if self.low_included else f"more than {self.low:g}"
        if self.high is None:
            return low
        return f"{low} and {'at most' if self.high_included else 'less than'} {self.high:g}"


_COUNT = Range(1)
_NOT_NEGATIVE = Range(0)
_POSITIVE = Range(0, low_included=False)
_SHARE = Range(0, 1)
_SHARE_BELOW_ONE = Range(0, 1, high_included=False)
_SHARE_ABOVE_ZERO = Range(0, 1, low_included=False)

_JUDGE: Mapping[str, Range | None] = {
    "batch_tokens": _COUNT,
    "max_length": _COUNT,
    "devices": _COUNT,
    "temperature": _NOT_NEGATIVE,
    "max_tokens": _COUNT,
    "concurrency": _COUNT,
    "prior": _POSITIVE,  # without it an undefeated response has no finite score
    "scale": None,  # any two numbers; their order is checked
    "max_unscored": _SHARE,
}
RANGES: Mapping[str, Range | None] = {
    "iterations": _COUNT,
    "seed": _NOT_NEGATIVE,
    "prompts.per_iteration": _COUNT,
    "prompts.validation": _COUNT,
    "prompts.evaluation": _COUNT,
    "prompts.longest": _COUNT,
    "prompts.near_duplicates": _SHARE_ABOVE_ZERO,
    "sample.k": Range(2),  # a pair is made of two outputs
    "sample.temperature": _POSITIVE,  # greedy outputs would all be the same
    "sample.top_p": _SHARE_ABOVE_ZERO,
    "sample.max_tokens": _COUNT,
    "sample.concurrency": _COUNT,
    "sample.retry_broken": _NOT_NEGATIVE,
    **{f"judge.{key}": range for key, range in _JUDGE.items()},
    "pairs.rho": _NOT_NEGATIVE,
    "pairs.rho_steps": _NOT_NEGATIVE,
    "pairs.max_broken": _SHARE,
    "pairs.min_spread": _NOT_NEGATIVE,
    "pairs.min_chosen_score": None,  # a judge's scores have any range
    "dpo.beta": _POSITIVE,
    "dpo.nll_weight": _NOT_NEGATIVE,
    "dpo.epochs": _COUNT,
    "dpo.learning_rate": _POSITIVE,
    "dpo.warmup_share": _SHARE_BELOW_ONE,
    "dpo.batch": _COUNT,
    "dpo.device_batch": _COUNT,
    "dpo.max_length": _COUNT,
    "dpo.weight_decay": _NOT_NEGATIVE,
    "dpo.max_grad_norm": _NOT_NEGATIVE,
    "dpo.lora.r": _COUNT,
    "dpo.lora.alpha": _COUNT,
    "dpo.lora.dropout": _SHARE_BELOW_ONE,
    "dpo.processes": _COUNT,
    "validate.temperature": _NOT_NEGATIVE,
    "validate.max_broken": _SHARE,
    "validate.max_tokens": _COUNT,
    "evaluate.right_score": None,  # a judge's scores have any range
    "evaluate.temperature": _POSITIVE,  # greedy outputs are measured anyway
    "evaluate.top_p": _SHARE_ABOVE_ZERO,
    "evaluate.max_tokens": _COUNT,
    **{f"evaluate.judge.{key}": range for key, range in _JUDGE.items()},
    "evaluate.examples": _NOT_NEGATIVE,
    "compute.threads": _COUNT,
}
"""Every key that can be a number; None: any number will do."""


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key; None where it is part of something that is not there."""
    value: Any = recipe
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value


def check(recipe: Recipe, origin: Origin) -> None:
    """Hold a recipe against what is possible.

    Raises:
        UsageError: naming the first value that is not.
    """
    for key, range in RANGES.items():
        value = value_of(recipe, key)
        for number in value if isinstance(value, tuple) else (value,):
            if range is not None and isinstance(number, int | float) and not range.holds(number):
                raise origin.wrong(key, value, f"give {range}")
    for check in (_sampling, _judges, _pairs, _batch, _metric):
        for key, expected in check(recipe):
            raise origin.wrong(key, value_of(recipe, key), expected)


def _sampling(recipe: Recipe) -> Iterator[tuple[str, str]]:
    engine = recipe.sample.engine
    if engine not in ("auto", "vllm", "transformers") and not _is_url(engine):
        yield "sample.engine", "give auto, vllm, transformers or the URL of a server (http://...)"
    if recipe.sample.engine_args and engine not in ("auto", "vllm"):
        yield "sample.engine_args", f"they are for vLLM, and sample.engine is {engine}: leave them out"


def _judges(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield from _judge("judge", recipe.judge)
    if recipe.evaluate.judge is not None:
        yield from _judge("evaluate.judge", recipe.evaluate.judge)


def _judge(key: str, judge: JudgeRecipe) -> Iterator[tuple[str, str]]:
    kind = f"{key}.kind is {judge.kind}"
    if judge.kind == "function":
        if judge.function is None or not _FUNCTION.fullmatch(judge.function):
            yield f"{key}.function", f"{kind}: give module:function"
    elif judge.function is not None:
        yield f"{key}.function", f"{kind}: set {key}.kind to function, or leave this out"
    if judge.kind == "reward-model" and (judge.model is None or _is_url(judge.model)):
        yield f"{key}.model", f"{kind}: give its folder or its name on the Hub"
    if judge.kind in ("pairwise", "pointwise"):
        url, _, model = (judge.model or "").partition("#")
        if not _is_url(url) or not model:
            yield f"{key}.model", f"{kind}: give URL#model, as http://127.0.0.1:8001#judge"
    if judge.scale[0] >= judge.scale[1]:
        yield f"{key}.scale", "give the lowest grade, then the highest"


def _pairs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    steps = recipe.pairs.rho_steps
    if not steps or any(one >= other for one, other in pairwise(steps)):
        yield "pairs.rho_steps", "give at least one number, and each higher than the one before"


def _batch(recipe: Recipe) -> Iterator[tuple[str, str]]:
    dpo = recipe.dpo
    processes = dpo.processes or 1
    # A device never gets more than its share of a batch.
    share = min(dpo.device_batch, max(1, dpo.batch // processes))
    if dpo.batch % (share * processes):
        parts = f"dpo.device_batch = {dpo.device_batch}"
        if dpo.processes is not None:
            parts += f", dpo.processes = {dpo.processes}"
        yield "dpo.batch", f"give a multiple of {share * processes} ({parts})"
    if dpo.lora is not None and not dpo.lora.target_modules:
        yield "dpo.lora.target_modules", "give all-linear or a list of names of modules"


def _metric(recipe: Recipe) -> Iterator[tuple[str, str]]:
    evaluate, judge = recipe.evaluate, recipe.evaluate.judge or recipe.judge
    if evaluate.metric != "accuracy":
        return
    if judge.kind == "pairwise":
        yield (
            "evaluate.metric",
            "a pairwise judge says which response is better, not which is right: give win_rate",
        )
    low, high = judge.scale
    if judge.kind == "pointwise" and not low < evaluate.right_score <= high:
        yield (
            "evaluate.right_score",
            f"grades go from {low:g} to {high:g} (scale): give one above {low:g} up to {high:g}",
        )


def check_files(recipe: Recipe, origin: Origin) -> None:
    """See that the files that a recipe names are there.

    Raises:
        UsageError: one is not.
    """
    for key in ("chat_template", "judge.template", "evaluate.judge.template", "dpo.accelerate_config"):
        value = value_of(recipe, key)
        if value is not None and not Path(value).is_file():
            raise origin.wrong(
                key, value, f"there is no such file, neither in {origin.path.parent} nor in {Path.cwd()}"
            )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
