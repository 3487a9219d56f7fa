"""`thinkserve chat`: a conversation in the terminal, over the same API that every client uses.

It asks the server for a stream and prints the response as it comes. While the model thinks there is nothing to print,
so it shows for how long; the thought itself never comes here.
"""

from __future__ import annotations

import time
from typing import Any

import openai
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.spinner import Spinner
from rich.text import Text

from thinkserve.errors import ThinkserveError

HELP = "/new begins a new conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer."


def converse(url: str, *, model: str | None, api_key: str | None, effort: str | None) -> None:
    """Talk until the user has had enough.

    Raises:
        ThinkserveError: the server cannot be reached or refuses the key.
    """
    console = Console(highlight=False)
    client = openai.OpenAI(
        base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1", api_key=api_key or "none", max_retries=0
    )
    try:
        name = model or client.models.list().data[0].id
    except openai.APIConnectionError as exc:
        raise ThinkserveError(f"no server answers at {url}; start one with: thinkserve serve") from exc
    except (openai.OpenAIError, IndexError) as exc:
        raise ThinkserveError(f"{url} does not list a model: {_reason(exc)}") from exc
    console.print(f"[bold]{name}[/] at {url}. {HELP}")
    history: list[dict[str, str]] = []
    while True:
        try:
            line = console.input("[bold green]you>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            history.clear()
            console.print("[dim]a new conversation[/]")
        elif line in ("/help", "/?"):
            console.print(HELP)
        elif line:
            history.append({"role": "user", "content": line})
            answer = _ask(console, client, name, history, effort)
            if answer is None:
                history.pop()  # a turn without an answer would confuse the next one
            else:
                history.append({"role": "assistant", "content": answer})


def _ask(
    console: Console, client: openai.OpenAI, model: str, history: list[dict[str, str]], effort: str | None
) -> str | None:
    """Ask once, show the answer as it comes, and return it; None where there is none."""
    asked: dict[str, Any] = {"model": model, "messages": history, "stream": True}
    asked["stream_options"] = {"include_usage": True}
    if effort is not None:
        asked["reasoning_effort"] = effort
    started = time.monotonic()
    answer = ""
    first = finish = usage = None
    try:
        with Live(_Thinking(started), console=console, refresh_per_second=10, transient=True) as live:
            for chunk in client.chat.completions.create(**asked):
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    finish = choice.finish_reason or finish
                    if choice.delta.content:
                        first = first or time.monotonic()
                        answer += choice.delta.content
                        live.update(Markdown(answer))
    except KeyboardInterrupt:
        console.print("[yellow]stopped[/]")
    except openai.OpenAIError as exc:
        console.print(f"[red]{_reason(exc)}[/]", markup=True)
        return None
    console.print(Markdown(answer))
    hidden = (
        usage.completion_tokens_details.reasoning_tokens
        if usage and usage.completion_tokens_details
        else None
    )
    if finish == "length" and not answer:
        console.print("[yellow]the model ran out of tokens while it was thinking; there is no response[/]")
    if hidden is not None and usage is not None:
        thought_for = (first or time.monotonic()) - started
        console.print(
            f"[dim]thought for {thought_for:.1f} s ({hidden} tokens), "
            f"responded in {usage.completion_tokens - hidden} tokens[/]"
        )
    return answer or None


class _Thinking:
    """What is shown until the response begins: drawn anew at every refresh, so the seconds run."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._spinner = Spinner("dots")

    def __rich__(self) -> Spinner:
        self._spinner.update(text=Text(f"thinking {time.monotonic() - self._started:.1f} s", style="dim"))
        return self._spinner


def _reason(exc: Exception) -> str:
    """The server's own words, where it had any."""
    body = getattr(exc, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or exc)
