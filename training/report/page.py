"""`report.html` of a training run, finished or not: whether it paid first, then everything that led there."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from thinkserve.errors import ThinkserveError
from thinkserve.eval.records import write_whole
from thinkserve.eval.report.document import document
from thinkserve.eval.report.elements import Html, tag
from thinkserve.training.report.categories import categories_section
from thinkserve.training.report.costs import costs_section
from thinkserve.training.report.examples import examples_section
from thinkserve.training.report.headline import done_words, finding, tiles, warnings
from thinkserve.training.report.inputs import inputs_section
from thinkserve.training.report.iterations import iterations_section, judge_name
from thinkserve.training.report.lengths import lengths_section
from thinkserve.training.report.loading import TrainRun, read_run
from thinkserve.training.report.optimization import optimization_section
from thinkserve.training.report.pairs import pairs_section

MODES = {
    "thought": "thought (TPO)",
    "direct": "direct (the baseline)",
    "both": "both: TPO and the direct baseline",
}


def write_report(folder: Path, html: Path | None = None) -> Path:
    """Write the report of a training run, whatever there is of it.

    Args:
        folder: of the run.
        html: where to; None: `report.html` in the folder.

    Returns:
        Where it is.

    Raises:
        UsageError: the folder is no training run's, or one of its files is malformed; nothing was written.
        ThinkserveError: the report cannot be written.
    """
    run = read_run(folder)
    to = html if html is not None else run.folder.report
    content = page(run).encode()
    try:
        write_whole(to, content)
    except OSError as exc:
        raise ThinkserveError(f"{to}: the report cannot be written: {exc.strerror or exc}") from exc
    return to


def page(run: TrainRun) -> str:
    """The whole page."""
    sections = _sections(run)
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, _, _ in sections]
    shown = [
        tag("section", tag("h2", heading), content, id=anchor) for anchor, _, heading, content in sections
    ]
    nav = tag("nav", links, class_="sections", aria_label="Sections")
    styles = (files("thinkserve.training.report") / "template" / "train.css").read_text(encoding="utf-8")
    main = tag("main", tag("article", _head(run), nav, shown))
    return document(f"{run.recipe.name}: thinkserve training report", main, styles=styles)


def _sections(run: TrainRun) -> list[tuple[str, str, str, Html]]:
    """Anchor, name in the contents, heading, content; only what there is."""
    both = len(run.arms) == 2
    candidates: list[tuple[str, str, str, Html | None]] = [
        ("iterations", "Iterations", "Thought against direct, by iteration" if both else "By iteration", iterations_section(run)),
        ("categories", "Categories", "By category", categories_section(run)),
        ("lengths", "Lengths", "Lengths and unreadable outputs", lengths_section(run)),
        ("examples", "Examples", "The same instructions over the iterations", examples_section(run, "examples")),
        ("pairs", "Pairs", "Preference pairs", pairs_section(run)),
        ("training", "DPO", "Training and validation", optimization_section(run)),
        ("costs", "Time", "Time and tokens by stage", costs_section(run)),
        ("inputs", "Data and recipe", "Data and recipe", inputs_section(run)),
    ]  # fmt: skip
    return [
        (anchor, name, heading, found) for anchor, name, heading, found in candidates if found is not None
    ]


def _head(run: TrainRun) -> Html:
    notes = [tag("li", warning) for warning in warnings(run)]
    facts = [tag("div", tag("dt", term), tag("dd", fact)) for term, fact in _facts(run)]
    return tag(
        "header",
        tag("p", "thinkserve train", class_="kicker"),
        tag("h1", run.recipe.name),
        tag("p", finding(run), class_="lead"),
        tiles(run),
        tag("dl", facts, class_="facts"),
        tag("ul", notes, class_="warnings", aria_label="Notes") if notes else None,
    )


def _facts(run: TrainRun) -> list[tuple[str, str]]:
    recipe = run.recipe
    found = [
        ("Start model", recipe.model),
        ("Mode", MODES[recipe.mode]),
        ("Judge" if recipe.evaluate.judge is None else "Judge in training", judge_name(recipe.judge)),
        ("Done", done_words(run)),
        ("Instructions an iteration", f"{recipe.prompts.per_iteration:,}"),
        ("Outputs an instruction", f"{recipe.sample.k:,}"),
    ]
    if recipe.evaluate.judge is not None:
        found.insert(3, ("Judge of these numbers", judge_name(recipe.evaluate.judge)))
    if run.folder.results.is_file():
        day = datetime.fromtimestamp(run.folder.results.stat().st_mtime, UTC).date().isoformat()
        found.append(("Measured", day))
    return found
