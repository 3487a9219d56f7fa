"""How well a judge did its work: what could not be read, what was asked again, and whether it looks at the order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from thinkserve.eval.judgment import Judgment
from thinkserve.eval.match import Match, PlayedGame


def health_of(matches: Sequence[Match], judgments: Iterable[Judgment]) -> dict[str, Any]:
    """The health of the judge of one model, as in `Scores.health`.

    - `games`, and `forfeits` among them, which no judge saw;
    - `judged` games with a verdict of the judge, `unscored` ones without, and of these `unreadable`: from kind to count;
    - `attempts`: calls, failed ones included; `retried`: games that took a failed one; `failures`: all of these by kind;
    - `order_pairs`: matches that one judge saw in both orders; `order_flips`: those where it preferred the model in one
      and the baseline in the other;
    - `decided`: verdicts that are no tie; `first_preferred`: those for the response that was shown first.

    Args:
        matches: of the model.
        judgments: of its games; without any (verdicts from an official file), what was asked is left out.
    """
    games = [(match, game) for match in matches for game in match.games]
    seen = [game for match, game in games if not _is_forfeit(match)]
    decided = [game for game in seen if game.verdict is not None and game.verdict.preference != 0.5]
    pairs = [pair for match in matches if not _is_forfeit(match) for pair in _order_pairs(match)]
    return {
        "games": len(games),
        "forfeits": len(games) - len(seen),
        "judged": sum(game.verdict is not None for game in seen),
        "unscored": sum(game.verdict is None for game in seen),
        **_of_calls(list(judgments)),
        "order_pairs": len(pairs),
        "order_flips": sum(_flips(*pair) for pair in pairs),
        "decided": len(decided),
        "first_preferred": sum(_prefers_first(game) for game in decided),
    }


def _of_calls(judgments: Sequence[Judgment]) -> dict[str, Any]:
    if not judgments:
        return {}
    return {
        "unreadable": _counted(judgment.failure for judgment in judgments if judgment.failure is not None),
        "attempts": sum(judgment.attempts for judgment in judgments),
        "retried": sum(bool(judgment.failures) for judgment in judgments),
        "failures": _counted(kind for judgment in judgments for kind in judgment.failures),
    }


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(kinds).items()))


def _is_forfeit(match: Match) -> bool:
    return not (match.answer.complete and match.baseline.complete)


def _order_pairs(match: Match) -> list[tuple[PlayedGame, PlayedGame]]:
    """The games of one judge in both orders, both with a verdict."""
    scored = [game for game in match.games if game.verdict is not None]
    first = {game.judge: game for game in scored if game.game.model_first}
    second = {game.judge: game for game in scored if not game.game.model_first}
    return [(first[judge], second[judge]) for judge in first if judge in second]


def _flips(one: PlayedGame, other: PlayedGame) -> bool:
    assert one.verdict is not None and other.verdict is not None
    low, high = sorted((one.verdict.preference, other.verdict.preference))
    return low < 0.5 < high


def _prefers_first(game: PlayedGame) -> bool:
    assert game.verdict is not None
    return (game.verdict.preference > 0.5) == game.game.model_first
