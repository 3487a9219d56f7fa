"""Rankings and scores in the terminal, as plain text, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.console import Group as Stack
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thinkserve.eval.report.categories import SCHEMES, scheme_title
from thinkserve.eval.report.loading import read_runs
from thinkserve.eval.report.metrics import (
    columns,
    headline_metric,
    interval,
    spoken,
    title_of,
    too_few,
    value,
)
from thinkserve.eval.report.numerals import MISSING, gain, level_name, p_value, points, whole
from thinkserve.eval.report.page import title
from thinkserve.eval.report.rankings import Ranking, rank
from thinkserve.eval.scores import Comparison, Group, Scores

# Categories of a scheme that the terminal shows; the report has all.
FEW_CATEGORIES = 8


def leaderboard(folders: Sequence[Path]) -> RenderableType:
    """The models of some runs, ranked; a table for each bench, judge, baseline and compat.

    Raises:
        UsageError: a folder is no run's, or its scores are malformed.
    """
    return Stack(*[part for ranking in rank(read_runs(folders)) for part in _ranking(ranking)])


def print_leaderboard(folders: Sequence[Path], console: Console) -> None:
    """Print it."""
    console.print(leaderboard(folders))


def headline(scores: Scores) -> RenderableType:
    """What a run found, for the end of `thinkserve eval` and `thinkserve score`."""
    metric = headline_metric(scores.bench, scores.models.values())
    groups = scores.models
    ordered = sorted(groups, key=lambda name: -(value(groups[name], metric) or 0.0))
    rows = [(name, groups[name]) for name in ordered]
    what = f"{scores.bench}, judged by {scores.judge} against {scores.baseline}, {scores.compat}"
    parts: list[RenderableType] = [_Scoreboard(what, rows, metric)]
    parts += [_warning(note) for note in scores.notes]
    parts += [_warning(f"{name}: {groups[name].note}") for name in ordered if groups[name].note]
    parts += [_comparison(comparison) for comparison in scores.comparisons]
    parts += [_categories(rows, scheme, metric) for scheme in _small_schemes(groups.values())]
    return Stack(*parts)


def _title(ranking: Ranking) -> str:
    return f"{title(ranking)}, judged by {ranking.judge} against {ranking.baseline}, {ranking.compat}"


def _notes(ranking: Ranking) -> list[str]:
    own = [f"{entry.name}: {entry.group.note}" for entry in ranking.entries if entry.group.note]
    return [*([ranking.apart] if ranking.apart else []), *ranking.notes, *own]


def _ranking(ranking: Ranking) -> list[RenderableType]:
    rows = [(entry.name, entry.group) for entry in ranking.entries]
    return [
        _Scoreboard(_title(ranking), rows, ranking.metric, ranked=True),
        *map(_warning, _notes(ranking)),
        Text(),
    ]


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cells: tuple[str, ...]
    style: str | None

    @property
    def width(self) -> int:
        """Headings are broken into lines where there is no room; numbers never are."""
        return max(len(word) for word in (*self.title.split(), *self.cells))

    @property
    def heading(self) -> str:
        """The title, broken into lines no longer than the column is wide."""
        return "\n".join(wrap(self.title, self.width))


@dataclass(frozen=True, slots=True)
class _Scoreboard:
    """A table of models that leaves out what matters least where the terminal is narrow."""

    what: str
    rows: Sequence[tuple[str, Group]]
    metric: str
    ranked: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(
            title=Text(self.what), title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        if self.ranked:
            table.add_column("", justify="right", style="dim")
        room = options.max_width - (5 if self.ranked else 1)
        shown = self._fitting(room - MODEL)
        left = room - sum(column.width + 2 for column in shown)
        table.add_column("model", overflow="fold", max_width=max(MODEL, left))
        for column in shown:
            table.add_column(column.heading, justify="right", style=column.style, no_wrap=True)
        for at, (name, _) in enumerate(self.rows):
            # Text, not str: a model's name may hold what rich takes for markup.
            place = [str(at + 1)] if self.ranked else []
            table.add_row(*place, Text(name), *[column.cells[at] for column in shown])
        yield table

    def _fitting(self, room: int) -> list[_Column]:
        columns = self._columns()
        kept: list[str] = []
        for column in sorted(columns, key=lambda column: _importance(column.title)):
            room -= column.width + 2
            if kept and room < 0:
                break
            kept.append(column.title)
        return [column for column in columns if column.title in kept]

    def _columns(self) -> list[_Column]:
        groups = [group for _, group in self.rows]
        found = [
            _Column(
                title_of(key),
                tuple(_number(group, key) for group in groups),
                "bold" if key == self.metric else None,
            )
            for key in columns(groups, self.metric)
        ]
        for name, of in COUNTS.items():
            if any(of(group) for group in groups):
                found.append(_Column(name, tuple(whole(of(group)) for group in groups), "dim"))
        return found


MODEL = 12
"""Characters that a model's name has at least."""
COUNTS: dict[str, Callable[[Group], float | None]] = {
    "n": lambda group: group.n,
    "unscored": lambda group: group.unscored,
    "no response": lambda group: group.forfeits,
    "length": lambda group: group.mean_length,
    "thought tokens": lambda group: group.mean_thought_tokens,
}


