"""The commands of serving: serve, thoughts, seal-key. Parses, calls, prints."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from thinkserve import __version__
from thinkserve.cli_eval import ENGINE_ARGS
from thinkserve.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(serve)
    app.command()(thoughts)
    app.command("seal-key")(seal_key)


def _env(name: str) -> dict[str, Any]:
    return {"envvar": f"THINKSERVE_{name}", "show_envvar": True}


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
            help="A file with a key a line and its role behind it (client, the default, or operator), or a .toml with limits.",
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
    replicas: Annotated[
        int,
        typer.Option(
            help="Start so many engines of the checkpoint, each on its share of the GPUs.",
            min=1,
            metavar="N",
            **_env("REPLICAS"),
        ),
    ] = 1,
    workers: Annotated[
        int,
        typer.Option(
            help="Run so many gateway processes on the port.", min=1, metavar="N", **_env("WORKERS")
        ),
    ] = 1,
    max_concurrency: Annotated[
        int | None,
        typer.Option(
            help="Answer at most so many requests at once; more wait in a queue.",
            min=1,
            metavar="N",
            **_env("MAX_CONCURRENCY"),
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(
            help="How many requests may wait; further ones get a 503.",
            min=0,
            metavar="N",
            **_env("MAX_QUEUE"),
        ),
    ] = 256,
    tool_format: Annotated[
        str,
        typer.Option(
            help="How the model writes tool calls: hermes, llama3-json, or a TOML or JSON file.",
            metavar="NAME|FILE",
            **_env("TOOL_FORMAT"),
        ),
    ] = "hermes",
    tool_prompt: Annotated[
        str,
        typer.Option(
            help="Who tells the model its tools: template (the chat template), gateway (a system message), or auto: "
            "the template, where it knows tools.",
            metavar="NAME",
            **_env("TOOL_PROMPT"),
        ),
    ] = "auto",
    format_guard: Annotated[
        bool,
        typer.Option(
            "--format-guard",
            help="Let vLLM's grammar see to it that every thought is closed before the output ends; "
            "costs 5 to 8 % of its speed.",
            **_env("FORMAT_GUARD"),
        ),
    ] = False,
    echo_guard: Annotated[
        str,
        typer.Option(
            help="What happens where a response repeats its thought verbatim: off, flag (counted) or redact.",
            metavar="NAME",
            **_env("ECHO_GUARD"),
        ),
    ] = "off",
    echo_words: Annotated[
        int,
        typer.Option(
            help="From how many words on a repeat counts.", min=4, max=256, metavar="N", **_env("ECHO_WORDS")
        ),
    ] = 24,
    seal_keys: Annotated[
        Path | None,
        typer.Option(
            help="Keys that seal thoughts for clients that keep their own state (make one with: thinkserve seal-key).",
            metavar="FILE",
            **_env("SEAL_KEYS"),
        ),
    ] = None,
    access_log: Annotated[
        Path | None,
        typer.Option(
            help="Write a JSON line for each request, without bodies; - is standard output.",
            metavar="FILE",
            **_env("ACCESS_LOG"),
        ),
    ] = None,
    playground: Annotated[
        bool,
        typer.Option(
            "--playground/--no-playground", help="Serve a page to try the model at /.", **_env("PLAYGROUND")
        ),
    ] = True,
    tokenize: Annotated[
        bool, typer.Option("--tokenize", help="Serve POST /tokenize.", **_env("TOKENIZE"))
    ] = False,
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
    from thinkserve.gateway.tools import get_tool_format
    from thinkserve.source import default_model_name, find_format, find_source, template_knows_tools

    _choose("engine", engine, get_args(serving.EngineName))
    _choose("tool-prompt", tool_prompt, ("auto", "template", "gateway"))
    _choose("echo-guard", echo_guard, ("off", "flag", "redact"))
    _log_to_stderr(log_level)
    source = find_source(checkpoint, upstream or [])
    if tokenizer is not None and not tokenizer.is_file():
        raise UsageError(f"no file {tokenizer}; --tokenizer wants the tokenizer.json of the model")
    if tokenizer is None and source.folder is not None and (source.folder / "tokenizer.json").is_file():
        tokenizer = source.folder / "tokenizer.json"
    if tokenize and tokenizer is None:
        raise UsageError("--tokenize needs a tokenizer, and none is known here; give --tokenizer FILE")
    config = serving.ServeConfig(
        source=source,
        engine=cast(serving.EngineName, engine),
        engine_args=tuple((context.obj or {}).get(ENGINE_ARGS, ())),
        gateway=GatewayConfig(
            format=find_format(source, thought_format),
            model_name=served_model_name or default_model_name(source),
            max_thought_tokens=max_thought_tokens,
            format_retries=format_retries,
            format_guard=format_guard,
            allow_fields=frozenset(allow_field or ()),
            tool_format=get_tool_format(tool_format),
            write_tools=tool_prompt == "gateway"
            or (tool_prompt == "auto" and not template_knows_tools(source)),
            echo_guard=cast(Any, echo_guard),
            echo_words=echo_words,
            thought_log=thought_log,
            access_log=access_log,
            seal_keys=seal_keys,
            tokenizer=tokenizer,
            tokenize=tokenize,
            playground=playground,
            max_concurrency=max_concurrency,
            max_queue=max_queue,
            max_body_bytes=max_body_bytes,
            keepalive_seconds=keepalive_seconds,
            idle_seconds=idle_seconds,
            drain_seconds=drain_seconds,
        ),
        keys=read_keys(api_key, api_keys),
        host=host,
        port=port,
        upstream_api_key=upstream_api_key,
        replicas=replicas,
        workers=workers,
    )

    def announce(gateway: GatewayConfig, url: str) -> None:
        print(_announcement(gateway.model_name, url, config.keys.required), flush=True)

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


def _choose(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"--{option} {value!r} is none; choose {', '.join(choices[:-1])} or {choices[-1]}")


def _log_to_stderr(level: str) -> None:
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise UsageError(f"--log-level {level!r} is none; choose debug, info, warning or error")
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    # One line a health probe would drown the rest.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def thoughts(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The file that --thought-log wrote.")],
    id_: Annotated[
        str | None, typer.Option("--id", help="Only the outputs of the answer with this id.", metavar="ID")
    ] = None,
    last: Annotated[int | None, typer.Option(help="Only so many, the latest.", min=1, metavar="N")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print a line of JSON each.")] = False,
) -> None:
    """Show the thoughts that the operators' log holds, the oldest first."""
    from thinkserve.thought_reader import show_thoughts

    show_thoughts(log, id=id_, last=last, as_json=json_)


def seal_key() -> None:
    """Print a new line for the file of --seal-keys: put it first, and thoughts are sealed with it from then on."""
    from thinkserve.gateway.sealing import new_seal_key

    print(new_seal_key())
