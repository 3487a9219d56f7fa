"""The length-controlled win rate, by the `alpaca-eval` package's own function, with what it does beside that fenced off.

The function asks the hub for `df_gamed.csv`, takes the difficulty of an instruction from the row's index, saves weights
into its own folder, and switches on metadata routing in all of scikit-learn. Here it reads a local file, is told the
rows' positions and folds, saves nothing, and the settings of scikit-learn are then as they were.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from thinkserve.errors import UsageError
from thinkserve.eval.alpaca import package
from thinkserve.eval.alpaca.folds import Folds, group_k_fold
from thinkserve.eval.comparison import preference_of
from thinkserve.eval.match import Match
from thinkserve.eval.records import read_bytes

GAMED_COLUMNS = (
    "model",
    "preference",
    "index",
    "std_delta_len",
    "instruction_difficulty",
    "not_gamed_baseline",
)

_lock = Lock()


@dataclass(frozen=True, slots=True)
class LengthControl:
    """One fit of the GLM."""

    win_rate: float
    """In percent, at equal length."""
    standard_error: float
    preferences: Mapping[str, float]
    """From an instruction's id to how far the model would be preferred at equal length, 0 to 1."""
    c: float
    """The inverse strength of the L1 penalty that the folds chose, out of ten from 1e-4 to 1e4."""
    weights: Mapping[str, float]
    """From a term of the formula to its coefficient, in logits."""


@dataclass(frozen=True, slots=True)
class HeadToHead:
    """What the package calls the winrate: without length control."""

    win_rate: float
    standard_error: float
    """nan for a single match."""
    wins: int
    draws: int
    losses: int
    discrete_win_rate: float


def head_to_head(matches: Sequence[Match]) -> HeadToHead:
    """Count wins and average preferences, by the package; all matches must have a verdict."""
    import pandas as pd

    found = package.glm_winrate().get_winrate(pd.DataFrame({"preference": _preferences(matches)}))
    return HeadToHead(
        float(found["win_rate"]),
        float(found["standard_error"]),
        int(found["n_wins"]),
        int(found["n_draws"]),
        int(found["n_wins_base"]),
        float(found["discrete_win_rate"]),
    )


def is_extreme(win_rate: float, length_controlled_win_rate: float) -> bool:
    """Whether the two lie so far apart that the package warns: the GLM may have failed."""
    return bool(package.glm_winrate().get_is_extreme_changes(win_rate, length_controlled_win_rate))


def length_control(
    matches: Sequence[Match], positions: Sequence[int], *, folds: Folds, gamed: Path
) -> LengthControl | None:
    """Fit the GLM to the matches of one model.

    Args:
        matches: those without a verdict are left out of the fit, and predicted.
        positions: of each match's instruction among the official ones, as the fit is to believe.
        folds: of the cross-validation that chooses C.
        gamed: `df_gamed.csv`, as the package reads it.

    Returns:
        None where all responses differ from their baselines by the same length, so nothing can be controlled for.

    Raises:
        UsageError: the file `gamed` is not what the package reads.
    """
    if len({len(match.answer.response) - len(match.baseline.response) for match in matches}) < 2:
        return None
    _check_gamed(gamed)
    frame = _frame(matches, positions)
    with _fenced(folds, gamed) as (glm, fitted):
        found = glm.get_length_controlled_winrate(frame, save_weights_dir=None, is_warn_extreme_changes=False)
    (model,) = fitted
    return LengthControl(
        float(found["length_controlled_winrate"]),
        float(found["lc_standard_error"]),
        dict(zip((m.instruction.id for m in matches), frame["glm_preference"].tolist(), strict=True)),
        float(model.C_[0]),
        dict(zip(map(str, model.feature_names_in_), model.coef_[0].tolist(), strict=True)),
    )


def _frame(matches: Sequence[Match], positions: Sequence[int]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {
            "preference": _preferences(matches),
            # As objects: a column of pandas' own strings refuses what is no valid Unicode.
            "output_1": pd.Series([str(match.baseline.response) for match in matches], dtype=object),
            "output_2": pd.Series([str(match.answer.response) for match in matches], dtype=object),
            "generator_1": "baseline",
            "generator_2": "model",
        }
    ).set_index(pd.Index(positions, name="index"))


def _preferences(matches: Sequence[Match]) -> list[float]:
    """As the package counts them: 1 for the baseline, 2 for the model, nan for no verdict."""
    found = map(preference_of, matches)
    return [float("nan") if preference is None else 1 + preference for preference in found]


@contextmanager
def _fenced(folds: Folds, gamed: Path) -> Iterator[tuple[Any, list[Any]]]:
    """The package's module, with the file and the folds that it is to use; and a list of the models that it fits."""
    import sklearn

    glm = package.glm_winrate()
    fitted: list[Any] = []
    with _lock, sklearn.config_context(), warnings.catch_warnings():
        # scikit-learn announces what 1.10 will do away with; the extra `eval` asks for less than that.
        warnings.simplefilter("ignore", FutureWarning)
        fit = glm.fit_LogisticRegressionCV
        glm.fit_LogisticRegressionCV = lambda *args, **kwargs: _kept(fitted, fit(*args, **kwargs))
        glm.hf_hub_download = lambda **_: str(gamed)
        glm.GroupKFold = group_k_fold(folds)
        try:
            yield glm, fitted
        finally:
            glm.fit_LogisticRegressionCV = fit


def _kept(models: list[Any], model: Any) -> Any:
    models.append(model)
    return model


def _check_gamed(path: Path) -> None:
    text = read_bytes(path).decode("utf-8", "replace")
    columns = next(csv.reader(io.StringIO(text)), [])
    if missing := [name for name in GAMED_COLUMNS if name not in columns]:
        raise UsageError(f"{path}:1: there is no column {missing[0]!r}; AlpacaEval's df_gamed.csv has one")
