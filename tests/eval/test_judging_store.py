"""Judgments are kept for good, found again by their key, and read fast."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec
import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.judging.store import JudgmentStore
from thinkserve.eval.judgment import Judgment, to_json
from thinkserve.eval.match import Verdict

VERDICT = Verdict("A", 1.0)


def judgment(key: str, verdict: Verdict | None = VERDICT, raw: str = "[[A]]") -> Judgment:
    failures = () if verdict else ("no verdict",)
    return Judgment(
        key, "q", 0, True, "model", "base", "judge", "", raw, {"A": -0.5}, verdict, failures=failures
    )


def test_a_judgment_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "judge" / "model.jsonl"
    kept = judgment("k", Verdict("A>>B", 1.0, 3), "é 中文\n\u2028 [[A>>B]]")
    with JudgmentStore(path) as store:
        store.append(kept)
        assert store.find("k") == kept
    with JudgmentStore(path) as store:
        assert store.find("k") == kept
        assert store.find("other") is None
    assert path.read_bytes().count(b"\n") == 1


def test_a_failure_is_not_found_and_a_later_verdict_is(tmp_path: Path) -> None:
    with JudgmentStore(tmp_path / "j.jsonl") as store:
        store.append(judgment("k", None))
        assert store.find("k") is None
        assert (store.verdicts, store.failed) == (0, 1)
        store.append(judgment("k"))
        store.append(judgment("other", None))
    with JudgmentStore(tmp_path / "j.jsonl") as store:
        assert store.find("k") == judgment("k")
        assert (store.verdicts, store.failed) == (1, 1)


def test_a_verdict_is_not_undone_by_a_later_failure(tmp_path: Path) -> None:
    with JudgmentStore(tmp_path / "j.jsonl") as store:
        store.append(judgment("k"))
        store.append(judgment("k", None))
        assert store.find("k") == judgment("k")
        assert (store.verdicts, store.failed) == (1, 0)


def test_a_last_line_cut_anywhere_is_dropped_and_the_rest_is_there(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    lines = [msgspec.json.encode(to_json(judgment(key))) + b"\n" for key in "ab"]
    for cut in range(len(lines[1])):
        path.write_bytes(lines[0] + lines[1][:cut])
        with JudgmentStore(path) as store:
            assert (store.find("a"), store.find("b")) == (judgment("a"), None)
            store.append(judgment("b"))
        assert path.read_bytes() == b"".join(lines)


def test_a_line_that_is_no_judgment_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    line = msgspec.json.encode(to_json(judgment("a"))) + b"\n"
    path.write_bytes(line + b'{"key": 5}\n' + line)
    with pytest.raises(UsageError, match=re.escape(f"{path}:2: ") + ".*key"):
        JudgmentStore(path)


@pytest.mark.slow
def test_a_hundred_thousand_judgments_are_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    lines = (
        msgspec.json.encode(to_json(judgment(f"{number:064}", raw="x" * 500))) for number in range(100_000)
    )
    path.write_bytes(b"\n".join(lines) + b"\n")
    began = time.process_time()
    with JudgmentStore(path) as store:
        assert store.verdicts == 100_000
    assert time.process_time() - began < 3
