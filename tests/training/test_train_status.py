"""`thinkserve train status` of made-up runs: what is done, what runs, what failed, and how long the rest will take."""

from __future__ import annotations

import fcntl
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.training.train_world import World, build, stopped, write_marker
from thinkserve.errors import UsageError
from thinkserve.eval.records import write_whole
from thinkserve.training.folder import Stage, TrainFolder
from thinkserve.training.recipe import Arm
from thinkserve.training.report.loading import read_run
from thinkserve.training.report.stages import is_at_work, seconds_left, standings
from thinkserve.training.report.status import show_status
from thinkserve.training.stage import StageProgress
from thinkserve.training.steps import LOCK, error_file

SMALL = World(instructions=14, iterations=2)


def status(folder: Path, width: int = 80) -> str:
    """As it is shown without a terminal."""
    stream = io.StringIO()
    show_status(folder, Console(file=stream, width=width))
    return stream.getvalue()


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """As the process of the loop holds it."""
    with open(folder / LOCK, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def killed(path: Path, arm: Arm, iteration: int, stage: Stage, world: World = SMALL) -> Path:
    return build(path / "run", stopped(world, arm, iteration, stage))


def write_log(folder: Path, arm: Arm, iteration: int, stage: Stage, text: str, mode: str = "both") -> Path:
    log = TrainFolder(folder, mode).iteration(arm, iteration).log(stage)  # type: ignore[arg-type]
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return log


def write_progress(folder: Path, arm: Arm, iteration: int, stage: Stage, done: int, total: int) -> Path:
    """By the class that stages use."""
    path = TrainFolder(folder, "both").iteration(arm, iteration).progress(stage)
    progress = StageProgress(path, "label", "pairs")
    progress.begin(total, kept=done)
    return path


def states(folder: Path) -> dict[tuple[str, int, str], str]:
    """Of what is neither done nor waiting."""
    found = standings(read_run(folder)).every
    return {
        (one.step.arm, one.step.iteration, one.step.stage): one.state
        for one in found
        if one.state not in ("done", "waiting")
    }


def test_a_finished_run(tmp_path: Path) -> None:
    """Sampling of iteration 1 took 31.93 s in the made-up run, of the direct arm 19.53 s."""
    text = status(build(tmp_path / "run", SMALL))
    assert text.startswith("pocket: thought and direct, 2 iterations; finished\n")
    rows = {line[:9].strip(): line[9:].split() for line in text.splitlines()}
    assert rows["thought 1"][0] == "32s" and rows["direct 1"][0] == "20s"
    assert rows["thought 0"] == ["9.0s"]
    assert len(rows["thought 2"]) == 8 and len(rows["sampled 2"]) > 4
    assert "All stages together took" in text and "left" not in text


@pytest.mark.parametrize(
    "world",
    [World(instructions=14, iterations=2), World(instructions=14, iterations=1, metric="win_rate", mode="direct")],
)  # fmt: skip
def test_it_fits_eighty_columns_whatever_goes_wrong(tmp_path: Path, world: World) -> None:
    """Long times, and a stage that failed, in each arm."""
    folder = build(tmp_path / "run", world)
    run = TrainFolder(folder, world.mode)
    for arm in world.recipe.arms:
        for stage in ("sample", "score", "validate"):
            write_marker(run.iteration(arm, 1), stage, 7500.0, {})
        run.iteration(arm, 1).marker("dpo").unlink()
        write_log(folder, arm, 1, "dpo", "half a line", world.mode)
    text = status(folder)
    assert "\u2026" not in text and "stopped" in text and "2h05" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_running_stage_says_how_far_it_is(tmp_path: Path) -> None:
    folder = killed(tmp_path, "thought", 2, "dpo")
    write_progress(folder, "thought", 2, "dpo", 300, 1200)
    write_log(folder, "thought", 2, "dpo", "")
    assert states(folder) == {("thought", 2, "dpo"): "stopped"}
    with at_work(folder):
        assert states(folder)["thought", 2, "dpo"] == "running"
        text = status(folder)
    assert "; at work\n" in text and "25 %" in text
    assert "thought 2, dpo: 300 of 1,200 pairs" in text
    assert "no news" not in text


def test_a_stage_of_which_nothing_is_heard_says_so(tmp_path: Path) -> None:
    """Its progress and its log are of ten minutes ago."""
    folder = killed(tmp_path, "thought", 1, "dpo", World(mode="thought", iterations=1, instructions=14))
    then = time.time() - 600
    path = TrainFolder(folder, "thought").iteration("thought", 1).progress("dpo")
    state = {
        "done": 1,
        "total": 4,
        "unit": "pairs",
        "updated": then,
        "per_second": 0.5,
        "seconds_left": 6.0,
        "failed": 2,
    }
    write_whole(path, msgspec.json.encode(state))
    log = write_log(folder, "thought", 1, "dpo", "x", "thought")
    os.utime(log, (then, then))
    with at_work(folder):
        text = " ".join(status(folder).split())
        assert "1 of 4 pairs, 0.5 pairs/s, 2 failed, 6.0 s left, no news for 10 min" in text
        os.utime(log)  # it writes to its log again
        assert "no news" not in status(folder)


def test_a_lock_whose_process_is_gone_is_no_process_at_work(tmp_path: Path) -> None:
    """The file stays when a process ends, however it does; the lock does not."""
    assert not is_at_work(tmp_path)
    with at_work(tmp_path):
        assert is_at_work(tmp_path)
        assert is_at_work(tmp_path)  # looking does not take it
    assert (tmp_path / LOCK).exists() and not is_at_work(tmp_path)


def test_others_who_look_are_no_process_at_work(tmp_path: Path) -> None:
    with open(tmp_path / LOCK, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_at_work(tmp_path)


def test_a_failed_stage_says_why_and_a_killed_one_how_its_log_ends(tmp_path: Path) -> None:
    folder = killed(tmp_path, "thought", 2, "score")
    write_log(folder, "thought", 2, "score", "")
    assert "thought 2, score was stopped before it said anything" in status(folder)
    write_log(folder, "thought", 2, "score", "loading\nTraceback\n  judged 3 of 8 \x1b[2Jand\n\n")
    text = status(folder)
    assert "; no process is at work" in text
    assert "thought 2, score was stopped; the last line of its log: judged 3 of 8 ?[2Jand" in text
    assert "Run it again with the same --out to go on." in " ".join(text.split())
    found = error_file(TrainFolder(folder, "both").iteration("thought", 2), "score")
    write_whole(found, msgspec.json.encode({"message": "the judge is [bold]down[/bold]", "exit_code": 1}))
    assert "thought 2, score failed: the judge is [bold]down[/bold]" in status(folder)
    with at_work(folder):  # it was started again
        assert states(folder)["thought", 2, "score"] == "running"


def test_arms_that_take_turns_do_not_both_run(tmp_path: Path) -> None:
    """The direct arm was killed in sampling an hour ago; now the thought arm is at work on its pairs."""
    turns = World(instructions=14, iterations=1, parallel=False)
    folder = killed(tmp_path, "direct", 1, "sample", turns)
    TrainFolder(folder, "both").iteration("thought", 1).marker("evaluate").unlink()
    old = write_log(folder, "direct", 1, "sample", "x")
    os.utime(old, (time.time() - 3600,) * 2)
    write_log(folder, "thought", 1, "evaluate", "x")
    with at_work(folder):
        assert states(folder) == {("thought", 1, "evaluate"): "running"}
    assert set(states(folder).values()) == {"stopped"}


def test_arms_side_by_side_both_run(tmp_path: Path) -> None:
    folder = killed(tmp_path, "thought", 1, "pairs")
    with at_work(folder):
        assert states(folder) == {("thought", 1, "pairs"): "running", ("direct", 1, "pairs"): "running"}


def test_before_the_arms_only_what_they_share_runs(tmp_path: Path) -> None:
    folder = killed(tmp_path, "thought", 0, "prompts", World(instructions=14, metric="win_rate"))
    with at_work(folder):
        assert states(folder) == {("thought", 0, "prompts"): "running"}
        assert "prompts runs  baseline \u2013" in status(folder)


def test_the_time_left_is_that_of_the_same_stages_before(tmp_path: Path) -> None:
    """Killed before checkpoint 2 of the thought arm, the arms one after the other. The thought arm is left with checkpoint
    and evaluation: 1.236 s (as in iteration 1) + (9 + 9.27) / 2 = 9.135 s. The direct arm has no finished stage, so the
    thought arm's means count: evaluation 9.135 three times, checkpoint 1.236 twice, and twice the means of iterations 1
    and 2, 1.045 * (31 + 2.5 + 4 + 1.5 + 42 + 18) = 103.455. Together 10.371 + 27.405 + 2.472 + 206.91 = 247.158."""
    turns = World(instructions=14, iterations=2, parallel=False)
    folder = killed(tmp_path, "thought", 2, "checkpoint", turns)
    run = read_run(folder)
    assert seconds_left(run, standings(run)) == pytest.approx(247.158)
    assert "About 4 min 7 s of work left" in status(folder)


def test_side_by_side_the_slower_arm_counts_and_what_runs_is_done_in_part(tmp_path: Path) -> None:
    """One iteration more of 1.03-fold times: the thought arm's DPO, of 43.26 s a quarter is done, and what follows it:
    0.75 * 43.26 + 18.54 + 1.236 + 9.135; the direct arm needs 0.63/1.03 of that or so, and 42 * 0.63 * 1."""
    folder = killed(tmp_path, "thought", 2, "dpo")
    run = read_run(folder)
    whole = 43.26 + 18.54 + 1.236 + 9.135
    assert seconds_left(run, standings(run)) == pytest.approx(whole)
    write_progress(folder, "thought", 2, "dpo", 300, 1200)
    assert seconds_left(run, standings(run)) == pytest.approx(
        whole
    )  # nobody is at work: it has to load again
    with at_work(folder):
        assert seconds_left(run, standings(run)) == pytest.approx(whole - 43.26 / 4)


def test_the_time_left_is_not_known_before_each_stage_was_finished_once(tmp_path: Path) -> None:
    folder = killed(tmp_path, "thought", 1, "dpo", World(instructions=14, iterations=1, mode="thought"))
    run = read_run(folder)
    assert seconds_left(run, standings(run)) is None
    text = status(folder)
    assert "How long the rest takes is known once every stage has been finished once." in " ".join(
        text.split()
    )


def test_the_numbers_so_far(tmp_path: Path) -> None:
    folder = killed(tmp_path, "direct", 1, "evaluate", World(instructions=100, iterations=1))
    rows = {
        line[:9].strip(): line.split()
        for line in status(folder).splitlines()
        if line[:7] in ("sampled", "greedy ")
    }
    assert set(rows) == {"sampled 0", "sampled 1", "greedy 0", "greedy 1"}
    assert len(rows["sampled 0"]) == 2 + 2 + 2 + 4
    assert rows["sampled 1"][-2:] == ["\u2013", "\u2013"]  # the direct arm has no measure yet


def test_a_folder_that_is_no_training_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no recipe\.yaml"):
        status(tmp_path)
    folder = killed(tmp_path, "thought", 1, "dpo")
    write_whole(TrainFolder(folder, "both").iteration("thought", 0).marker("evaluate"), b"{}")
    with pytest.raises(UsageError, match=r"iter-0/stages/evaluate\.json: cannot be read: .*seconds"):
        status(folder)


def test_names_that_would_steer_a_terminal_are_shown_as_text(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", World(instructions=14, iterations=1, hostile=True))
    assert status(folder).startswith("</script><script>window.hacked = 1</script>: thought and direct")
