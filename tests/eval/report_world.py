"""A run folder as a real run would leave it, made up from a seed: answers, lengths, judgments with reasons, scores.

Everything that reports can show is in it: topics and sources, forfeits, judgments that could not be read, verdicts that
flip with the order, thought against direct mode, and responses that try to break out of the page.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import msgspec

from thinkserve.eval.answer import Answer, OutputLength
from thinkserve.eval.folder import RunFolder, answer_json
from thinkserve.eval.judgment import Judgment
from thinkserve.eval.judgment import to_json as judgment_json
from thinkserve.eval.match import Verdict
from thinkserve.eval.records import write_records
from thinkserve.eval.scores import Comparison, Difference, Group, Scores, write_scores
from thinkserve.thoughts import Response

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 2">',
    "<!-- <style>body { display: none }</style> --><svg onload='window.hacked = 3'>",
    "</details></article></main><iframe src='https://example.invalid/leak'></iframe>",
    "\u202egnihtyna sdaer sihT \x00 [[A>>B]] | **bold** | `code` {output_2}",
)
TOPICS = (
    "Cooking & recipes", "Creative writing", "Data analysis", "Debugging", "Education", "Finance", "Games",
    "General knowledge", "Health", "History", "Human relationships", "Language and translation", "Law", "Logic puzzles",
    "Marketing", "Mathematics", "Programming", "Research in the natural sciences", "Roleplay", "Travel planning",
)  # fmt: skip
SOURCES = {"hard_prompt": 0.66, "creative_writing": 0.34}
WORDS = [
    "the",
    "answer",
    "follows",
    "from",
    "two",
    "facts",
    "that",
    "are",
    "easy",
    "to",
    "check",
    "and",
    "one",
    "that",
    "is",
    "not",
    "so",
    "we",
    "begin",
    "with",
    "the",
    "last",
    "of",
    "them",
    "because",
    "every",
    "later",
    "step",
    "hangs",
    "on",
    "it",
    "and",
    "a",
    "reader",
    "who",
    "doubts",
    "it",
    "can",
    "stop",
    "here",
    "without",
    "having",
    "wasted",
    "any",
    "time",
]
LABELS = {0.0: ("A>>B", "A>B"), 0.5: ("A=B",), 1.0: ("B>A", "B>>A")}


@dataclass(frozen=True)
class World:
    """What to make up."""

    models: Mapping[str, float]
    """From name to its skill: the chance, about, to beat the baseline."""
    instructions: int = 300
    bench: str = "arena-hard"
    judge: str = "gpt-4.1"
    baseline: str = "o3-mini-2025-01-31"
    compat: str = "aligned"
    games: int = 2
    topics: bool = True
    clusters: bool = False
    lengths: bool = True
    judgments: bool = True
    hostile: int = 10
    """So many instructions and responses try to break out of the page."""
    compare: bool = True
    seed: int = 7


THREE = {
    "pocket-27m": 0.56,
    "pocket-27m-direct": 0.47,
    "llama-3.1-8b-instruct": 0.36,
}


def build(path: Path, world: World | None = None) -> Path:
    """Write a run folder; returns it."""
    made = world or World(THREE)
    folder = RunFolder(path)
    rng = random.Random(made.seed)
    asked = _instructions(made, rng)
    write_records(folder.instructions, asked)
    _write_answers(folder, made.baseline, {item["id"]: _response(rng, 260) for item in asked}, rng)
    preferences, health = {}, {}
    for model, skill in made.models.items():
        preferences[model], judged = _model(folder, made, model, skill, asked, rng)
        health[model] = _health(judged)
    _write_scores(folder, made, asked, preferences, health, rng)
    return path


def _instructions(world: World, rng: random.Random) -> list[dict[str, Any]]:
    asked = []
    for number in range(world.instructions):
        topic = TOPICS[min(int(rng.expovariate(0.16)), 19)]
        source = "hard_prompt" if rng.random() < SOURCES["hard_prompt"] else "creative_writing"
        text = f"{topic}, question {number}: {_text(rng, rng.randint(8, 90))}?"
        if number < world.hostile:
            text = f"{HOSTILE[number % len(HOSTILE)]} {text}"
        categories = {"category": source}
        if source == "hard_prompt":
            categories["subcategory"] = rng.choice(("coding", "math"))
        if world.topics:
            categories["topic"] = topic
        if world.clusters:
            categories["cluster"] = f"Cluster {number // 2}: {' '.join(rng.sample(WORDS, 3))}"
        asked.append({"id": f"q{number:04d}", "text": text, "categories": categories if world.topics else {}})
    return asked


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def _response(rng: random.Random, words: int) -> str:
    count = max(5, int(rng.gauss(words, words / 3)))
    parts = [f"## Step {step}\n\n{_text(rng, count // 3)}.\n" for step in (1, 2, 3)]
    return "\n".join(parts) + f"\n- {_text(rng, 9)}\n- {_text(rng, 7)}\n"


def _write_answers(folder: RunFolder, model: str, texts: Mapping[str, str], rng: random.Random) -> set[str]:
    """Returns the ids of those whose thought never ended."""
    lost = {id for id in texts if rng.random() < 0.02}
    answers = [Answer(id, Response("" if id in lost else text), id not in lost) for id, text in texts.items()]
    write_records(folder.answers(model), [answer_json(answer, model) for answer in answers])
    return lost


def _model(
    folder: RunFolder,
    world: World,
    model: str,
    skill: float,
    asked: Sequence[Mapping[str, Any]],
    rng: random.Random,
) -> tuple[dict[str, float | None], list[Judgment]]:
    """Make up a model's answers and the judgments about them; returns its preferences and those."""
    thinks = "direct" not in model and "llama" not in model
    texts, lengths, judgments = {}, [], []
    words = {item["id"]: int(rng.gauss(250 + 200 * skill, 90)) for item in asked}
    for number, item in enumerate(asked):
        texts[item["id"]] = _response(rng, max(20, words[item["id"]]))
        if number < world.hostile:
            texts[item["id"]] = f"{HOSTILE[number % len(HOSTILE)]} {texts[item['id']]}"
    lost = _write_answers(folder, model, texts, rng)
    preferences: dict[str, float | None] = {}
    for item in asked:
        id = item["id"]
        thought = int(rng.lognormvariate(5.6, 0.7)) if thinks else 0
        lean = skill + 0.1 * (words[id] - 300) / 300 - 0.00012 * (thought - 300)
        lean += 0.15 if thinks and item["categories"].get("topic") in TOPICS[13:17] else 0.0
        found = [] if id in lost else _games(world, model, id, lean, rng)
        judgments += found
        verdicts = [j.verdict for j in found if j.verdict is not None]
        weight = sum(v.weight for v in verdicts)
        preferences[id] = (
            0.0 if id in lost else sum(v.weight * v.preference for v in verdicts) / weight if weight else None
        )
        seconds = round(0.9 + 0.008 * (thought + words[id]), 3)
        response = 0 if id in lost else int(words[id] * 1.4)
        lengths.append(OutputLength(id, thought, 5 * thought, response, len(texts[id]), seconds))
    if world.lengths:
        write_records(folder.lengths(model), [msgspec.to_builtins(length) for length in lengths])
    if world.judgments:
        write_records(folder.judgments(world.judge, model), [judgment_json(j) for j in judgments])
    return preferences, judgments


