"""Make the pocket model that ships out of a finished run of the pocket recipe.

    python -m thinkserve.training.pocket.ship RUN --out thinkserve/pocket/checkpoint

Copies the checkpoint of the run's last iteration of the thought arm (or of `--iteration`), and writes the card that the
pocket models have, with what is measured on the instructions of the seed's card.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from thinkserve.errors import UsageError
from thinkserve.training.folder import TrainFolder
from thinkserve.training.pocket.card import write_trained_card
from thinkserve.training.pocket.seed import STANDARD, measure
from thinkserve.training.recipe_file import differing_keys, find_recipe, load_recipe


def ship(run: Path, out: Path, iteration: int | None = None) -> None:
    """Copy a checkpoint of a run, measure it and write its card.

    Args:
        run: the folder of the run.
        out: where the files go; files of the same name are replaced.
        iteration: None: the last.

    Raises:
        UsageError: the run has no such checkpoint, or is not of the pocket recipe.
    """
    recipe = load_recipe(run / "recipe.yaml")
    usual = load_recipe(find_recipe("pocket"), [f"seed={recipe.seed}", f"iterations={recipe.iterations}"])
    if changed := differing_keys(usual, recipe):
        raise UsageError(
            f"{run} is of another recipe than the card would say: it changes {', '.join(changed)}"
        )
    number = recipe.iterations if iteration is None else iteration
    checkpoint = TrainFolder(run, recipe.mode).iteration("thought", number).checkpoint
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is not there; finish the run, or name an --iteration that it has")
    out.mkdir(parents=True, exist_ok=True)
    for path in checkpoint.iterdir():
        shutil.copyfile(path, out / path.name)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    write_trained_card(
        out,
        seed=recipe.seed,
        iteration=number,
        k=recipe.sample.k,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tasks=STANDARD.evaluation_tasks,
        reports=measure(model, AutoTokenizer.from_pretrained(out), STANDARD),
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iteration", type=int)
    options = parser.parse_args()
    ship(options.run, options.out, options.iteration)


if __name__ == "__main__":
    main()
