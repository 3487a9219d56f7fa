"""The commands of the evaluation: eval, score, report, leaderboard. Parses, calls, prints."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import typer
from rich.console import Console

from thinkserve.errors import UsageError

ENGINE_ARGS = "engine_args"
"""Where `main` puts what stands behind `--`."""
MODES = ("thought", "direct", "both")


def _env(name: str) -> dict[str, Any]:
    return {"envvar": f"THINKSERVE_{name}", "show_envvar": True}


Bench = Annotated[
    str,
    typer.Option(
        help="Which benchmark: alpaca-eval, arena-hard (v2.0), arena-hard-v0.1, categories (the paper's topics), "
        "pocket, or a file of your own instructions.",
        metavar="NAME|FILE",
        **_env("BENCH"),
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="A folder with the official files. Default: they are fetched once, at pinned revisions.",
        metavar="DIR",
        **_env("EVAL_DATA"),
    ),
]
Seed = Annotated[
    int, typer.Option(help="Of samples, of orders and of bootstraps.", metavar="N", **_env("SEED"))
]
CompatOption = Annotated[
    str,
    typer.Option(
        help="aligned, or official: the published numbers with the quirks they were computed with.",
        metavar="NAME",
        **_env("COMPAT"),
    ),
]


def evaluate(
    context: typer.Context,
    bench: Bench,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="What is evaluated (repeatable): a checkpoint (served for the run), URL#model, or answers:FILE. "
            "Default: the server at 127.0.0.1:8000.",
            metavar="SPEC",
            **_env("EVAL_MODEL"),
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="Who judges: URL#model, or a checkpoint. Default: the benchmark's official judge at OpenAI; for pocket "
            "its rule. Given again, judges form an ensemble.",
            metavar="SPEC",
            **_env("EVAL_JUDGE"),
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Against whom models are judged. Default: the benchmark's own.",
            metavar="SPEC",
            **_env("BASELINE"),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder; what is in it already is not done again. Default: runs/BENCH-MODEL-TIME.",
            metavar="DIR",
            **_env("OUT"),
        ),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask only the instructions of this category (repeatable), such as hard_prompt, coding or vicuna.",
            metavar="NAME",
            **_env("CATEGORY"),
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Ask only so many instructions, drawn at random.", min=1, metavar="N", **_env("LIMIT")
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(help="Requests at once.", min=1, metavar="N", **_env("CONCURRENCY"))
    ] = 16,
    data: Data = None,
    seed: Seed = 0,
    mode: Annotated[
        str,
        typer.Option(
            help="thought, direct (no thought), or both, compared with each other.",
            metavar="MODE",
            **_env("MODE"),
        ),
    ] = "thought",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before the judge is paid.", **_env("YES"))
    ] = False,
    cost_limit: Annotated[
        float,
        typer.Option(
            help="Dollars above which it asks first.", min=0.0, metavar="DOLLARS", **_env("COST_LIMIT")
        ),
    ] = 5.0,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with one API key, or lines of URL and key. Else: THINKSERVE_JUDGE_API_KEY, "
            "THINKSERVE_MODEL_API_KEY, and OPENAI_API_KEY for OpenAI.",
            metavar="FILE",
            **_env("API_KEY_FILE"),
        ),
    ] = None,
    compat: CompatOption = "aligned",
    verdicts: Annotated[
        str,
        typer.Option(
            help="How AlpacaEval's judge tells its verdict: logprobs, or text for judges without them (then the "
            "numbers are not comparable).",
            metavar="NAME",
            **_env("VERDICTS"),
        ),
    ] = "logprobs",
    topics: Annotated[
        bool,
        typer.Option(
            "--topics", help="Sort the instructions into the paper's 20 topics too.", **_env("TOPICS")
        ),
    ] = False,
    thought_format: Annotated[
        str | None,
        typer.Option(
            help="Of a server that shows its thoughts, or a checkpoint that does not name its format.",
            metavar="NAME|FILE",
            **_env("THOUGHT_FORMAT"),
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What serves checkpoints: auto, vllm or transformers.", metavar="NAME", **_env("ENGINE")
        ),
    ] = "auto",
    temperature: Annotated[
        float | None,
        typer.Option(
            help="Of the models. Default: what their server does.",
            min=0.0,
            metavar="T",
            **_env("EVAL_TEMPERATURE"),
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="The most tokens of an output, thought and response together.",
            min=1,
            metavar="N",
            **_env("EVAL_MAX_TOKENS"),
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that one request may take.", min=1.0, metavar="SECONDS", **_env("EVAL_TIMEOUT")
        ),
    ] = 600.0,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the report in a browser.", **_env("OPEN"))
    ] = False,
) -> None:
    """Judge models on a benchmark, without their thoughts: answers, judgments, scores and a report in one folder.

    What stands behind -- goes to the engine that serves checkpoints.
    """
    with _eval_installed():
        from thinkserve.eval.config import EngineName, Keys, RunConfig, key_from, read_key_file
        from thinkserve.evaluate import evaluate as run
    _log_warnings()
    config = RunConfig(
        bench=bench,
        models=tuple(model or ()),
        judges=tuple(judge or ()),
        baseline=baseline,
        out=out or _default_out(bench, (model or ["127.0.0.1-8000"])[0]),
        categories=tuple(category or ()),
        limit=limit,
        concurrency=concurrency,
        data=data,
        seed=seed,
        mode=cast(Literal["thought", "direct", "both"], _one_of("--mode", mode, MODES)),
        yes=yes,
        compat=_compat(compat),
        verdicts=cast(Literal["logprobs", "text"], _one_of("--verdicts", verdicts, ("logprobs", "text"))),
        topics=topics,
        thought_format=thought_format,
        engine=cast(EngineName, _one_of("--engine", engine, get_args(EngineName))),
        engine_args=tuple((context.obj or {}).get(ENGINE_ARGS, ())),
        temperature=temperature,
        max_tokens=max_tokens,
        timeout=timeout,
        cost_limit=cost_limit,
        keys=Keys(
            judge=key_from(os.environ, "THINKSERVE_JUDGE_API_KEY"),
            model=key_from(os.environ, "THINKSERVE_MODEL_API_KEY"),
            openai=key_from(os.environ, "OPENAI_API_KEY"),
            by_url=read_key_file(api_key_file) if api_key_file is not None else {},
        ),
    )
    with _eval_installed():
        report = asyncio.run(_until_terminated(run(config, Console(highlight=False))))
    if open_:
        from thinkserve.eval.report.writing import open_report

        open_report(report)


def score(
    bench: Bench,
    judgments: Annotated[
        list[Path],
        typer.Option(
            help="Judgments in the official format, or a run's own (repeatable: models, judges).",
            metavar="FILE",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where scores.json goes.", metavar="DIR", **_env("OUT"))],
    answers: Annotated[
        list[Path] | None,
        typer.Option(help="Answers in the official format, also .gz (repeatable: models).", metavar="FILE"),
    ] = None,
    baseline_answers: Annotated[
        list[Path] | None,
        typer.Option(help="The baseline's answers (repeatable). Default: from --data.", metavar="FILE"),
    ] = None,
    data: Data = None,
    compat: CompatOption = "aligned",
    seed: Seed = 0,
) -> None:
    """Compute scores from answers and judgments that are there already; nobody is paid again."""
    with _eval_installed():
        from thinkserve.evaluate import score as run

        run(
            bench,
            answers=answers or [],
            baseline_answers=baseline_answers or [],
            judgments=judgments,
            data=data,
            compat=_compat(compat),
            seed=seed,
            out=out,
            console=Console(highlight=False),
        )


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
    html: Annotated[
        Path | None,
        typer.Option(help="Where the page goes. Default: report.html in the first folder.", metavar="FILE"),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.", **_env("OPEN"))] = False,
) -> None:
    """Write the report of one or more runs: one HTML file that needs no network, and Markdown."""
    with _eval_installed():
        from thinkserve.eval.report.writing import open_report, write_report

        page, text = write_report(folders, html)
    print(page)
    print(text)
    if open_:
        open_report(page)


def leaderboard(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.")],
) -> None:
    """Rank the models of several runs, those of one benchmark, judge and baseline together."""
    with _eval_installed():
        from thinkserve.eval.report.leaderboard import print_leaderboard

        print_leaderboard(folders, Console(highlight=False))


async def _until_terminated(run: Coroutine[Any, Any, Path]) -> Path:
    """Run, and let SIGTERM end it as Ctrl-C does: engines stop, and what was paid for is kept."""
    task = asyncio.ensure_future(run)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(128 + signal.SIGTERM) from None
        raise


@contextmanager
def _eval_installed() -> Iterator[None]:
    """Turn a missing package of the extra into a line that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("thinkserve"):
            raise
        raise UsageError(
            f"evaluation needs {exc.name}, which is not installed; run: pip install 'thinkserve[eval]'"
        ) from exc


def _one_of(option: str, given: str, allowed: tuple[str, ...]) -> str:
    if given not in allowed:
        raise UsageError(f"{option} {given!r} is none; choose {', '.join(allowed[:-1])} or {allowed[-1]}")
    return given


def _compat(given: str) -> Any:
    from thinkserve.eval.bench import Compat

    return _one_of("--compat", given, get_args(Compat))


def _default_out(bench: str, model: str) -> Path:
    """`runs/BENCH-MODEL-TIME`, with nothing in it that a shell or a file system would mind."""
    last = (
        model.rsplit("#", 1)[-1].removeprefix("answers:").rstrip("/").removesuffix("/v1").rsplit("/", 1)[-1]
    )
    plain = [re.sub(r"\.(jsonl?|csv)(\.gz)?$", "", part) for part in (Path(bench).name, last)]
    name = re.sub(r"[^\w.-]+", "-", "-".join(plain)).strip("-.")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _log_warnings() -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    # A line for each output that broke its format; the run counts them.
    logging.getLogger("thinkserve.gateway").setLevel(logging.ERROR)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("eval")(evaluate)
    app.command()(score)
    app.command()(report)
    app.command()(leaderboard)
