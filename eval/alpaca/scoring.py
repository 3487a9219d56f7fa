"""AlpacaEval 2's numbers out of verdicts: win rate and length-controlled win rate, overall and by source.

Counts and both rates are the `alpaca-eval` package's own (`glm.py`), read officially or aligned (`readings.py`); the
interval is a bootstrap over instructions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from thinkserve.errors import UsageError
from thinkserve.eval.alpaca.folds import Folds
from thinkserve.eval.alpaca.glm import LengthControl, head_to_head, is_extreme
from thinkserve.eval.alpaca.package import ANNOTATOR
from thinkserve.eval.alpaca.readings import Readings
from thinkserve.eval.bench import Compat
from thinkserve.eval.comparison import preference_of
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Group, Scores
from thinkserve.eval.statistics import bootstrap_mean_ci, small_group_note, standard_error

NAME = "alpaca-eval"
BASELINE = "gpt4_1106_preview"
OFFICIAL_JUDGE = "gpt-4-1106-preview"
LEVEL = 0.95
# Below, the 161 effective rows of the gamed baselines outweigh the model's own: over 50 instructions a model with a win
# rate of 19 gets a length-controlled one of 27.
ENOUGH = 200


def score_alpaca(
    matches: Mapping[str, Sequence[Match]],
    *,
    compat: Compat,
    seed: int,
    gamed: Path,
    folds: Folds | None = None,
    notes: Sequence[str] = (),
) -> Scores:
    """Score models.

    Args:
        matches: from model to its matches, in the order of the official file or of the instructions.
        compat: `official`: difficulties by row, as published; `aligned`: by instruction.
        seed: of the bootstrap.
        gamed: `df_gamed.csv`.
        folds: of the GLM's cross-validation. None: `official`, but where these very judgments were published and
            `compat` is `official`, the folds that give the published number.
        notes: about the run, to be kept with the scores.

    Raises:
        UsageError: a model was judged against itself, by several judges, or without one verdict.
    """
    judge = _only("judge", {played.judge for rows in matches.values() for m in rows for played in m.games})
    baseline = _only("baseline", {match.baseline_model for rows in matches.values() for match in rows})
    if baseline in matches:
        raise UsageError(f"{baseline} was judged against itself: name another model, or another baseline")
    readings = {model: Readings(model, rows, folds, gamed) for model, rows in matches.items()}
    return Scores(
        NAME,
        judge,
        baseline,
        compat,
        {model: _overall(found, compat, seed) for model, found in readings.items()},
        notes=(*_comparable(judge, baseline), *notes),
        details={"glm": {model: found.details(compat) for model, found in readings.items()}},
    )


def _only(what: str, names: set[str]) -> str:
    if not names:
        raise UsageError("there are no judgments to score")
    if len(names) > 1:
        raise UsageError(f"AlpacaEval takes one {what}, and these judgments have {', '.join(sorted(names))}")
    return names.pop()


def _comparable(judge: str, baseline: str) -> list[str]:
    notes = []
    if judge not in (ANNOTATOR, OFFICIAL_JUDGE):
        notes.append(f"judged by {judge}, not by {OFFICIAL_JUDGE}: not comparable with published numbers")
    if baseline != BASELINE:
        notes.append(
            f"judged against {baseline}, not against {BASELINE}, whom the difficulties of length control are about: "
            "not comparable with published numbers"
        )
    return notes


def _overall(readings: Readings, compat: Compat, seed: int) -> Group:
    fit, other = readings.fit(compat), readings.other(compat)
    compared = {}
    if other is not None:
        compared = {
            "length_controlled_win_rate": other.win_rate,
            "lc_standard_error": other.standard_error,
        }
    return _group(
        readings.matches,
        fit,
        seed,
        notes=_notes(readings, fit),
        categories=_by_dataset(readings.matches, fit, seed),
        compat=compared,
    )


def _notes(readings: Readings, fit: LengthControl | None) -> list[str]:
    notes = []
    if fit is not None and (n := len(readings.scored)) < ENOUGH:
        notes.append(
            f"{n} instruction{'' if n == 1 else 's'}: with fewer than {ENOUGH} the length-controlled win rate is drawn to the gamed "
            "baselines that it is regularized with"
        )
    win_rate = readings.raw.win_rate
    if fit is None:
        notes.append(
            "no length-controlled win rate: all responses differ from the baseline's by the same length"
        )
    elif is_extreme(win_rate, fit.win_rate):
        notes.append(
            f"the length-controlled win rate ({fit.win_rate:.1f}) is far from the raw one ({win_rate:.1f}): the GLM "
            "may have failed"
        )
    if difference := readings.difference():
        notes.append(difference)
    return notes


def _by_dataset(
    matches: Sequence[Match], fit: LengthControl | None, seed: int
) -> dict[str, dict[str, Group]]:
    """By source of the instructions, out of the one fit: one of its own would be the gamed baselines' (80 rows to 161)."""
    by_dataset: dict[str, list[Match]] = {}
    for match in matches:
        if dataset := match.instruction.categories.get("dataset"):
            by_dataset.setdefault(dataset, []).append(match)
    groups = {dataset: _group(rows, fit, seed) for dataset, rows in sorted(by_dataset.items())}
    return {"dataset": groups} if groups else {}


def _group(
    matches: Sequence[Match],
    fit: LengthControl | None,
    seed: int,
    *,
    notes: Sequence[str] = (),
    categories: Mapping[str, Mapping[str, Group]] | None = None,
    compat: Mapping[str, float] | None = None,
) -> Group:
    """The numbers of these matches, with length control out of a fit that may be to more of them."""
    scored = [match for match in matches if preference_of(match) is not None]
    mean_length = sum(len(match.answer.response) for match in matches) / len(matches)
    if not scored:
        return Group(n=0, unscored=len(matches), mean_length=mean_length, note="no judgment has a verdict")
    raw = head_to_head(scored)
    preferences = [100 * preference for match in scored if (preference := preference_of(match)) is not None]
    ci = bootstrap_mean_ci(preferences, seed=seed, level=LEVEL)
    small = small_group_note(len(scored), ci)
    ids = [match.instruction.id for match in matches]
    controlled = [100 * fit.preferences[id] for id in ids if id in fit.preferences] if fit else []
    return Group(
        n=len(scored),
        unscored=len(matches) - len(scored),
        forfeits=sum(not match.answer.complete for match in scored),
        win_rate=raw.win_rate,
        standard_error=_finite(raw.standard_error),
        length_controlled_win_rate=sum(controlled) / len(controlled) if controlled else None,
        lc_standard_error=_finite(standard_error(controlled)),
        wins=raw.wins,
        draws=raw.draws,
        losses=raw.losses,
        discrete_win_rate=raw.discrete_win_rate,
        ci=ci,
        ci_level=LEVEL,
        mean_length=mean_length,
        note="; ".join([*notes, small] if small else notes) or None,
        categories=categories or {},
        compat=compat or {},
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
