"""Plain and length-controlled win rates for a bench whose own number is another one (Arena-Hard's score).

So every category of every bench has a win rate, which counts instructions, each by the mean preference over its games;
Arena-Hard's score counts battles, and those with `>>` three times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from thinkserve.eval.arena.unseen import UnseenAnswer
from thinkserve.eval.comparison import head_to_head
from thinkserve.eval.instruction import CLUSTER
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Group

RATES = ("win_rate", "standard_error", "wins", "draws", "losses")
CONTROLLED = ("length_controlled_win_rate", "lc_standard_error")


def with_win_rates(
    models: Mapping[str, Group], matches: Mapping[str, Sequence[Match]], seed: int
) -> dict[str, Group]:
    """The groups of models with the win rates that they lack, also in their categories.

    Args:
        models: the groups as the bench made them.
        matches: of each model.
        seed: of the bootstraps.
    """
    return {
        model: group if group.win_rate is not None else _with_rates(group, matches[model], seed)
        for model, group in models.items()
    }


def _with_rates(group: Group, matches: Sequence[Match], seed: int) -> Group:
    schemes = [scheme for scheme in group.categories if scheme != CLUSTER]
    found = head_to_head(matches, seed=seed, schemes=schemes)
    # Without the responses there are no lengths.
    seen = not any(
        isinstance(side, UnseenAnswer) for match in matches for side in (match.answer, match.baseline)
    )
    keys = (*RATES, *CONTROLLED) if seen else RATES
    categories = {
        scheme: {
            name: _filled(own, found.categories.get(scheme, {}).get(name), keys)
            for name, own in groups.items()
        }
        for scheme, groups in group.categories.items()
    }
    return replace(_filled(group, found, keys), categories=categories)


def _filled(group: Group, found: Group | None, keys: Sequence[str]) -> Group:
    if found is None:
        return group
    missing = {key: getattr(found, key) for key in keys if getattr(group, key) is None}
    return replace(group, **missing)
