"""What judging will cost, before the first call, and the question whether that is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.bench import Estimate, JudgeProtocol, JudgeRequest
from thinkserve.eval.judging.stage import PlannedGame

# Of English text, in GPT-4's tokens. UTF-8 has three bytes for a Chinese character, which is about one token.
BYTES_PER_TOKEN = 4.0
TOKENS_AROUND_MESSAGE = 4
# A judgment that argues before it decides; one that is also told to answer the prompt itself first is longer.
TYPICAL_COMPLETION_TOKENS = 600


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for a million tokens."""

    prompt: float
    completion: float


# OpenAI's list prices of 2025-06, of the judges that published numbers were made with; no other price is guessed at.
PRICES = {"gpt-4-1106-preview": Price(10.0, 30.0), "gpt-4.1": Price(2.0, 8.0)}


def price_of(model: str) -> Price | None:
    """The price of a model, whose name may end in the date of its version; None where it is not known."""
    return PRICES.get(model) or PRICES.get(re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model))


def estimate(games: Iterable[PlannedGame], protocol: JudgeProtocol, model: str) -> Estimate:
    """What it will cost to play games: `Plan.pending`, so that verdicts that are there cost nothing.

    Retries and turns that are asked further are not in it.

    Args:
        games: to be played.
        protocol: makes the requests.
        model: the judge's name at its server.
    """
    asked = (
        protocol.request(
            planned.pair.instruction,
            planned.game,
            planned.pair.answer.response,
            planned.pair.baseline.response,
        )
        for planned in games
    )
    return estimate_requests((request for request in asked if isinstance(request, JudgeRequest)), model)


def estimate_requests(
    requests: Iterable[JudgeRequest], model: str, *, typical_completion: int = TYPICAL_COMPLETION_TOKENS
) -> Estimate:
    """What it will cost to ask a model.

    Args:
        requests: what it is asked.
        model: its name at its server.
        typical_completion: tokens of an answer, where its bound is not lower.
    """
    calls = prompt = completion = 0
    for request in requests:
        calls += 1
        prompt += _prompt_tokens(request)
        completion += _completion_tokens(request, typical_completion)
    price = price_of(model)
    dollars = None if price is None else (prompt * price.prompt + completion * price.completion) / 1e6
    return Estimate(calls, prompt, completion, dollars)


def _prompt_tokens(request: JudgeRequest) -> int:
    texts = (message["content"] for message in request.messages)
    return sum(
        TOKENS_AROUND_MESSAGE + round(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)
        for text in texts
    )


def _completion_tokens(request: JudgeRequest, typical: int) -> int:
    settings = request.settings
    most = settings.get("max_tokens", settings.get("max_completion_tokens"))
    return min(most, typical) if isinstance(most, int) else typical


def together(estimates: Iterable[Estimate]) -> Estimate:
    """The sum of several estimates; its dollars are those of the known prices, None where none is known."""
    found = list(estimates)
    known = [each.dollars for each in found if each.dollars is not None]
    return Estimate(
        sum(each.calls for each in found),
        sum(each.prompt_tokens for each in found),
        sum(each.completion_tokens for each in found),
        sum(known) if known else None,
    )


def in_words(estimate: Estimate) -> str:
    """For the user: `1,000 calls, about 1.5 M prompt and 0.6 M completion tokens, about $33`."""
    if not estimate.calls:
        return "no calls: every verdict is there"
    tokens = (
        f"{_count(estimate.prompt_tokens)} prompt and {_count(estimate.completion_tokens)} completion tokens"
    )
    calls = f"{estimate.calls:,} call{'s'[: estimate.calls != 1]}"
    dollars = "" if estimate.dollars is None else f", about ${estimate.dollars:,.2f}"
    return f"{calls}, about {tokens}{dollars}"


def _count(tokens: int) -> str:
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens:,}"


def confirm(
    estimate: Estimate, limit_dollars: float, *, yes: bool, ask: Callable[[str], bool] | None
) -> None:
    """Go on only if the estimate is within the limit, or the user wants it.

    A judge whose price is not known (one's own, mostly) is not asked about.

    Args:
        estimate: what it will cost.
        limit_dollars: up to which nobody is asked.
        yes: the user said so beforehand (`--yes`).
        ask: puts a question to the user; None where nobody is there to answer.

    Raises:
        UsageError: it is above the limit, and nobody is there.
        ThinkserveError: the user said no.
    """
    if yes or estimate.dollars is None or estimate.dollars <= limit_dollars:
        return
    if ask is None:
        raise UsageError(
            f"judging takes {in_words(estimate)}, which is more than ${limit_dollars:,.2f}, and nobody is here to be "
            "asked: add --yes"
        )
    if not ask(f"Judging takes {in_words(estimate)}. Go on?"):
        raise ThinkserveError("stopped before the first call to the judge: nothing was spent")