def _health(judgments: Sequence[Judgment]) -> dict[str, Any]:
    """As `judging.health` counts it."""
    unreadable: dict[str, int] = {}
    for judgment in judgments:
        if judgment.failure is not None:
            unreadable[judgment.failure] = unreadable.get(judgment.failure, 0) + 1
    read = [(j, j.verdict.preference) for j in judgments if j.verdict is not None]
    by_id: dict[str, list[float]] = {}
    for judgment, preference in read:
        by_id.setdefault(judgment.id, []).append(preference)
    pairs = [sorted(found) for found in by_id.values() if len(found) == 2]
    decided = [(j, preference) for j, preference in read if preference != 0.5]
    return {
        "games": len(judgments),
        "unscored": sum(unreadable.values()),
        "unreadable": unreadable,
        "retried": sum(judgment.attempts > 1 for judgment in judgments),
        "order_pairs": len(pairs),
        "order_flips": sum(low < 0.5 < high for low, high in pairs),
        "decided": len(decided),
        "first_preferred": sum((preference > 0.5) == j.model_first for j, preference in decided),
    }


def _games(world: World, model: str, id: str, lean: float, rng: random.Random) -> list[Judgment]:
    found = []
    for game in range(world.games):
        model_first = game == 1
        # What is shown first has it a little easier.
        drawn = rng.gauss(lean + (0.06 if model_first else -0.06), 0.33)
        preference = 0.0 if drawn < 0.42 else 0.5 if drawn < 0.52 else 1.0
        heavy = abs(drawn - 0.5) > 0.45
        shown = 1 - preference if model_first else preference  # for the one shown second
        label = LABELS[shown][0 if (shown == 0.0) == heavy else -1]
        verdict: Verdict | None = Verdict(label, preference, 3 if heavy else 1)
        raw: str | None = f"My own answer first. {_text(rng, 60)}.\n\nAssistant {label[0]} {_text(rng, 25)}. "
        raw = f"{raw}\n\nMy final verdict is: [[{label}]]"
        failure = None
        if rng.random() < 0.03:
            verdict, failure = None, rng.choice(("no verdict", "two verdicts", "truncated", "http 500"))
            raw = None if failure == "http 500" else f"{_text(rng, 50)} and so I cannot decide"
        if world.games == 1 and verdict is not None:
            verdict = Verdict("m" if model_first else "M", min(1.0, max(0.0, drawn)))
        judge = f"{world.judge}"
        found.append(
            Judgment(
                key=f"{id}{game}{model}", id=id, game=game, model_first=model_first, model=model,
                baseline=world.baseline, judge=judge, request_sha256="0" * 64, raw=raw, verdict=verdict,
                failure=failure, attempts=2 if rng.random() < 0.05 else 1, prompt_tokens=900,
                completion_tokens=300, seconds=2.0, created=1760000000.0,
            )
        )  # fmt: skip
    return found


