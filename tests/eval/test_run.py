"""`thinkserve eval` and `thinkserve score` as users run them: whole processes, a scripted judge, the pocket model."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.eval.scripted_judge import FAILURES, Action, Asked, Say, judge_process, scripted_judge
from thinkserve.engines.transformers import transformers_version

ROOT = Path(__file__).parent.parent.parent
DATA = Path(os.environ.get("THINKSERVE_EVAL_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the official data at {DATA}")
LETTERS = ("A>>B", "A>B", "A=B", "B>A", "B>>A")


def thinkserve(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of its own, without anybody at the terminal."""
    return subprocess.run(
        [sys.executable, "-m", "thinkserve.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT.parent,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **(env or {})},
        check=False,
    )


def scores_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "scores.json").read_bytes())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(transformers_version() is None, reason="needs transformers and torch")
def test_the_whole_chain_runs_on_the_pocket_model(tmp_path: Path) -> None:
    """Serve, answer in both modes, judge by rule, score, report; then again, with nothing left to do."""
    out = tmp_path / "run"
    command = ("eval", "--bench", "pocket", "--model", "pocket", "--mode", "both", "--engine", "transformers")
    first = thinkserve(*command, "--limit", 64, "--out", out)
    assert first.returncode == 0, first.stderr
    assert "pocket answers: 64/64 answers (100 %)" in first.stderr
    scores = scores_of(out)
    assert set(scores["models"]) == {"pocket", "pocket-direct"}
    for group in scores["models"].values():
        assert group["n"] == 64 and group["unscored"] == 0
        assert sum(category["n"] for category in group["categories"]["category"].values()) == 64
    assert (
        scores["models"]["pocket"]["mean_thought_tokens"]
        > 1
        > scores["models"]["pocket-direct"]["mean_thought_tokens"]
    )
    (comparison,) = scores["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("pocket", "pocket-direct")
    assert comparison["head_to_head"]["n"] == 64
    assert set(comparison["cost"]["pocket"]) == {"thought_tokens", "response_tokens", "seconds"}
    page = (out / "report.html").read_text()
    assert "<R>" not in page and "pocket-direct" in page
    assert (out / "report.md").read_text().count("|") > 50
    before = (out / "scores.json").read_bytes()
    again = thinkserve(*command, "--limit", 64, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "answers" not in again.stderr
    assert (out / "scores.json").read_bytes() == before
    rescored = thinkserve(
        "score", "--bench", "pocket", "--out", tmp_path / "again",
        *(word for name in ("pocket", "pocket-direct") for word in (
            "--answers", out / "answers" / f"{name}.jsonl", "--judgments", out / "judgments" / "rule" / f"{name}.jsonl")),
    )  # fmt: skip
    assert rescored.returncode == 0, rescored.stderr
    assert (
        scores_of(tmp_path / "again")["models"]["pocket"]["win_rate"]
        == scores["models"]["pocket"]["win_rate"]
    )


def verdict(asked: Asked) -> Action:
    """A verdict of Arena-Hard that hangs on what was asked, in one of its spellings."""
    return Say(f"My own answer: ...\nMy final verdict is: [[{LETTERS[asked.die % 5]}]]")


def hostile(asked: Asked) -> Action:
    """Each way to fail once for a share of the games, and then a verdict."""
    return verdict(asked) if asked.nth else FAILURES[asked.die // 7 % len(FAILURES)]


def arena(judge_url: str, out: Path, *more: object) -> tuple[object, ...]:
    return (
        *("eval", "--bench", "arena-hard-v0.1", "--data", DATA, "--limit", 40, "--out", out),
        *("--model", f"answers:{DATA}/arena_hard_v0.1/model_answer/qwen2.5-72b-instruct.jsonl.gz"),
        *("--judge", f"{judge_url.removesuffix('/v1')}#scripted", "--timeout", 2, *more),
    )


@needs_data
@pytest.mark.timeout(180)
async def test_a_run_with_a_judge_that_fails_in_every_way_loses_nothing(tmp_path: Path) -> None:
    """The same scores as with a judge that does not fail; every kind of failure is counted."""
    async with scripted_judge(hostile) as judge:
        run = await asyncio.to_thread(thinkserve, *arena(judge.url, tmp_path / "hostile"))
        assert run.returncode == 0, run.stderr
    async with scripted_judge(verdict) as judge:
        run = await asyncio.to_thread(thinkserve, *arena(judge.url, tmp_path / "calm"))
        assert run.returncode == 0, run.stderr
        asked = len(judge.requests)
        again = await asyncio.to_thread(thinkserve, *arena(judge.url, tmp_path / "calm"))
        assert again.returncode == 0 and len(judge.requests) == asked  # nothing is paid for twice
    assert asked == 80
    failed, calm = scores_of(tmp_path / "hostile"), scores_of(tmp_path / "calm")
    health = failed["health"]["qwen2.5-72b-instruct"]
    assert health["games"] == health["judged"] + health["unscored"] == 80
    for kind in ("http 429", "http 500", "timeout", "bad json", "connection"):
        assert health["failures"][kind] > 0, health
    # `[[A>> B]]` is read; whatever has no verdict is asked for once more.
    assert health["unscored"] == 0
    assert failed["models"]["qwen2.5-72b-instruct"]["n"] == calm["models"]["qwen2.5-72b-instruct"]["n"] == 40


@pytest.mark.timeout(180)
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_scores(tmp_path: Path) -> None:
    with judge_process("fair", latency=0.05) as url:
        command = [sys.executable, "-m", "thinkserve.cli", *map(str, pairwise(url, tmp_path, "killed"))]
        for seconds in (1.5, 2.0, 2.5):
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert thinkserve(*pairwise(url, tmp_path, "killed")).returncode == 0
        assert thinkserve(*pairwise(url, tmp_path, "whole")).returncode == 0
    assert (tmp_path / "killed" / "scores.json").read_bytes() == (
        tmp_path / "whole" / "scores.json"
    ).read_bytes()
    lines = (tmp_path / "killed" / "judgments" / "fair" / "a.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines)


def pairwise(url: str, folder: Path, out: str) -> tuple[object, ...]:
    bench = folder / "mine.jsonl"
    if not bench.exists():
        texts = [f"Say {number}" for number in range(300)]
        bench.write_text(
            "".join(
                json.dumps({"instruction": text, "id": text, "category": text[-1]}) + "\n" for text in texts
            )
        )
        for name in ("a", "b"):
            rows = [{"id": text, "model": name, "response": f"{name}: {text}"} for text in texts]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        *(
            "eval",
            "--bench",
            bench,
            "--model",
            f"answers:{folder}/a.jsonl",
            "--baseline",
            f"answers:{folder}/b.jsonl",
        ),
        *("--judge", f"{url.removesuffix('/v1')}#fair", "--concurrency", 16, "--out", folder / out),
    )


@needs_data
async def test_answers_and_judgments_are_written_in_the_official_formats_and_score_the_same(
    tmp_path: Path,
) -> None:
    async with scripted_judge(verdict) as judge:
        run = await asyncio.to_thread(thinkserve, *arena(judge.url, tmp_path / "run"))
    assert run.returncode == 0, run.stderr
    official = tmp_path / "run" / "official"
    again = thinkserve(
        *("score", "--bench", "arena-hard-v0.1", "--data", DATA, "--out", tmp_path / "again"),
        *("--answers", official / "model_answer" / "qwen2.5-72b-instruct.jsonl"),
        *("--judgments", official / "model_judgment" / "scripted" / "qwen2.5-72b-instruct.jsonl"),
    )
    assert again.returncode == 0, again.stderr
    ours, theirs = (scores_of(tmp_path / name)["models"]["qwen2.5-72b-instruct"] for name in ("run", "again"))
    for key in ("n", "score", "ci", "style_controlled_score"):
        assert ours.get(key) == pytest.approx(theirs.get(key)), key
    assert ours["n"] > 0


@needs_data
@pytest.mark.parametrize("bench", ["arena-hard-v0.1", "arena-hard"])
async def test_what_was_lost_without_a_judge_is_in_the_official_files_too(tmp_path: Path, bench: str) -> None:
    """Every third output has no response. A row that is missing would make the model better by that third."""
    version = "v0.1" if bench == "arena-hard-v0.1" else "v2.0"
    with gzip.open(DATA / f"arena_hard_{version}" / "question.jsonl.gz", "rt", encoding="utf-8") as file:
        asked = [
            question for line in file if (question := json.loads(line)).get("subcategory") in (None, "math")
        ]
    rows = [
        {
            "id": one.get("uid") or one["question_id"],
            "model": "m",
            "response": "four" if at % 3 else "",
            "complete": at % 3 > 0,
        }
        for at, one in enumerate(asked)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ("--category", "math", "--limit", 30) if version == "v2.0" else ("--limit", 30)
    async with scripted_judge(verdict) as judge:
        run = await asyncio.to_thread(
            thinkserve,
            *("eval", "--bench", bench, "--data", DATA, "--out", tmp_path / "run", *few),
            *(
                "--model",
                f"answers:{tmp_path}/m.jsonl",
                "--judge",
                f"{judge.url.removesuffix('/v1')}#scripted",
            ),
        )
    assert run.returncode == 0, run.stderr
    official = tmp_path / "run" / "official"
    again = thinkserve(
        *("score", "--bench", bench, "--data", DATA, "--out", tmp_path / "again"),
        *("--answers", official / "model_answer" / "m.jsonl"),
        *("--judgments", official / "model_judgment" / "scripted" / "m.jsonl"),
    )
    assert again.returncode == 0, again.stderr
    ours, theirs = (scores_of(tmp_path / name)["models"]["m"] for name in ("run", "again"))
    assert 0 < ours["forfeits"] < ours["n"] == 30
    for key in ("n", "forfeits", "score", "ci", "win_rate"):
        assert ours[key] == pytest.approx(theirs[key]), key


WRONG = [
    (("eval", "--bench", "nothing"), "--bench 'nothing' is no benchmark and no file; choose alpaca-eval"),
    (("eval", "--bench", "pocket", "--judge", "http://127.0.0.1:9#x"), "pocket is judged by rule; leave --judge out"),
    (("eval", "--bench", "pocket", "--mode", "half"), "--mode 'half' is none; choose thought, direct or both"),
    (("eval", "--bench", "pocket", "--model", "./none"), "'./none': there is no such checkpoint"),
    (("eval", "--bench", "pocket", "--data", "/none", "--category", "x", "--model", "pocket"), "--category 'x': pocket has add"),
    (("eval", "--bench", "arena-hard-v0.1", "--data", DATA, "--model", "pocket"), "OPENAI_API_KEY is not set"),
    (("eval", "--bench", "alpaca-eval", "--data", DATA, "--model", "pocket", "--judge", "http://127.0.0.1:9#a", "--judge", "http://127.0.0.1:9#b"), "alpaca-eval takes one judge"),
    (("eval", "--bench", "alpaca-eval", "--data", "/none"), "--data /none: there is no such folder"),
    (("eval", "--bench", "arena-hard-v0.1", "--data", DATA, "--judge", "rule", "--model", "pocket"), "--judge rule is for the pocket bench"),
]  # fmt: skip


@needs_data
@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_with_a_command_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    run = thinkserve(*arguments, "--out", tmp_path / "out", env={"OPENAI_API_KEY": ""})
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_of_something_else_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    with judge_process("fair") as url:
        assert thinkserve(*pairwise(url, tmp_path, "run")).returncode == 0
        before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
        other = thinkserve(*pairwise(url, tmp_path, "run"), "--seed", 1)
    assert other.returncode == 2
    assert "holds another run (its seed is 0, and 1 is asked for now)" in other.stderr
    assert {
        path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()
    } == before


@needs_data
@pytest.mark.timeout(60)
def test_scoring_alpaca_eval_takes_three_seconds(tmp_path: Path) -> None:
    """The gate is 3 s for the whole process on a quiet machine; the best of three, and half as much again for others' load."""
    seconds = []
    for number in range(3):
        began = time.perf_counter()
        run = thinkserve(
            *("score", "--bench", "alpaca-eval", "--data", DATA, "--out", tmp_path / str(number)),
            *("--judgments", DATA / "alpaca_eval" / "annotations" / "claude-2.1.jsonl.gz"),
        )
        seconds.append(time.perf_counter() - began)
        assert run.returncode == 0, run.stderr
    assert min(seconds) < 4.5, seconds
