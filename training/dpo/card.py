"""The model card of an iteration's checkpoint, written from the files of its run.

It has nothing of the machine it was made on: of paths only the last part, no names in URLs, no times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from thinkserve.eval.records import write_whole
from thinkserve.training.dpo.start_model import StartModel
from thinkserve.training.recipe import Recipe
from thinkserve.training.stage import StageContext

WHAT = {
    "thought": "It writes a thought and then its response. Thoughts were trained by Thought Preference Optimization (Wu et "
    "al., arXiv 2410.10630): of several outputs to an instruction the one with the best response is preferred to the one "
    "with the worst, thought and all, and no judge ever saw a thought.",
    "direct": "It answers directly. It is the baseline of Thought Preference Optimization (Wu et al., arXiv 2410.10630): "
    "trained in the same way, on the same instructions and by the same judge, without thoughts.",
}

SERVING = {
    "thought": "an OpenAI-compatible endpoint whose clients get the response and never the thought. It is a checkpoint like any "
    "other for vLLM and transformers, but their clients see the thoughts.",
    "direct": 'an OpenAI-compatible endpoint. Requests should say `"reasoning_effort": "none"`, as it was trained: without '
    "that, thinkserve asks for a thought where the thought format has a prompt for one.",
}

CARD = """\
---
{front_matter}---
# {name}: iteration {iteration}, {arm} arm

{what}

Start model: `{model}`; this is iteration {iteration} of {iterations}, epoch {epoch} of {epochs}. {format}

## Serving

    thinkserve serve FOLDER

with the folder of this file: {serving}

## Data
{data}

## Training
Direct preference optimization by TRL's DPOTrainer; start and reference are the model of iteration {before}.

{training}

## Validation
{validation}

## Scores
{scores}

## Recipe
{recipe}

## What it is not
Trained to please one judge on one set of instructions: scores by that judge say little about others. Nothing was trained
or measured here about safety beyond what the start model brings.
"""


def write_card(path: Path, context: StageContext, epoch: int) -> None:
    """Write the card of a context's iteration.

    Args:
        path: of the card.
        context: of the stage.
        epoch: the one that was chosen.
    """
    recipe, folder = context.recipe, context.folder
    start = StartModel.of(context)
    text = CARD.format(
        front_matter=yaml.safe_dump(_front_matter(recipe, start), sort_keys=False, allow_unicode=True),
        name=_public(recipe.name),
        iteration=context.iteration,
        iterations=recipe.iterations,
        arm=context.arm,
        what=WHAT[context.arm],
        serving=SERVING[context.arm],
        model=_public(recipe.model),
        epoch=epoch,
        epochs=recipe.dpo.epochs,
        format=_format(folder.epoch(epoch)),
        data=_data(context),
        training=_fields(_read(folder.dpo / "result.json"), TRAINING),
        before=context.iteration - 1,
        validation=_validation(_read(folder.validation), recipe),
        scores=_scores(_read(context.run.results), context),
        recipe=_table(
            ["key", "value"], [[f"`{key}`", value] for key, value in _leaves(msgspec.to_builtins(recipe))]
        ),
    )
    path.write_text(text, encoding="utf-8")


TRAINING = ("pairs", "too_long", "tokens", "epochs", "steps", "last_epoch")
"""Of the numbers of stage dpo: those that do not depend on the machine."""
PAIRS = ("rho", "rho_reached", "counts", "no_pair", "means")
"""Of the statistics of pairs: all but the histograms and examples."""
PROMPTS = ("source", "evaluation_source", "sizes")
"""Of the report on instructions."""
MOST_ITEMS = 12


def _front_matter(recipe: Recipe, start: StartModel) -> dict[str, Any]:
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["thinkserve", "thought-preference-optimization", "dpo", "trl"],
    }
    own = _own_front_matter(start)
    found |= {key: own[key] for key in ("license", "license_name", "license_link", "language") if key in own}
    if _is_hub_name(recipe.model):
        found["base_model"] = recipe.model
    if _is_hub_name(recipe.prompts.source):
        found["datasets"] = [recipe.prompts.source]
    return found


def _own_front_matter(start: StartModel) -> Mapping[str, Any]:
    """Of the start model's card: its license is that of what is made from it."""
    card = start.folder / "README.md" if start.folder is not None else None
    if card is None or not card.is_file():
        return {}
    head, found, _ = (
        card.read_text(encoding="utf-8", errors="replace").removeprefix("---\n").partition("\n---")
    )
    try:
        values = yaml.safe_load(head) if found else {}
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, Mapping) else {}


