"""One running choice: its tokens, its text so far, and why it ends."""

from __future__ import annotations

from thinkserve.engines.transformers_server.detokenizer import StopStrings
from thinkserve.engines.transformers_server.generation import Delta, Generation, TokenLogprobs
from thinkserve.engines.transformers_server.prompt import TextTokenizer


class Sequence:
    """Choice `index` of a generation. It holds no keys or values, so it can leave the batch and come back."""

    __slots__ = (
        "_detokenizer",
        "_main_eos_id",
        "_stops",
        "eos_ids",
        "generation",
        "index",
        "max_tokens",
        "min_tokens",
        "output_ids",
        "params",
        "prompt_ids",
        "random",
        "stop_ids",
        "top_logprobs",
    )

    def __init__(self, generation: Generation, index: int, tokenizer: TextTokenizer) -> None:
        request = generation.request
        self.generation = generation
        self.index = index
        self.params = request.sampling
        self.random = request.sampling.generator(index)
        self.prompt_ids = generation.prompt_ids
        self.output_ids: list[int] = []
        self.max_tokens = generation.max_tokens
        self.min_tokens = request.min_tokens
        self.eos_ids = tokenizer.eos_ids | frozenset(request.stop_token_ids)  # not before min_tokens
        self.stop_ids = frozenset(request.stop_token_ids) if request.ignore_eos else self.eos_ids
        self.top_logprobs = request.top_logprobs
        self._main_eos_id = tokenizer.main_eos_id
        self._detokenizer = tokenizer.detokenizer(self.prompt_ids, skip_special=request.skip_special_tokens)
        self._stops = StopStrings(request.stop)

    @property
    def length(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    def token_ids(self) -> list[int]:
        """Prompt and output."""
        return self.prompt_ids + self.output_ids

    def accept(self, token_id: int, logprobs: TokenLogprobs | None) -> Delta:
        """Take the next token; the delta's finish reason says whether it was the last."""
        self.output_ids.append(token_id)
        delta = Delta(token_ids=[token_id])
        if logprobs is not None:
            delta.logprobs.append(logprobs)
        count = len(self.output_ids)
        # Like vLLM: a token that ends the output is counted and reported, but its text is not shown.
        if token_id in self.stop_ids and count > self.min_tokens:
            delta.finish_reason = "stop"
            delta.stop_reason = None if token_id == self._main_eos_id else token_id
        else:
            self._add_text(delta, self._detokenizer.push(token_id), count)
            if delta.finish_reason is None and count >= self.max_tokens:
                delta.finish_reason = "length"
        if delta.finish_reason is not None and not isinstance(delta.stop_reason, str):
            self._add_text(delta, self._detokenizer.flush(), count)
            if not isinstance(delta.stop_reason, str):
                delta.text += self._stops.flush()
        return delta

    def _add_text(self, delta: Delta, text: str, count: int) -> None:
        if count <= self.min_tokens:
            delta.text += text  # too early for a stop string
            return
        free, met = self._stops.push(text)
        delta.text += free
        if met is not None:
            delta.finish_reason, delta.stop_reason = "stop", met
