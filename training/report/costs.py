"""What the run cost: seconds and tokens, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinkserve.eval.report.elements import Child, Html, folded, join, tag
from thinkserve.eval.report.numerals import MISSING, share, whole
from thinkserve.eval.report.svg import stacked
from thinkserve.eval.report.tables import plain_table
from thinkserve.training.folder import STAGES, Stage
from thinkserve.training.report.arms import SERIES, SHORT
from thinkserve.training.report.durations import duration
from thinkserve.training.report.loading import IterationView, Marker, TrainRun


@dataclass(frozen=True, slots=True)
class Spent:
    """A finished stage; `view` is None for those that belong to no arm."""

    stage: Stage
    view: IterationView | None
    marker: Marker


def spent(run: TrainRun) -> list[Spent]:
    """All finished stages."""
    shared = IterationView(run.arms[0], 0, run.folder.run_iteration)
    found = [Spent(stage, None, marker) for stage, marker in shared.markers.items()]
    for arm in run.arms:
        for view in run.begun(arm):
            found += [Spent(stage, view, marker) for stage, marker in view.markers.items()]
    return found


def costs_section(run: TrainRun) -> Html | None:
    """Time by iteration and by stage, and all that the stages counted; None before any is finished."""
    found = spent(run)
    if not found:
        return None
    total = sum(one.marker.seconds for one in found)
    words = (
        f"{duration(total)} of computing in {len(found):,} finished stage{'' if len(found) == 1 else 's'}."
    )
    arms = {one.view.arm for one in found if one.view is not None}
    if run.recipe.compute.parallel_arms and len(arms) > 1:
        words += " The arms ran side by side: the clock showed less."
    return join(
        tag("p", words, class_="finding"),
        _bars(run, found),
        _stages_table(run, found, total),
        folded("All that the stages counted", _numbers_table(found)),
    )


def _bars(run: TrainRun, found: Sequence[Spent]) -> Html | None:
    """An iteration a bar: what makes the pairs, DPO, and what measures."""
    bars: list[tuple[str, int, list[tuple[str, float]], float]] = []
    for arm in run.arms:
        for view in run.begun(arm):
            parts = dict.fromkeys(PARTS, 0.0)
            for one in found:
                if one.view is not None and (one.view.arm, one.view.number) == (arm, view.number):
                    parts[PART_OF.get(one.stage, "measured")] += one.marker.seconds
            total = sum(parts.values())
            if total:
                bars.append((f"{SHORT[arm]} {view.number}", SERIES[arm], list(parts.items()), total))
    if not bars:
        return None
    most = max(total for *_, total in bars)
    rows = []
    for name, series, parts_of, total in bars:
        each = ", ".join(f"{PARTS[part]} {duration(seconds)}" for part, seconds in parts_of if seconds)
        rows.append(
            tag(
                "li",
                tag("span", tag("span", name, class_="name"), class_="label"),
                stacked(parts_of, most, f"{name}: {each}", series),
                tag("span", duration(total), class_="values"),
                class_="row",
            )
        )
    key = [tag("span", tag("i", class_=f"key {part}"), words) for part, words in PARTS.items()]
    return join(tag("p", key, class_="legend"), tag("ul", rows, class_="rows"))


PARTS = {
    "pairing": "sample, score and pair",
    "training": "DPO and checkpoint",
    "measured": "validate and evaluate",
}
PART_OF: Mapping[Stage, str] = {
    "sample": "pairing",
    "split": "pairing",
    "score": "pairing",
    "pairs": "pairing",
    "dpo": "training",
    "checkpoint": "training",
}


def _stages_table(run: TrainRun, found: Sequence[Spent], total: float) -> Html:
    head = ["Stage", "Runs", "Time", "Share", "Tokens", "Tokens/s"]
    rows: list[list[Child]] = []
    for stage in STAGES:
        here = [one.marker for one in found if one.stage == stage]
        if not here:
            continue
        seconds = sum(marker.seconds for marker in here)
        tokens = sum(tokens_of(marker.numbers) for marker in here)
        rows.append(
            [
                stage,
                whole(len(here)),
                tag("td", duration(seconds), class_="number", data_value=seconds),
                share(seconds, total),
                whole(tokens) if tokens else None,
                whole(tokens / seconds) if tokens and seconds else None,
            ]
        )
    return plain_table("Time and tokens by stage", head, rows)


def tokens_of(numbers: Mapping[str, Any]) -> float:
    """The tokens that a stage counted, whatever it calls them.

    Means, limits and rates are no counts, and with padding the same tokens would count twice.
    """
    return sum(
        value
        for key, value in leaves(numbers)
        if isinstance(value, int)
        and not isinstance(value, bool)
        and (name := key.rpartition(".")[2]).endswith("tokens")
        and not name.startswith(("mean", "max", "longest", "chosen", "rejected", "padded"))
    )


def leaves(numbers: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values with dotted keys."""
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _numbers_table(found: Sequence[Spent]) -> Html:
    rows: list[list[Child]] = []
    for one in found:
        where = "run" if one.view is None else f"{SHORT[one.view.arm]} {one.view.number}"
        told = ", ".join(f"{key}: {shown(value)}" for key, value in leaves(one.marker.numbers))
        seconds = tag("td", duration(one.marker.seconds), class_="number", data_value=one.marker.seconds)
        rows.append([where, tag("td", one.stage), seconds, tag("td", told or MISSING, class_="remark")])
    return plain_table("Stages", ["Iteration", "Stage", "Time", "Remark"], rows, class_="tall")


def shown(value: object) -> str:
    """A number or a text as people read it."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or MISSING
    return str(value)
