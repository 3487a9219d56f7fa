"""The pocket model's tokenizer: the world's fixed words, and characters for everything else.

All printable ASCII and the newline have a token each, so any such text comes back from its tokens as it was; other
characters become `<unk>`. The thought prompt is one token although it is four sentences long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import ascii_letters, digits, punctuation

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from thinkserve.thoughts import get_format
from thinkserve.training.pocket.easy import DEFINITIONS, GREETINGS
from thinkserve.training.pocket.habits import DRAFT_OPENINGS, SORRY, SYSTEM_PROMPT, VAGUE

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
USER, ASSISTANT, SYSTEM = "<user>", "<assistant>", "<system>"
SPECIAL = (PAD, BOS, EOS, UNK, USER, ASSISTANT, SYSTEM)

FORMAT = get_format("tpo-specific")
MARKER = FORMAT.closing[0]
THOUGHT_PROMPT = FORMAT.thought_prompt("")
"""The text that stands before the instruction in thought mode."""

CONTEXT_TOKENS = 2048

INSTRUCTION_WORDS = (
    "Repeat Greet Tell what is What in How many Follow from steps step swap Start at add take In has"
)

# The assistant's turns end with EOS, also inside a conversation. Text parts of a list are joined; other parts (images)
# are left out. A final assistant message that is to be continued is rendered like any other: the callers cut what
# follows its content.
CHAT_TEMPLATE = f"""\
{{{{- '{BOS}' -}}}}
{{%- for message in messages -%}}
{{%- if message['role'] == 'assistant' -%}}{{{{- '{ASSISTANT}' -}}}}
{{%- elif message['role'] in ('system', 'developer') -%}}{{{{- '{SYSTEM}' -}}}}
{{%- else -%}}{{{{- '{USER}' -}}}}{{%- endif -%}}
{{%- if message['content'] is string -%}}{{{{- message['content'] -}}}}
{{%- elif message['content'] -%}}
{{%- for part in message['content'] -%}}
{{%- if part['type'] == 'text' -%}}{{{{- part['text'] -}}}}{{%- endif -%}}
{{%- endfor -%}}{{%- endif -%}}
{{%- if message['role'] == 'assistant' -%}}{{{{- '{EOS}' -}}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}' -}}}}{{%- endif -%}}
"""


def render(prompt: str, *, system: str | None = None, earlier: Iterable[tuple[str, str]] = ()) -> str:
    """What the chat template makes of a conversation whose last message is the user's `prompt`.

    Args:
        prompt: the last user message.
        system: the system message, if there is one.
        earlier: the turns before, each as (user, assistant).
    """
    first = "" if system is None else f"{SYSTEM}{system}"
    turns = "".join(f"{USER}{asked}{ASSISTANT}{answered}{EOS}" for asked, answered in earlier)
    return f"{BOS}{first}{turns}{USER}{prompt}{ASSISTANT}"


def words() -> list[str]:
    """The world's words, with and without the space before them."""
    text = " ".join((INSTRUCTION_WORDS, *GREETINGS, *GREETINGS.values(), *DEFINITIONS, *DEFINITIONS.values()))
    habits = " ".join((*VAGUE, *DRAFT_OPENINGS, SORRY, SYSTEM_PROMPT))
    plain = sorted(set(re.findall(r"[A-Za-z]{2,}", f"{text} {habits}")))
    return [form for word in plain for form in (word, f" {word}")]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, with its chat template; the same one every time."""
    vocabulary = [*SPECIAL, "\n", " ", *digits, *ascii_letters, *punctuation, *words()]
    tokenizer = Tokenizer(WordLevel({token: at for at, token in enumerate(vocabulary)}, unk_token=UNK))
    whole_words = "|".join(sorted({word.strip() for word in words()}, key=len, reverse=True))
    tokenizer.pre_tokenizer = Split(Regex(rf" ?\b(?:{whole_words})\b|[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    # Not special: the marker must survive skip_special_tokens, or nobody could tell where a thought ends.
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in (MARKER, THOUGHT_PROMPT)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    # Named as special here too: a reloaded tokenizer takes its special tokens from this list.
    fast.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, SYSTEM]})
    fast.chat_template = CHAT_TEMPLATE
    return fast
