"""Arena-Hard's scores: verdicts to points, intervals and style-controlled scores, of models and of their categories.

A score is the share of battles that a model won, in percent. For v0.1 that is what its authors fit a Bradley-Terry
model for: where every model only meets the baseline, the fit is this share, exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from thinkserve.eval.answer import Answer, Style
from thinkserve.eval.arena.battle import Battles, battles_of, scored_verdicts
from thinkserve.eval.arena.bootstrap import battle_intervals, interval, resamples
from thinkserve.eval.arena.style import style_of
from thinkserve.eval.arena.style_control import LENGTH, MARKDOWN, STYLE, StyleControlled, style_control
from thinkserve.eval.arena.tokens import TIKTOKEN, token_counter
from thinkserve.eval.arena.unseen import UnseenAnswer
from thinkserve.eval.arena.version import EDITIONS, Version
from thinkserve.eval.bench import Compat
from thinkserve.eval.match import Match
from thinkserve.eval.scores import Group, Scores
from thinkserve.eval.statistics import FEW, small_group_note

ALIGNED_LEVEL = 0.95
QUESTION_ROUNDS = 2000
"""Of the bootstrap over questions without style control, which costs next to nothing."""
# The authors control for style by category; within it is our addition, for v2.0 alone (v0.1's clusters are too small).
STYLE_SCHEMES: Mapping[Compat, Sequence[str]] = {
    "official": ("category",),
    "aligned": ("category", "subcategory"),
}
Matches = Mapping[str, Sequence[Match]]


@dataclass(slots=True)
class _Styles:
    """The styles of answers: as their files give them, else counted, once each."""

    counted: dict[tuple[str, str], Style] = field(default_factory=dict)

    def __call__(self, answer: Answer) -> Style:
        if answer.style is not None:
            return answer.style
        key = (answer.id, str(answer.response))
        if key not in self.counted:
            self.counted[key] = style_of(answer.response, token_counter()[1])
        return self.counted[key]


@dataclass(frozen=True, slots=True)
class _Task:
    """How scores are to be made."""

    version: Version
    compat: Compat
    seed: int
    bootstraps: int
    styles: _Styles = field(default_factory=_Styles)
    coefficients: dict[str, dict[str, float]] = field(default_factory=dict)
    fits: dict[Any, StyleControlled] = field(default_factory=dict)
    """Made before: all instructions and their only category have the same matches."""

    @property
    def level(self) -> float:
        return EDITIONS[self.version].ci_level if self.compat == "official" else ALIGNED_LEVEL


def score_arena(
    version: Version, matches: Matches, *, compat: Compat, seed: int, bootstraps: int = 100
) -> Scores:
    """Make scores of verdicts.

    Args:
        version: of the bench.
        matches: from model to its matches; all models share the fit of style control.
        compat: `official` draws single battles again, as the authors do (v2.0: a 90 % interval, and the style-controlled
            score where their optimiser stops), but often enough for the interval not to hang on the order of files;
            `aligned` draws questions (95 %), and fits to the optimum.
        seed: of the bootstraps; v0.1 has its own for `official`.
        bootstraps: rounds, wherever a fit or the authors' number of rounds is concerned.
    """
    task = _Task(version, compat, seed, bootstraps)
    overall = _groups(task, matches, "all", controlled=True)
    categories: dict[str, dict[str, dict[str, Group]]] = {model: {} for model in matches}
    for scheme in _schemes(matches):
        for category, members in _by_category(matches, scheme).items():
            controlled = version == "v2.0" and scheme in STYLE_SCHEMES[compat]
            for model, group in _groups(task, members, category, controlled=controlled).items():
                categories[model].setdefault(scheme, {})[category] = group
    judges = tuple(dict.fromkeys(game.judge for found in matches.values() for m in found for game in m.games))
    return Scores(
        bench=EDITIONS[version].bench,
        judge="+".join(judges),
        baseline="+".join(dict.fromkeys(m.baseline_model for found in matches.values() for m in found)),
        compat=compat,
        models={model: replace(group, categories=categories[model]) for model, group in overall.items()},
        notes=tuple(_notes(task, matches, judges)),
        details=_details(task, matches),
    )


def _schemes(matches: Matches) -> Iterable[str]:
    """The schemes of categories that divide the instructions, in the order in which they come up."""
    every = (match for found in matches.values() for match in found)
    return dict.fromkeys(scheme for match in every for scheme in match.instruction.categories)


def _by_category(matches: Matches, scheme: str) -> dict[str, dict[str, list[Match]]]:
    members: dict[str, dict[str, list[Match]]] = {}
    for model, found in matches.items():
        for match in found:
            if scheme in match.instruction.categories:
                category = match.instruction.categories[scheme]
                members.setdefault(category, {}).setdefault(model, []).append(match)
    return members


def _groups(task: _Task, matches: Matches, name: str, *, controlled: bool) -> dict[str, Group]:
    """The numbers of each model over some matches."""
    battles = battles_of(task.version, matches)
    groups = {model: _counted(task, found) for model, found in matches.items()}
    if battles is None:
        return groups
    points = dict(zip(battles.models, battles.scores(battles.counts, battles.points).tolist(), strict=True))
    cis = _intervals(task, battles)
    for model, score in points.items():
        ci = cis.get(model)
        groups[model] = replace(
            groups[model],
            score=score,
            ci=ci,
            ci_level=task.level if ci else None,
            note=small_group_note(groups[model].n, ci),
        )
    return _with_style(task, groups, matches, name) if controlled else groups


def _counted(task: _Task, matches: Sequence[Match]) -> Group:
    """What is counted, without a score."""
    scored = [match for match in matches if scored_verdicts(task.version, match)]
    seen = [match.answer for match in matches if not isinstance(match.answer, UnseenAnswer)]
    tokens = [task.styles(answer).token_len for answer in seen]
    return Group(
        n=len(scored),
        unscored=len(matches) - len(scored),
        forfeits=sum(not match.answer.complete for match in scored) if seen else None,
        mean_length=float(np.mean([len(answer.response) for answer in seen])) if seen else None,
        mean_tokens=float(np.mean(tokens)) if seen else None,
        note=small_group_note(len(scored), None),
    )


def _intervals(task: _Task, battles: Battles) -> dict[str, tuple[float, float]]:
    """Of the scores; none where there are so few questions that a bootstrap only repeats them."""
    if len(set(battles.question.tolist())) < FEW // 2:
        return {}
    if task.compat == "official":
        return battle_intervals(battles, task.level, task.seed)
    return _drawn_intervals(task, battles, QUESTION_ROUNDS)


def _drawn_intervals(task: _Task, battles: Battles, rounds: int) -> dict[str, tuple[float, float]]:
    drawn = battles.scores(*resamples(task.version, battles, task.compat, rounds, task.seed))
    found = {model: interval(drawn[:, at], task.level) for at, model in enumerate(battles.models)}
    return {model: ci for model, ci in found.items() if ci}


def _with_style(task: _Task, groups: dict[str, Group], matches: Matches, name: str) -> dict[str, Group]:
    """Add style-controlled scores where there is one baseline, from the matches whose two answers are known."""
    if len({match.baseline_model for found in matches.values() for match in found}) > 1:
        return groups
    seen = {
        model: [
            match
            for match in found
            if not isinstance(match.answer, UnseenAnswer) and not isinstance(match.baseline, UnseenAnswer)
        ]
        for model, found in matches.items()
    }
    battles = battles_of(task.version, seen)
    if battles is None:
        return groups
    aligned, official = replace(task, compat="aligned"), replace(task, compat="official")
    full = _fit(task, battles, STYLE, task.bootstraps)
    # v2.0's own code fails on length alone and takes a model's column for a feature in markdown alone, so there is
    # nothing to stop as early as.
    length, markdown = (_fit(aligned, battles, features) for features in (LENGTH, MARKDOWN))
    other = official if task.compat == "aligned" else aligned
    otherwise = _fit(other, battles, STYLE).scores if task.version == "v2.0" else {}
    task.coefficients[name] = full.coefficients
    if task.version == "v0.1":
        task.coefficients["length alone"] = length.coefficients
        task.coefficients["markdown alone"] = markdown.coefficients
    return {
        model: replace(
            group,
            style_controlled_score=full.scores.get(model),
            style_controlled_ci=full.cis.get(model),
            length_controlled_score=length.scores.get(model),
            markdown_controlled_score=markdown.scores.get(model),
            compat={"style_controlled_score": otherwise[model]} if model in otherwise else {},
        )
        for model, group in groups.items()
    }


def _fit(task: _Task, battles: Battles, features: Sequence[str], bootstraps: int = 0) -> StyleControlled:
    key = (task.compat, features, bootstraps, battles.models, tuple(map(id, battles.matches)))
    if key not in task.fits:
        task.fits[key] = style_control(
            task.version,
            battles,
            task.styles,
            compat=task.compat,
            seed=task.seed,
            bootstraps=bootstraps,
            features=features,
        )
    return task.fits[key]


def _details(task: _Task, matches: Matches) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if task.coefficients:
        details["style_coefficients"] = task.coefficients
    if task.styles.counted:
        details["token_counter"] = token_counter()[0]
    battles = battles_of(task.version, matches)
    if task.version == "v0.1" and task.compat == "official" and battles is not None:
        # To the digit what the authors' code prints for these models in this order.
        details["ci_of_authors_rounds"] = _drawn_intervals(task, battles, task.bootstraps)
    return details


def _notes(task: _Task, matches: Matches, judges: Sequence[str]) -> Iterable[str]:
    edition = EDITIONS[task.version]
    if judges and not all(judge.startswith(edition.judges) for judge in judges):
        yield (
            f"judged by {' and '.join(judges)}; the published numbers are by {' or '.join(edition.judges)} and cannot be "
            "compared with these"
        )
    if task.styles.counted:
        name = token_counter()[0]
        counter = (
            "gpt-4o's tokenizer" if name == TIKTOKEN else "an estimate (7 % off for one response on average)"
        )
        yield f"{len(task.styles.counted)} responses came without counts of style; their tokens were counted by {counter}"
    unseen = Counter(
        match.baseline_model
        for found in matches.values()
        for match in found
        if isinstance(match.baseline, UnseenAnswer) and not isinstance(match.answer, UnseenAnswer)
    )
    for baseline in unseen:
        yield f"not all answers of the baseline {baseline} were given, so style is not controlled for where they miss"
    if task.version == "v2.0" and task.coefficients and task.compat == "official":
        yield "style-controlled scores are where the authors' optimiser stops; the optimum is given beside them"
