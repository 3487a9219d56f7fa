"""The same instructions over the iterations: what the model thought, what it answered, and what the judge made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinkserve.eval.instruction import Instruction
from thinkserve.eval.report.elements import Child, Html, folded, join, scrolling, tabs, tag
from thinkserve.eval.report.numerals import MISSING, points
from thinkserve.eval.report.svg import swatch
from thinkserve.training.folder import Decoding
from thinkserve.training.recipe import Arm
from thinkserve.training.records import EvaluationRecord
from thinkserve.training.report.arms import NAMES, SERIES, decoding_title
from thinkserve.training.report.loading import TrainRun
from thinkserve.training.report.measures import DECODINGS

LONG = 240
"""Characters from which a thought is folded."""
LONGEST = 6_000
"""Characters that are shown of one text."""
OPENING = 160
TURNS = {"better": "Better", "worse": "Worse", "same": "As before"}
PROBLEMS = {
    "unclosed": "the thought never ends",
    "truncated": "cut off at the token limit",
    "empty": "nothing follows the thought",
}

Outputs = Mapping[tuple[Decoding, Arm, int], Mapping[str, EvaluationRecord]]


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction."""

    id: str
    text: str | None
    """None: its text is not in the folder."""
    categories: Mapping[str, str]


def examples_section(run: TrainRun, section: str) -> Html | None:
    """So many instructions as the recipe asks for, each unfolded on demand; None before anything was measured.

    Args:
        run: whose.
        section: a name for ids, unique on the page.
    """
    outputs = {
        (decoding, view.arm, view.number): found
        for decoding in DECODINGS
        for arm in run.arms
        for view in run.begun(arm)
        if (found := view.evaluation(decoding))
    }
    chosen = choose(run, outputs, run.recipe.evaluate.examples)
    if not chosen:
        return None
    turns = {example.id: _turn(example, outputs, run.arms[0]) for example in chosen}
    how = (
        f"{len(chosen)} held-out instructions, the first ones of each category in turn: their outcome played no part in "
        "choosing them."
    )
    cases = [_case(run, example, outputs, turns[example.id], at == 0) for at, example in enumerate(chosen)]
    return tag(
        "div",
        tag("p", how, class_="how"),
        _filters(chosen, turns, section),
        cases,
        tag("button", class_="more", type="button", hidden=True),
        class_="reading",
    )


def choose(run: TrainRun, outputs: Outputs, wanted: int) -> list[Example]:
    """The first instruction of each category, then the second of each, and so on."""
    known = run.instructions
    first: dict[str, EvaluationRecord] = {}
    for found in outputs.values():
        for id, record in found.items():
            first.setdefault(id, record)
    order = [id for id in known if id in first] or list(first)
    groups: dict[tuple[str, ...], list[str]] = {}
    for id in order:
        groups.setdefault(tuple(first[id].categories.values()), []).append(id)
    longest = max(map(len, groups.values()), default=0)
    ids = [group[turn] for turn in range(longest) for group in groups.values() if turn < len(group)]
    return [_example(id, known.get(id), first[id]) for id in ids[:wanted]]


def _example(id: str, instruction: Instruction | None, record: EvaluationRecord) -> Example:
    return Example(id, None if instruction is None else instruction.text, record.categories)


def _turn(example: Example, outputs: Outputs, arm: Arm) -> str:
    """Whether the last iteration did better than the first one, in the way of decoding that comes first."""
    decoding = next(decoding for decoding in DECODINGS if any(key[0] == decoding for key in outputs))
    values = [
        found[example.id].value
        for (of, by, _), found in sorted(outputs.items(), key=lambda item: item[0][2])
        if of == decoding and by == arm and example.id in found
    ]
    known = [value for value in values if value is not None]
    if len(known) < 2 or known[0] == known[-1]:
        return "same"
    return "better" if known[-1] > known[0] else "worse"


def _filters(chosen: Sequence[Example], turns: Mapping[str, str], section: str) -> Html:
    categories = sorted({name for example in chosen for name in example.categories.values()})
    kinds = [(turn, title) for turn, title in TURNS.items() if turn in turns.values()]
    choices = [("kind", "Outcome", kinds), ("category", "Category", [(name, name) for name in categories])]
    selects = [_select(section, *choice) for choice in choices if len(choice[2]) > 1]
    count = tag("output", f"{len(chosen)} shown", class_="count", aria_live="polite")
    return tag("form", selects, count, class_="filters", hidden=True)


def _select(section: str, field: str, title: str, options: Sequence[tuple[str, str]]) -> Html:
    id = f"{section}-{field}"
    every = tag("option", "all", value="")
    return tag(
        "label",
        title,
        tag(
            "select",
            every,
            [tag("option", shown, value=value) for value, shown in options],
            id=id,
            name=field,
        ),
        for_=id,
    )


