"""The stages of a run that talk to servers: models answer, judges judge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.answering.answerer import Asking
from thinkserve.eval.answering.opening import kept_of_checkpoint, open_answerer, open_judge, open_server
from thinkserve.eval.answering.server import ModelServer
from thinkserve.eval.answering.spec import AnswersSpec, CheckpointSpec, EndpointSpec, JudgeSpec
from thinkserve.eval.answering.stage import answer_instructions
from thinkserve.eval.baselines import Baselines
from thinkserve.eval.bench import Bench, Estimate
from thinkserve.eval.config import RunConfig
from thinkserve.eval.entries import Entry, JudgeEntry
from thinkserve.eval.folder import RunFolder, answer_json
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.cost import confirm, estimate, together
from thinkserve.eval.judging.judge import ApiJudge, ByRule, Judge
from thinkserve.eval.judging.progress import Progress
from thinkserve.eval.judging.stage import Judged, Pair, Plan, PlannedGame, plan_matches, play
from thinkserve.eval.judging.store import JudgmentStore
from thinkserve.eval.records import write_records
from thinkserve.eval.results import Results
from thinkserve.eval.topics import classify
from thinkserve.thoughts import Response

Ask = Callable[[str], bool]


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
                found |= {entry.name: self._given(entry, spec) for entry in same}
                continue
            for entry in same:
                if (kept := self._kept(entry, spec)) is not None:
                    found[entry.name] = kept
            if missing := [entry for entry in same if entry.name not in found]:
                async with self._open(spec) as server:
                    for entry in missing:
                        found[entry.name] = await self._asked(entry, server)
        return {entry.name: found[entry.name] for entry in entries}

    def _given(self, entry: Entry, spec: AnswersSpec) -> Answers:
        """Answers from a file, written into the run's folder too, so that the folder is whole."""
        answers = spec.answers()
        missing = [one.id for one in self._instructions if one.id not in answers.by_id]
        if missing:
            raise UsageError(
                f"{spec.path}: {len(missing)} of {len(self._instructions)} instructions have no answer, the first is "
                f"{missing[0]}; bring them, or ask fewer with --limit"
            )
        chosen = Answers(entry.name, {one.id: answers.by_id[one.id] for one in self._instructions})
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


def write_answers(folder: RunFolder, answers: Answers, instructions: Sequence[Instruction]) -> None:
    """Write the answers of a model that was not asked (a baseline's, those of a file), unless they are there."""
    path = folder.answers(answers.model)
    if not path.exists():
        found = [answers.by_id[one.id] for one in instructions if one.id in answers.by_id]
        write_records(path, [answer_json(answer, answers.model) for answer in found])


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
        self._folder, self._ask = folder, ask
        self._agreed = 0.0
        """Dollars that the user has agreed to."""
        self._allowed: Callable[[], int] | None = None
        """How many calls the judge bears now."""

    def check_cost_before_answers(
        self, models: int, instructions: Sequence[Instruction], baselines: Baselines | None
    ) -> None:
        """Ask about the cost before hours are spent on answers, as if they were as long as the baseline's.

        Where the baseline's answers are still to come, or judgments are there already, it is asked about later.
        """
        if baselines is None or any(
            self._folder.judgments(judge.name, "x").parent.exists() for judge in self._judges
        ):
            return
        pairs = [
            Pair(one, "model", Answer(one.id, Response(answer.response + "\n")), name, answer)
            for one in instructions
            for name, answer in [baselines.of(one)]
        ]
        found = []
        for entry in self._judges:
            if entry.spec is not None:
                protocol = self.bench.protocol_of(entry.name)
                games = [
                    PlannedGame(pair, game, "") for pair in pairs for game in protocol.games(pair.instruction)
                ]
                found += [estimate(games, protocol, entry.name)] * models
        self._confirm(found)

    def _confirm(self, estimates: Sequence[Estimate]) -> None:
        whole = together(estimates)
        # What was agreed to was an estimate too.
        if whole.dollars is not None and whole.dollars > 1.5 * self._agreed:
            confirm(whole, self._config.cost_limit, yes=self._config.yes, ask=self._ask)
            self._agreed = whole.dollars

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
                self._confirm([estimate(plan.pending, protocol, entry.name) for plan in plans])
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

    async def topics(self, instructions: Sequence[Instruction]) -> Mapping[str, str]:
        """The topics of instructions, as the first judge sees them; from id to topic.

        Raises:
            UsageError: the bench is judged by rule, and a rule knows no topics.
        """
        spec = self._judges[0].spec
        if spec is None:
            raise UsageError(
                f"--topics needs a judge that is a model, and {self.bench.name} is judged by rule"
            )
        async with self._client(spec) as chat:
            return await classify(instructions, chat, self._folder.topics)

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
