"""The stages of a run that talk to servers: models answer, judges judge."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import groupby

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.answering.answerer import Asking
from thinkserve.eval.answering.opening import kept_of_checkpoint, open_answerer, open_judge, open_server
from thinkserve.eval.answering.server import ModelServer
from thinkserve.eval.answering.spec import AnswersSpec, CheckpointSpec, EndpointSpec, JudgeSpec, ModelSpec
from thinkserve.eval.answering.stage import answer_instructions
from thinkserve.eval.baselines import Baselines
from thinkserve.eval.bench import Bench, Estimate
from thinkserve.eval.budget import Ask, Budget, estimate_sorting, foreseen_pairs
from thinkserve.eval.config import RunConfig
from thinkserve.eval.entries import Entries, Entry, JudgeEntry
from thinkserve.eval.folder import RunFolder, answer_json
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.cost import estimate
from thinkserve.eval.judging.judge import ApiJudge, ByRule, Judge
from thinkserve.eval.judging.progress import Progress
from thinkserve.eval.judging.stage import Judged, Pair, Plan, PlannedGame, plan_matches, play
from thinkserve.eval.judging.store import JudgmentStore
from thinkserve.eval.records import write_records
from thinkserve.eval.results import Results
from thinkserve.eval.topics import classify, unknown_topics

logger = logging.getLogger(__name__)


class Answering:
    """The first stage: the answers of all models."""

    def __init__(self, config: RunConfig, folder: RunFolder, instructions: Sequence[Instruction]) -> None:
        self._config, self._folder, self._instructions = config, folder, instructions

    async def answers(self, entries: Sequence[Entry]) -> dict[str, Answers]:
        """The answers of these models; a checkpoint is served once for all its modes."""
        found: dict[str, Answers] = {}
        for spec, group in groupby(entries, key=lambda entry: entry.spec):
            same = list(group)
            if isinstance(spec, AnswersSpec):
                found |= {entry.name: self._given(entry) for entry in same}
                continue
            for entry in same:
                if (kept := self._kept(entry, spec)) is not None:
                    found[entry.name] = kept
            if missing := [entry for entry in same if entry.name not in found]:
                _tell_of_start(spec)
                async with self._open(spec) as server:
                    for entry in missing:
                        found[entry.name] = await self._asked(entry, server)
        for name, answers in found.items():
            _tell_of_lost(name, answers)
        return {entry.name: found[entry.name] for entry in entries}

    def _given(self, entry: Entry) -> Answers:
        """Answers from a file, written into the run's folder too, so that the folder is whole."""
        assert entry.given is not None
        given = entry.given.answers.by_id
        chosen = Answers(entry.name, {one.id: given[one.id] for one in self._instructions})
        if entry.given.lengths:
            lengths = [asdict(length) for length in entry.given.lengths if length.id in chosen.by_id]
            write_records(self._folder.lengths(entry.name), lengths)
        write_answers(self._folder, chosen, self._instructions)
        return chosen

    def _kept(self, entry: Entry, spec: CheckpointSpec | EndpointSpec) -> Answers | None:
        """All answers of a checkpoint, if an earlier run has them: then it need not be served again."""
        if not isinstance(spec, CheckpointSpec):
            return None
        return kept_of_checkpoint(
            spec,
            self._asking(entry),
            self._instructions,
            self._folder,
            entry.name,
            thought_format=self._config.thought_format,
            engine_args=self._config.engine_args,
        )

    def _asking(self, entry: Entry) -> Asking:
        config = self._config
        return Asking(entry.mode, config.seed, config.temperature, config.max_tokens)

    def _open(self, spec: CheckpointSpec | EndpointSpec) -> AbstractAsyncContextManager[ModelServer]:
        config = self._config
        key = config.keys.of(spec.url, "model") if isinstance(spec, EndpointSpec) else None
        return open_server(
            spec,
            api_key=key,
            thought_format=config.thought_format,
            engine=config.engine,
            engine_args=config.engine_args,
        )

    async def _asked(self, entry: Entry, server: ModelServer) -> Answers:
        config = self._config
        async with open_answerer(
            server, self._asking(entry), concurrency=config.concurrency, seconds=config.timeout
        ) as answerer:
            with Progress(f"{entry.name} answers", unit="answers") as progress:
                return await answer_instructions(
                    self._instructions,
                    answerer,
                    self._folder,
                    entry.name,
                    concurrency=config.concurrency,
                    progress=progress,
                )