def _case(run: TrainRun, example: Example, outputs: Outputs, turn: str, opened: bool) -> Html:
    asked = example.text if example.text is not None else "The instruction's text is not in this folder."
    names = list(dict.fromkeys(example.categories.values()))
    panels = []
    for decoding in DECODINGS:
        arms = [(arm, _rows(example, outputs, decoding, arm)) for arm in run.arms]
        told = [_arm(run, arm, rows) for arm, rows in arms if rows]
        if told:
            panels.append((decoding_title(decoding, run.recipe), join(*told)))
    summary = tag(
        "summary",
        tag("span", TURNS[turn], class_=f"chip {turn}"),
        tag("span", _opening(asked), class_="opening", dir="auto"),
        tag("span", names[0] if names else "", class_="aside"),
    )
    body: list[Child] = [
        tag(
            "p",
            [tag("span", name, class_="chip") for name in names],
            tag("small", f"id {example.id}"),
            class_="chips",
        ),
        tag("h5", "Instruction"),
        scrolling("Instruction", _cut(asked), class_="text"),
        tabs("Decoding", panels) if panels else None,
    ]
    return tag(
        "details",
        summary,
        tag("div", *body, class_="body"),
        open=opened,
        class_="case",
        data_kind=turn,
        data_category="\n".join(names),
    )


def _rows(
    example: Example, outputs: Outputs, decoding: Decoding, arm: Arm
) -> list[tuple[int, EvaluationRecord]]:
    found = [
        (number, records[example.id])
        for (of, by, number), records in outputs.items()
        if of == decoding and by == arm and example.id in records
    ]
    return sorted(found, key=lambda item: item[0])


def _arm(run: TrainRun, arm: Arm, rows: Sequence[tuple[int, EvaluationRecord]]) -> Html:
    thinks = arm == "thought"
    head = ["Iteration", *(["Thought"] if thinks else []), "Response", _verdict_title(run)]
    body = [_row(run, number, record, thinks) for number, record in rows]
    title = tag("h5", swatch(SERIES[arm]), tag("span", NAMES[arm], class_=f"t{SERIES[arm]}"))
    table = tag(
        "table",
        tag("thead", tag("tr", [tag("th", name, scope="col") for name in head])),
        tag("tbody", body),
        class_=f"story {arm}",
    )
    return join(title, table)


def _verdict_title(run: TrainRun) -> str:
    return "Right" if run.recipe.evaluate.metric == "accuracy" else "Against start"


def _row(run: TrainRun, number: int, record: EvaluationRecord, thinks: bool) -> Html:
    cells = [tag("th", str(number), scope="row", data_label="Iteration")]
    if thinks:
        cells.append(tag("td", _thought(record.thought), class_="thought", data_label="Thought"))
    cells.append(tag("td", _response(record), class_="response", data_label="Response"))
    cells.append(tag("td", _verdict(run, record), class_="verdict", data_label=_verdict_title(run)))
    return tag("tr", cells)


def _thought(thought: str) -> Html:
    if not thought.strip():
        return tag("span", "no thought", class_="none")
    if len(thought) <= LONG:
        return tag("span", thought.strip(), class_="said", dir="auto")
    summary = join(_opening(thought), " ", tag("small", f"{len(thought):,} characters"))
    return folded(summary, scrolling("Thought", _cut(thought), class_="text"))


def _response(record: EvaluationRecord) -> Html:
    if record.problem is not None:
        return tag("span", f"none: {PROBLEMS[record.problem]}", class_="none")
    response = record.response.strip()
    if len(response) <= 2 * LONG:
        return tag("span", response, class_="said", dir="auto")
    summary = join(_opening(response), " ", tag("small", f"{len(response):,} characters"))
    return folded(summary, scrolling("Response", _cut(response), class_="text"))


def _verdict(run: TrainRun, record: EvaluationRecord) -> Html:
    value = record.value
    score = "" if record.score is None else f"score {record.score:.3g}".replace("-", "\u2212")
    if value is None:
        return join(tag("span", "unscored", class_="none"), " ", tag("small", score))
    words = {1.0: ("\u2713", "right"), 0.0: ("\u2717", "wrong")}
    if run.recipe.evaluate.metric == "win_rate":
        words = {1.0: ("\u2713", "better"), 0.0: ("\u2717", "worse"), 0.5: ("=", "a tie")}
    sign, word = words.get(value, (MISSING, f"{points(100 * value)} %"))
    class_ = "yes" if value > 0.5 else "no" if value < 0.5 else "none"
    return join(tag("b", f"{sign} {word}", class_=class_), " ", tag("small", score))


def _opening(text: str) -> str:
    line = " ".join(text[: 4 * OPENING].split())
    return line if len(line) <= OPENING else line[:OPENING].rsplit(" ", 1)[0] + " \u2026"


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= LONGEST
        else f"{text[:LONGEST]}\n\u2026 cut here: {LONGEST:,} of {len(text):,} characters"
    )
