"""Did it pay? The sentence to take away, and the numbers behind it; neither says more than the intervals do."""

from __future__ import annotations

from thinkserve.eval.report.elements import Child, Html, join, tag
from thinkserve.eval.report.numerals import MISSING, between, gain, points
from thinkserve.eval.report.svg import swatch
from thinkserve.eval.statistics import FEW
from thinkserve.training.folder import Decoding
from thinkserve.training.recipe import Arm
from thinkserve.training.report.arms import NAMES, SERIES, SHORT, decoding_title, metric_of
from thinkserve.training.report.loading import TrainRun
from thinkserve.training.report.measures import DECODINGS, CategoryMeasure, Difference, Results

INTERVAL = "95\u00a0% interval"


def finding(run: TrainRun) -> Html:
    """What the run found, in a sentence or two."""
    results = run.results
    if results is None or not results.ordered:
        return join("Nothing has been measured yet.")
    compared = [decoding for decoding in DECODINGS if results.last_paired(decoding) is not None]
    if compared:
        return _compared(run, results, compared)
    return _alone(run, results)


def _compared(run: TrainRun, results: Results, compared: list[Decoding]) -> Html:
    iteration, first = _last(results, compared[0])
    sentence = join(
        _after(run, iteration),
        _stands(first, iteration, metric_of(run.recipe).lower()),
        "" if compared[0] == "greedy" else f", sampled at temperature {run.recipe.evaluate.temperature:g}",
        _detail(first),
    )
    if len(compared) > 1:
        other_iteration, other = _last(results, compared[1])
        when = "" if other_iteration == iteration else f" after iteration {other_iteration}"
        sentence = join(sentence, f" With greedy decoding{when}: ", _short(other), _detail(other))
    return sentence


def _last(results: Results, decoding: Decoding) -> tuple[int, Difference]:
    found = results.last_paired(decoding)
    assert found is not None, decoding
    return found


def _after(run: TrainRun, iteration: int) -> str:
    if iteration == 0:
        return "Before any training, "
    iterations = "1 iteration" if iteration == 1 else f"{iteration} iterations"
    so_far = iteration < run.recipe.iterations
    return f"So far, after {iterations}, " if so_far else f"After {iterations}, "


def _side(difference: Difference) -> str:
    return "above" if difference.difference > 0 else "below"


def _stands(difference: Difference, iteration: int, metric: str) -> Html:
    other = "direct mode" if iteration == 0 else "the direct baseline trained the same way"
    if difference.n is not None and difference.n < FEW:
        return join(
            f"{difference.n} instructions are too few to say whether thought mode is above or below {other}"
        )
    if difference.clear:
        gap = tag("b", f"{points(abs(difference.gain))} points {_side(difference)}")
        return join("thought mode is ", gap, f" {other} in {metric}")
    return join(
        "thought mode and ",
        other,
        " ",
        tag("b", "cannot be told apart"),
        f": {gain(difference.gain)} points of {metric}",
    )


def _short(difference: Difference) -> Html:
    if difference.clear:
        return tag("b", f"{points(abs(difference.gain))} points {_side(difference)}")
    return join(f"{gain(difference.gain)} points, which could be chance")


def _detail(difference: Difference) -> str:
    low, high = difference.ends
    count = "" if difference.n is None else f", {difference.n:,} instructions"
    return f" ({INTERVAL} {gain(low)} to {gain(high)}{count})."


def _alone(run: TrainRun, results: Results) -> Html:
    arms: list[Arm] = [
        arm for arm in ("thought", "direct") if any(found.of(arm) for found in results.ordered)
    ]
    return join(*[_progress(run, results, arm) for arm in arms], _why_not_compared(run, arms))


def _progress(run: TrainRun, results: Results, arm: Arm) -> Html:
    decoding = next(d for d in DECODINGS if any(d in found.of(arm) for found in results.ordered))
    told = [
        (found.iteration, found.of(arm)[decoding]) for found in results.ordered if decoding in found.of(arm)
    ]
    (first, before), (last, after) = told[0], told[-1]
    mode = "thought mode" if arm == "thought" else "direct mode"
    how = "greedily" if decoding == "greedy" else f"at temperature {run.recipe.evaluate.temperature:g}"
    metric = metric_of(run.recipe).lower()
    article = "an" if metric.startswith("a") else "a"
    if first == last:
        return join(_after(run, last), f"{mode} has {article} {metric} of ", _rate(after), f", {how}. ")
    went = join(f"{mode} went from ", _rate(before), " to ", _rate(after))
    return join(_after(run, last), went, f" {metric}, {how}. ")


