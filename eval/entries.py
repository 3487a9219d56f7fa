"""Who takes part in a run: the models in their modes, their baseline, and the judges, each with a name of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from thinkserve.errors import UsageError
from thinkserve.eval.answering.answerer import check_direct
from thinkserve.eval.answering.given import Given, without_thoughts
from thinkserve.eval.answering.server import find_server
from thinkserve.eval.answering.serving import check_mode
from thinkserve.eval.answering.spec import (
    DEFAULT_MODEL,
    AnswersSpec,
    CheckpointSpec,
    EndpointSpec,
    JudgeSpec,
    ModelSpec,
    ReadAnswers,
    parse_judge,
    parse_model,
    unique_names,
)
from thinkserve.eval.bench import Bench
from thinkserve.eval.config import OPENAI, RunConfig
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.scores import DIRECT
from thinkserve.thoughts import get_format

RULE = "rule"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model in a mode."""

    name: str
    """In the run's files and in its scores."""
    spec: ModelSpec
    mode: Literal["thought", "direct"] = "thought"
    given: Given | None = None
    """What the file of an `answers:FILE` has."""


@dataclass(frozen=True, slots=True)
class Entries:
    """All who answer."""

    models: tuple[Entry, ...]
    baseline: Entry | None
    """None: the bench's own."""
    modes: tuple[tuple[str, str], ...] = ()
    """With `--mode both`: the names of each model in thought and in direct mode."""

    @property
    def all(self) -> tuple[Entry, ...]:
        """With the baseline."""
        return self.models if self.baseline is None else (*self.models, self.baseline)


@dataclass(frozen=True, slots=True)
class JudgeEntry:
    """Who judges; without a spec, the bench's rule does."""

    name: str
    spec: JudgeSpec | None


async def find_entries(
    config: RunConfig, bench: Bench, instructions: Sequence[Instruction], read: ReadAnswers | None
) -> Entries:
    """The models and their baseline. Nothing is served and nobody is asked yet, but for the names of models.

    Args:
        config: what was asked.
        bench: that they are evaluated on.
        instructions: that they are asked.
        read: reads answers in the bench's official format; None: in a run's own.

    Raises:
        ThinkserveError: a SPEC is wrong, a server does not tell its model, a file of answers has thoughts in it, a
            checkpoint cannot answer in the mode, or there is nobody to be judged against.
    """
    specs = [parse_model(spec, read=read) for spec in config.models] or [DEFAULT_MODEL]
    found = [await _entry(spec, config) for spec in specs]
    models: list[Entry] = []
    both: list[int] = []
    for name, entry in zip(unique_names([entry.name for entry in found]), found, strict=True):
        thought = replace(entry, name=name)
        direct = replace(entry, name=name + DIRECT, mode="direct")
        if entry.given is not None or config.mode == "thought":
            models.append(thought)
        elif config.mode == "direct":
            models.append(direct)
        else:
            both.append(len(models))
            models += [thought, direct]
    names = unique_names([entry.name for entry in models])  # a model may be called NAME-direct itself
    models = [replace(entry, name=name) for entry, name in zip(models, names, strict=True)]
    modes = [(names[at], names[at + 1]) for at in both]
    baseline = await _baseline(config, bench, instructions, models, read)
    if baseline is not None:
        models = [model for model in models if model.name != baseline.name]
        modes = [pair for pair in modes if baseline.name not in pair]
    return Entries(tuple(models), baseline, tuple(modes))


async def _baseline(
    config: RunConfig,
    bench: Bench,
    instructions: Sequence[Instruction],
    models: Sequence[Entry],
    read: ReadAnswers | None,
) -> Entry | None:
    if config.baseline is not None:
        entry = await _entry(parse_model(config.baseline, read=read), config)
        mode: Literal["thought", "direct"] = "direct" if config.mode == "direct" else "thought"
        if any((model.spec, model.mode) == (entry.spec, mode) for model in models):
            raise UsageError(
                f"--baseline {config.baseline} is one of the models: a model judged against itself says nothing; name "
                "another baseline"
            )
        taken = {model.name for model in models}
        name = f"{entry.name}-baseline" if entry.name in taken else entry.name
        return replace(entry, name=name, mode=mode)
    own = {bench.baseline_of(instruction) for instruction in instructions}
    if None not in own:
        for model in models:
            if model.name in own:
                raise UsageError(
                    f"{model.name} is the baseline of {config.bench}: a model judged against itself says nothing; name "
                    "another --baseline"
                )
        return None
    if len(models) < 2:
        raise UsageError(
            f"{config.bench} has no baseline of its own; name one with --baseline, give a second --model, or ask for "
            "--mode both"
        )
    return models[-1]


async def _entry(spec: ModelSpec, config: RunConfig) -> Entry:
    """Under the model's own name, in thought mode; what can be known to be wrong with it is said here."""
    format = None if config.thought_format is None else get_format(config.thought_format)
    if isinstance(spec, AnswersSpec):
        given = without_thoughts(spec.answers(), str(spec.path), format)
        return Entry(given.answers.model, spec, given=given)
    if isinstance(spec, CheckpointSpec):
        check_mode(spec.path, config.mode, thought_format=config.thought_format)
        return Entry(spec.name, spec)
    if config.mode != "thought" and format is not None:
        check_direct(format, spec.url)
    if spec.model is not None:
        return Entry(spec.model, spec)
    return Entry((await find_server(spec, api_key=config.keys.of(spec.url, "model"))).model, spec)


async def find_judges(config: RunConfig, bench: Bench) -> tuple[JudgeEntry, ...]:
    """The judges, in the order in which they were named.

    Raises:
        ThinkserveError: a SPEC is wrong, or the official judge cannot be paid.
    """
    if config.judges == (RULE,) or (not config.judges and bench.official_judge is None):
        if bench.official_judge is not None:
            raise UsageError(
                f"--judge rule is for the pocket bench; {config.bench} needs a model that judges"
            )
        return (JudgeEntry(RULE, None),)
    if not config.judges:
        assert bench.official_judge is not None
        if config.keys.of(OPENAI, "judge") is None:
            raise UsageError(
                f"the judge of {config.bench} is {bench.official_judge} at OpenAI, and OPENAI_API_KEY is not set; set "
                "it, or name another judge: --judge URL#MODEL, or --judge CHECKPOINT"
            )
        return (
            JudgeEntry(bench.official_judge, EndpointSpec(OPENAI.removesuffix("/v1"), bench.official_judge)),
        )
    if bench.official_judge is None:
        raise UsageError(f"--judge {config.judges[0]}: {config.bench} is judged by rule; leave --judge out")
    if len(config.judges) > 1 and not bench.ensembles:
        raise UsageError(f"--judge is given {len(config.judges)} times: {config.bench} takes one judge")
    specs = [parse_judge(spec) for spec in config.judges]
    names = [await _judge_name(spec, config) for spec in specs]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two judges have one name ({', '.join(names)}); their verdicts could not be told apart"
        )
    return tuple(JudgeEntry(name, spec) for name, spec in zip(names, specs, strict=True))


async def _judge_name(spec: JudgeSpec, config: RunConfig) -> str:
    if isinstance(spec, CheckpointSpec):
        return spec.name
    if spec.model is not None:
        return spec.model
    return (await find_server(spec, api_key=config.keys.of(spec.url, "judge"))).model