def check_given(entries: Iterable[Entry], instructions: Sequence[Instruction]) -> None:
    """Make sure that the files of answers have all that will be judged.

    Raises:
        UsageError: one lacks some.
    """
    for entry in entries:
        if entry.given is None:
            continue
        missing = [one.id for one in instructions if one.id not in entry.given.answers.by_id]
        if missing:
            assert isinstance(entry.spec, AnswersSpec)
            raise UsageError(
                f"{entry.spec.path}: {len(missing)} of {len(instructions)} instructions have no answer, the first is "
                f"{missing[0]}; complete the file"
            )


def _tell_of_start(spec: ModelSpec | JudgeSpec) -> None:
    """An engine may take minutes to start, and nothing moves meanwhile."""
    if isinstance(spec, CheckpointSpec):
        print(f"{spec.name}: loading the checkpoint", file=sys.stderr, flush=True)


def _tell_of_lost(name: str, answers: Answers) -> None:
    lost = sum(not answer.complete for answer in answers.by_id.values())
    if lost:
        logger.warning(
            "%s: %d of %d outputs have no response, since their thoughts never ended: they lose without a judge",
            *(name, lost, len(answers.by_id)),
        )


def write_answers(folder: RunFolder, answers: Answers, instructions: Sequence[Instruction]) -> None:
    """Write the answers of a model that was not asked: a baseline's, or those of a file as they are now."""
    found = [answers.by_id[one.id] for one in instructions if one.id in answers.by_id]
    write_records(folder.answers(answers.model), [answer_json(answer, answers.model) for answer in found])


@dataclass(frozen=True, slots=True)
class _Contest:
    """A model and whom it is judged against."""

    model: str
    other: str | None
    """None: the baseline."""
    pairs: Sequence[Pair]


