"""The official formats of Arena-Hard, row by row: questions, answers and judgments of both versions, read and made.

v0.1 has `question_id`, `model_id`, `choices`; v2.0 has `uid`, `model`, `messages`. The authors moved v0.1's files to
the newer format later, so each row is read by the fields that it has. Answers of thinking models keep their thought in
a field of its own: it is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from thinkserve.eval.answer import Answer, Style
from thinkserve.eval.arena.style import metadata_of, style_from
from thinkserve.eval.arena.tokens import CountTokens
from thinkserve.eval.arena.version import Version
from thinkserve.eval.instruction import Instruction
from thinkserve.eval.match import Match
from thinkserve.eval.records import Record
from thinkserve.thoughts import Response

GAMES = 2


@dataclass(frozen=True, slots=True)
class StoredGame:
    """One game of a judgment file."""

    score: str | None
    """The label as the file's own code read it; None: it found none."""
    text: str | None
    """What the judge said, where the file has it."""


@dataclass(frozen=True, slots=True)
class StoredJudgment:
    """One row of a judgment file."""

    id: str
    model: str
    judge: str
    baseline: str | None
    """v2.0 alone names it."""
    games: tuple[StoredGame | None, ...]
    """The first with the model as B; None: the judge never answered."""
    record: Record


def id_field(record: Record) -> str:
    """The name of the field that holds the instruction's id."""
    return "question_id" if "question_id" in record.data else "uid"


def read_question(record: Record, position: int) -> Instruction:
    """An instruction from a row of question.jsonl.

    Raises:
        UsageError: the row is malformed; names file, line and field.
    """
    text = record.text("turns", 0, "content") if "turns" in record.data else record.text("prompt")
    schemes = ("category", "subcategory") if "subcategory" in record.data else ("cluster",)
    categories = {scheme: record.text(scheme) for scheme in schemes}
    return Instruction(record.text(id_field(record)), text, categories, position)


def read_answer(record: Record) -> tuple[str, Answer]:
    """A model's name and its answer from a row of an answer file.

    Raises:
        UsageError: the row is malformed; names file, line and field.
    """
    if "choices" in record.data:
        model, text = record.text("model_id"), record.text("choices", 0, "turns", 0, "content")
    else:
        model = record.text("model")
        messages = record.list("messages")
        at: tuple[str | int, ...] = ("messages", len(messages) - 1, "content")
        content = messages[-1].get("content") if messages and isinstance(messages[-1], dict) else None
        text = record.text(*at, "answer") if isinstance(content, dict) else record.text(*at)
    complete = record.get("complete", True) is not False
    return model, Answer(record.text(id_field(record)), Response(text), complete, _style(record))


def _style(record: Record) -> Style | None:
    for field in ("metadata", "conv_metadata"):
        metadata = record.get(field)
        if metadata is not None:
            try:
                return style_from(metadata)
            except (TypeError, ValueError) as exc:
                raise record.error(
                    field,
                    f"has no counts as Arena-Hard writes them ({exc}); leave it out to have them counted",
                ) from exc
    return None


def read_judgment(record: Record) -> StoredJudgment:
    """A row of a judgment file.

    Raises:
        UsageError: the row is malformed; names file, line and field.
    """
    games = record.list("games")
    if len(games) != GAMES:
        raise record.error("games", f"has {len(games)} of {GAMES} games")
    if "category" in record.data:
        record.text("category")  # the question's counts, but a file that is wrong here is wrong elsewhere
    return StoredJudgment(
        id=record.text(id_field(record)),
        model=record.text("model"),
        judge=record.text("judge"),
        baseline=record.text("baseline") if "baseline" in record.data else None,
        games=tuple(_game(record, number, game) for number, game in enumerate(games)),
        record=record,
    )


def _game(record: Record, number: int, game: Any) -> StoredGame | None:
    if game is None:
        return None
    if not isinstance(game, dict):
        raise record.error(f"games[{number}]", "must be an object or null")
    said = game.get("judgment")
    text = said.get("answer") if isinstance(said, dict) else said
    if text is not None and not isinstance(text, str):
        raise record.error(
            f"games[{number}].judgment", "must be the judge's text, or an object with it as answer"
        )
    if "score" not in game and text is None:
        raise record.error(f"games[{number}].score", "is missing, and there is no judgment to read it from")
    score = game.get("score")
    if score is not None and not isinstance(score, str):
        raise record.error(
            f"games[{number}].score", f"is {score!r}, and must be a label such as 'A>B', or null"
        )
    return StoredGame(score, text)


def answer_row(
    version: Version, instruction: Instruction, model: str, answer: Answer, count_tokens: CountTokens
) -> dict[str, Any]:
    """A row of an answer file.

    `complete` is ours, and only there where it is false: the authors' code passes over it.
    """
    text = str(answer.response)
    metadata = metadata_of(answer.response, count_tokens)
    if answer.style is not None:  # as its own file had it, whatever it was counted with
        metadata = {**metadata, "token_len": answer.style.token_len}
    row_id = sha256(f"{model}\0{instruction.id}\0{answer.sha256}".encode()).hexdigest()[:22]
    ours = {} if answer.complete else {"complete": False}
    if version == "v0.1":
        turns = [{"content": text, "token_len": metadata["token_len"]}]
        return {
            "question_id": instruction.id,
            "answer_id": row_id,
            "model_id": model,
            "choices": [{"index": 0, "turns": turns}],
            "conv_metadata": metadata,
            **ours,
        }
    asked = {"role": "user", "content": instruction.text}
    said = {"role": "assistant", "content": {"answer": text}}
    return {
        "uid": instruction.id,
        "ans_id": row_id,
        "model": model,
        "messages": [asked, said],
        "metadata": metadata,
        **ours,
    }


def judgment_row(
    version: Version, model: str, judge: str, match: Match, said: Mapping[int, str]
) -> Mapping[str, Any]:
    """A row of a judgment file: the games of a match as a judge decided them, or a forfeit did.

    Args:
        version: of the bench.
        model: whose match it is.
        judge: its name.
        match: with the games of this judge alone.
        said: from the number of a game to what the judge said; nothing of a forfeit.
    """
    labels = {played.game.number: played.verdict.label for played in match.games if played.verdict}
    stored = [_stored_game(version, labels.get(number), said.get(number)) for number in range(GAMES)]
    id = match.instruction.id
    if version == "v0.1":
        return {"question_id": id, "model": model, "judge": judge, "games": stored}
    return {
        "uid": id,
        "category": match.instruction.categories["category"],
        "judge": judge,
        "model": model,
        "baseline": match.baseline_model,
        "games": stored,
    }


def _stored_game(version: Version, score: str | None, said: str | None) -> Mapping[str, Any] | None:
    if version == "v0.1":
        return {"user_prompt": "", "judgment": said or "", "score": score}
    if score is None and said is None:
        return None
    return {"score": score, "judgment": {"answer": said or ""}, "prompt": []}
