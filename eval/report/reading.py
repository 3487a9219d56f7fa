"""Matches to read side by side: both responses, and what the judge said in each game.

A response is never shown with its thought, which no file of a run holds; what the judge thought is left out too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thinkserve.eval.judgment import Judgment
from thinkserve.eval.report.categories import SCHEMES
from thinkserve.eval.report.disagreements import Disagreement, Side
from thinkserve.eval.report.elements import Child, Html, join, scrolling, tag
from thinkserve.eval.report.numerals import points
from thinkserve.eval.report.svg import COLOURS, needle, swatch

LONGEST = 20_000
"""Characters that are shown of one text."""
OPENING = 160
KINDS = {
    "contested": "Contested",
    "loss": "Clear loss",
    "differ": "Models differ",
    "unreadable": "Unreadable",
}
WHY = {
    "contested": "the judge contradicts itself, or nearly calls it a draw",
    "loss": "the judge clearly preferred the baseline",
    "differ": "one model did far better here than the other",
    "unreadable": "a judgment had no verdict that could be read",
}


def reading_section(matches: Sequence[Disagreement], section: str) -> Html:
    """The matches, with filters where scripts run.

    Args:
        matches: in the order in which to show them.
        section: a name for ids, unique on the page.
    """
    if not matches:
        return tag("p", "This run folder has no judgments to read side by side.", class_="empty")
    how = f"{len(matches)} matches that are worth a look, the most contested ones and the clearest losses first."
    there = [kind for kind in KINDS if any(match.kind == kind for match in matches)]
    kinds = [tag("li", tag("span", KINDS[kind], class_=f"chip {kind}"), f" {WHY[kind]}") for kind in there]
    cases = [_case(match, opened=number == 0) for number, match in enumerate(matches)]
    return tag(
        "div",
        tag("p", how, class_="how"),
        tag("ul", kinds, class_="kinds"),
        _filters(matches, section),
        cases,
        tag("button", class_="more", type="button", hidden=True),
        class_="reading",
    )


def _filters(matches: Sequence[Disagreement], section: str) -> Html:
    kinds = [(kind, title) for kind, title in KINDS.items() if any(match.kind == kind for match in matches)]
    models = dict.fromkeys(name for match in matches for name in _models(match))
    categories = dict.fromkeys(name for match in matches for name in _categories(match))
    choices: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("kind", "Why", kinds),
        ("model", "Model", [(name, name) for name in models]),
        ("category", "Category", [(name, name) for name in sorted(categories)]),
    ]
    selects = [_select(section, *choice) for choice in choices if len(choice[2]) > 1]
    count = tag("output", f"{len(matches)} shown", class_="count", aria_live="polite")
    return tag("form", selects, count, class_="filters", hidden=True)


def _select(section: str, field: str, title: str, options: Sequence[tuple[str, str]]) -> Html:
    id = f"{section}-{field}"
    chosen = [
        tag("option", "all", value=""),
        *[tag("option", shown, value=value) for value, shown in options],
    ]
    return tag("label", title, tag("select", chosen, id=id, name=field), for_=id)


def _models(match: Disagreement) -> list[str]:
    return [side.name for side in (match.left, match.right) if side.series is not None]


def _categories(match: Disagreement) -> list[str]:
    instruction = match.evidence.instruction(match.id)
    return [] if instruction is None else list(dict.fromkeys(_ordered(instruction.categories)))


def _ordered(categories: Mapping[str, str]) -> list[str]:
    """The categories of an instruction that can be chosen by: clusters are too many."""
    schemes = [*(s for s in SCHEMES if s in categories), *(s for s in categories if s not in SCHEMES)]
    return [categories[scheme] for scheme in schemes if scheme != "cluster"]


def _case(match: Disagreement, *, opened: bool) -> Html:
    instruction = match.evidence.instruction(match.id)
    asked = "The instruction's text is not in this run folder." if instruction is None else instruction.text
    summary = tag(
        "summary",
        tag("span", KINDS[match.kind], class_=f"chip {match.kind}"),
        tag("span", _opening(asked), class_="opening", dir="auto"),
        _lean(match),
    )
    chips = [tag("span", name, class_="chip") for name in _categories(match)]
    body: list[Child] = [
        tag("p", chips, tag("small", f"id {match.id}"), class_="chips"),
        tag("h5", "Instruction"),
        _box("Instruction", asked),
        tag("div", _side("A", match.left), _side("B", match.right), class_="sides"),
        [_judgment(about, judgment) for about, judgment in match.judgments],
    ]
    return tag(
        "details",
        summary,
        tag("div", *body, class_="body"),
        open=opened,
        class_="case",
        data_kind=match.kind,
        data_model="\n".join(_models(match)),
        data_category="\n".join(_categories(match)),
    )


def _opening(asked: str) -> str:
    line = " ".join(asked[: 4 * OPENING].split())
    return line if len(line) <= OPENING else line[:OPENING].rsplit(" ", 1)[0] + " \u2026"


def _lean(match: Disagreement) -> Html:
    """Who the games were for: the left end is the right side's."""
    against = "baseline" if match.right.series is None else match.right.name
    if match.kind == "differ":
        leans = [] if match.preference is None else [match.preference]
    else:
        leans = sorted(j.verdict.preference for _, j in match.judgments if j.verdict is not None)
    each = ", ".join(f"{points(100 * lean)} %" for lean in leans) or "no verdict"
    label = f"preference for {match.left.name} over {match.right.name}: {each}"
    names = (tag("span", against), needle(leans, label), tag("span", match.left.name))
    return tag("span", *names, class_="lean", title=label)


