"""One copy of a reward model on one device: batches of tokens in, scores out.

`RewardScorer` is used in this process where there is one device. Where there are several, each has a process of its own,
`python -m thinkserve.training.judges.reward_worker`, which reads a `WorkerStart` and then batches, a JSON line each, and
answers each with a line. It ends when its input does, so none outlives the stage that started it.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Sequence

import msgspec
import torch
from transformers import AutoModelForSequenceClassification

from thinkserve.errors import ThinkserveError, UsageError

Batch = Sequence[Sequence[int]]
"""The tokens of some conversations."""


class RewardModelSpec(msgspec.Struct, frozen=True):
    """Which model is loaded, and how."""

    model: str
    revision: str | None
    dtype: str
    """The name of a torch type."""
    trust_remote_code: bool


class WorkerStart(msgspec.Struct, frozen=True):
    """The first line that a worker is given."""

    spec: RewardModelSpec
    device: str


class WorkerAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's line: the scores of a batch, none when it is ready, or what went wrong, after which it ends."""

    scores: list[float | None] = []
    error: str = ""
    user_error: bool = False


class RewardScorer:
    """A reward model on a device.

    Args:
        spec: which one.
        device: as torch names it.

    Raises:
        UsageError: it cannot be loaded, or is no reward model.
    """

    def __init__(self, spec: RewardModelSpec, device: str) -> None:
        self._spec, self._device = spec, device
        _mend_old_imports()
        try:
            self._model, loading = AutoModelForSequenceClassification.from_pretrained(
                spec.model,
                revision=spec.revision,
                dtype=getattr(torch, spec.dtype),
                trust_remote_code=spec.trust_remote_code,
                device_map=device,
                output_loading_info=True,
            )
        except (OSError, ValueError, ImportError) as exc:
            reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
            raise UsageError(f"judge.model: {spec.model} cannot be loaded: {reason}") from exc
        # transformers only warns, and fills in random weights: a language model would be a judge that throws dice.
        if loading["missing_keys"]:
            missing = ", ".join(sorted(loading["missing_keys"])[:3])
            raise UsageError(
                f"judge.model: {spec.model} lacks weights of {type(self._model).__name__} ({missing}), so it is no reward "
                "model; name a sequence classifier with one label, such as RLHFlow/ArmoRM-Llama3-8B-v0.1"
            )
        self._model.eval()
        self._config = self._model.config.get_text_config()
        # Else each batch fills a cache for tokens that are never generated.
        self._config.use_cache = False
        pad = self._config.pad_token_id
        self._pad: int | None = pad if pad is not None and 0 <= pad < self._config.vocab_size else None

    @property
    def waits(self) -> bool:
        """A GPU works while this process does not."""
        return self._device != "cpu"

    def score(self, batch: Batch) -> list[float | None]:
        """The scores of some conversations; None: the model gave NaN or an infinite number.

        Raises:
            ThinkserveError: the device has too little memory for so many.
            UsageError: the model gives no single number.
        """
        width = max(len(tokens) for tokens in batch)
        tokens = torch.full((len(batch), width), self._pad_for(batch), dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, conversation in enumerate(batch):
            tokens[row, : len(conversation)] = torch.tensor(conversation)
            mask[row, : len(conversation)] = 1
        try:
            with torch.inference_mode():
                output = self._model(input_ids=tokens.to(self._device), attention_mask=mask.to(self._device))
                found = getattr(output, "score", None)
                found = (output.logits if found is None else found).float().reshape(len(batch), -1).cpu()
        except torch.OutOfMemoryError as exc:
            raise ThinkserveError(
                f"{self._device} has too little memory for {len(batch)} conversations of up to {width:,} tokens; set "
                f"judge.batch_tokens below {len(batch) * width:,}, and run again: what was scored is kept"
            ) from exc
        if found.size(1) != 1:
            raise UsageError(
                f"judge.model: {self._spec.model} gives {found.size(1)} numbers a response, so which one is the score is not "
                "known; name a model with one label, or with a `score` in its output, as ArmoRM"
            )
        return [float(one) if torch.isfinite(one) else None for one in found[:, 0]]

    def _pad_for(self, batch: Batch) -> int:
        """What fills the ends of shorter conversations.

        A classifier reads its score at the last token that is not padding. Where the model has no padding of its own, the
        usual remedy, the end-of-text token, would move that place: conversations end with it. A token that is not in the
        batch leaves it where it is.
        """
        if self._pad is not None:
            return self._pad
        used = set(itertools.chain.from_iterable(batch))
        unused = next(token for token in itertools.count() if token not in used)
        self._config.pad_token_id = unused
        return unused


def _mend_old_imports() -> None:
    # The code that ArmoRM and its descendants bring along imports this text for its documentation; transformers 5 has
    # it no more.
    from transformers.models.llama import modeling_llama

    if not hasattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING"):
        modeling_llama.LLAMA_INPUTS_DOCSTRING = ""


def main() -> None:
    """Be a worker."""
    # What a model's own code prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def answer(line: WorkerAnswer) -> None:
        answers.write(msgspec.json.encode(line) + b"\n")

    try:
        start = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerStart)
        scorer = RewardScorer(start.spec, start.device)
        answer(WorkerAnswer())
        for line in sys.stdin.buffer:
            answer(WorkerAnswer(scorer.score(msgspec.json.decode(line, type=list[list[int]]))))
    except Exception as exc:  # noqa: BLE001 - whatever it is, the stage's process tells it
        traceback.print_exc()
        known = isinstance(exc, ThinkserveError)
        text = str(exc) if known else f"{type(exc).__name__}: {exc}"
        answer(WorkerAnswer(error=text, user_error=isinstance(exc, UsageError)))
        sys.exit(1)


if __name__ == "__main__":
    main()
