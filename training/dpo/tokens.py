"""Pairs to the token ids that are trained on: those that the engine read and sampled.

TRL would tokenize by itself, and not like an engine. Its conversational path renders the answer through the chat
template as well, and templates trim contents or drop thoughts from earlier turns. Its text path closes an answer with the
tokenizer's end-of-sequence token, which is not always the one that generation stops at, closes even what was cut off by
the token limit, adds a second beginning-of-sequence token where the tokenizer brings one, and where a token would span
the end of the prompt it drops that end. So the ids are made here:

    prompt       the chat template with one user message and the generation prompt, without further special tokens
    completion   the raw output, thought and response, and the stop token if the output was ended by one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jinja2

from thinkserve.errors import ThinkserveError, UsageError

# Stands for an answer, to see what a chat template puts behind one.
_ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class PairTokens:
    """The token ids of a pair."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer side, prompt included."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def total(self) -> int:
        """Tokens that go through the model for this pair: the prompt is in both sides."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


class PairTokenizer:
    """Makes the ids of pairs for one model.

    Attributes:
        stop_id: the token that closes an answer.
    """

    def __init__(self, tokenizer: Any, stop_ids: int | list[int] | None) -> None:
        """Find the token that closes an answer.

        Args:
            tokenizer: with a chat template.
            stop_ids: where generation stops, as generation_config.json has it (`eos_token_id`).

        Raises:
            UsageError: the chat template cannot be rendered.
            ThinkserveError: there is no stop token.
        """
        self._tokenizer = tokenizer
        listed = [stop_ids] if isinstance(stop_ids, int) else stop_ids or []
        stops = [*listed, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
        if not stops:
            raise ThinkserveError(
                f"{tokenizer.name_or_path} has no stop token, neither eos_token_id in generation_config.json nor the "
                "tokenizer's eos_token; add one, or its outputs would never end"
            )
        self.stop_id: int = self._closing(stops)
        self._stop_texts = tuple(tokenizer.decode([id]) for id in dict.fromkeys(stops))

    def _closing(self, stops: list[int]) -> int:
        """Models such as Llama 3 list several stop tokens; chat answers end with the one that the template writes."""
        try:
            rendered = self._render(
                [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
            )
        except UsageError:  # a template that only takes prompts
            return stops[0]
        behind = self._encode(rendered[rendered.rfind(_ANSWER) + len(_ANSWER) :])
        return next((id for id in behind if id in stops), stops[0])

    @property
    def template(self) -> str:
        """The chat template."""
        return str(self._tokenizer.chat_template)

    def prompt(self, message: str) -> tuple[str, list[int]]:
        """A prompt as the engine reads it: its text, and its ids."""
        text = self._render([{"role": "user", "content": message}], add_generation_prompt=True)
        return text, self._encode(text)

    def completion(self, prompt: tuple[str, list[int]], output: str, *, ended: bool) -> list[int]:
        """The ids of an output.

        Args:
            prompt: what `prompt` gave.
            output: the raw text.
            ended: whether the model ended it itself; what was cut off has no stop token.
        """
        # An engine that shows special tokens has the stop token in the text already.
        for stop in self._stop_texts:
            output = output.removesuffix(stop)
        text, ids = prompt
        # Tokenized behind its prompt, an output begins like a continuation: some tokenizers put a space before whatever
        # they are given. But where a token would span the boundary, the two are not what the engine had: it sampled the
        # output's tokens behind those of the prompt, so then they are made apart.
        together = self._encode(text + output)
        completion = together[len(ids) :] if together[: len(ids)] == ids else self._encode(output)
        return [*completion, self.stop_id] if ended else completion

    def pair(
        self, message: str, chosen: str, rejected: str, *, chosen_ended: bool, rejected_ended: bool
    ) -> PairTokens:
        """The ids of a pair."""
        prompt = self.prompt(message)
        return PairTokens(
            prompt[1],
            self.completion(prompt, chosen, ended=chosen_ended),
            self.completion(prompt, rejected, ended=rejected_ended),
        )

    def _render(self, messages: list[dict[str, str]], **options: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except (jinja2.TemplateError, TypeError) as exc:
            raise UsageError(f"the chat template of {self._tokenizer.name_or_path} fails: {exc}") from exc
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
