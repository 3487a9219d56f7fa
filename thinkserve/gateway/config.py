"""What the operator decided: one frozen record, built by the command line and passed down explicitly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from thinkserve.gateway.tools import HERMES, ToolFormat
from thinkserve.thoughts import ThoughtFormat

# Thought tokens by `reasoning_effort`, for checkpoints whose operator set no budget of their own. The steps follow
# what hosted models document as rough shares of a 16k thought; --max-thought-tokens caps all of them.
EFFORT_BUDGETS: Mapping[str, int | None] = {
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": 16384,
    "xhigh": None,
}


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Everything a gateway needs to know beside its engines. Sizes are in bytes, times in seconds."""

    format: ThoughtFormat
    model_name: str
    """What clients call the model; "": whatever they call it passes to the engine, which knows its own models."""
    max_thought_tokens: int | None = None
    effort_budgets: Mapping[str, int | None] = field(default_factory=lambda: EFFORT_BUDGETS)
    format_retries: int = 1
    format_guard: bool = False
    """Whether the engine's grammar sees to it that thoughts are closed, where the engine has one."""
    allow_fields: frozenset[str] = frozenset()
    tool_format: ToolFormat = HERMES
    """How the model writes its tool calls."""
    write_tools: bool = False
    """The chat template knows no tools, so they are written into the prompt by the gateway."""
    echo_guard: Literal["off", "flag", "redact"] = "off"
    echo_words: int = 24
    """From how many words on a repeat of the thought counts."""
    thought_log: Path | None = None
    access_log: Path | None = None
    seal_keys: Path | None = None
    tokenizer: Path | None = None
    """Where the checkpoint's tokenizer.json is, if it is known: settles chunks that straddle a marker."""
    tokenize: bool = False
    playground: bool = True
    max_concurrency: int | None = None
    """Of this process; None: no limit."""
    max_queue: int = 256
    max_body_bytes: int = 8 * 2**20
    max_messages: int = 2048
    max_choices: int = 16
    keepalive_seconds: float = 5.0
    """How often a stream that has nothing to show gets an SSE comment."""
    idle_seconds: float = 300.0
    """How long an engine may be silent in the middle of an output before it counts as dead."""
    stalled_client_seconds: float = 300.0
    """How long a client may leave its stream unread before it counts as gone."""
    drain_seconds: float = 30.0
    """How long running streams may go on after SIGTERM."""