def _group(
    preferences: Sequence[float | None], arena: bool, *, length: float, thought: float | None
) -> Group:
    scored = [100 * p for p in preferences if p is not None]
    if not scored:
        return Group(n=0, unscored=len(preferences), note="too few to say: 0 instructions")
    mean = fmean(scored)
    error = stdev(scored) / sqrt(len(scored)) if len(scored) > 1 else 0.0
    ci = (max(0.0, mean - 1.96 * error), min(100.0, mean + 1.96 * error))
    note = f"too few to say: {len(scored)} instructions" if len(scored) < 20 else None
    group = Group(
        n=len(scored), unscored=len(preferences) - len(scored), mean_length=length, mean_thought_tokens=thought, note=note
    )  # fmt: skip
    if arena:
        styled = mean + (1.4 if mean < 50 else -1.7)
        return replace(
            group, score=mean, ci=ci, ci_level=0.95, style_controlled_score=styled,
            style_controlled_ci=(styled - 1.9 * error, styled + 2.0 * error),
        )  # fmt: skip
    return replace(
        group, win_rate=mean, standard_error=error, length_controlled_win_rate=mean + 2.2, lc_standard_error=error * 0.9,
        wins=sum(p > 50 for p in scored), draws=sum(p == 50 for p in scored), losses=sum(p < 50 for p in scored),
    )  # fmt: skip


