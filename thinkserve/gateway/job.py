"""A request on its way: what all its choices share, and what an engine is asked for each of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from thinkserve.gateway.choice import Bounds, Choice
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.constraints import splitter_format, structured_outputs
from thinkserve.gateway.echo import EchoGuard
from thinkserve.gateway.pool import BYTES_PER_TOKEN
from thinkserve.gateway.request import Request
from thinkserve.gateway.tokens import TokenTexts
from thinkserve.gateway.upstream import Upstream

# A retry must not repeat the output that was broken, and the choices of one request use seed, seed + 1 ...
RETRY_SEED_STEP = 1_000_003
# An engine that bounds the thought itself counts from the opening marker, and writes the closing marker behind; the
# gateway's own bound is the second lock, for where the engine did not see the thought begin.
BUDGET_SLACK = 48
# How many tokens the engine sends a chunk; each chunk costs its server about 0.2 ms of one core, and us a fifth of that.
# Nobody waits for the chunks of an answer that is sent whole. With many streams the engine's steps are longer, and eyes
# see no difference. Measured by benchmarks/serving.py.
WHOLE_INTERVAL = 16
STREAM_INTERVALS = ((64, 8), (4, 4))  # (outputs running there, tokens a chunk)
# Where the gateway ends the response, what the engine is ahead is thrown away.
CUT_INTERVAL = 4
# Without an echo guard, what a response repeats of its thought is measured on one output of so many.
ECHO_SAMPLE = 32
_choices = itertools.count()


@dataclass(slots=True)
class Job:
    """One request on its way: what the client asked, and what all its choices share."""

    id: str
    request: Request
    messages: tuple[list[dict[str, Any]], ...]
    """For the engine, one list for each conversation."""
    config: GatewayConfig
    direct: bool
    caller: str
    """The public name of the key."""
    cache_salt: str
    reveal: bool
    texts: TokenTexts
    skip_special_tokens: bool
    started: float
    thought_budget: int | None
    """The bound on the thought, in tokens."""
    prompt_bytes: int = 0
    bind: bool = False
    """Whether the engine is given a grammar, which holds the thought format and binds the response."""
    prefix: str = ""
    """What the conversation is known by in a pool: its next turn is best asked of the same engine."""
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    """Of each conversation."""
    outputs: list[Choice] = field(default_factory=list)
    """All that engines were asked for, also what was thrown away."""
    shown: dict[int, float] = field(default_factory=dict)
    """When the response of each choice began."""
    retries: int = 0
    failovers: int = 0
    upstream: str | None = None
    """The engine that was asked last."""
    client_lost: str | None = None
    """How its client was lost, if it was: `disconnected` or `stalled`."""
    error: str | None = None
    """The code, or the type, of the error that it ended with."""

    @property
    def model_name(self) -> str:
        """What the answer calls the model."""
        return self.config.model_name or self.request.model or ""

    @property
    def used_tokens(self) -> int:
        """What the request has taken so far: prompts, thoughts, responses, also of what was thrown away."""
        # Where the engine was left before it told, the prompt was read all the same.
        told = sum(self.prompt_tokens.values())
        prompts = told or (self.prompt_bytes // BYTES_PER_TOKEN if self.outputs else 0)
        return prompts + sum(output.completion_tokens for output in self.outputs)

    def new_choice(self, upstream: Upstream) -> Choice:
        """The empty state of a choice that this engine is asked for."""
        request, config = self.request, self.config
        format = config.format
        if self.bind:
            # The thought must end here where the grammar ends it.
            format = splitter_format(request.constraint, request.tools, format, direct=self.direct)
        budget = forced = self.thought_budget
        if budget is not None and upstream.thinking_budgets:
            budget += BUDGET_SLACK
        if request.closed or not upstream.thinking_budgets:
            forced = None  # it cannot go on thinking, and may hold a marker in a string
        return Choice(
            format,
            direct=self.direct,
            stops=request.stops,
            bounds=Bounds(request.max_tokens, budget, request.max_completion_tokens, forced),
            logprobs=request.logprobs,
            keep_thought=self.reveal
            or request.seal
            or config.thought_log is not None
            or self.thought_budget is not None,
            texts=self.texts,
            tools=request.tools,
            echo=self._new_echo_guard(),
            measure_echo=config.echo_guard != "off" or next(_choices) % ECHO_SAMPLE == 0,
        )

    def _new_echo_guard(self) -> EchoGuard | None:
        """A guard for one output, if the operator wants one. What must be JSON is not redacted: it would be none any more."""
        mode, request = self.config.echo_guard, self.request
        if mode == "off":
            return None
        return EchoGuard(self.config.echo_words, "flag" if request.constraint is not None else mode)

    def stream_interval(self, upstream: Upstream) -> int:
        """How many tokens a chunk this engine is asked to send."""
        request = self.request
        if self.thought_budget is not None and not upstream.thinking_budgets:
            return 1  # a thought is cut between two chunks
        interval = WHOLE_INTERVAL
        if request.stream:
            interval = next((tokens for least, tokens in STREAM_INTERVALS if upstream.running >= least), 1)
        return min(interval, CUT_INTERVAL) if request.stops or request.max_tokens is not None else interval

    def body(self, index: int, attempt: int, upstream: Upstream) -> dict[str, Any]:
        """What an engine is asked. The model's name is the engine's own, unless clients' names pass through."""
        request = self.request
        body: dict[str, Any] = {
            "messages": self.messages[request.conversation(index)],
            "stream_interval": self.stream_interval(upstream),
            **request.sampling,
            **request.extra,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "cache_salt": self.cache_salt,
        }
        if self.thought_budget is not None and not self.direct and upstream.thinking_budgets:
            body["thinking_token_budget"] = self.thought_budget
        if not self.config.model_name and request.model is not None:
            body["model"] = request.model
        if not self.skip_special_tokens:
            body["skip_special_tokens"] = False
        if request.seed is not None:
            body["seed"] = (request.seed + index + attempt * RETRY_SEED_STEP) % 2**63
        if request.logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if request.max_completion_tokens is not None:
            body["max_tokens"] = request.max_completion_tokens
        elif self.direct and request.max_tokens is not None:
            # One more than may be shown: the gateway ends the output itself, and tells a stop from a cut.
            body["max_tokens"] = request.max_tokens + 1
        tools = request.tools
        if tools is not None and tools.allowed and not self.config.write_tools:
            # Rendered by the chat template; the engine is not to look for calls, which are read out of the response here.
            body |= {"tools": [tool.as_json() for tool in tools.tools], "tool_choice": "none"}
        if self.bind:
            body["structured_outputs"] = self.constraint(self.direct)
        return body

    def constraint(self, direct: bool) -> dict[str, Any] | None:
        """What binds an output in the engine; `direct`: there is no thought in it, or no more."""
        request = self.request
        return structured_outputs(
            request.constraint,
            request.tools,
            self.config.format,
            direct=direct,
            guard=self.config.format_guard,
        )
