"""The paper's 20 topics, and which of them an instruction is about, as a model sees it.

What a model said is kept in a file (`topics.jsonl` of a run), by the request's hash and the model's name, so that nobody
pays for it twice, and a changed prompt is asked anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from thinkserve.eval.arena.verdict import without_thoughts
from thinkserve.eval.bench import JudgeRequest
from thinkserve.eval.fence import fence
from thinkserve.eval.instruction import TOPIC, Instruction
from thinkserve.eval.judging.client import ChatClient
from thinkserve.eval.judging.completion import CompletionFailed
from thinkserve.eval.judging.template import fill
from thinkserve.eval.records import RecordLog, read_records

logger = logging.getLogger(__name__)

# Source: Wu et al., Thinking LLMs, arXiv 2410.10630 (first version), table 7.
TOPICS = (
    "Art and Design",
    "Business and Finance",
    "Content Writing",
    "Conversational Dialogue",
    "Creative Writing",
    "Data Analysis and Visualization",
    "Education and Learning",
    "Entertainment and Humor",
    "Game Development",
    "General Knowledge",
    "Health and Wellness",
    "Language and Translation",
    "Marketing and Sales",
    "Math and Calculations",
    "Personal Development",
    "Programming and Coding",
    "Reasoning and Problem-Solving",
    "Research and Analysis",
    "Science and Technology",
    "Travel and Leisure",
)
# Room for a model that thinks first.
SETTINGS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 4096}
AGAIN = "That names no single topic of the list. Answer with one number in double brackets and nothing else."

_BRACKETS = re.compile(r"\[\[\s*#?(\d+)\s*\.?\s*\]\]")
_NUMBER = re.compile(r"(?<![\d.])\d+(?![\d]|\.\d)")


class ClassifyingProgress(Protocol):
    """Who shows how far the sorting is: `judging.progress.Progress`."""

    def begin(self, total: int, kept: int) -> None:
        """It begins: so many instructions, the topics of so many are in the file."""

    def advance(self, *, failed: bool = False) -> None:
        """One more was asked about; `failed`: it has no topic."""


def parse_topic(text: str) -> str | None:
    """The topic that a reply names, by number or by name; None where it names none, or several.

    The last number in double brackets counts; without one a name that is there alone, or a number that is.
    """
    said = without_thoughts(text)
    if numbers := _BRACKETS.findall(said):
        return _numbered(numbers[-1])
    plain = _folded(said)
    named = [topic for topic in TOPICS if re.search(rf"(?<!\w){re.escape(_folded(topic))}(?!\w)", plain)]
    if named:
        return named[0] if len(named) == 1 else None
    found = {topic for number in _NUMBER.findall(said) if (topic := _numbered(number)) is not None}
    return found.pop() if len(found) == 1 else None


def _numbered(number: str) -> str | None:
    return TOPICS[int(number) - 1] if len(number) < 4 and 1 <= int(number) <= len(TOPICS) else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("&", " and ").replace("-", " ").split())


def topic_request(instruction: Instruction) -> JudgeRequest:
    """What a model is asked about an instruction."""
    values = {
        "topics": "\n".join(f"{number}. {topic}" for number, topic in enumerate(TOPICS, 1)),
        "fence": fence(instruction.text),
        "instruction": instruction.text,
    }
    return JudgeRequest(({"role": "user", "content": fill(_prompt(), values)},), SETTINGS)


@cache
def _prompt() -> str:
    return (files("thinkserve.eval") / "prompts" / "topics.txt").read_text("utf-8").strip()


def unknown_topics(instructions: Sequence[Instruction], model: str, log: Path) -> list[JudgeRequest]:
    """What `classify` would ask a model about: the instructions whose topics are not in the file.

    Raises:
        UsageError: the file is malformed.
    """
    if log.exists():
        RecordLog(log).close()  # drops a last line that was cut short
    known = _read(log) if log.exists() else {}
    waiting = {_key(instruction, model): instruction for instruction in instructions}
    return [topic_request(instruction) for key, instruction in waiting.items() if key not in known]


async def classify(
    instructions: Sequence[Instruction],
    client: ChatClient,
    log: Path,
    *,
    progress: ClassifyingProgress | None = None,
) -> Mapping[str, str]:
    """Ask a model for the topic of each instruction; returns from id to topic.

    A reply that names no topic is asked once more. An instruction that still has none is left out, counted in a
    warning, and asked for again on the next run.

    Args:
        instructions: which.
        client: the model that is asked; it bounds how many calls there are at once.
        log: what it said is kept here, and read from here.
        progress: is told of every instruction.

    Raises:
        UsageError: the file is malformed.
        ThinkserveError: the model cannot be asked at all; what was answered is kept.
    """
    keys = {instruction.id: _key(instruction, client.model) for instruction in instructions}
    waiting = {keys[instruction.id]: instruction for instruction in instructions}
    with RecordLog(log) as file:  # drops a last line that was cut short, so it comes before reading
        known = _read(log)
        asked = [(key, instruction) for key, instruction in waiting.items() if key not in known]
        if progress is not None:
            progress.begin(len(waiting), len(waiting) - len(asked))
        queue = iter(asked)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(len(asked), client.concurrency)):
                    workers.create_task(_work(queue, client, file, known, progress))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # of one client, so all say the same
    topics = {id: known[key] for id, key in keys.items() if key in known}
    if len(topics) < len(keys):
        logger.warning(
            "%s: %d of %d instructions have no topic that could be read; they are left out",
            client.model,
            len(keys) - len(topics),
            len(keys),
        )
    return topics


async def _work(
    queue: Iterable[tuple[str, Instruction]],
    client: ChatClient,
    file: RecordLog,
    known: dict[str, str],
    progress: ClassifyingProgress | None,
) -> None:
    for key, instruction in queue:
        answer = await _ask(instruction, client)
        record = {"key": key, "id": instruction.id, "model": client.model, "topic": answer.topic}
        file.append({**record, "raw": answer.raw, "failure": answer.failure})
        if answer.topic is not None:
            known[key] = answer.topic
        if progress is not None:
            progress.advance(failed=answer.topic is None)


@dataclass(frozen=True, slots=True)
class _Answer:
    topic: str | None
    raw: str | None
    failure: str | None = None


async def _ask(instruction: Instruction, client: ChatClient) -> _Answer:
    request = topic_request(instruction)
    try:
        said = (await client.complete(request)).reply.text
        topic = parse_topic(said)
        if topic is None:
            more = ({"role": "assistant", "content": said or "..."}, {"role": "user", "content": AGAIN})
            said = (await client.complete(replace(request, messages=(*request.messages, *more)))).reply.text
            topic = parse_topic(said)
    except CompletionFailed as exc:
        return _Answer(None, None, exc.failures[-1])
    return _Answer(topic, said, None if topic else "no topic")


def _key(instruction: Instruction, model: str) -> str:
    request = topic_request(instruction)
    # Not by msgspec, which refuses half of a surrogate pair.
    return sha256(
        json.dumps([model, request.messages, request.settings], sort_keys=True).encode()
    ).hexdigest()


def _read(log: Path) -> dict[str, str]:
    if not log.stat().st_size:
        return {}
    known = {}
    for record in read_records(log):
        if record.get("topic") is not None:
            topic = record.text("topic")
            if topic not in TOPICS:
                raise record.error("topic", f"is {topic!r}, and must be one of the {len(TOPICS)} topics")
            known[record.text("key")] = topic
    return known


def with_topics(instructions: Iterable[Instruction], topics: Mapping[str, str]) -> tuple[Instruction, ...]:
    """The instructions with their topics among their categories; those without one stay as they are.

    Args:
        instructions: which.
        topics: by id.
    """
    return tuple(
        replace(one, categories={**one.categories, TOPIC: topics[one.id]}) if one.id in topics else one
        for one in instructions
    )
