"""Rankings and scores in the terminal, as plain text, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thinkserve.eval.report.categories import SCHEMES, scheme_title
from thinkserve.eval.report.loading import read_runs
from thinkserve.eval.report.markdown import escaped, number, scores_table
from thinkserve.eval.report.metrics import columns, headline_metric, title_of, too_few, value
from thinkserve.eval.report.numerals import MISSING, gain, level_name, p_value, whole
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


def leaderboard_text(folders: Sequence[Path], width: int = 120) -> str:
    """The leaderboard without colours, for files and mail."""
    console = Console(file=StringIO(), width=width, no_color=True, force_terminal=False, highlight=False)
    print_leaderboard(folders, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def leaderboard_markdown(folders: Sequence[Path]) -> str:
    """The leaderboard as Markdown tables."""
    parts = []
    for ranking in rank(read_runs(folders)):
        parts.append(f"## {escaped(_title(ranking))}")
        parts += [f"> {escaped(note)}" for note in _notes(ranking)]
        parts.append(scores_table(ranking))
    return "\n\n".join(parts) + "\n"


def headline(scores: Scores) -> RenderableType:
    """What a run found, for the end of `thinkserve eval` and `thinkserve score`."""
    metric = headline_metric(scores.bench, scores.models.values())
    groups = scores.models
    ordered = sorted(groups, key=lambda name: -(value(groups[name], metric) or 0.0))
    rows = [(name, groups[name]) for name in ordered]
    what = f"{scores.bench}, judged by {scores.judge} against {scores.baseline}, {scores.compat}"
    parts: list[RenderableType] = [_table(what, rows, metric)]
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
        _table(_title(ranking), rows, ranking.metric, ranked=True),
        *map(_warning, _notes(ranking)),
        Text(),
    ]


def _table(
    what: str, rows: Sequence[tuple[str, Group]], metric: str, *, ranked: bool = False
) -> RenderableType:
    groups = [group for _, group in rows]
    keys = columns(groups, metric)[:4]
    extras: dict[str, Callable[[Group], float | None]] = {
        "n": lambda group: group.n,
        "unscored": lambda group: group.unscored or None,
        "no response": lambda group: group.forfeits or None,
        "characters": lambda group: group.mean_length,
        "thought tokens": lambda group: group.mean_thought_tokens,
    }
    there = {name: of for name, of in extras.items() if any(of(group) is not None for group in groups)}
    table = Table(title=Text(what), title_justify="left", title_style="bold", box=None, pad_edge=False)
    if ranked:
        table.add_column("", justify="right", style="dim")
    table.add_column("model", overflow="fold", min_width=12)
    for key in keys:
        table.add_column(title_of(key), justify="right", style="bold" if key == metric else None)
    for name in there:
        table.add_column(name, justify="right", style="dim")
    for place, (name, group) in enumerate(rows, 1):
        numbers = [number(group, key) for key in keys]
        cells = [*numbers, *[whole(of(group)) for of in there.values()]]
        # Text, not str: a model's name may hold what rich takes for markup.
        table.add_row(*([str(place)] if ranked else []), Text(name), *cells)
    return table


def _warning(note: str) -> RenderableType:
    return Padding(Text(f"! {note}", style="yellow"), (0, 0, 0, 2))


def _comparison(comparison: Comparison) -> RenderableType:
    overall = comparison.overall
    low, high = overall.ci
    return Text.assemble(
        f"{comparison.a} \u2212 {comparison.b}: ",
        (gain(overall.difference), "bold"),
        f" points of {title_of(comparison.metric)} ({level_name(comparison.ci_level)}: {gain(low)} to {gain(high)}, "
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
    return Text("too few to say", style="dim") if too_few(group) else Text(number(group, key))
