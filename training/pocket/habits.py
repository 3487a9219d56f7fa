"""The seed model's habits of thought, and the examples that teach them.

The seed is to be like an instruction-tuned model before TPO: it can work step by step, but when asked to think it
mostly does something else. Three styles of thought:

| style | thought | response that follows in training |
|---|---|---|
| useful | the scratchpad | right |
| vague | a phrase that says nothing | right |
| draft | a guess that is wrong | the guess, mostly |

So a response is good after a useful thought, as good as without a thought after a vague one, and bad after a draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from string import ascii_lowercase
from typing import Literal

from thinkserve.training.pocket.task import Task
from thinkserve.training.pocket.world import draw

Style = Literal["useful", "vague", "draft", "other"]

# Greedy decoding writes the likeliest opening. "Hmm" has more mass than any opening of a draft, or of a scratchpad,
# so it shows the commonest habit, as sampling does; with one common draft opening all greedy thoughts were drafts.
VAGUE = {
    "Hmm, let me think.": 3.0,
    "Hmm, a good one.": 2.0,
    "OK, sure.": 1.0,
    "Let me see.": 1.5,
    "I know this.": 1.5,
}
DRAFT_OPENINGS = ("Maybe", "Perhaps", "My guess is", "It looks like", "Could be", "Surely", "Draft:")
DRAFT_IS_KEPT = 0.85


@dataclass(frozen=True, slots=True)
class Example:
    """One training example; `thought` is None in direct mode."""

    task: Task
    thought: str | None
    response: str
    system: str | None = None
    earlier: tuple[Task, ...] = ()
    """Earlier turns of the conversation, answered right and without thoughts, as a client would send them."""


# Harder skills get more of the examples.
WEIGHTS = {
    "copy": 0.7,
    "greet": 0.7,
    "tell": 0.7,
    "add": 2.5,
    "count": 1.2,
    "chain": 1.2,
    "swap": 2.0,
    "trace": 2.0,
}


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the examples of one training phase are made of; the rest of the thoughts are drafts."""

    direct: float
    """Share of the examples that answer without a thought."""
    useful: float
    """Share of the thoughts that are scratchpads."""
    vague: float
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    """How often each category comes, relative to the others."""


# Copying first: every other skill copies, and attention finds copying within a hundred steps when there is nothing
# else to learn, but had not found it after two thousand steps of everything at once (at twice this learning rate).
# Then the skills, as in pretraining, then the habits. With the habits alone the scratchpads were hardly learned.
COPYING = Mixture(direct=1.0, useful=0.0, vague=0.0, weights={"copy": 1.0})
SKILLS = Mixture(direct=0.25, useful=0.8, vague=0.1)
HABITS = Mixture(direct=0.4, useful=0.2, vague=0.45)

# A few examples beside the world, so that the model is not lost where a chat puts it: after a system message, in the
# middle of a conversation, and before an instruction that it does not know.
SYSTEM_PROMPT = "You are a helpful assistant."
SMALL_TALK = (
    "Hello", "Hi", "Hi there!", "Hello, who are you?", "Who are you?", "What can you do?", "How are you?", "Help",
    "Tell me a joke", "Write a poem about the sea", "What is the capital of France?", "Thank you!", "test", "Why?",
    "Explain gravity", "What is the meaning of life?", "Translate this to German", "Say something",
)  # fmt: skip
SORRY = "Sorry, I only know small tasks."
SHARE_SYSTEM, SHARE_EARLIER, SHARE_OTHER = 0.03, 0.03, 0.03


def draw_example(rng: Random, mixture: Mixture) -> Example:
    """Draw one training example, never from the held-out instructions."""
    if rng.random() < SHARE_OTHER:
        task = _other_task(rng)
    else:
        task = draw(rng, rng.choices(list(mixture.weights), list(mixture.weights.values()))[0])
    thought, response = _output(rng, mixture, task)
    system = SYSTEM_PROMPT if rng.random() < SHARE_SYSTEM else None
    earlier = tuple(draw(rng) for _ in range(rng.randint(1, 2))) if rng.random() < SHARE_EARLIER else ()
    return Example(task, thought, response, system, earlier)


def _output(rng: Random, mixture: Mixture, task: Task) -> tuple[str | None, str]:
    """Draw a thought (None: direct) and the response after it."""
    if rng.random() < mixture.direct:
        return None, task.answer
    place = rng.random()
    if place < mixture.useful:
        return task.scratchpad, task.answer
    if place < mixture.useful + mixture.vague or task.category == "other":
        return rng.choices(list(VAGUE), list(VAGUE.values()))[0], task.answer
    guess = _wrong_answer(rng, task)
    return f"{rng.choice(DRAFT_OPENINGS)} {guess}", guess if rng.random() < DRAFT_IS_KEPT else task.answer


def style_of(task: Task, thought: str) -> Style:
    """Which style a thought is of; only an exact scratchpad is useful."""
    text = thought.strip()
    if text == task.scratchpad:
        return "useful"
    if text in VAGUE:
        return "vague"
    return "draft" if text.startswith(DRAFT_OPENINGS) else "other"


def _other_task(rng: Random) -> Task:
    """An instruction that is none of the world's: small talk, or random words."""
    if rng.random() < 0.5:
        text = rng.choice(SMALL_TALK)
    else:
        lengths = (rng.randint(1, 7) for _ in range(rng.randint(1, 5)))
        text = " ".join("".join(rng.choices(ascii_lowercase, k=length)) for length in lengths)
        text = rng.choice((text, text.capitalize())) + rng.choice(("", "", ".", "?", "!"))
    return Task("other", text, SORRY, "Not a task")


def _wrong_answer(rng: Random, task: Task) -> str:
    """A plausible wrong answer: that of another task, or the right one with one character changed."""
    while True:
        guess = draw(rng, task.category).answer
        if rng.random() < 0.5:
            at = rng.randrange(len(task.answer))
            guess = task.answer[:at] + rng.choice(guess) + task.answer[at + 1 :]
        if guess != task.answer:
            return guess
