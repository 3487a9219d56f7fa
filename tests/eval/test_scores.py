"""`scores.json`: what is written is read back, and nothing that does not apply is in it."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.scores import (
    SCHEMA,
    Comparison,
    Difference,
    Group,
    Scores,
    read_scores,
    to_json,
    write_scores,
)

SCORES = Scores(
    bench="b",
    judge="j",
    baseline="x",
    compat="aligned",
    models={
        "m": Group(
            n=3,
            win_rate=float(np.float64(50.0)),
            ci=(40.0, 60.0),
            ci_level=0.95,
            categories={"topic": {"Travel and Leisure": Group(n=1, unscored=2)}},
        )
    },
    comparisons=(Comparison("m", "x", "win_rate", Difference(3, 1.0, (-1.0, 3.0), 0.3)),),
    health={"m": {"games": 6, "unreadable": {"empty": 1}}},
)


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.json", SCORES)
    assert read_scores(tmp_path / "scores.json") == SCORES


def test_a_key_that_does_not_apply_is_absent() -> None:
    written = to_json(SCORES)
    assert written["schema"] == SCHEMA
    assert set(written["models"]["m"]) == {"n", "unscored", "win_rate", "ci", "ci_level", "categories"}
    assert to_json(Scores("b", "j", "x", "aligned", {}))["comparisons"] == []


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    group = Group(n=1, win_rate=np.float64(12.5), ci=(np.float64(1.0), np.float64(2.0)))
    assert msgspec.json.encode(to_json(Scores("b", "j", "x", "aligned", {"m": group})))


def test_what_is_no_finite_number_is_absent() -> None:
    group = Group(n=1, standard_error=math.nan, mean_length=np.float64("inf"))
    scores = Scores("b", "j", "x", "aligned", {"m": group}, details={"a": {"b": -math.inf, "c": 1}})
    found = to_json(scores)
    assert (found["models"], found["details"]) == ({"m": {"n": 1, "unscored": 0}}, {"a": {"c": 1}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "bad JSON"),
        ("{}", "its schema is None, and this version reads 'thinkserve.scores/1'"),
        ("[]", "its schema is None"),
        ('{"schema": "thinkserve.scores/2"}', "its schema is 'thinkserve.scores/2'"),
        ('{"schema": "thinkserve.scores/1", "bench": 3}', "bench"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UsageError) as failure:
        read_scores(path)
    assert str(path) in str(failure.value) and message in str(failure.value)
