"""The model card of a pocket checkpoint, written from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thinkserve.training.pocket.easy import DEFINITIONS
from thinkserve.training.pocket.habits import HABITS
from thinkserve.training.pocket.world import CATEGORIES, examples

if TYPE_CHECKING:
    from thinkserve.training.pocket.evaluation import Report
    from thinkserve.training.pocket.seed import SeedResult

CARD = """\
---
license: apache-2.0
library_name: transformers
tags: [thinkserve, synthetic, toy]
---
# {title}

A Llama of {parameters:.1f} M parameters that lives in thinkserve's pocket world: eight categories of short synthetic
instructions. It exists so that serving, evaluating and training a *thinking* model can be tried on any machine.
It thinks when it is asked to (the thought prompt of Wu et al., arXiv 2410.10630, in its specific form, marker `<R>`),
and answers directly when it is not.

## What to ask it
{examples}

The forms are fixed: `Repeat` 3 to 7 lower-case letters; `Greet` a short name in English, French, Spanish or Italian;
`Tell` it what one of {things} is; add two numbers of three digits; count `a`, `b` or `c` in 5 to 9 of these letters;
follow 2 to 4 steps along five arrows; swap letters of four different ones, two or three times; add and take single
digits, two or three times. To most other messages it says that it only knows small tasks; the rest gets nonsense.

## How it was made
{made}
## What was measured
Exact-match accuracy of the response on {tasks} held-out instructions (standard error about {error:.3f} over all):

{accuracy}

Thoughts by style, and how often the response after such a thought is right:

{styles}

Only an exact scratchpad counts as useful.

## What it is not
Not a language model, and not safe or unsafe: it knows {definitions} definitions and no facts. Its accuracy says nothing about
large models. The shares of its habits were set by hand; what training can show with it is whether a method *selects*
a skill that is there.
"""


MADE_OF_NOTHING = """\
From random weights, by

    python -m thinkserve.training.pocket.seed --out DIR --seed {seed} --steps {steps}{threads_option}

with {threads} CPU threads, in {cpu_minutes:.1f} minutes of processor time ({minutes:.1f} of wall time): {steps} steps,
{tokens:.1f} M tokens of examples drawn from the world, none of them held out. The first {copying_share:.0%} of the steps
teach copying, the next {skills_share:.0%} the skills (answers, and scratchpads that lead to them), the rest bad habits: of
its thoughts {useful:.0%} are useful scratchpads, {vague:.0%} are empty phrases, {draft:.0%} are wrong drafts that the response
mostly follows. So it *can* think usefully and mostly does not. That is on purpose: it is the seed from which Thought
Preference Optimization starts.
"""

MADE_OF_THE_SEED = """\
From the seed model (`pocket-seed`), by Thought Preference Optimization, as

    thinkserve train pocket --set seed={seed}

does it: this is iteration {iteration}. No example of a thought was given and no judge saw one: of {k} sampled outputs to an
instruction, the one with the best response was preferred to the one with the worst, thought and all. `results.json` of that
run, and runs with other seeds, are summed up in docs/pocket.md.
"""


def write_card(out: Path, result: SeedResult) -> None:
    """Write README.md beside the weights of a seed model."""
    recipe = result.recipe
    made = MADE_OF_NOTHING.format(
        seed=recipe.seed,
        steps=recipe.steps,
        threads_option=f" --threads {result.threads}",
        threads=result.threads,
        cpu_minutes=result.cpu_seconds / 60,
        minutes=result.seconds / 60,
        tokens=result.tokens / 1e6,
        copying_share=recipe.copying_share,
        skills_share=recipe.skills_share,
        useful=HABITS.useful,
        vague=HABITS.vague,
        draft=1 - HABITS.useful - HABITS.vague,
    )
    _write(out, "The pocket seed model", made, result.parameters, recipe.evaluation_tasks, result.reports)


def write_trained_card(
    out: Path, *, seed: int, iteration: int, k: int, parameters: int, tasks: int, reports: list[Report]
) -> None:
    """Write README.md beside the weights of a model that was trained from the seed.

    Args:
        out: the checkpoint's folder.
        seed: of the training run.
        iteration: which of its models this is.
        k: outputs sampled for each instruction.
        parameters: of the model.
        tasks: it was measured on so many.
        reports: what was measured.
    """
    made = MADE_OF_THE_SEED.format(seed=seed, iteration=iteration, k=k)
    _write(out, "The pocket model", made, parameters, tasks, reports)


def _write(out: Path, title: str, made: str, parameters: int, tasks: int, reports: list[Report]) -> None:
    text = CARD.format(
        title=title,
        made=made,
        parameters=parameters / 1e6,
        examples="\n".join(f"- {name}: `{text}`" for name, text in zip(CATEGORIES, examples(), strict=True)),
        things=", ".join(DEFINITIONS),
        tasks=tasks,
        error=0.5 / tasks**0.5,
        accuracy=_accuracy_table(reports),
        styles=_style_table(reports),
        definitions=len(DEFINITIONS),
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _accuracy_table(reports: list[Report]) -> str:
    header = [f"{report.mode}, {_decoding(report)}" for report in reports]
    rows = [["category", *header], ["---"] * (len(header) + 1)]
    for name in (*CATEGORIES, "all"):
        rows.append([name, *(_number(report.accuracy.get(name)) for report in reports)])
    rows.append(["mean judge score", *(_number(report.mean_score) for report in reports)])
    rows.append(["broken format", *(_number(report.broken) for report in reports)])
    return _table(rows)


def _style_table(reports: list[Report]) -> str:
    thinking = [report for report in reports if report.mode == "thought"]
    header = [f"{what}, {_decoding(report)}" for report in thinking for what in ("share", "right")]
    rows = [["style", *header], ["---"] * (len(header) + 1)]
    for style in ("useful", "vague", "draft", "other"):
        cells = [_number(part.get(style)) for r in thinking for part in (r.styles, r.accuracy_after)]
        rows.append([style, *cells])
    return _table(rows)


def _decoding(report: Report) -> str:
    return f"T={report.temperature:g}" if report.temperature else "greedy"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
