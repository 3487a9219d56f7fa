"""A judge that is a Python function: rules, verifiers, tests of code, anything that gives a number.

The function gets the instruction and the response, and has no way to the thought. It runs in the stage's own process.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.thoughts import Response
from thinkserve.training.judges.collect import REASONS
from thinkserve.training.judges.judge import Group, GroupScores
from thinkserve.training.recipe import JudgeRecipe

EXAMPLE = "`thinkserve.training.pocket.judge:score`"


def find_function(value: str | None) -> Callable[[str, Response], object]:
    """The function that a recipe names as `module:function`.

    Raises:
        UsageError: there is none; says which part of the name is wrong.
    """
    module_name, _, name = (value or "").partition(":")
    if not module_name or not name:
        raise UsageError(f"judge.function: {value!r} is not of the form module:function, as in {EXAMPLE}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        # A module that is there but lacks one of its own imports is another mistake.
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise UsageError(f"judge.function: importing {module_name} failed: {exc}") from exc
        raise UsageError(
            f"judge.function: there is no module {exc.name!r} for {value!r}; install it, or name its folder in PYTHONPATH "
            f"(an example of a function: {EXAMPLE})"
        ) from exc
    except Exception as exc:
        raise UsageError(
            f"judge.function: importing {module_name} failed: {type(exc).__name__}: {exc}"
        ) from exc
    if not hasattr(module, name):
        raise UsageError(
            f"judge.function: module {module_name} has no {name!r}; {value!r} must name a function, as {EXAMPLE} does"
        )
    found: object = getattr(module, name)
    if not callable(found):
        raise UsageError(
            f"judge.function: {value!r} is of type {type(found).__name__} and cannot be called; it must be a function, "
            f"as {EXAMPLE} is"
        )
    return found


class FunctionJudge:
    """Scores each response by a call of its own.

    Args:
        recipe: `function` is called; if it is a coroutine function, `concurrency` calls run at once.

    Raises:
        UsageError: there is no such function.
    """

    def __init__(self, recipe: JudgeRecipe) -> None:
        self._function = find_function(recipe.function)
        self._value = recipe.function or ""
        call = getattr(self._function, "__call__", None)  # noqa: B004 - of an object, its method may be the coroutine
        awaited = inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(call)
        self._at_once = recipe.concurrency if awaited else 1
        self._calls = self._not_finite = 0

    @property
    def name(self) -> str:
        """For reports."""
        return f"function {self._value}"

    @property
    def configuration(self) -> Mapping[str, Any]:
        """All that a score hangs on, but what the function does."""
        return {"kind": "function", "function": self._value}

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Calls so far, and those that gave NaN or an infinite number."""
        return {"calls": self._calls, "not_finite": self._not_finite}

    async def score(self, groups: Sequence[Group]) -> AsyncIterator[GroupScores]:
        """Score all groups, as they are done.

        Raises:
            ThinkserveError: a call raised, or gave no number. What was begun before is scored to its end.
        """
        waiting = iter(groups)
        running: set[asyncio.Task[GroupScores]] = set()
        failure: BaseException | None = None
        try:
            while True:
                while failure is None and len(running) < self._at_once and (group := next(waiting, None)):
                    running.add(asyncio.create_task(self._score(group)))
                if not running:
                    break
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        yield task.result()
                    failure = failure or task.exception()
        finally:
            for task in running:
                task.cancel()
        if failure is not None:
            raise failure

    async def _score(self, group: Group) -> GroupScores:
        scores: list[float | None] = []
        reasons = []
        for response in group.responses:
            score = await self._call(group, response)
            if math.isfinite(score):
                scores.append(score)
            else:
                self._not_finite += 1
                scores.append(None)
                reasons.append(f"{self._value} gave {score}")
        # So that Ctrl-C is heard between calls of a plain function.
        await asyncio.sleep(0)
        return GroupScores(group.id, tuple(scores), {REASONS: reasons} if reasons else {})

    async def _call(self, group: Group, response: Response) -> float:
        self._calls += 1
        try:
            found = self._function(group.instruction, response)
            if inspect.isawaitable(found):
                found = await found
        except Exception as exc:
            raise ThinkserveError(
                f"the judge {self._value} failed on a response to instruction {group.id}: {type(exc).__name__}: {exc}; "
                "mend it and run again: what was scored is kept"
            ) from exc
        if not isinstance(found, Real):
            raise ThinkserveError(
                f"the judge {self._value} gave {found!r} for a response to instruction {group.id}; it must return a "
                "number, higher for better responses"
            )
        return float(found)
