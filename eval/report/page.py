"""`report.html`: what was found, and how, in sections (`document` makes a file of them)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from thinkserve.eval.report.categories import categories_section
from thinkserve.eval.report.comparisons import comparisons_of, comparisons_section, leading, sentence
from thinkserve.eval.report.disagreements import select
from thinkserve.eval.report.document import document
from thinkserve.eval.report.elements import Html, join, tag
from thinkserve.eval.report.evidence import Evidence, gather
from thinkserve.eval.report.health import health_section
from thinkserve.eval.report.length_charts import length_section, thought_section
from thinkserve.eval.report.methods import methods_section
from thinkserve.eval.report.metrics import interval, spoken, value
from thinkserve.eval.report.numerals import between, level_name, points
from thinkserve.eval.report.rankings import Ranking
from thinkserve.eval.report.reading import reading_section
from thinkserve.eval.report.tables import scores_table

TITLES = {
    "alpaca-eval": "AlpacaEval 2",
    "arena-hard": "Arena-Hard v2.0",
    "arena-hard-v0.1": "Arena-Hard v0.1",
    "categories": "Win rate by topic",
    "pocket": "The pocket world",
}


def title(ranking: Ranking) -> str:
    """The bench's name as people say it."""
    return TITLES.get(ranking.bench, ranking.bench)


def page(rankings: Sequence[Ranking]) -> str:
    """The whole page."""
    bodies = [_ranking(ranking, f"r{number}") for number, ranking in enumerate(rankings)]
    names = ", ".join(dict.fromkeys(title(ranking) for ranking in rankings))
    return document(f"{names}: thinkserve report", _contents(rankings), tag("main", bodies))


def _contents(rankings: Sequence[Ranking]) -> Html | None:
    """The way to each ranking, where there are several."""
    if len(rankings) < 2:
        return None
    links = [
        tag("a", f"{title(ranking)}, judged by {ranking.judge}", href=f"#r{number}")
        for number, ranking in enumerate(rankings)
    ]
    return tag("nav", links, class_="contents", aria_label="Rankings")


def _ranking(ranking: Ranking, id: str) -> Html:
    evidence = gather(ranking)
    sections = _sections(ranking, evidence, id)
    links = [tag("a", name, href=f"#{id}-{anchor}") for anchor, name, _, _ in sections]
    shown = [
        tag("section", tag("h2", heading), content, id=f"{id}-{anchor}")
        for anchor, _, heading, content in sections
    ]
    nav = tag("nav", links, class_="sections", aria_label=f"Sections of {title(ranking)}")
    return tag("article", _head(ranking), nav, shown, id=id, class_="ranking")


def _sections(ranking: Ranking, evidence: Sequence[Evidence], id: str) -> list[tuple[str, str, str, Html]]:
    """Anchor, name in the contents, heading, content; only what there is."""
    comparisons = comparisons_section(ranking, evidence)
    categories = categories_section(ranking)
    found = [("scores", "Scores", "Scores", tag("div", scores_table(ranking), _remarks(ranking)))]
    if comparisons is not None:
        priced = any(comparison.cost for comparison in comparisons_of(ranking))
        heading = "Who is better, and at what cost" if priced else "Who is better"
        found.append(("comparisons", "Comparisons", heading, comparisons))
    if categories is not None:
        found.append(("categories", "Categories", "By category", categories))
    return [
        *found,
        ("thoughts", "Thoughts", "Thought length against win rate", thought_section(evidence)),
        ("length", "Length", "Win rate against length", length_section(evidence)),
        ("read", "Read", "Disagreements, side by side", reading_section(select(evidence), id)),
        ("health", "Judge", "Judge health", health_section(evidence)),
        ("methods", "Method", "How these numbers were made", methods_section(ranking)),
    ]


def _head(ranking: Ranking) -> Html:
    warnings = [*([ranking.apart] if ranking.apart else []), *ranking.notes]
    facts = [join(tag("dt", term), tag("dd", fact)) for term, fact in facts_of(ranking)]
    return tag(
        "header",
        tag("p", "thinkserve eval", class_="kicker"),
        tag("h1", title(ranking)),
        tag("p", finding(ranking), class_="lead"),
        tag("dl", [tag("div", fact) for fact in facts], class_="facts"),
        tag("ul", [tag("li", warning) for warning in warnings], class_="warnings", aria_label="Notes")
        if warnings
        else None,
    )


def facts_of(ranking: Ranking) -> list[tuple[str, str]]:
    """What was measured, by whom, when."""
    low, high = ranking.scored
    found = [
        ("Judge", ranking.judge.replace("+", " + ")),
        ("Baseline", ranking.baseline.replace("+", " + ")),
        ("Instructions", f"{high:,}" if low == high else f"{low:,} to {high:,}"),
        ("Compat", ranking.compat),
        ("Date", date_of(ranking)),
    ]
    if len(ranking.runs) > 1:
        found.append(("Runs", ", ".join(run.name for run in ranking.runs)))
    return [(term, fact) for term, fact in found if fact]


def date_of(ranking: Ranking) -> str:
    """When the scores were written, in universal time; a span where the runs are of several days."""
    days = sorted(
        datetime.fromtimestamp(run.folder.scores.stat().st_mtime, UTC).date().isoformat()
        for run in ranking.runs
    )
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def finding(ranking: Ranking) -> Html:
    """The one sentence to take away: a comparison where there is one, else the best model."""
    comparison = leading(ranking)
    if comparison is not None:
        return sentence(comparison)
    best = ranking.entries[0]
    centre, around = value(best.group, ranking.metric), interval(best.group, ranking.metric)
    if centre is None:
        return join(tag("b", best.name), " has no score yet.")
    span = (
        "" if around is None else f" ({level_name(around.level)} interval {between(around.low, around.high)})"
    )
    article = "an" if spoken(ranking.metric).startswith("LC") else "a"
    lead = f" leads with {article} " if len(ranking.entries) > 1 else f" has {article} "
    return join(
        tag("b", best.name),
        lead,
        spoken(ranking.metric),
        " of ",
        tag("b", points(centre)),
        f"{span} against {ranking.baseline.replace('+', ' and ')}.",
    )


def _remarks(ranking: Ranking) -> Html | None:
    """What a reader must know of single models."""
    noted = [entry for entry in ranking.entries if entry.group.note]
    if not noted:
        return None
    return tag("ul", [tag("li", tag("b", e.name), f": {e.group.note}") for e in noted], class_="warnings")