def _side(letter: str, side: Side) -> Html:
    title = tag(
        "h5",
        f"Response {letter}: ",
        None if side.series is None else swatch(side.series),
        tag("span", side.name, class_=None if side.series is None else f"t{side.series % COLOURS}"),
        tag("small", _about(side)),
    )
    label = f"Response {letter}, {side.name}"
    if side.answer is None:
        return tag("div", title, tag("p", "Not in this run folder.", class_="empty"))
    if not side.answer.complete:
        return tag("div", title, tag("p", "No response: the thought never ended.", class_="empty"))
    if not side.answer.response.strip():
        return tag("div", title, tag("p", "The response is empty.", class_="empty"))
    return tag("div", title, _box(label, side.answer.response))


def _about(side: Side) -> str:
    parts = ["baseline" if side.series is None else "model"]
    parts += [] if side.answer is None else [f"{len(side.answer.response):,} characters"]
    parts += [] if side.preference is None else [f"preferred {points(100 * side.preference)} %"]
    return ", ".join(parts)


def _box(label: str, content: str) -> Html:
    shown = content[:LONGEST]
    box = scrolling(label, shown, class_="text")
    if len(content) <= LONGEST:
        return box
    return join(box, tag("p", f"Cut here: {LONGEST:,} of {len(content):,} characters.", class_="how"))


def _judgment(about: str, judgment: Judgment) -> Html:
    first, second = ("model", "baseline") if judgment.model_first else ("baseline", "model")
    names = {"model": judgment.model, "baseline": judgment.baseline}
    title = tag(
        "h5",
        f"Judgment of {about}, game {judgment.game + 1}: ",
        tag("span", _verdict(judgment), class_="verdict"),
        tag("small", f" {judgment.judge} was shown A = {names[first]}, B = {names[second]}"),
    )
    return tag("div", title, _said(judgment), class_="judgment")


def _verdict(judgment: Judgment) -> str:
    verdict = judgment.verdict
    if verdict is None:
        return f"no verdict ({judgment.failure or 'unknown'})"
    counts = "" if verdict.weight == 1 else f", counts {verdict.weight} times"
    if verdict.preference == 0.5:
        return f"{verdict.label}, a tie{counts}"
    winner = judgment.model if verdict.preference > 0.5 else judgment.baseline
    if verdict.preference in (0.0, 1.0):
        return f"{verdict.label}, for {winner}{counts}"
    return f"{verdict.label}, {points(100 * max(verdict.preference, 1 - verdict.preference))} % for {winner}{counts}"


def _said(judgment: Judgment) -> Html:
    if judgment.raw is None:
        why = "Decided by rule: nobody was asked." if judgment.verdict else "The judge gave no answer."
        return tag("p", why, class_="empty")
    before, marker, after = judgment.raw.rpartition("</think>")
    if marker:
        hidden = tag(
            "p",
            f"The judge's own thought ({len(before.removeprefix('<think>')):,} characters) is not shown.",
            class_="how",
        )
        return join(hidden, _box("Judgment", after.strip()))
    if judgment.top_logprobs is not None and len(judgment.raw) < 20:
        odds = ", ".join(f"{token!r} {found:.3f}" for token, found in judgment.top_logprobs.items())
        return tag("p", f"It said {judgment.raw!r}; log probabilities: {odds}.", class_="how")
    return _box("Judgment", judgment.raw)
