"""The audit of an iteration's pairs: what was counted, what length control did, and pairs to read side by side.

`pair_audit` is a part of the report; `pair_page` is the same as a page of its own, `pairs.html`. What models and users
wrote reaches the page only as escaped text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thinkserve.eval.report.document import document
from thinkserve.eval.report.elements import Html, join, scrolling, tag
from thinkserve.eval.report.numerals import MISSING, gain, share, whole
from thinkserve.eval.report.tables import plain_table
from thinkserve.training.report.pair_histograms import number, pair_histograms

OPENING = 160
REASONS = {
    "no_readable": "without a readable response",
    "unscored": "without a score",
    "one_output": "with one distinct output",
    "tied": "with all scores equal",
    "small_spread": "with scores too close (pairs.min_spread)",
    "low_chosen": "without a score high enough (pairs.min_chosen_score)",
    "length_control": "whose difference length control evens out",
}
"""Why instructions have no pair."""
PROBLEMS = {
    "unclosed": "the format is broken",
    "truncated": "it ran into the token limit",
    "empty": "nothing follows the thought",
}


def pair_audit(statistics: Mapping[str, Any]) -> str:
    """A part of a page, of headings from the fourth level on, without ids and scripts.

    Args:
        statistics: what `pairs.json` holds.
    """
    return _audit(statistics)


def pair_page(statistics: Mapping[str, Any]) -> str:
    """The audit as a page that needs nothing else."""
    title = f"Pairs of iteration {statistics['iteration']}, {statistics['arm']} arm"
    header = tag("header", tag("p", "thinkserve train", class_="kicker"), tag("h1", title))
    article = tag("article", header, _audit(statistics), class_="ranking")
    return document(f"{title}: thinkserve train", tag("main", article))


def _audit(statistics: Mapping[str, Any]) -> Html:
    warnings = [tag("li", warning) for warning in statistics["warnings"]]
    unit = statistics["settings"]["length"]
    return tag(
        "div",
        tag("p", _finding(statistics), class_="finding"),
        tag("ul", warnings, class_="warnings", aria_label="Warnings") if warnings else None,
        tag(
            "dl",
            [tag("div", tag("dt", term), tag("dd", fact)) for term, fact in _facts(statistics)],
            class_="facts",
        ),
        tag("h4", "Scores and lengths"),
        tag(
            "p",
            "Each group's share in each bin, over the pairs whose rejected output is readable; marks are means.",
            class_="how",
        ),
        tag("div", pair_histograms(statistics["histograms"], unit, statistics["rho"]), class_="card"),
        tag("h4", "Length control"),
        _rho_table(statistics, unit),
        tag("h4", "Instructions and outputs"),
        _counts(statistics),
        tag("h4", "Pairs to read"),
        _examples(statistics),
        class_="pair-audit",
    )


def _finding(statistics: Mapping[str, Any]) -> Html:
    counts, rho = statistics["counts"], statistics["rho"]
    if statistics["settings"]["rho"] != "auto":
        how = "as the recipe says."
    elif statistics["rho_reached"]:
        how = "the smallest step at which chosen responses are not longer than rejected ones."
    else:
        how = "the last step, at which chosen responses are still longer than rejected ones."
    made = f" of {counts['instructions']:,} instructions. Length counts with \u03c1 = {rho:g}, {how}"
    return join(tag("b", f"{counts['pairs']:,} pairs"), made)


def _facts(statistics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Terms and numbers: means of chosen against rejected, over pairs where both have a response."""
    means, counts = statistics["means"], statistics["counts"]
    unit = statistics["settings"]["length"]
    facts = [
        ("Score margin", number(means["score_margin"])),
        (f"Response, {unit}", _against(means, "length")),
        (
            "Pairs with a broken output",
            f"{counts['broken_pairs']:,} ({share(counts['broken_pairs'], counts['pairs'])})",
        ),
        ("Drawn among equals", f"{counts['chosen_ties']:,} chosen, {counts['rejected_ties']:,} rejected"),
    ]
    if means["chosen_thought_tokens"] or means["rejected_thought_tokens"]:
        facts.insert(2, ("Thought, characters", _against(means, "thought_characters")))
        facts.insert(3, ("Thought, tokens", _against(means, "thought_tokens")))
    return facts


def _against(means: Mapping[str, Any], name: str) -> str:
    return f"{number(means[f'chosen_{name}'])} chosen, {number(means[f'rejected_{name}'])} rejected"


