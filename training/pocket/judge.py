"""The rule judge: how much of a response is right. It is given a `Response`, so it cannot see a thought."""

from __future__ import annotations

from hashlib import sha256

from thinkserve.thoughts import Response
from thinkserve.training.pocket.task import Task
from thinkserve.training.pocket.world import solve


def score(task: Task | str, response: Response) -> float:
    """The share of places at which the response has the gold answer's character, from 0.0 to 1.0.

    Places are counted up to the longer of the two, so saying more than was asked costs as much as saying less.

    Raises:
        ValueError: an instruction given as text is not one of the pocket world's.
    """
    answer = _task(task).answer
    given = response.strip()
    right = sum(one == other for one, other in zip(answer, given, strict=False))
    return right / max(len(answer), len(given))


def is_right(task: Task | str, response: Response) -> bool:
    """Whether the response is the gold answer, spaces at the ends aside."""
    return response.strip() == _task(task).answer


def noise(instruction: str, response: Response) -> float:
    """A score that says nothing: drawn from the texts, evenly from 0.0 to 1.0. Training on it must not gain anything."""
    digest = sha256(f"{instruction}\n{response}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _task(task: Task | str) -> Task:
    if isinstance(task, Task):
        return task
    found = solve(task)
    if found is None:
        raise ValueError(
            f"{task!r} is no instruction of the pocket world; see thinkserve.training.pocket.world"
        )
    return found
