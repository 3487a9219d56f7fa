"""The hard categories: too much for one step of a model of this size, easy for one that writes the steps down.

| category | instruction | useful thought | response |
|---|---|---|---|
| add | What is 347+285? | 7+5+0=12 4+8+1=13 3+2+1=06 | 632 |
| count | How many b in abbcab? | a0b1b2c2a2b3 | 3 |
| chain | Follow a>c b>a c>d d>b from b, 3 steps | b>a>c>d | d |
| swap | In kbmx swap k-m, b-k | kbmx k-m mbkx b-k mkbx | mkbx |
| trace | Start at 3, add 4, take 2, add 5 | 3+4=7 7-2=5 5+5=10 | 10 |
"""

from __future__ import annotations

import re
from random import Random

from thinkserve.training.pocket.task import Category

COUNT_LETTERS = "abc"
CHAIN_LETTERS, CHAIN_LENGTH = "abcdefghij", 5
SWAP_LETTERS = "abcdefgh"
TRACE_LIMIT = 19


def _add(left: str, right: str) -> tuple[str, str]:
    steps, carry = [], 0
    for a, b in zip(reversed(left), reversed(right), strict=True):
        total = int(a) + int(b) + carry
        # The carry and two digits, always: all digits keep their distance to those they come from, and a model
        # finds fixed distances much sooner.
        steps.append(f"{a}+{b}+{carry}={total:02}")
        carry = total // 10
    return str(int(left) + int(right)), " ".join(steps)


def _draw_add(rng: Random) -> str:
    return f"What is {rng.randint(100, 999)}+{rng.randint(100, 999)}?"


def _count(letter: str, text: str) -> tuple[str, str]:
    running = "".join(f"{char}{text[: at + 1].count(letter)}" for at, char in enumerate(text))
    return str(text.count(letter)), running


def _draw_count(rng: Random) -> str:
    text = "".join(rng.choices(COUNT_LETTERS, k=rng.randint(5, 9)))
    return f"How many {rng.choice(COUNT_LETTERS)} in {text}?"


def _chain(arrows: str, start: str, steps: str) -> tuple[str, str] | None:
    follow = {arrow[0]: arrow[2] for arrow in arrows.split()}
    path = [start]
    for _ in range(int(steps)):
        if path[-1] not in follow:
            return None
        path.append(follow[path[-1]])
    return path[-1], ">".join(path)


def _draw_chain(rng: Random) -> str:
    # One cycle through all letters: in another map a walk may stand still, and guessing would do.
    cycle = rng.sample(CHAIN_LETTERS, CHAIN_LENGTH)
    follow = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    arrows = " ".join(f"{letter}>{follow[letter]}" for letter in sorted(cycle))
    return f"Follow {arrows} from {rng.choice(cycle)}, {rng.randint(2, 4)} steps"


def _swap(text: str, pairs: str) -> tuple[str, str] | None:
    # The letters at the start and each pair are said again, for the same reason as the carries of a sum.
    state, steps = text, [text]
    for pair in pairs.split(", "):
        one, other = pair.split("-")
        if one not in text or other not in text:
            return None
        state = state.translate({ord(one): other, ord(other): one})
        steps += [pair, state]
    return state, " ".join(steps)


def _draw_swap(rng: Random) -> str:
    text = "".join(rng.sample(SWAP_LETTERS, 4))
    pairs: list[set[str]] = []
    for _ in range(rng.choice((2, 2, 3))):
        # Not the pair just swapped: swapping twice undoes itself.
        pair = set(rng.sample(text, 2))
        while pairs and pair == pairs[-1]:
            pair = set(rng.sample(text, 2))
        pairs.append(pair)
    return f"In {text} swap {', '.join('-'.join(sorted(pair)) for pair in pairs)}"


def _trace(start: str, moves: str) -> tuple[str, str]:
    value, steps = int(start), []
    for word, amount in re.findall(r"(add|take) (\d)", moves):
        result = value + int(amount) if word == "add" else value - int(amount)
        steps.append(f"{value}{'+' if word == 'add' else '-'}{amount}={result}")
        value = result
    return str(value), " ".join(steps)


def _draw_trace(rng: Random) -> str:
    value = rng.randint(1, 9)
    text = f"Start at {value}"
    for _ in range(rng.choice((2, 3))):
        amount = rng.randint(1, 9)
        adds = value - amount < 0 or (value + amount <= TRACE_LIMIT and rng.random() < 0.5)
        value += amount if adds else -amount
        text += f", {'add' if adds else 'take'} {amount}"
    return text


HARD = (
    Category("add", "hard", re.compile(r"What is (\d{3})\+(\d{3})\?"), _add, _draw_add),
    Category("count", "hard", re.compile(r"How many ([a-z]) in ([a-z]{1,12})\?"), _count, _draw_count),
    Category(
        "chain",
        "hard",
        re.compile(r"Follow ([a-z]>[a-z](?: [a-z]>[a-z])*) from ([a-z]), ([1-9]) steps?"),
        _chain,
        _draw_chain,
    ),
    Category(
        "swap",
        "hard",
        re.compile(r"In ([a-z]{2,8}) swap ([a-z]-[a-z](?:, [a-z]-[a-z])*)"),
        _swap,
        _draw_swap,
    ),
    Category("trace", "hard", re.compile(r"Start at (\d{1,2})((?:, (?:add|take) \d)+)"), _trace, _draw_trace),
)
