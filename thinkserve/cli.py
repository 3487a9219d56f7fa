"""The command line: parses, calls, prints. What the commands do is in the modules they import when they run."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from thinkserve import __version__, cli_eval, cli_serve, cli_train
from thinkserve.cli_eval import ENGINE_ARGS
from thinkserve.errors import ThinkserveError, UsageError

app = typer.Typer(
    name="thinkserve",
    help="Serve, evaluate and train thinking LLMs: clients and judges only ever get the response.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cli_serve.register(app)
cli_eval.register(app)
app.add_typer(cli_train.app, name="train")
errors = Console(stderr=True, highlight=False)


def _version(show: bool) -> None:
    if show:
        print(f"thinkserve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve, evaluate and train thinking LLMs: clients and judges only ever get the response."""


def _env(name: str) -> dict[str, Any]:
    return {"envvar": f"THINKSERVE_{name}", "show_envvar": True}


@app.command()
def doctor() -> None:
    """Tell what is installed, what is missing, what would be used, and the command that mends each."""
    from thinkserve.doctor import examine, report

    findings = examine()
    Console(highlight=False).print(report(findings))
    if any(finding.fatal for finding in findings):
        raise typer.Exit(1)


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="The server to talk to.", **_env("URL"))] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(help="The model. Default: the first that the server lists.", **_env("MODEL"))
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="The key the server wants.", **_env("API_KEY"))] = None,
    effort: Annotated[
        str | None,
        typer.Option(help="reasoning_effort: none, minimal, low, medium, high or xhigh.", **_env("EFFORT")),
    ] = None,
) -> None:
    """Chat in the terminal: the response streams in; while the model thinks, you see for how long."""
    from thinkserve.chat import converse

    converse(url, model=model, api_key=api_key, effort=effort)


@app.command()
def split(
    thought_format: Annotated[
        str,
        typer.Option(
            help="A built-in format, a TOML or JSON file, or a checkpoint.",
            metavar="NAME|FILE",
            **_env("THOUGHT_FORMAT"),
        ),
    ],
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: thought, response, complete.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(help="Print nothing but the response, or the thought.", metavar="response|thought"),
    ] = None,
) -> None:
    """Cut a recorded output (standard input) into thought and response. Exit code 1: the output is not complete."""
    import json

    from thinkserve.thoughts import split as cut

    if only not in (None, "response", "thought"):
        raise UsageError(f"--only {only!r} is none; choose response or thought")
    output = cut(sys.stdin.buffer.read().decode("utf-8", errors="replace"), thought_format)
    if json_:
        print(
            json.dumps({"thought": output.thought, "response": output.response, "complete": output.complete})
        )
    elif only is not None:
        sys.stdout.write(output.response if only == "response" else output.thought)
    else:
        print(f"--- thought ({len(output.thought)} characters)\n{output.thought.strip()}")
        print(f"--- response ({len(output.response)} characters)\n{output.response.rstrip()}")
        print(f"--- {'complete' if output.complete else 'not complete: the thought was never closed'}")
    if not output.complete:
        raise typer.Exit(1)


def main() -> None:
    """The entry point. Errors that explain themselves are one line; any other keeps its traceback."""
    arguments = sys.argv[1:]
    state: dict[str, Any] = {}
    if arguments[:1] in (["serve"], ["eval"]) and "--" in arguments:
        # Everything behind -- is the engine's. Typer would take the first of it for the checkpoint.
        at = arguments.index("--")
        arguments, state[ENGINE_ARGS] = arguments[:at], arguments[at + 1 :]
    try:
        app(args=arguments, obj=state)
    except ThinkserveError as error:
        errors.print(f"thinkserve: {error}", style="bold red", soft_wrap=True, markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