def _is_hub_name(text: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not Path(text).exists()


def _format(checkpoint: Path) -> str:
    path = checkpoint / "thought_format.json"
    if not path.exists():
        return "It names no thought format; give one with `--thought-format`."
    data = json.loads(path.read_bytes())
    name = data if isinstance(data, str) else data.get("name") or data.get("format") or data.get("base")
    return f"Thought format: `{name}` (`thought_format.json`)."


def _data(context: StageContext) -> str:
    prompts = _fields(_read(context.run.prompts_report), PROMPTS)
    pairs = _fields(_read(context.folder.pair_statistics), PAIRS)
    return f"Instructions:\n\n{prompts}\n\nPairs of this iteration:\n\n{pairs}"


def _validation(found: Mapping[str, Any], recipe: Recipe) -> str:
    candidates = [one for one in found.get("candidates", []) if isinstance(one, Mapping)]
    names = list(dict.fromkeys(name for one in candidates for name in one))
    rows = [
        [*(_shown(one.get(name)) for name in names), "chosen" if one.get("epoch") == found["chosen"] else ""]
        for one in candidates
    ]
    meaning = ""
    if recipe.judge.kind == "pairwise":
        meaning = " The score is how often the judge prefers a response to that of epoch 0, from 0 to 1."
    reason = f" Chosen: {found['reason']}." if found.get("reason") else ""
    return (
        f"On held-out instructions, by the judge of training; epoch 0 is the model before.{meaning}{reason}\n\n"
        + _table([*(name.replace("_", " ") for name in names), ""], rows)
    )


def add_scores(path: Path, context: StageContext, own: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the scores of the model itself into its card, once they are measured.

    Args:
        path: of the card; if somebody has removed it, nothing is done.
        context: of the stage.
        own: from way of decoding to what was measured.
    """
    if not path.exists():
        return
    before, _, rest = path.read_text(encoding="utf-8").partition(SCORES)
    after = rest[rest.index(RECIPE) :]
    scores = _scores(_read(context.run.results), context, own)
    write_whole(path, f"{before}{SCORES}{scores}{after}".encode())


SCORES, RECIPE = "\n## Scores\n", "\n\n## Recipe\n"


def _scores(
    results: Mapping[str, Any], context: StageContext, own: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """A table of the models before this one and, once they are known, of its own numbers."""
    metric = str(results.get("metric", context.recipe.evaluate.metric))
    found = {
        one["iteration"]: one.get(context.arm, {})
        for one in results.get("iterations", [])
        if one["iteration"] < context.iteration
    }
    found |= {context.iteration: own} if own else {}
    names = (metric, "ci", "score", "parse_failures", "n")
    rows = [
        [str(iteration), decoding, *(_shown(measured.get(name)) for name in names)]
        for iteration, by_decoding in found.items()
        for decoding, measured in by_decoding.items()
    ]
    header = ["iteration", "decoding", metric, "interval", "judge score"]
    table = _table([*header, "without a readable response", "instructions"], rows)
    if own:
        return f"On instructions that nothing was chosen by; this model is iteration {context.iteration}.\n\n{table}"
    return (
        "Of the models before this one, on instructions that nothing was chosen by. This one's are in the run's "
        f"`results.json` and `report.html`.\n\n{table}"
    )


def _fields(found: Mapping[str, Any], names: Sequence[str]) -> str:
    chosen = {name: found[name] for name in names if name in found}
    return _table(["what", "value"], [[key, value] for key, value in _leaves(chosen)])


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested values with dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        if len(value) > MOST_ITEMS or any(isinstance(item, Mapping) for item in value):
            return f"{len(value)} of them"
        return ", ".join(map(_shown, value)) or "-"
    if isinstance(value, Mapping):
        return "-"
    return _public(str(value)).replace("|", "\\|").replace("\n", " ")


def _public(text: str) -> str:
    """A text without what only concerns the machine: folders above a file, and names and passwords in a URL."""
    if Path(text).is_absolute():
        return Path(text).name
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Nothing is known yet."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(path: Path) -> Mapping[str, Any]:
    """A file of the run; empty where it is not there (yet)."""
    if not path.exists():
        return {}
    found: Mapping[str, Any] = msgspec.json.decode(path.read_bytes())
    return found
