"""Thought length, and response length, against how far the judge preferred the model: a small chart a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thinkserve.eval.report.axis import axis, with_reference
from thinkserve.eval.report.binning import Bin, binned, rank_correlation
from thinkserve.eval.report.curve import DRAW, curve
from thinkserve.eval.report.elements import Html, join, tag
from thinkserve.eval.report.evidence import Evidence
from thinkserve.eval.report.numerals import MINUS, whole
from thinkserve.eval.report.svg import swatch

Pairs = list[tuple[float, float]]


def thought_lengths(evidence: Evidence) -> Pairs:
    """Thought tokens and preference of each instruction that has both. Outputs that ended in the thought have none:
    they are lost by rule, and would make long thoughts look bad twice."""
    found = []
    for id, outcome in evidence.outcomes.items():
        length = evidence.lengths.get(id)
        preference = outcome.preference
        if (
            length is not None
            and length.thought_tokens is not None
            and preference is not None
            and not outcome.forfeit
        ):
            found.append((float(length.thought_tokens), preference))
    return found


def length_differences(evidence: Evidence) -> Pairs:
    """Characters of the response more than the baseline's, and preference, of each instruction that has both."""
    found = []
    for id, outcome in evidence.outcomes.items():
        answer, baseline = evidence.answers.get(id), evidence.baseline_answer(outcome)
        preference = outcome.preference
        if answer is not None and baseline is not None and preference is not None and not outcome.forfeit:
            found.append((float(len(answer.response) - len(baseline.response)), preference))
    return found


def thought_section(evidence: Sequence[Evidence]) -> Html:
    """Thought length against win rate."""
    if not any(item.lengths for item in evidence):
        return tag("p", "This run kept no lengths of thoughts, so there is nothing to draw.", class_="empty")
    thinking = [item for item in evidence if any(length for length, _ in thought_lengths(item))]
    if not thinking:
        return tag("p", "No model thought before it answered.", class_="empty")
    how = (
        "Instructions in bins of about equal number by how long the model thought about them; each bin's mean "
        "preference with its 95 % interval. Long thoughts go to hard instructions, so a slope here is no proof of what "
        "thinking longer would do."
    )
    return join(tag("p", how, class_="how"), _charts(thinking, thought_lengths, "thought tokens", zero=False))


def length_section(evidence: Sequence[Evidence]) -> Html:
    """Difference in length against win rate."""
    if not any(length_differences(item) for item in evidence):
        missing = "This run folder has no judgments together with the responses of both sides, so there is nothing to draw."
        return tag("p", missing, class_="empty")
    how = (
        "How much longer the response was than the baseline's, in characters, and how often it won there. A rising line "
        "is a judge (or a model) that rewards length: this is what length control takes out."
    )
    drawn = [item for item in evidence if length_differences(item)]
    chart = _charts(drawn, length_differences, "characters more than the baseline", zero=True)
    return join(tag("p", how, class_="how"), chart)


def _charts(
    evidence: Sequence[Evidence], pairs_of: Callable[[Evidence], Pairs], unit: str, *, zero: bool
) -> Html:
    """Small charts that share their y axis, so that they can be compared."""
    pairs = {item.name: pairs_of(item) for item in evidence}
    bins = {name: binned(found) for name, found in pairs.items()}
    ends = [end for found in bins.values() for b in found for end in (b.mean - b.error, b.mean + b.error)]
    y = axis(with_reference(ends, DRAW, 20), bounds=(0, 100), through=DRAW)
    x = axis(with_reference([b.x for found in bins.values() for b in found], 0, 0 if zero else 200), wanted=4)
    figures = []
    for item in evidence:
        found = bins[item.name]
        drawn = curve(found, x, y, item.series, _said(item.name, found, unit), zero=zero) if found else None
        figures.append(_figure(item, drawn, pairs[item.name], unit))
    return tag("div", figures, class_="multiples")


def _figure(item: Evidence, drawn: Html | None, pairs: Pairs, unit: str) -> Html:
    title = tag("figcaption", swatch(item.series), tag("b", item.name), _correlation(pairs))
    if drawn is None:
        few = f"{len(pairs)} instructions: too few to say, or all of one length"
        return tag("figure", title, tag("p", few, class_="empty"))
    return tag("figure", title, drawn, tag("p", f"{unit} \u2192", class_="axis-name"))


def _correlation(pairs: Pairs) -> Html | None:
    found = rank_correlation(pairs)
    if found is None:
        return None
    shown = f"{found:+.2f}".replace("-", MINUS)
    return tag("small", f"rank correlation {shown}, n = {whole(len(pairs))}")


def _said(name: str, bins: Sequence[Bin], unit: str) -> str:
    each = "; ".join(f"{b.mean:.1f} % at {b.x:,.0f}" for b in bins)
    return f"{name}, win rate by {unit}: {each}"
