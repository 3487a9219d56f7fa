"""Hugging Face transformers on a private Unix socket: the engine where vLLM is not installed.

The server is ours (`thinkserve.engines.transformers_server`) and runs as an `EngineProcess`; neither torch nor
transformers is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from thinkserve.engines.devices import core_shares, cores, gpu_shares, gpus
from thinkserve.engines.engine import Endpoint
from thinkserve.engines.process import EngineProcess, ProcessEngine, RestartPolicy, private_socket_path
from thinkserve.errors import EngineUnavailableError, UsageError

STOP_GRACE = 35.0  # seconds; the server itself gives running requests 25

# The socket and the name are fixed by the endpoint that this engine has promised.
_REFUSED = ("--uds", "--served-model-name")


def transformers_version() -> str | None:
    """The version of the installed transformers, or None where it, or torch, is missing."""
    try:
        metadata.version("torch")
        return metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return None


class TransformersEngine(ProcessEngine):
    """Our transformers server with one checkpoint; keeps the `Engine` protocol."""

    def __init__(
        self,
        checkpoint: Path | str,
        *,
        model_name: str,
        extra_args: Sequence[str] = (),
        name: str = "transformers",
        env: Mapping[str, str] | None = None,
        start_timeout: float = 1800.0,
        restart: RestartPolicy | None = None,
        log_file: Path | None = None,
    ) -> None:
        """Check the arguments; nothing is started yet.

        Args:
            checkpoint: a folder, or a model on the Hugging Face hub.
            model_name: the name it is served under.
            extra_args: more arguments of `python -m thinkserve.engines.transformers_server`.
            name: what logs and metrics call it.
            env: the environment it inherits; None means ours.
            start_timeout: seconds until it must answer; loading a large checkpoint takes minutes.
            restart: when to start it again after it died; None means the defaults.
            log_file: gets all that the server writes, appended.

        Raises:
            UsageError: an argument that is refused, or a checkpoint folder that does not exist.
            EngineUnavailableError: torch or transformers is not installed.
        """
        if transformers_version() is None:
            raise EngineUnavailableError(
                "the transformers engine needs torch and transformers: run `pip install 'thinkserve[transformers]'`"
            )
        for arg in extra_args:
            # The parser takes any beginning of an option for the option.
            flag = arg.partition("=")[0]
            if len(flag) > 2 and any(refused.startswith(flag) for refused in _REFUSED):
                raise UsageError(
                    f"{arg} cannot be passed to the transformers engine: thinkserve sets it; leave it out"
                )
        self.name = name
        model = _local_path(checkpoint)
        socket = private_socket_path()
        self.endpoint = Endpoint(base_url="http://localhost", uds=socket, model=model_name)
        self._process = EngineProcess(
            [
                *(sys.executable, "-P", "-m", "thinkserve.engines.transformers_server", model),
                *("--uds", str(socket), "--served-model-name", model_name, *extra_args),
            ],
            socket=socket,
            env=_environment(os.environ if env is None else env, local=Path(model).is_dir()),
            name=self.name,
            start_timeout=start_timeout,
            stop_grace=STOP_GRACE,
            restart=restart,
            log_file=log_file,
        )


def transformers_replicas(
    replicas: int, args: Sequence[str], env: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """The environment of each of several such servers on this machine: GPUs of its own, or a share of the threads.

    Args:
        replicas: how many; one gets all there is, as it is.
        args: the arguments that each gets.
        env: what they inherit. A number of threads in it is kept.

    Raises:
        UsageError: the GPUs cannot be shared out evenly.
    """
    given = dict(env)
    if replicas == 1:
        return [given]
    on_cpu = "--device=cpu" in args or any(pair == ("--device", "cpu") for pair in pairwise(args))
    found = [] if on_cpu else gpus(env)
    if found:
        return [given | share for share in gpu_shares(found, replicas, needed=1)]
    return [
        {"OMP_NUM_THREADS": str(sum(map(len, share)))} | given for share in core_shares(cores(), replicas)
    ]


def _local_path(checkpoint: Path | str) -> str:
    """The checkpoint as the server shall read it: an absolute folder, or a name on the hub."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"no checkpoint at {checkpoint}: the folder has no config.json")
        return str(path.resolve())
    if isinstance(checkpoint, Path) or checkpoint.startswith((".", "/", "~")):
        raise UsageError(f"no checkpoint at {checkpoint}: there is no such folder")
    return checkpoint


def _environment(given: Mapping[str, str], *, local: bool) -> dict[str, str]:
    env = dict(given)
    # OpenMP's threads spin while they wait, by default: two such processes on the same cores slow each other down
    # more than tenfold. Sleeping ones cost a fifth when alone.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if local:
        env.setdefault("HF_HUB_OFFLINE", "1")
    return env