def _importance(title: str) -> int:
    """The metrics first, then these; columns of the same importance stay in their order."""
    last = ["length_controlled_score", "markdown_controlled_score", "discrete_win_rate"]
    order = ["n", "thought tokens", "no response", "unscored", "length", *map(title_of, last)]
    return order.index(title) + 1 if title in order else 0


def _number(group: Group, key: str) -> str:
    around = interval(group, key)
    shown = points(value(group, key))
    return shown if around is None else f"{shown} ({points(around.low)}\u2013{points(around.high)})"


def _warning(note: str) -> RenderableType:
    return Padding(Text(f"! {note}", style="yellow"), (0, 0, 0, 2))


def _comparison(comparison: Comparison) -> RenderableType:
    overall = comparison.overall
    low, high = overall.ci
    return Text.assemble(
        f"{comparison.a} \u2212 {comparison.b}: ",
        (gain(overall.difference), "bold"),
        f" points of {spoken(comparison.metric)} ({level_name(comparison.ci_level)}: {gain(low)} to {gain(high)}, "
        f"{p_value(overall.p)}, n = {overall.n:,})",
        "" if low > 0 or high < 0 else ": cannot be told apart",
    )


def _small_schemes(groups: Iterable[Group]) -> list[str]:
    """The schemes with few categories, in their usual order."""
    sizes: dict[str, int] = {}
    for group in groups:
        for scheme, categories in group.categories.items():
            sizes[scheme] = max(sizes.get(scheme, 0), len(categories))
    order = list(SCHEMES)
    few = [scheme for scheme, size in sizes.items() if size <= FEW_CATEGORIES]
    return sorted(few, key=lambda scheme: order.index(scheme) if scheme in order else len(order))


def _categories(rows: Sequence[tuple[str, Group]], scheme: str, metric: str) -> RenderableType:
    found = [group for _, group in rows for group in group.categories.get(scheme, {}).values()]
    key = metric if any(value(group, metric) is not None for group in found) else headline_metric("", found)
    table = Table(
        title=Text(f"{title_of(key)} by {scheme_title(scheme).lower()}"), title_justify="left", box=None
    )
    table.add_column(scheme_title(scheme).lower())
    table.add_column("n", justify="right", style="dim")
    for name, _ in rows:
        table.add_column(Text(name), justify="right", overflow="fold")
    for category in dict.fromkeys(name for _, group in rows for name in group.categories.get(scheme, {})):
        cells = [group.categories.get(scheme, {}).get(category) for _, group in rows]
        n = max(group.n for group in cells if group is not None)
        table.add_row(Text(category), whole(n), *[_cell(group, key) for group in cells])
    return table


def _cell(group: Group | None, key: str) -> Text:
    if group is None:
        return Text(MISSING)
    return Text("too few to say", style="dim") if too_few(group) else Text(_number(group, key))
