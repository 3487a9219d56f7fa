"""`thinkserve train`: parse, call, print. What it does is in `thinkserve.training`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from typer.core import TyperGroup

from thinkserve.errors import UsageError

if TYPE_CHECKING:
    from thinkserve.training.folder import Stage
    from thinkserve.training.recipe import Recipe
    from thinkserve.training.steps import Step

DEFAULT_RECIPE = "pocket"
RUN = "run"


class RecipeGroup(TyperGroup):
    """Takes whatever is no command for a recipe, so that `thinkserve train RECIPE` needs no word in between."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the hidden command `run` before a recipe, its options, or nothing."""
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else [RUN, *args])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Say that a recipe may stand where a command does."""
        return ["[RECIPE] [OPTIONS] | COMMAND [ARGS]..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show the options of a recipe, and then the commands."""
        run = self.commands[RUN]
        with formatter.section("Options for a recipe"):
            shown = [record for one in run.get_params(ctx) if (record := one.get_help_record(ctx))]
            formatter.write_dl([record for record in shown if "--help" not in record[0]])
        self.format_commands(ctx, formatter)


app = typer.Typer(
    cls=RecipeGroup,
    help="Make thinking models: Thought Preference Optimization (arXiv 2410.10630) on any instruction-tuned model. "
    "A recipe is run in a folder; where that has a run of the recipe already, it goes on where it stood.",
)


@contextmanager
def _needs_training() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("thinkserve"):
            raise
        raise UsageError(f"training needs {exc.name}; run: pip install 'thinkserve[train]'") from exc


@app.command(RUN, hidden=True)
def run(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, or a built-in recipe: pocket, tpo-llama3-8b, tpo-llama3-8b-pairwise, tpo-small-gpu. "
            "Without one: pocket, the whole story on a CPU.",
            metavar="RECIPE",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run; where it has one already, that is gone on with. Default: runs/NAME.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="Short for --set mode=...", metavar="thought|direct|both", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the recipe: --set dpo.beta=0.2", metavar="KEY=VALUE"),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="Run this stage alone, where it is the next one: sample, split, score, pairs, dpo, validate, checkpoint, "
            "evaluate.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take: stages, calls, tokens, memory, disk.")
    ] = False,
) -> None:
    """Run a recipe: start, or go on where a run in the same folder stood."""
    with _needs_training():
        from thinkserve.training.plan import plan
        from thinkserve.training.recipe_file import find_recipe, load_recipe

        console = Console()
        if recipe is None:
            console.print(f"no recipe was given; this is the built-in one named {DEFAULT_RECIPE!r}")
        changes = [*(set_ or ()), *([] if mode is None else [f"mode={mode}"])]
        asked = load_recipe(find_recipe(recipe or DEFAULT_RECIPE), changes)
        if dry_run:
            plan(asked).render(console)
            return
        _run(asked, out or Path("runs") / asked.name, _stage(stage), console)


def _stage(name: str | None) -> Stage | None:
    from thinkserve.training.folder import STAGES

    if name is not None and name not in STAGES:
        raise UsageError(f"--stage {name!r} is none; choose from {', '.join(STAGES)}")
    return name


def _run(recipe: Recipe, out: Path, stage: Stage | None, console: Console) -> None:
    from thinkserve.training.loop import train
    from thinkserve.training.report.page import write_report
    from thinkserve.training.report.status import show_status

    # Without markup: folders and names may hold brackets.
    tell = partial(console.print, soft_wrap=True, markup=False)
    count = f"{recipe.iterations} iteration{'' if recipe.iterations == 1 else 's'}"
    tell(f"{recipe.name}: {' and '.join(recipe.arms)}, {count}, in {out}")
    try:
        with _Steps(console) as steps:
            train(recipe, out, only=stage, tell=steps.tell)
    except (KeyboardInterrupt, asyncio.CancelledError) as stopped:
        tell(f"stopped; what is finished is kept in {out}: run the same again to go on")
        by = signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM
        raise typer.Exit(128 + by) from None
    show_status(out, console)
    tell(f"report: {write_report(out)}")


class _Steps:
    """Tells of steps as they end; on a terminal, a line that changes has those that run. How far these are tells `status`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: dict[str, str] = {}
        self._status = console.status("") if console.is_terminal else None

    def tell(self, step: Step, marker: Mapping[str, Any] | None) -> None:
        """A step begins (None) or has ended."""
        name = f"{step.arm} iteration {step.iteration}: {step.stage}"
        if marker is None:
            self._running[step.arm] = name
        else:
            self._running.pop(step.arm, None)
            self._console.print(f"{name}, {marker['seconds']:.1f} s", highlight=False)
        if self._status is not None:
            self._status.update(" | ".join(self._running.values()))

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()


@app.command("pocket-seed")
def pocket_seed(
    out: Annotated[
        Path, typer.Option(help="Where the checkpoint goes (a new or empty folder).", metavar="DIR")
    ],
    seed: Annotated[int, typer.Option(help="Of weights and examples; 1 made the one that ships.")] = 1,
) -> None:
    """Train the pocket model's seed from scratch: about a quarter of an hour on two cores."""
    with _needs_training():
        from thinkserve.training.pocket.seed import train_seed
    train_seed(out, seed=seed)


@app.command("status")
def status(folder: Annotated[Path, typer.Argument(help="Of a run.", metavar="DIR")]) -> None:
    """Show where a run stands: stages, progress, when it will be done, and results so far."""
    with _needs_training():
        from thinkserve.training.report.status import show_status
    show_status(folder, Console())


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Of a run, finished or not.", metavar="DIR")],
    html: Annotated[
        Path | None,
        typer.Option(
            help="Where the page goes. Default: DIR/report.html.", metavar="FILE", show_default=False
        ),
    ] = None,
) -> None:
    """Write the report of a run: one HTML file."""
    with _needs_training():
        from thinkserve.training.report.page import write_report
    sys.stdout.write(f"{write_report(folder, html)}\n")