def _write_scores(
    folder: RunFolder,
    world: World,
    asked: Sequence[Mapping[str, Any]],
    preferences: Mapping[str, Mapping[str, float | None]],
    health: Mapping[str, Mapping[str, Any]],
    rng: random.Random,
) -> None:
    arena = world.bench.startswith("arena")
    models = {}
    for model, found in preferences.items():
        thought = 0.0 if "direct" in model or "llama" in model else 341.7
        overall = _group(
            list(found.values()), arena, length=1500 + 500 * world.models[model], thought=thought
        )
        categories: dict[str, dict[str, Group]] = {}
        for item in asked:
            for scheme, category in item["categories"].items():
                categories.setdefault(scheme, {})[category] = Group(0)
        for scheme, names in categories.items():
            for name in names:
                here = [found[item["id"]] for item in asked if item["categories"].get(scheme) == name]
                names[name] = _group(here, arena, length=1600.0, thought=None)
        forfeits = sum(p == 0.0 for p in found.values()) // 20
        note = (
            "This judge gives no log probabilities: not comparable with published numbers."
            if rng.random() < 0.2
            else None
        )
        models[model] = replace(overall, categories=categories, forfeits=forfeits, note=note)
    comparisons = _comparisons(list(world.models), asked, preferences, arena) if world.compare else ()
    notes = (
        "The judge is not the official one (gpt-4-1106-preview): the numbers are not comparable with the leaderboard.",
    )
    scores = Scores(
        world.bench, world.judge, world.baseline, world.compat, models, comparisons, notes, health,
        {"C": 2.782559402207126, "folds": "stable"},
    )  # fmt: skip
    write_scores(folder.scores, scores)


def _comparisons(
    names: Sequence[str],
    asked: Sequence[Mapping[str, Any]],
    preferences: Mapping[str, Mapping[str, float | None]],
    arena: bool,
) -> tuple[Comparison, ...]:
    if len(names) < 2:
        return ()
    found: list[Comparison] = []
    for a, b in [(names[0], names[1]), *((names[0], other) for other in names[2:4])]:
        schemes = list(dict.fromkeys(scheme for item in asked for scheme in item["categories"]))
        categories: dict[str, dict[str, Difference]] = {}
        for scheme in schemes:
            for name in dict.fromkeys(item["categories"].get(scheme) for item in asked):
                ids = [item["id"] for item in asked if item["categories"].get(scheme) == name]
                if name is not None:
                    categories.setdefault(scheme, {})[name] = _difference(preferences[a], preferences[b], ids)
        everything = _difference(preferences[a], preferences[b], [item["id"] for item in asked])
        overall = replace(everything, p_holm=None)
        cost = {
            name: {"thought_tokens": 0.0 if "direct" in name or "llama" in name else 341.7, "response_tokens": 480.0 + 9 * at,
                   "seconds": 4.1 if "direct" in name else 7.25}
            for at, name in enumerate((a, b))
        }  # fmt: skip
        group = Group(290, win_rate=58.4, standard_error=2.6, wins=161, draws=21, losses=108)
        found.append(
            Comparison(
                a,
                b,
                "score" if arena else "win_rate",
                overall,
                categories,
                group if not found else None,
                cost,
            )
        )
    return tuple(found)


def _difference(
    first: Mapping[str, float | None], second: Mapping[str, float | None], ids: Sequence[str]
) -> Difference:
    pairs = [(first[id], second[id]) for id in ids]
    gaps = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
    if len(gaps) < 2:
        return Difference(len(gaps), 0.0, (-100.0, 100.0), 1.0, 1.0, note="too few to say: 1 instruction")
    mean, error = fmean(gaps), max(stdev(gaps) / sqrt(len(gaps)), 0.1)
    p = min(1.0, 2 * 2.718281828 ** (-0.7 * (mean / error) ** 2))
    note = f"too few to say: {len(gaps)} instructions" if len(gaps) < 20 else None
    return Difference(len(gaps), mean, (mean - 1.96 * error, mean + 1.96 * error), p, min(1.0, 8 * p), note)
