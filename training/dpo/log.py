"""The log of a training: `dpo/log.jsonl`, a line a step in TRL's words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from transformers import TrainerCallback

from thinkserve.eval.records import RecordLog

AVERAGED = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "grad_norm",
)


class LogLines(TrainerCallback):  # type: ignore[misc]
    """Writes TRL's log lines."""

    def __init__(self, log: RecordLog) -> None:
        self._log = log

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs is not None and "loss" in logs:
            # TRL counts num_tokens from 0 again when a run goes on; the marker has the tokens.
            kept = {key: value for key, value in logs.items() if key not in ("num_tokens", "epoch")}
            self._log.append({"step": state.global_step, "epoch": round(state.epoch, 6), **kept})


def open_log(path: Path, steps: int) -> RecordLog:
    """The log with the lines of these steps; those after them come again."""
    log = RecordLog(path)  # keeps other runs out, and drops a line that was cut short
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if msgspec.json.decode(line)["step"] <= steps]
        os.truncate(path, sum(map(len, kept)))
    except BaseException:
        log.close()
        raise
    return log


def averages(path: Path, after: int) -> dict[str, float]:
    """What a log says of the steps after one, on average."""
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    lines = [line for line in lines if line["step"] > after]
    columns = {name: [line[name] for line in lines if line.get(name) is not None] for name in AVERAGED}
    return {name: sum(column) / len(column) for name, column in columns.items() if column}