def _rho_table(statistics: Mapping[str, Any], unit: str) -> Html:
    head = (
        "\u03c1",
        "Chosen",
        "Rejected",
        "Difference",
        "Score margin",
        "Pairs",
        "Changed",
    )
    rows = []
    for step in statistics["rho_table"]:
        chosen, rejected = step["chosen_length"], step["rejected_length"]
        taken = step["rho"] == statistics["rho"]
        rows.append(
            (
                join(tag("b", f"{step['rho']:g}"), tag("small", " taken")) if taken else f"{step['rho']:g}",
                number(chosen),
                number(rejected),
                MISSING if chosen is None else gain(chosen - rejected),
                number(step["score_margin"]),
                whole(step["pairs"]),
                whole(step["changed"]),
            )
        )
    how = (
        f"Mean lengths of the responses in {unit} and mean score margin, over the same pairs; changed: "
        "instructions with another pair, or none, than at \u03c1 = 0."
    )
    return join(tag("p", how, class_="how"), plain_table("Weights of length", head, rows))


def _counts(statistics: Mapping[str, Any]) -> Html:
    counts = statistics["counts"]
    asked, sampled = counts["instructions"], counts["outputs"]
    instructions = [
        ("with a pair", counts["pairs"]),
        *((REASONS[reason], n) for reason, n in statistics["no_pair"].items()),
    ]
    outputs = [
        *((f"broken: {PROBLEMS[problem]}", n) for problem, n in counts["broken"].items()),
        ("readable, without a score", counts["unscored"]),
        ("equal to another one of the instruction", counts["duplicates"]),
    ]
    told = []
    if lower := counts["chosen_scored_lower"]:
        told.append(f"{lower:,} chosen responses had a lower score than the rejected ones: length decided.")
    if beyond := counts["broken_beyond_cap"]:
        told.append(
            f"{beyond:,} more instructions had a broken output to reject; pairs.max_broken caps the share of such pairs."
        )
    tables = [_share_table("Instructions", asked, instructions), _share_table("Outputs", sampled, outputs)]
    return join(
        tag("p", " ".join(told), class_="how") if told else None, tag("div", tables, class_="multiples")
    )


def _share_table(name: str, total: int, parts: Sequence[tuple[str, int]]) -> Html:
    rows = [("all", whole(total), MISSING), *((part, whole(n), share(n, total)) for part, n in parts)]
    return plain_table(name, (name, "Count", "Share"), rows)


def _examples(statistics: Mapping[str, Any]) -> Html:
    found = statistics["examples"]
    if not found:
        return tag("p", "There are no pairs to read.", class_="empty")
    how = "Drawn at random. The judge saw the responses; the model is trained on thought and response."
    unit = statistics["settings"]["length"]
    cases = [_example(example, unit, opened=at == 0) for at, example in enumerate(found)]
    return join(tag("p", how, class_="how"), tag("div", cases, class_="reading"))


def _example(example: Mapping[str, Any], unit: str, *, opened: bool) -> Html:
    chosen, rejected = example["chosen"], example["rejected"]
    broken = rejected["problem"] is not None
    kind = tag("span", "Broken", class_="chip loss") if broken else tag("span", "Pair", class_="chip differ")
    scores = number(chosen["score"]) + ("" if broken else f" to {number(rejected['score'])}")
    summary = tag(
        "summary",
        kind,
        tag("span", _opening(example["instruction"]["text"]), class_="opening", dir="auto"),
        tag("small", scores),
    )
    chips = [tag("span", name, class_="chip") for name in example["categories"].values()]
    body = tag(
        "div",
        tag("p", chips, tag("small", f"id {example['id']}"), class_="chips"),
        tag("h5", "Instruction"),
        _box("Instruction", example["instruction"]),
        tag("div", _side("Chosen", chosen, unit), _side("Rejected", rejected, unit), class_="sides"),
        class_="body",
    )
    return tag("details", summary, body, open=opened, class_="case")


def _side(title: str, side: Mapping[str, Any], unit: str) -> Html:
    about = f"output {side['index'] + 1}"
    if side["problem"] is None:
        about += f", score {number(side['score'])}, value {number(side['value'])}, {side['length']:,} {unit}"
    parts = [tag("h5", title, tag("small", about))]
    if side["thought"]["characters"]:
        parts.append(
            _part(
                f"{title}: thought", f"Thought, {side['thought']['characters']:,} characters", side["thought"]
            )
        )
    if side["problem"] is not None:
        parts.append(tag("p", f"No readable response: {PROBLEMS[side['problem']]}.", class_="note"))
    if side["response"]["characters"] or side["problem"] is None:
        parts.append(_part(f"{title}: response", "Response", side["response"]))
    return tag("div", parts)


def _part(label: str, heading: str, text: Mapping[str, Any]) -> Html:
    return tag("div", tag("p", heading, class_="axis-name"), _box(label, text), class_="judgment")


def _opening(text: str) -> str:
    line = " ".join(text[: 4 * OPENING].split())
    return line if len(line) <= OPENING else line[:OPENING].rsplit(" ", 1)[0] + " \u2026"


def _box(label: str, text: Mapping[str, Any]) -> Html:
    shown, characters = text["text"], text["characters"]
    box = scrolling(label, shown, class_="text")
    if len(shown) == characters:
        return box
    return join(box, tag("p", f"Cut here: {len(shown):,} of {characters:,} characters.", class_="how"))
