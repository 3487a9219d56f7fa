"""`thinkserve train status`: where a run stands, what it is doing, when it will be done, and what it found so far."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from thinkserve.eval.report.elements import UNSEEN
from thinkserve.eval.report.numerals import MISSING, gain, points
from thinkserve.training.folder import TRAINING_STAGES
from thinkserve.training.report.arms import METRICS
from thinkserve.training.report.durations import duration
from thinkserve.training.report.loading import TrainRun, read_run
from thinkserve.training.report.measures import DECODINGS, Difference, Measure
from thinkserve.training.report.stages import Standing, Standings, seconds_left, standings
from thinkserve.training.steps import Step

QUIET = 120.0
"""Seconds without news after which that is said: loading a large model takes about so long."""
STYLES = {
    "done": "green",
    "running": "bold cyan",
    "failed": "bold red",
    "stopped": "yellow",
    "waiting": "dim",
}


def show_status(folder: Path, console: Console) -> None:
    """Print where a run stands.

    Args:
        folder: of the run.
        console: where to; 80 columns are enough.

    Raises:
        UsageError: the folder is no training run's, or one of its files is malformed.
    """
    run = read_run(folder)
    found = standings(run)
    parts = [_head(run, found), _stages(found), *_details(found), _time(run, found), *_results(run)]
    # Texts, not markup: names and messages may hold what rich takes for markup.
    console.print(Stack(*parts), highlight=False)


def _head(run: TrainRun, found: Standings) -> Text:
    if found.finished:
        state = ("finished", "bold green")
    elif found.at_work:
        state = ("at work", "bold cyan")
    else:
        state = ("no process is at work", "bold yellow")
    arms = " and ".join(run.arms)
    iterations = "1 iteration" if run.recipe.iterations == 1 else f"{run.recipe.iterations} iterations"
    return Text.assemble((_plain(run.recipe.name), "bold"), f": {arms}, {iterations}; ", state)


def _stages(found: Standings) -> RenderableType:
    """An iteration a row, a stage a column."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    columns = (*TRAINING_STAGES, "evaluate")
    for stage in columns:
        table.add_column(stage, justify="right", no_wrap=True, header_style="dim")
    for arm, steps in found.arms.items():
        for number in dict.fromkeys(one.step.iteration for one in steps):
            by_stage = {one.step.stage: one for one in steps if one.step.iteration == number}
            row = [by_stage.get(stage) for stage in columns]
            table.add_row(Text(f"{arm} {number}"), *[Text("") if one is None else _cell(one) for one in row])
    shared = [Text.assemble(f"{one.step.stage} ", _cell(one)) for one in found.shared]
    return Stack(Text("  ").join(shared), table)


def _cell(one: Standing) -> Text:
    if one.state == "done":
        shown = _compact(one.seconds or 0.0)
    elif one.state == "running":
        share = None if one.progress is None else one.progress.share
        shown = "runs" if share is None else f"{int(100 * share)} %"
    else:
        shown = MISSING if one.state == "waiting" else one.state
    return Text(shown, style=STYLES[one.state])


def _compact(seconds: float) -> str:
    """A duration in at most six characters: 8.2s, 42s, 3m20, 2h05, 76h."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    if (whole := round(seconds)) < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02}" if minutes < 6000 else f"{minutes // 60:,}h"


def _details(found: Standings) -> list[Text]:
    lines = []
    for one in found.every:
        if one.state == "running":
            lines.append(Text.assemble((_name(one.step), STYLES["running"]), f": {_running(one)}"))
        elif one.state in ("failed", "stopped"):
            lines.append(Text.assemble((_name(one.step), STYLES[one.state]), f" {_ended(one)}"))
    return lines


def _ended(one: Standing) -> str:
    if one.state == "failed":
        return f"failed: {_plain(one.reason or 'for no reason that it told')}"
    if one.reason is None:
        return "was stopped before it said anything"
    return f"was stopped; the last line of its log: {_plain(one.reason)}"


def _name(step: Step) -> str:
    return (
        step.stage if step.stage in ("prompts", "baseline") else f"{step.arm} {step.iteration}, {step.stage}"
    )


def _running(one: Standing) -> str:
    parts = []
    progress = one.progress
    if progress is None:
        parts.append("has begun")
    else:
        parts.append(f"{progress.done:,} of {progress.total:,} {_plain(progress.unit)}")
        if progress.per_second:
            parts.append(f"{progress.per_second:,.1f} {_plain(progress.unit)}/s")
        if progress.failed:
            parts.append(f"{progress.failed:,} failed")
        if progress.seconds_left is not None and progress.done < progress.total:
            parts.append(f"{duration(progress.seconds_left, ' ')} left")
    quiet = 0.0 if one.news is None else time.time() - one.news
    if quiet > QUIET:
        parts.append(f"no news for {duration(quiet, ' ')}")
    return ", ".join(parts)


def _time(run: TrainRun, found: Standings) -> Text:
    spent = sum(one.seconds or 0.0 for one in found.every)
    if found.finished:
        return Text(f"All stages together took {duration(spent, ' ')}.")
    left = seconds_left(run, found)
    if left is None:
        told = "How long the rest takes is known once every stage has been finished once."
    else:
        told = f"About {duration(left, ' ')} of work left, judged by the stages that are finished."
    if found.at_work:
        return Text(told)
    return Text(f"{told} Run it again with the same --out to go on.")


def _results(run: TrainRun) -> list[RenderableType]:
    """What was measured so far, an iteration and way of decoding a row."""
    results = run.results
    if results is None or not results.ordered:
        return []
    title = f"{METRICS[run.recipe.evaluate.metric]} in % (95 % interval), by iteration"
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    both = len(run.arms) == 2
    table.add_column("", no_wrap=True)
    for name in (*run.arms, *(["thought \u2212 direct"] if both else [])):
        table.add_column(name, justify="right", no_wrap=True, header_style="dim")
    for decoding in DECODINGS:
        for found in results.ordered:
            measures = [found.of(arm).get(decoding) for arm in run.arms]
            if any(measure is not None for measure in measures):
                cells = [Text(f"{decoding} {found.iteration}"), *map(_measure, measures)]
                table.add_row(*cells, *([_difference(found.paired.get(decoding))] if both else []))
    return [Text(), Text(title, style="bold"), table]


def _measure(measure: Measure | None) -> Text:
    if measure is None or measure.rate is None:
        return Text(MISSING)
    ends = "" if measure.ends is None else f" ({points(measure.ends[0])}\u2013{points(measure.ends[1])})"
    return Text.assemble(points(measure.rate), (ends, "dim"))


def _difference(difference: Difference | None) -> Text:
    if difference is None:
        return Text(MISSING)
    style = "" if not difference.clear else "bold green" if difference.difference > 0 else "bold red"
    low, high = difference.ends
    return Text.assemble((gain(difference.gain), style), (f" ({gain(low)} to {gain(high)})", "dim"))


def _plain(text: str) -> str:
    """In a line, without what would steer the terminal."""
    return " ".join(UNSEEN.sub("?", text).split())
