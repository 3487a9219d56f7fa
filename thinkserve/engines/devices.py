"""Which devices each replica of an engine gets: an equal, contiguous share of the GPUs, or of the cores where there are none.

Replicas know nothing of each other, so each is shown its own devices alone, by the environment that it inherits: by
`CUDA_VISIBLE_DEVICES`, or on CPUs by how many threads it may use and on which cores.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from thinkserve.errors import UsageError

# What multiplies the devices of one vLLM, by its own options.
_SIZES = {
    "tensor": ("--tensor-parallel-size", "-tp"),
    "pipeline": ("--pipeline-parallel-size", "-pp"),
    "prefill context": ("--prefill-context-parallel-size", "-pcp"),
    "data": ("--data-parallel-size", "-dp"),
}


def gpus(env: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that an engine with this environment would see: as `CUDA_VISIBLE_DEVICES` names them, or all there are.

    Args:
        env: the environment.
        devices: where the device files are (`nvidia0`, `nvidia1` ...). In a container their numbers may have gaps, and
            CUDA counts from 0 all the same.
    """
    named = env.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        # As CUDA reads it: -1, or nothing, ends the list.
        return list(
            takewhile(lambda name: name not in ("", "-1"), (part.strip() for part in named.split(",")))
        )
    count = sum(re.fullmatch(r"nvidia\d+", entry.name) is not None for entry in devices.glob("nvidia*"))
    return [str(number) for number in range(count)]


def cores() -> list[int]:
    """One logical CPU of each core that this process may run on: the other threads of a core add little to an engine."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    by_core: dict[str, int] = {}
    for cpu in sorted(allowed):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        by_core.setdefault(siblings.read_text() if siblings.is_file() else str(cpu), cpu)
    return list(by_core.values())


def devices_of_vllm(args: Sequence[str]) -> int:
    """How many devices one vLLM takes with these arguments."""
    return math.prod(_option(args, names) for names in _SIZES.values())


def uses_ray(args: Sequence[str]) -> bool:
    """Whether Ray places vLLM's processes, on devices that it knows and this machine need not have."""
    return any(re.search(r"(^|=)ray$", arg) for arg in args)


def gpu_shares(found: Sequence[str], replicas: int, needed: int) -> list[dict[str, str]]:
    """What to add to the environment of each replica, so that it sees its share of the GPUs.

    Args:
        found: all GPUs.
        replicas: how many replicas there are.
        needed: how many GPUs each takes.

    Raises:
        UsageError: they cannot be shared out.
    """
    if not found:
        raise UsageError(
            f"--replicas {replicas}: no GPUs were found to share out; name them in CUDA_VISIBLE_DEVICES"
        )
    if len(found) % replicas:
        raise UsageError(
            f"--replicas {replicas}: {len(found)} GPUs ({','.join(found)}) cannot be shared out evenly; choose another "
            "number, or name those to use in CUDA_VISIBLE_DEVICES"
        )
    size = len(found) // replicas
    if size < needed:
        raise UsageError(
            f"--replicas {replicas}: each would get {size} of {len(found)} GPUs, and needs {needed} (tensor, pipeline "
            "and data parallel sizes multiplied); choose fewer replicas, or smaller sizes"
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(found[at * size : at * size + size])} for at in range(replicas)]


def core_shares(found: Sequence[int], replicas: int, processes: int = 1) -> list[list[list[int]]]:
    """The cores of each process of each replica. Where there are fewer cores than processes, they share them.

    Args:
        found: all cores.
        replicas: how many replicas there are.
        processes: how many processes each has that compute.
    """
    parts = replicas * processes
    if len(found) < parts:
        each = [[found[at % len(found)]] for at in range(parts)]
    else:
        bounds = [len(found) * at // parts for at in range(parts + 1)]
        each = [list(found[bounds[at] : bounds[at + 1]]) for at in range(parts)]
    return [each[at * processes : (at + 1) * processes] for at in range(replicas)]


def _option(args: Sequence[str], names: Sequence[str]) -> int:
    """The last value of an option that is a number; 1 where there is none, and where the engine will refuse it."""
    value = 1
    for at, arg in enumerate(args):
        name, has_value, given = arg.partition("=")
        if name.replace("_", "-") in names:
            text = given if has_value else "".join(args[at + 1 : at + 2])
            value = int(text) if text.isdecimal() and int(text) > 0 else value
    return value
