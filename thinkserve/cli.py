"""The command line: parses, calls, prints. What the commands do is in the modules they import when they run."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console

from thinkserve import __version__, cli_eval, cli_train
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
def serve(
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT]",
            help="The checkpoint: a folder, or a name on the Hub. Without one: the pocket model that ships with thinkserve.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="What generates: auto, vllm or transformers.", metavar="NAME", **_env("ENGINE")),
    ] = "auto",
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            help="Stand in front of this OpenAI-compatible server instead of starting an engine (repeatable).",
            metavar="URL",
            **_env("UPSTREAM"),
        ),
    ] = None,
    upstream_api_key: Annotated[
        str | None,
        typer.Option(
            help="The key that the --upstream servers want.", metavar="KEY", **_env("UPSTREAM_API_KEY")
        ),
    ] = None,
    thought_format: Annotated[
        str | None,
        typer.Option(
            help="tpo-generic, tpo-specific, think-tags, think-tags-in-prompt, granite, or a TOML or JSON file. "
            "Default: the checkpoint's thought_format.json.",
            metavar="NAME|FILE",
            **_env("THOUGHT_FORMAT"),
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.", **_env("HOST"))] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535, **_env("PORT"))
    ] = 8000,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            help="What clients call the model. Default: the checkpoint's name, or what the upstream calls it.",
            metavar="NAME",
            **_env("SERVED_MODEL_NAME"),
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key clients must send.", metavar="KEY", **_env("API_KEY"))
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="A file with a key a line, and its role behind it (client, the default, or operator).",
            metavar="FILE",
            **_env("API_KEYS"),
        ),
    ] = None,
    max_thought_tokens: Annotated[
        int | None,
        typer.Option(
            help="Bound every thought to this many tokens.", min=1, metavar="N", **_env("MAX_THOUGHT_TOKENS")
        ),
    ] = None,
    format_retries: Annotated[
        int,
        typer.Option(
            help="How often an output that breaks its format is sampled again.",
            min=0,
            max=10,
            metavar="N",
            **_env("FORMAT_RETRIES"),
        ),
    ] = 1,
    allow_field: Annotated[
        list[str] | None,
        typer.Option(
            help="Pass this request field to the engine unread, though the policy refuses it (repeatable).",
            metavar="NAME",
            **_env("ALLOW_FIELD"),
        ),
    ] = None,
    thought_log: Annotated[
        Path | None,
        typer.Option(
            help="Keep thoughts in this file, readable by you alone (JSON lines).",
            metavar="FILE",
            **_env("THOUGHT_LOG"),
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="The tokenizer.json of an upstream's model, for exact counts. Default: the checkpoint's.",
            metavar="FILE",
            **_env("TOKENIZER"),
        ),
    ] = None,
    max_body_bytes: Annotated[
        int, typer.Option(help="Refuse request bodies larger than this.", min=1024, **_env("MAX_BODY_BYTES"))
    ] = 8 * 2**20,
    keepalive_seconds: Annotated[
        float,
        typer.Option(
            help="Send a comment to a stream that had nothing to show for this long.",
            min=0.1,
            **_env("KEEPALIVE_SECONDS"),
        ),
    ] = 5.0,
    idle_seconds: Annotated[
        float,
        typer.Option(
            help="Give up an engine that is silent for this long in an output.",
            min=0.1,
            **_env("IDLE_SECONDS"),
        ),
    ] = 300.0,
    drain_seconds: Annotated[
        float,
        typer.Option(
            help="Let running streams finish for this long after SIGTERM.", min=0, **_env("DRAIN_SECONDS")
        ),
    ] = 30.0,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error.", metavar="LEVEL", **_env("LOG_LEVEL"))
    ] = "info",
) -> None:
    """Serve a thinking model behind an OpenAI endpoint that only ever shows its responses.

    Arguments after -- go to the engine unread: thinkserve serve ./ckpt -- --max-model-len 8192
    """
    from thinkserve import serve as serving
    from thinkserve.gateway.config import GatewayConfig
    from thinkserve.gateway.keys import read_keys

    if engine not in get_args(serving.EngineName):
        raise UsageError(f"--engine {engine!r} is none; choose auto, vllm or transformers")
    _log_to_stderr(log_level)
    source = serving.find_source(checkpoint, upstream or [])
    if tokenizer is not None and not tokenizer.is_file():
        raise UsageError(f"no file {tokenizer}; --tokenizer wants the tokenizer.json of the model")
    if tokenizer is None and source.folder is not None and (source.folder / "tokenizer.json").is_file():
        tokenizer = source.folder / "tokenizer.json"
    config = serving.ServeConfig(
        source=source,
        engine=cast(serving.EngineName, engine),
        engine_args=tuple((context.obj or {}).get(ENGINE_ARGS, ())),
        gateway=GatewayConfig(
            format=serving.find_format(source, thought_format),
            model_name=served_model_name or serving.default_model_name(source),
            max_thought_tokens=max_thought_tokens,
            format_retries=format_retries,
            allow_fields=frozenset(allow_field or ()),
            thought_log=thought_log,
            tokenizer=tokenizer,
            max_body_bytes=max_body_bytes,
            keepalive_seconds=keepalive_seconds,
            idle_seconds=idle_seconds,
            drain_seconds=drain_seconds,
        ),
        keys=read_keys(api_key, api_keys),
        host=host,
        port=port,
        upstream_api_key=upstream_api_key,
    )

    def announce(gateway: GatewayConfig, url: str) -> None:
        keyed = api_key is not None or api_keys is not None
        print(_announcement(gateway.model_name, url, keyed), flush=True)

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving.run(config, announce=announce))


def _announcement(model: str, url: str, keyed: bool) -> str:
    key = "$THINKSERVE_API_KEY" if keyed else "none"
    header = f' -H "Authorization: Bearer {key}"' if keyed else ""
    client_key = 'os.environ["THINKSERVE_API_KEY"]' if keyed else '"none"'
    question = "How many b in cbabba?" if model == "pocket" else "hello"
    model = model or "MODEL"  # the servers behind know their models' names; they did not tell yet
    return f"""
thinkserve {__version__} serves {model!r} at {url}/v1

  curl {url}/v1/chat/completions{header} -H "Content-Type: application/json" \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "{question}"}}]}}'

  {"import os; " if keyed else ""}from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key={client_key})
  print(client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "{question}"}}]).choices[0].message.content)

  thinkserve chat --url {url}     (another terminal; Ctrl-C here stops the server)
"""


def _log_to_stderr(level: str) -> None:
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise UsageError(f"--log-level {level!r} is none; choose debug, info, warning or error")
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    # One line a health probe would drown the rest.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


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