class Judging:
    """The second stage: all games of all models, judge by judge."""

    def __init__(
        self,
        config: RunConfig,
        bench: Bench,
        judges: Sequence[JudgeEntry],
        folder: RunFolder,
        ask: Ask | None,
    ) -> None:
        self._config, self._judges = config, judges
        self.bench = bench
        self._folder = folder
        self._budget = Budget(config.cost_limit, config.yes, ask)
        self._allowed: Callable[[], int] | None = None
        """How many calls the judge bears now."""

    def check_cost(
        self,
        entries: Entries,
        instructions: Sequence[Instruction],
        baselines: Baselines | None,
        unsorted: Sequence[Instruction] = (),
    ) -> None:
        """Ask about the cost before anybody is paid, and before hours are spent on answers.

        Where judgments are there already, what is missing of them is asked about later.

        Args:
            entries: who will be judged.
            instructions: that they are asked.
            baselines: their answers, if they are known.
            unsorted: instructions that are to be sorted into topics.
        """
        found = [] if not unsorted else [self._sorting(unsorted)]
        if not any(self._folder.judgments(judge.name, "x").parent.exists() for judge in self._judges):
            pairs = [
                pair
                for entry in entries.models
                for pair in foreseen_pairs(
                    instructions, entry.name, None if entry.given is None else entry.given.answers, baselines
                )
            ]
            for _, direct in entries.modes:  # head to head
                pairs += foreseen_pairs(instructions, direct, None, baselines)
            found += [self._foreseen(judge, pairs) for judge in self._judges if judge.spec is not None]
        self._budget.foresee(found)

    def _foreseen(self, judge: JudgeEntry, pairs: Sequence[Pair]) -> Estimate:
        protocol = self.bench.protocol_of(judge.name)
        games = [PlannedGame(pair, game, "") for pair in pairs for game in protocol.games(pair.instruction)]
        return estimate(games, protocol, judge.name)

    def _sorting(self, unsorted: Sequence[Instruction]) -> Estimate:
        name = self._judges[0].name
        return estimate_sorting(unknown_topics(unsorted, name, self._folder.topics), name)

    async def judge(
        self,
        instructions: Sequence[Instruction],
        answers: Mapping[str, Answers],
        baselines: Baselines,
        modes: Sequence[tuple[str, str]],
    ) -> Results:
        """Have every model judged against the baselines, and thought mode against direct mode."""
        contests = [
            _Contest(name, None, [_pair(one, found, *baselines.of(one)) for one in instructions])
            for name, found in answers.items()
        ]
        for thought, direct in modes:
            other = answers[direct]
            pairs = [_pair(one, answers[thought], direct, other.by_id[one.id]) for one in instructions]
            contests.append(_Contest(thought, direct, pairs))
        by_model: dict[str, list[Judged]] = {}
        head_to_head: dict[tuple[str, str], list[Judged]] = {}
        for entry in self._judges:
            async with self._judge(entry) as judge:
                for contest, judged in zip(
                    contests, await self._judge_all(judge, entry, contests), strict=True
                ):
                    if contest.other is None:
                        by_model.setdefault(contest.model, []).append(judged)
                    else:
                        head_to_head.setdefault((contest.model, contest.other), []).append(judged)
        return Results(tuple(judge.name for judge in self._judges), by_model, head_to_head)

    async def _judge_all(self, judge: Judge, entry: JudgeEntry, contests: Sequence[_Contest]) -> list[Judged]:
        protocol = self.bench.protocol_of(entry.name)
        stores = [JudgmentStore(self._folder.judgments(entry.name, one.model, one.other)) for one in contests]
        try:
            plans = [
                plan_matches(self.bench.name, one.pairs, judge, protocol, store)
                for one, store in zip(contests, stores, strict=True)
            ]
            if entry.spec is not None:
                self._budget.plan([estimate(plan.pending, protocol, entry.name) for plan in plans])
            return [
                await self._play(judge, one, plan, store)
                for one, plan, store in zip(contests, plans, stores, strict=True)
            ]
        finally:
            for store in stores:
                store.close()

    async def _play(self, judge: Judge, contest: _Contest, plan: Plan, store: JudgmentStore) -> Judged:
        against = "" if contest.other is None else f" against {contest.other}"
        label = f"{judge.name} judges {contest.model}{against}"
        with Progress(label, unit="judgments", concurrency=self._allowed) as progress:
            return await play(plan, judge, store, progress=progress)

    def check_topics(self) -> None:
        """Make sure that somebody can say what an instruction is about.

        Raises:
            UsageError: the bench is judged by rule, and a rule knows no topics.
        """
        if self._judges[0].spec is None:
            raise UsageError(
                f"--topics needs a judge that is a model, and {self.bench.name} is judged by rule"
            )

    async def topics(self, instructions: Sequence[Instruction]) -> Mapping[str, str]:
        """The topics of instructions, as the first judge sees them; from id to topic."""
        if not instructions:
            return {}
        spec = self._judges[0].spec
        assert spec is not None  # `check_topics` saw to it
        self._budget.plan([self._sorting(instructions)])
        async with self._client(spec) as chat:
            with Progress(
                f"{chat.model} sorts", unit="topics", concurrency=lambda: chat.limit.current
            ) as progress:
                return await classify(instructions, chat, self._folder.topics, progress=progress)

    @asynccontextmanager
    async def _judge(self, entry: JudgeEntry) -> AsyncIterator[Judge]:
        protocol = self.bench.protocol_of(entry.name)
        if entry.spec is None:
            yield ByRule(protocol, entry.name)
            return
        async with self._client(entry.spec) as chat:
            self._allowed = lambda: chat.limit.current
            yield ApiJudge(chat, protocol, entry.name)

    @asynccontextmanager
    async def _client(self, spec: JudgeSpec) -> AsyncIterator[ChatClient]:
        config = self._config
        key = config.keys.of(spec.url, "judge") if isinstance(spec, EndpointSpec) else None
        _tell_of_start(spec)
        async with (
            open_judge(spec, api_key=key, engine=config.engine) as server,
            ChatClient(
                f"{server.url}/v1",
                server.model,
                server.api_key,
                concurrency=config.concurrency,
                timeout=config.timeout,
                seed=config.seed,
            ) as chat,
        ):
            yield chat


def _pair(instruction: Instruction, answers: Answers, baseline: str, other: Answer) -> Pair:
    return Pair(instruction, answers.model, answers.by_id[instruction.id], baseline, other)
