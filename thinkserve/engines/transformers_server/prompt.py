"""Messages to token ids by the checkpoint's chat template, and token ids back to text.

The tokenizer is used from two threads at once (prompts on the event loop or a helper thread, text on the decode
thread), so everything goes through calls of the fast tokenizer that change nothing in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jinja2
from transformers import AutoTokenizer

from thinkserve.engines.transformers_server.detokenizer import Detokenizer
from thinkserve.engines.transformers_server.request import ApiError, ChatRequest
from thinkserve.errors import EngineError


class TextTokenizer:
    """The tokenizer of a checkpoint, as the server needs it.

    Attributes:
        main_eos_id: the tokenizer's own end-of-sequence token.
        eos_ids: that one and those of generation_config.json.
    """

    def __init__(self, tokenizer: Any, eos_token_id: int | list[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._fast: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._fast is None:
            raise EngineError(f"{type(tokenizer).__name__} has no fast tokenizer (tokenizer.json); use vllm")
        self.main_eos_id: int | None = tokenizer.eos_token_id
        more = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or []
        self.eos_ids = frozenset(each for each in [self.main_eos_id, *more] if each is not None)
        added = self._fast.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added_ids = frozenset(added)
        self._longest_token = max(map(len, self._fast.get_vocab(with_added_tokens=True)), default=1)
        self._byte_level = "ByteLevel" in _decoder_types(self._fast)
        self._byte_fallback = "ByteFallback" in _decoder_types(self._fast)
        self._pieces: dict[int, tuple[str, list[int]]] = {}

    @classmethod
    def load(cls, checkpoint: str, eos_token_id: int | list[int] | None) -> TextTokenizer:
        """Load the checkpoint's tokenizer."""
        return cls(AutoTokenizer.from_pretrained(checkpoint), eos_token_id)

    def encode_chat(self, request: ChatRequest, max_model_len: int) -> list[int]:
        """The prompt of a request.

        Raises:
            ApiError: the template refuses the messages, or the prompt leaves no room for an answer.
        """
        text = self._render(request)
        # A text that cannot fit is refused before the work of tokenizing it.
        if len(text) > max_model_len * self._longest_token:
            raise _too_long(f"{len(text)} characters", max_model_len)
        ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        if not ids:
            raise ApiError("the chat template made an empty prompt of these messages", "messages")
        if len(ids) >= max_model_len:
            raise _too_long(f"{len(ids)} tokens", max_model_len)
        return ids

    def _render(self, request: ChatRequest) -> str:
        if not self._tokenizer.chat_template:
            raise ApiError(
                "this checkpoint has no chat template, so it cannot answer chat requests", "messages"
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                request.messages,
                tokenize=False,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                **(request.chat_template_kwargs or {}),
            )
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
            # Templates raise what they like on an order of roles they do not know.
            raise ApiError(f"the chat template refused the messages: {exc}", "messages") from exc
        return text

    def detokenizer(self, prompt_ids: Sequence[int], *, skip_special: bool) -> Detokenizer:
        """Text of an output that follows this prompt."""
        decode = self._fast.decode

        def text(token_ids: list[int]) -> str:
            result: str = decode(token_ids, skip_special_tokens=skip_special)
            return result

        return Detokenizer(text, prompt_ids, self._special_ids if skip_special else frozenset())

    def piece(self, token_id: int) -> tuple[str, list[int]]:
        """A token on its own, for logprobs: its text and its bytes (exact also where it is half a character)."""
        piece = self._pieces.get(token_id)
        if piece is None:
            text: str = self._fast.decode([token_id], skip_special_tokens=False)
            piece = self._pieces[token_id] = (text, self._bytes(token_id, text))
        return piece

    def _bytes(self, token_id: int, text: str) -> list[int]:
        token: str = self._fast.id_to_token(token_id) or ""
        if token_id not in self._added_ids:
            if self._byte_level and all(char in BYTE_OF for char in token):
                return [BYTE_OF[char] for char in token]
            if self._byte_fallback and len(token) == 6 and token.startswith("<0x"):
                return [int(token[3:5], 16)]
        return list(text.encode("utf-8", errors="replace"))


def _decoder_types(fast: Any) -> set[str]:
    decoder = json.loads(fast.to_str()).get("decoder") or {}
    return {decoder.get("type", ""), *(each.get("type", "") for each in decoder.get("decoders", []))}


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes. Source: openai/gpt-2, `bytes_to_unicode` in encoder.py."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in shown}
    others = [byte for byte in range(256) if byte not in set(shown)]
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


BYTE_OF = _byte_alphabet()


def _too_long(found: str, max_model_len: int) -> ApiError:
    return ApiError(
        f"This model's maximum context length is {max_model_len} tokens, and the prompt has {found}, which leaves no "
        "room for an answer. Please shorten the messages.",
        "messages",
    )