def _rate(measure: CategoryMeasure) -> Html:
    shown = tag("b", f"{points(measure.rate)}\u00a0%")
    ends = measure.ends
    return shown if ends is None else join(shown, f" (95\u00a0% interval {between(*ends)})")


def _why_not_compared(run: TrainRun, arms: list[Arm]) -> str:
    if len(run.arms) == 2:
        return "The two arms are compared once both have been measured after the same iteration."
    if arms == ["thought"]:
        return (
            "No direct baseline was trained, so this does not say whether thoughts help beyond the training itself: "
            "that takes mode: both."
        )
    return "This is the baseline alone: without a thought arm there is nothing to compare it with."


def tiles(run: TrainRun) -> Html | None:
    """The numbers that the sentence is about, large; None before anything was measured."""
    results = run.results
    if results is None or not results.ordered:
        return None
    found = [tile for decoding in DECODINGS if (tile := _difference_tile(run, results, decoding)) is not None]
    found += [tile for arm in run.arms if (tile := _arm_tile(run, results, arm)) is not None]
    return tag("ul", found, class_="tiles") if found else None


def _difference_tile(run: TrainRun, results: Results, decoding: Decoding) -> Html | None:
    last = results.last_paired(decoding)
    if last is None:
        return None
    iteration, difference = last
    low, high = difference.ends
    state = ("up" if difference.difference > 0 else "down") if difference.clear else "level"
    remark = "" if difference.clear else ": could be chance"
    how = decoding_title(decoding, run.recipe).lower()
    when = f"after iteration {iteration}" if iteration else "before training"
    return _tile(
        join(gain(difference.gain), tag("small", " points")),
        f"thought minus direct {when}, {how}",
        f"{INTERVAL} {gain(low)} to {gain(high)}{remark}",
        class_=f"tile {state}",
    )


def _arm_tile(run: TrainRun, results: Results, arm: Arm) -> Html | None:
    for decoding in DECODINGS:
        told = [found.of(arm)[decoding] for found in results.ordered if decoding in found.of(arm)]
        if told:
            start, end = points(told[0].rate), points(told[-1].rate)
            shown = join(start, tag("small", " \u2192 "), end) if len(told) > 1 else join(start)
            what = join(swatch(SERIES[arm]), NAMES[arm])
            how = decoding_title(decoding, run.recipe).lower()
            return _tile(join(shown, tag("small", " %")), what, f"{metric_of(run.recipe).lower()}, {how}")
    return None


def _tile(number: Child, what: Child, detail: str, class_: str = "tile") -> Html:
    return tag(
        "li",
        tag("b", number, class_="figure"),
        tag("span", what, class_="what"),
        tag("small", detail),
        class_=class_,
    )


def warnings(run: TrainRun) -> list[str]:
    """What a reader must know before trusting the numbers."""
    results = run.results
    found = []
    done, wanted = run.iterations_done, run.recipe.iterations
    if done < wanted:
        found.append(f"This run is not finished: {done} of {wanted} iterations are trained and measured.")
    if results is None or not results.ordered:
        return found
    pairs = [last[1] for decoding in DECODINGS if (last := results.last_paired(decoding)) is not None]
    if len(pairs) == 2 and pairs[0].clear != pairs[1].clear:
        clear, vague = DECODINGS if pairs[0].clear else DECODINGS[::-1]
        found.append(
            f"The difference is clear for {clear} outputs and not for {vague} ones: a single way of decoding does not "
            "tell the whole story."
        )
    for arm in run.arms:
        found += _failures(run, results, arm)
    return found


def _failures(run: TrainRun, results: Results, arm: Arm) -> list[str]:
    most = run.recipe.validate.max_broken
    for decoding in DECODINGS:
        told = [found.of(arm)[decoding] for found in results.ordered if decoding in found.of(arm)]
        if told and (told[-1].parse_failures or 0.0) > most:
            share = points(100 * (told[-1].parse_failures or 0.0))
            how = decoding_title(decoding, run.recipe).lower()
            words = f"{SHORT[arm]} mode: {share} % of the last iteration's outputs have no readable response ({how});"
            return [f"{words} they count against it."]
    return []


def done_words(run: TrainRun) -> str:
    """How far the run is, in a few words."""
    done, wanted = run.iterations_done, run.recipe.iterations
    return f"{done} of {wanted} iterations" if wanted else MISSING
