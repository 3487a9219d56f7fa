"""The second stage of a run: every game of every match is judged once, and none is paid for twice.

First a plan: who forfeits, which verdicts are in the file, which games are to be played. Then these are played, as many
at once as the judge allows, and each judgment is in the file before the next game begins. A run that is killed loses the
calls in flight; started again, it plays what is missing, and ends with what an uninterrupted one has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from thinkserve.eval.answer import Answer
from thinkserve.eval.bench import JudgeProtocol
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.judge import Decision, Judge
from thinkserve.eval.judging.store import JudgmentStore
from thinkserve.eval.judgment import Judgment, key_of
from thinkserve.eval.match import Game, Match, PlayedGame, Verdict

logger = logging.getLogger(__name__)

# Of the places for calls; those that wait before a retry hold none, and must not keep others from being made.
WORKERS_PER_CALL = 2


@dataclass(frozen=True, slots=True)
class Pair:
    """What is to be judged: one instruction, answered by a model and by its baseline."""

    instruction: Instruction
    model: str
    answer: Answer
    baseline_model: str
    baseline: Answer


@dataclass(frozen=True, slots=True)
class PlannedGame:
    """A game with all that its verdict hangs on."""

    pair: Pair
    game: Game
    key: str
    """Empty for a forfeit."""
    forfeit: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All games of a stage."""

    pairs: Sequence[Pair]
    games: Sequence[Sequence[PlannedGame]]
    """Those of each pair."""
    pending: Sequence[PlannedGame]
    """Those to be played: no forfeit, no verdict in the file, and no key twice."""

    @property
    def total(self) -> int:
        """Verdicts that are needed: games without forfeits, those with one key counted once."""
        return len({game.key for games in self.games for game in games if game.forfeit is None})


@dataclass(frozen=True, slots=True)
class Judged:
    """What the stage found."""

    matches: list[Match]
    """In the order of the pairs."""
    judgments: list[Judgment]
    """The latest one of each key, in the order of the games; forfeits have none."""


class JudgingProgress(Protocol):
    """Who shows how far the stage is: `progress.Progress`."""

    def begin(self, total: int, kept: int) -> None:
        """It begins: so many verdicts, so many of them in the file."""

    def advance(self, *, failed: bool = False) -> None:
        """One more game is played; `failed`: without a verdict."""


def plan_matches(
    bench: str, pairs: Sequence[Pair], judge: Judge, protocol: JudgeProtocol, store: JudgmentStore
) -> Plan:
    """Find out which games have to be played.

    Args:
        bench: its name.
        pairs: what is to be judged.
        judge: who decides.
        protocol: says which games there are, and who wins by forfeit.
        store: the verdicts that are there.
    """
    games = [list(_games(bench, pair, judge.configuration, protocol)) for pair in pairs]
    open_games = (game for some in games for game in some if game.forfeit is None)
    pending = {game.key: game for game in open_games if store.find(game.key) is None}
    return Plan(pairs, games, list(pending.values()))


def _games(
    bench: str, pair: Pair, configuration: Mapping[str, object], protocol: JudgeProtocol
) -> Iterator[PlannedGame]:
    answered, baseline_answered = pair.answer.complete, pair.baseline.complete
    prompt = sha256(pair.instruction.text.encode("utf-8", "surrogatepass")).hexdigest()
    for game in protocol.games(pair.instruction):
        if answered and baseline_answered:
            key = key_of(bench, configuration, prompt, pair.answer, pair.baseline, game)
            yield PlannedGame(pair, game, key)
        else:
            yield PlannedGame(pair, game, "", protocol.forfeit(game, answered, baseline_answered))


async def judge_matches(
    bench: str,
    pairs: Sequence[Pair],
    judge: Judge,
    protocol: JudgeProtocol,
    store: JudgmentStore,
    *,
    progress: JudgingProgress | None = None,
) -> Judged:
    """Plan and play; see `plan_matches` and `play`."""
    return await play(plan_matches(bench, pairs, judge, protocol, store), judge, store, progress=progress)


async def play(
    plan: Plan, judge: Judge, store: JudgmentStore, *, progress: JudgingProgress | None = None
) -> Judged:
    """Play what is pending, and put all games together.

    A game without a verdict is no error here: it is kept with its failure, and asked for again by the next run.

    Raises:
        ThinkserveError: no game can be decided; all judgments that came are in the file.
    """
    if progress is not None:
        progress.begin(plan.total, plan.total - len(plan.pending))
    logger.info(
        "%s: %d verdicts are there, %d to come", judge.name, plan.total - len(plan.pending), len(plan.pending)
    )
    latest: dict[str, Judgment] = {}
    waiting = iter(plan.pending)

    async def work() -> None:
        for game in waiting:
            pair = game.pair
            decision = await judge.decide(
                pair.instruction, game.game, pair.answer.response, pair.baseline.response
            )
            latest[game.key] = judgment_of(
                decision,
                key=game.key,
                id=pair.instruction.id,
                game=game.game,
                model=pair.model,
                baseline=pair.baseline_model,
                judge=judge.name,
            )
            store.append(latest[game.key])
            if progress is not None:
                progress.advance(failed=decision.verdict is None)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(len(plan.pending), WORKERS_PER_CALL * judge.concurrency)):
                workers.create_task(work())
    except BaseExceptionGroup as group:
        # What one worker could not go on from ended the others, and is the one thing to say.
        raise group.exceptions[0] from None
    return _put_together(plan, judge.name, store, latest)


def judgment_of(
    decision: Decision, *, key: str, id: str, game: Game, model: str, baseline: str, judge: str
) -> Judgment:
    """The record of a decision, made now.

    Args:
        decision: of the judge.
        key: of its verdict.
        id: of the instruction.
        game: that was decided.
        model: whose response was judged.
        baseline: what it was shown beside.
        judge: by name.
    """
    return Judgment(
        key=key,
        id=id,
        game=game.number,
        model_first=game.model_first,
        model=model,
        baseline=baseline,
        judge=judge,
        request_sha256=decision.request_sha256,
        raw=decision.raw,
        top_logprobs=decision.top_logprobs,
        verdict=decision.verdict,
        failure=None if decision.verdict is not None else (decision.failures or ("no verdict",))[-1],
        attempts=decision.attempts,
        prompt_tokens=decision.prompt_tokens,
        completion_tokens=decision.completion_tokens,
        seconds=decision.seconds,
        created=round(time.time(), 3),
        failures=decision.failures,
    )


def _put_together(plan: Plan, judge: str, store: JudgmentStore, played: Mapping[str, Judgment]) -> Judged:
    matches = []
    judgments: dict[str, Judgment] = {}
    for pair, planned in zip(plan.pairs, plan.games, strict=True):
        games = []
        for one in planned:
            verdict = one.forfeit
            if verdict is None:
                judgment = played.get(one.key) or store.find(one.key)
                assert judgment is not None  # it was pending, and played, or else it was found
                judgments[one.key] = judgment
                verdict = judgment.verdict
            games.append(PlayedGame(one.game, judge, verdict))
        matches.append(Match(pair.instruction, pair.answer, pair.baseline, pair.baseline_model, tuple(games)))
    return Judged(matches, list(judgments.values()))


def with_all_judges(judged: Sequence[Sequence[Match]]) -> list[Match]:
    """The same matches, judged by several judges, with the games of all of them, judge by judge."""
    return [
        Match(
            first.instruction,
            first.answer,
            first.baseline,
            first.baseline_model,
            tuple(game for match in same for game in match.games),
        )
        for same in zip(*judged, strict=True)
        for first in same[:1]
    ]
