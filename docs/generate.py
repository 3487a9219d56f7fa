"""Writes the parts of the pages that are made from the code. `python docs/generate.py`, or `--check` to only compare.

docs/serving.md: the tables of fields, from those by which the gateway reads requests, so the page cannot promise what it
does not do. docs/eval.md: the schema of `scores.json`, from the dataclasses that are written to it. docs/training.md: the keys of a
recipe, and what the built-in recipes cost, as `--dry-run` works it out.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from thinkserve.gateway.api import endpoints
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.fields import ENGINE_EXTRAS, Fields
from thinkserve.thoughts import get_format
from thinkserve.training.plan import plan
from thinkserve.training.recipe_file import find_recipe, load_recipe

ROOT = Path(__file__).parent.parent
TITLES = {
    "pass": "goes to the engine",
    "rewrite": "done by the gateway",
    "drop": "taken, without effect",
    "refuse": "refused (400)",
}
RECIPE = {
    "Recipe": "",
    "PromptsRecipe": "prompts",
    "SampleRecipe": "sample",
    "JudgeRecipe": "judge",
    "PairsRecipe": "pairs",
    "DpoRecipe": "dpo",
    "LoraRecipe": "dpo.lora",
    "ValidateRecipe": "validate",
    "EvaluateRecipe": "evaluate",
    "ComputeRecipe": "compute",
}
COSTS = (
    ("tpo-llama3-8b", "thought"),
    ("tpo-llama3-8b", "both"),
    ("tpo-llama3-8b-pairwise", "thought"),
    ("tpo-small-gpu", "thought"),
    ("tpo-small-gpu", "both"),
)
SCORES = ("Scores", "Group", "Comparison", "Difference")


def field_tables() -> str:
    """What each endpoint takes, then what all of them refuse of what engines add."""
    config = GatewayConfig(get_format("tpo-generic"), "model")
    parts = []
    for endpoint in endpoints(config):
        own = {name: field for name, field in endpoint.fields.items() if name not in ENGINE_EXTRAS}
        parts.append(f"### `{endpoint.path}`\n\n{_field_table(own)}")
    extras = _field_table(ENGINE_EXTRAS)
    return "\n\n".join([*parts, f"### Refused by all of them, of what engines add\n\n{extras}"])


def _field_table(fields: Fields) -> str:
    """The table of fields, grouped by what happens to them and why."""
    lines = ["| | fields | |", "|---|---|---|"]
    for action, title in TITLES.items():
        chosen = sorted(
            ((name, field.why) for name, field in fields.items() if field.action == action),
            key=lambda item: item[1],
        )
        for why, group in groupby(chosen, key=lambda item: item[1]):
            names = ", ".join(f"`{name}`" for name, _ in group)
            lines.append(f"| {title} | {names} | {why} |")
    return "\n".join(lines)


def scores_tables() -> str:
    """A table of keys for each object of `scores.json`: key, type, and the text under the field."""
    classes = _classes(ROOT / "eval" / "scores.py")
    return "\n\n".join(_class_table(classes[name]) for name in SCORES)


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def recipe_tables() -> str:
    """A table of keys for each part of a recipe, with defaults."""
    classes = _classes(ROOT / "training" / "recipe.py")
    return "\n\n".join(
        _class_table(classes[name], "the recipe" if not part else f"`{part}`", defaults=True)
        for name, part in RECIPE.items()
    )


def costs_table() -> str:
    """What the built-in recipes for real models take, as `--dry-run` works it out."""
    lines = [
        "| recipe | outputs sampled | judge calls | tokens read | tokens written | tokens trained on | GPU hours (H100) | "
        + "disk at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, mode in COSTS:
        planned = plan(load_recipe(find_recipe(name), [f"mode={mode}"]))
        total, disk = planned.total, planned.disk_bytes
        millions = (total.read_tokens, total.written_tokens, total.trained_tokens)
        cells = [
            f"`{name}`, {mode}",
            f"{total.outputs:,}",
            f"{total.judge_calls:,}",
            *(f"{tokens / 1e6:,.0f} M" for tokens in millions),
            "unknown" if total.gpu_hours is None else f"{total.gpu_hours:,.1f}",
            "unknown" if disk is None else f"{disk / 1e9:,.0f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _class_table(node: ast.ClassDef, name: str | None = None, *, defaults: bool = False) -> str:
    title = (ast.get_docstring(node) or "").splitlines()[0]
    columns = ["key", "type", *(["default"] if defaults else []), ""]
    lines = [
        f"**{name or node.name}**: {title}",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign):
            continue
        described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = str(after.value.value) if described else ""  # type: ignore[union-attr]
        if defaults and not text:  # a part, which has a table of its own
            continue
        kind = ast.unparse(field.annotation).replace("Mapping", "map").replace("|", r"\|")
        if defaults:  # as YAML has it
            text = re.sub(r"\bNone\b", "null", text)
            kind = kind.replace("None", "null").replace("Mode", "'thought', 'direct', 'both'")
            kind = re.sub(r"Literal\[([^\]]*)\]", r"\1", kind)
        else:
            kind = kind.replace(r" \| None", "")
        cells = [
            f"`{ast.unparse(field.target)}`",
            f"`{kind}`",
            *([_default(field.value)] if defaults else []),
        ]
        lines.append(f"| {' | '.join(cells)} | {' '.join(text.split())} |")
    return "\n".join(lines)


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "must be given"
    text = ast.unparse(value)
    return "" if text.startswith("field(") else f"`{'null' if text == 'None' else text}`"


PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("docs/serving.md", "fields", field_tables),
    ("docs/eval.md", "scores", scores_tables),
    ("docs/training.md", "recipe", recipe_tables),
    ("docs/training.md", "costs", costs_table),
)


def generated(page: str, name: str, text: str) -> str:
    """The page with its generated part made anew."""
    begin, end = f"<!-- {name}: written by docs/generate.py -->", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> None:
    """Rewrite the pages, or with --check exit 1 if one is out of date."""
    for file, name, make in PARTS:
        path = ROOT / file
        page = path.read_text(encoding="utf-8")
        made = generated(page, name, make())
        if sys.argv[1:] != ["--check"]:
            path.write_text(made, encoding="utf-8")
        elif page != made:
            sys.exit(f"{file} is out of date; run: python docs/generate.py")


if __name__ == "__main__":
    main()
