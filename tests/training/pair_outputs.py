"""Outputs to pair, written down shortly."""

from __future__ import annotations

from pathlib import Path

from thinkserve.training.pairs.candidates import Candidates, candidates_of
from thinkserve.training.recipe import PairsRecipe
from thinkserve.training.records import (
    CutOutput,
    OutputRecord,
    Problem,
    Sampled,
    SampleRecord,
    ScoreRecord,
)

SCORES = Path("scores.jsonl")
Given = tuple[str, float | None] | tuple[str, float | None, Problem]
"""A response, its score, and what is wrong with it. A thought before `|` makes another output of the same response."""


def records(id: str, *outputs: Given) -> tuple[SampleRecord, OutputRecord, ScoreRecord]:
    """The three records of an instruction; a token is a word."""
    samples, cuts = [], []
    for text, _, *problems in outputs:
        thought, _, response = text.rpartition("|")
        problem = problems[0] if problems else None
        if problem is not None:
            thought, response = response, ""
        raw = f"{thought}<R>{response}" if problem is None else thought
        words = len(thought.split()), len(response.split())
        samples.append(Sampled(raw, "stop", sum(words)))
        cuts.append(CutOutput(thought, response, problem, *words))
    scores = tuple(given[1] for given in outputs)
    return SampleRecord(id, tuple(samples)), OutputRecord(id, tuple(cuts)), ScoreRecord(id, scores)


def group(id: str, *outputs: Given, recipe: PairsRecipe | None = None) -> Candidates:
    """What a pair of an instruction can be made of."""
    return candidates_of(*records(id, *outputs), recipe or PairsRecipe(), SCORES)
