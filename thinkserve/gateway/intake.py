"""From a request that was read to the job that is run: what this caller may ask of these engines, and in which words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from thinkserve.gateway.concurrency import Concurrency
from thinkserve.gateway.config import GatewayConfig
from thinkserve.gateway.errors import ApiError, invalid
from thinkserve.gateway.history import Rules, upstream_messages
from thinkserve.gateway.job import Job
from thinkserve.gateway.keys import Caller
from thinkserve.gateway.limits import Limits
from thinkserve.gateway.metrics import Metrics
from thinkserve.gateway.pool import Pool, conversation_key
from thinkserve.gateway.request import Request
from thinkserve.gateway.sealing import Sealer
from thinkserve.gateway.thought_log import ThoughtLog
from thinkserve.gateway.tokens import TokenTexts
from thinkserve.gateway.tracing import NO_TRACING, Tracing
from thinkserve.gateway.wire import encode

MOST_SCHEMA_BYTES = 128 * 1024
# A thought cut shorter is as good as none, and some formats cannot do without.
LEAST_THOUGHT = 256


@dataclass(slots=True, kw_only=True)
class Services:
    """What the routes of one gateway share."""

    config: GatewayConfig
    pool: Pool
    metrics: Metrics
    texts: TokenTexts
    skip_special_tokens: bool
    limits: Limits
    concurrency: Concurrency
    tracing: Tracing = NO_TRACING
    thought_log: ThoughtLog | None = None
    sealer: Sealer | None = None
    cut: bool = False
    """The time to drain is over: requests that are cancelled are told so."""


def make_job(
    services: Services, id: str, request: Request, caller: Caller, headers: Mapping[str, str], size: int
) -> Job:
    """Hold a request against what there is, and write its messages for the engine.

    Args:
        services: what the gateway has.
        id: of the answer.
        request: what is asked.
        caller: who asks.
        headers: of HTTP.
        size: of the body, in bytes.

    Raises:
        ApiError: 400, 403 or 404: it cannot be had, or not by this caller.
    """
    config = services.config
    reveal = headers.get("thinkserve-reveal", "0") not in ("", "0", "false")
    if reveal and caller.role != "operator":
        raise ApiError(
            403,
            "thinkserve-reveal is for operator keys only",
            type="permission_error",
            code="operator_key_required",
        )
    request.check_model(config.model_name)
    caller.require_model(config.model_name or request.model or "")
    direct = request.effort == "none"
    _check_thought(request, config)
    _check_response(request, services)
    rules = Rules(
        config.format,
        direct=direct,
        allow=config.allow_fields,
        tools=request.tools,
        write_tools=config.write_tools,
        thoughts=_opened(request, caller, services),
        most=config.max_messages,
        name=request.names.messages,
    )
    messages = tuple(upstream_messages(messages, rules) for messages in request.conversations)
    return Job(
        id=id,
        request=request,
        messages=messages,
        config=config,
        direct=direct,
        caller=caller.id,
        cache_salt=caller.cache_salt,
        reveal=reveal,
        texts=services.texts,
        skip_special_tokens=services.skip_special_tokens,
        started=time.monotonic(),
        thought_budget=_thought_budget(request, config),
        prompt_bytes=size,
        bind=request.bound or (services.pool.structural_tags and _better_bound(request, config)),
        prefix=conversation_key(messages[0], caller.cache_salt) if len(services.pool.upstreams) > 1 else "",
    )


def _check_thought(request: Request, config: GatewayConfig) -> None:
    """Refuse less of a thought than the format can do with."""
    format, names = config.format, request.names
    if format.allows_direct:
        return
    if request.effort == "none":
        raise invalid(
            names.effort,
            f"{names.effort} none is not offered: in the thought format {format.name!r} a model that thinks all the same "
            "could not be told apart; ask minimal, or the operator to set direct in the format",
        )
    if request.thought_tokens is not None and request.thought_tokens < LEAST_THOUGHT:
        raise invalid(
            names.thought_tokens,
            f"{names.thought_tokens} must be {LEAST_THOUGHT} tokens or more here, not {request.thought_tokens}: in the "
            f"thought format {format.name!r} a model that thinks all the same could not be told apart",
        )


def _thought_budget(request: Request, config: GatewayConfig) -> int | None:
    """The bound on the thought, in tokens: the client's, and never more than the operator's."""
    bounds = [config.max_thought_tokens, request.thought_tokens]
    if request.effort not in (None, "none"):
        bounds.append(config.effort_budgets.get(request.effort or ""))
    return min((bound for bound in bounds if bound is not None), default=None)


def _check_response(request: Request, services: Services) -> None:
    """Refuse what the response cannot be, or not with these engines."""
    names = request.names
    if request.constraint is not None:
        _check_size(request.constraint.name, request.constraint.value)
    if request.tools is not None:
        _check_size("tools", [tool.parameters for tool in request.tools.tools])
    if request.bound and not services.pool.structural_tags:
        name = request.constraint.name if request.constraint is not None else "tool_choice"
        raise invalid(
            name,
            f"{name} is refused: the engine behind this server cannot bind the response and leave the thought free; ask "
            "in the prompt, or serve the model on vLLM",
            code="unsupported_field",
        )
    if request.logprobs and request.tools is not None:
        raise invalid(
            names.logprobs, "logprobs are not given beside tools: what is a call has no place in them"
        )
    if request.logprobs and services.config.echo_guard == "redact":
        raise invalid(
            names.logprobs, "logprobs are refused: the operator lets repeated thoughts be taken out"
        )


def _better_bound(request: Request, config: GatewayConfig) -> bool:
    """Whether a grammar is wanted where there is one: for the format alone, or for calls that are free to come."""
    tools = request.tools
    strict = tools is not None and any(tool.strict for tool in tools.callable)
    return strict or (config.format_guard and request.effort != "none")


def _check_size(name: str, value: object) -> None:
    """Refuse what an engine might be busy with for minutes, for all its requests, before it even begins."""
    size = len(encode(value))
    if size > MOST_SCHEMA_BYTES:
        raise invalid(name, f"{name} holds a schema of {size} bytes; {MOST_SCHEMA_BYTES} are taken")


def _opened(request: Request, caller: Caller, services: Services) -> dict[int, str]:
    """The past thoughts that a client brought back sealed, by the index of their message."""
    sealer = services.sealer
    if sealer is None:
        if request.seal or request.sealed:
            raise invalid(
                "include",
                "reasoning.encrypted_content is not offered here; leave it out, or ask the operator for --seal-keys",
                code="unsupported_field",
            )
        return {}
    opened: dict[int, str] = {}
    for at, (response, token) in request.sealed.items():
        try:
            opened[at] = sealer.open(token, client=caller.id, response=response)
        except ApiError:
            services.metrics.sealed.labels("refused").inc()
            raise
        services.metrics.sealed.labels("opened").inc()
    return opened
