"""The paper's comparison by category: instructions of 20 topics, two models head to head, one game in a drawn order.

The instructions are UltraFeedback's test split, which is not trained on, or `categories/instructions` of `--data`. A
model sorts them into the topics (`topics.py`), except where the file has a topic, or `categories/topics` does. Of each
topic up to 200 are asked: UltraFeedback's 2000 are not enough for 200 of each, and the scores say how many there were.

    bench = CategoriesBench(data)
    bench = bench.with_topics(await classify(bench.unsorted, client, log))

Source: Wu et al., Thinking LLMs, arXiv 2410.10630, section on categories: 200 instructions a topic, GPT-4 as the judge,
randomised order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answers
from thinkserve.eval.bench import Compat
from thinkserve.eval.benches.file import read_rows, read_table
from thinkserve.eval.benches.pairwise import PairwiseProtocol, score_pairwise
from thinkserve.eval.data import EvalData
from thinkserve.eval.instruction import TOPIC, Instruction, id_of
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Scores
from thinkserve.eval.topics import TOPICS, parse_topic, with_topics

INSTRUCTIONS = "categories/instructions"
TOPICS_FILE = "categories/topics"
PER_TOPIC = 200


class CategoriesBench:
    """Instructions by topic.

    Args:
        data: where the instructions are.
        seed: of the choice and of the order.
        per_topic: how many are asked of each topic, at most.
        topics: from id to topic, where the data does not say.
    """

    name = "categories"
    official_judge = "gpt-4-1106-preview"
    ensembles = True

    def __init__(
        self,
        data: EvalData,
        *,
        seed: int = 0,
        per_topic: int = PER_TOPIC,
        topics: Mapping[str, str] | None = None,
    ) -> None:
        self._data, self._seed, self._per_topic = data, seed, per_topic
        self._topics = dict(topics or {})
        self._protocol = PairwiseProtocol(1, seed=seed)

    @cached_property
    def candidates(self) -> tuple[Instruction, ...]:
        """All instructions, with the topics that are known.

        Raises:
            UsageError: they are not at hand, or a file is malformed.
        """
        found = _read(self._data.find(INSTRUCTIONS))
        topics = self._data.find_if_given(TOPICS_FILE)
        given = {} if topics is None else _read_topics(topics)
        return with_topics(with_topics(found, self._topics), given)

    @property
    def unsorted(self) -> tuple[Instruction, ...]:
        """Those whose topic is not known."""
        return tuple(one for one in self.candidates if TOPIC not in one.categories)

    def with_topics(self, topics: Mapping[str, str]) -> CategoriesBench:
        """The same bench, knowing more topics; instructions that still have none are not asked.

        Args:
            topics: by id, as `classify` returns them.
        """
        return CategoriesBench(
            self._data, seed=self._seed, per_topic=self._per_topic, topics={**self._topics, **topics}
        )

    @cached_property
    def instructions(self) -> Sequence[Instruction]:
        """Up to `per_topic` of each topic, drawn by the seed, in the order of the file.

        Raises:
            UsageError: they are not at hand, or none has a topic yet.
        """
        members: dict[str, list[Instruction]] = {}
        for one in self.candidates:
            if TOPIC in one.categories:
                members.setdefault(one.categories[TOPIC], []).append(one)
        if not members:
            raise UsageError(
                f"none of the {len(self.candidates)} instructions of --bench {self.name} has a topic; a model must sort "
                f"them first (thinkserve eval), or {TOPICS_FILE}.jsonl in --data must say them"
            )
        drawn = [
            one for found in members.values() for one in sorted(found, key=self._rank)[: self._per_topic]
        ]
        return tuple(sorted(drawn, key=lambda one: one.position))

    def _rank(self, instruction: Instruction) -> bytes:
        # By hash, so that one instruction more or less does not change which others are drawn.
        return sha256(f"{self._seed}:{instruction.id}".encode("utf-8", "surrogatepass")).digest()

    def protocol_of(self, judge: str) -> PairwiseProtocol:
        """The same for every judge."""
        return self._protocol

    def baseline_of(self, instruction: Instruction) -> str | None:
        """Nobody: it is two models that are compared."""
        return None

    def baseline_answers(self, instructions: Sequence[Instruction]) -> Mapping[str, Answers]:
        """None."""
        return {}

    def score(self, matches: Mapping[str, Sequence[Match]], *, compat: Compat, seed: int) -> Scores:
        """Make scores of verdicts, by topic."""
        return score_pairwise(
            self.name,
            matches,
            seed=seed,
            compat=compat,
            schemes=(TOPIC,),
            notes=_notes(matches, self._per_topic),
        )


def _notes(matches: Mapping[str, Sequence[Match]], per_topic: int) -> tuple[str, ...]:
    asked = {match.instruction.id: match.instruction for found in matches.values() for match in found}
    counts = Counter(one.categories.get(TOPIC) for one in asked.values())
    few = [f"{topic} ({counts[topic]})" for topic in TOPICS if 0 < counts[topic] < per_topic]
    none = [topic for topic in TOPICS if not counts[topic]]
    notes = [f"fewer than {per_topic} instructions: {', '.join(few)}"] if few else []
    if none:
        notes.append(f"no instructions of {len(none)} topics: {', '.join(none)}")
    return tuple(notes)


def _read(path: Path) -> tuple[Instruction, ...]:
    if path.suffix == ".parquet":
        return _read_ultrafeedback(path)
    rows = read_rows(path)
    given = {
        row.instruction.id: _topic(row.instruction.categories[TOPIC], f"{row.where}: field {TOPIC!r}")
        for row in rows
        if TOPIC in row.instruction.categories
    }
    return with_topics([row.instruction for row in rows], given)


def _read_ultrafeedback(path: Path) -> tuple[Instruction, ...]:
    """The prompts of a split; each once, as some are there twice.

    Raises:
        UsageError: it is another file, or has an id that is not the sum of its prompt.
    """
    parquet = import_module("pyarrow.parquet")  # comes with `datasets`
    try:
        columns = parquet.read_table(path, columns=["prompt", "prompt_id"]).to_pydict()
        prompts = dict(zip(columns["prompt"], columns["prompt_id"], strict=True))
    except (OSError, ValueError, KeyError) as exc:
        raise UsageError(
            f"{path}: is no UltraFeedback: {' '.join(str(exc).split())[:200]}; remove it"
        ) from exc
    for number, (prompt, id) in enumerate(prompts.items(), 1):
        if not isinstance(prompt, str) or sha256(prompt.encode()).hexdigest() != id:
            raise UsageError(
                f"{path}: row {number}: field 'prompt_id' is not the sha256 of 'prompt'; remove the file"
            )
    texts = [prompt for prompt in prompts if prompt.strip()]
    return tuple(Instruction(id_of(text), text, {}, position) for position, text in enumerate(texts))


def _read_topics(path: Path) -> dict[str, str]:
    topics = {}
    for record in read_table(path):
        id = record.text("id") if "id" in record.data else id_of(record.text("instruction"))
        topics[id] = _topic(record.text("topic"), f"{record.where}: field 'topic'")
    return topics


def _topic(given: str, where: str) -> str:
    """A topic that was given, as the paper spells it."""
    topic = parse_topic(given)
    if topic is None:
        raise UsageError(f"{where} is {given!r}, and must be one of: {', '.join(TOPICS)}")
    return topic
