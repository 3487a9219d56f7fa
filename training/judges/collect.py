"""Having groups of responses scored so that nothing is lost: each group's scores are in a log before the next ones come.

A log is appended to, and read when the work is begun again. Groups whose scores are there are not scored again, unless
one of their responses got none, or the judge or the responses are others now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from thinkserve.errors import ThinkserveError
from thinkserve.eval.judging.progress import Progress
from thinkserve.eval.records import RecordLog
from thinkserve.training import records
from thinkserve.training.judges.judge import Group, GroupScores, Judge

REASONS = "reasons"
"""In the details of scores: why responses got none, a text for each of these, in their order."""


class ScoreLine(msgspec.Struct, frozen=True):
    """A line of the log."""

    id: str
    key: str
    """Of all that the scores hang on."""
    scores: tuple[float | None, ...]
    details: Mapping[str, Any] = {}


async def score_groups(
    judge: Judge, groups: Sequence[Group], log: Path, progress: Progress | None = None
) -> dict[str, GroupScores]:
    """Score what is not in the log, and give the scores of all groups, by id and in their order.

    Args:
        judge: who scores.
        groups: each with an id of its own.
        log: is made where it is missing.
        progress: is told of each group; `failed` are those in which a response got no score.

    Raises:
        ThinkserveError: the judge cannot go on; what it scored is in the log.
    """
    keys = {group.id: _key(judge, group) for group in groups}
    # Opened before it is read: that drops a last line which a kill cut short.
    with RecordLog(log) as file:
        found = {
            line.id: GroupScores(line.id, line.scores, line.details)
            for line in records.read(log, ScoreLine)
            if keys.get(line.id) == line.key
        }
        pending = list(_pending(groups, found, judge))
        if progress is not None:
            progress.begin(len(groups), len(groups) - len(pending))
        if pending:
            async for scored in judge.score(pending):
                line = ScoreLine(scored.id, keys[scored.id], scored.scores, scored.details)
                file.append(records.to_json(line))
                found[scored.id] = scored
                if progress is not None:
                    progress.advance(failed=None in scored.scores)
    return {group.id: found[group.id] for group in groups}


def check_unscored(
    unscored: int, responses: int, limit: float, judge: Judge, scored: Iterable[GroupScores]
) -> None:
    """See that not too many responses are without a score.

    Args:
        unscored: how many.
        responses: of so many.
        limit: the share that may be, `judge.max_unscored`.
        judge: who scored.
        scored: what it said.

    Raises:
        ThinkserveError: there are more; it has the reason that was given most often.
    """
    if unscored <= limit * responses:
        return
    reasons: Counter[str] = Counter()
    for scores in scored:
        found: Sequence[str] = scores.details.get(REASONS, ())
        reasons.update(found)
    most = reasons.most_common(1)
    often = f"; most often ({most[0][1]:,} times): {most[0][0]}" if most else ""
    raise ThinkserveError(
        f"{judge.name} gave no score to {unscored:,} of {responses:,} responses ({100 * unscored / responses:.0f} %), more "
        f"than judge.max_unscored = {limit:g}{often}; mend the judge, or raise judge.max_unscored, and run again: only "
        "responses without a score are judged again"
    )


def blocks(groups: Iterable[Group], responses: int) -> Iterator[list[Group]]:
    """Cut groups into runs of neighbours, each closed as soon as it has so many responses."""
    block: list[Group] = []
    size = 0
    for group in groups:
        block.append(group)
        size += len(group.responses)
        if size >= responses:
            yield block
            block, size = [], 0
    if block:
        yield block


def _pending(groups: Sequence[Group], found: Mapping[str, GroupScores], judge: Judge) -> Iterator[Group]:
    # A judge that batches responses gives scores that differ in the last digits with the batch. It says how many
    # responses it batches together; such a block is scored anew as a whole, so that a run that was killed ends with
    # the same scores as one that was not.
    for block in blocks(groups, getattr(judge, "block", 1)):
        if any(group.id not in found or None in found[group.id].scores for group in block):
            yield from block


def _key(judge: Judge, group: Group) -> str:
    asked = [judge.configuration, group.instruction, [str(response) for response in group.responses]]
    return sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()[:32]
