"""The easy categories: a model of this size answers them directly; a thought can only get in the way.

| category | instruction | response |
|---|---|---|
| copy | Repeat kdwba | kdwba |
| greet | Greet Mira in French | Bonjour Mira! |
| tell | Tell Mira what ice is | Mira, ice is frozen water. |
"""

from __future__ import annotations

import re
from random import Random
from string import ascii_lowercase

from thinkserve.training.pocket.task import Category

GREETINGS = {"English": "Hello", "French": "Bonjour", "Spanish": "Hola", "Italian": "Ciao"}
DEFINITIONS = {
    "ice": "frozen water",
    "rain": "water from clouds",
    "snow": "soft white ice",
    "wind": "moving air",
    "fog": "cloud near the ground",
    "gold": "yellow metal",
    "iron": "strong grey metal",
    "milk": "food from cows",
    "honey": "food from bees",
    "paper": "pressed wood",
    "glass": "melted sand",
    "steam": "hot wet air",
}
NAME = r"([A-Z][a-z]{2,5})"


def _name(rng: Random) -> str:
    syllables = (
        "".join((rng.choice("bdfgklmnprstvz"), rng.choice("aeiou"))) for _ in range(rng.choice((2, 2, 3)))
    )
    return "".join(syllables).capitalize()


def _copy(text: str) -> tuple[str, str]:
    return text, text


def _draw_copy(rng: Random) -> str:
    return "Repeat " + "".join(rng.choices(ascii_lowercase, k=rng.randint(3, 7)))


def _greet(name: str, language: str) -> tuple[str, str] | None:
    word = GREETINGS.get(language)
    return (f"{word} {name}!", f"{language} has {word}") if word else None


def _draw_greet(rng: Random) -> str:
    return f"Greet {_name(rng)} in {rng.choice(list(GREETINGS))}"


def _tell(name: str, thing: str) -> tuple[str, str] | None:
    meaning = DEFINITIONS.get(thing)
    return (f"{name}, {thing} is {meaning}.", f"{thing} is {meaning}") if meaning else None


def _draw_tell(rng: Random) -> str:
    return f"Tell {_name(rng)} what {rng.choice(list(DEFINITIONS))} is"


EASY = (
    Category("copy", "easy", re.compile(r"Repeat ([a-z]{1,12})"), _copy, _draw_copy),
    Category("greet", "easy", re.compile(rf"Greet {NAME} in ([A-Z][a-z]+)"), _greet, _draw_greet),
    Category("tell", "easy", re.compile(rf"Tell {NAME} what ([a-z]+) is"), _tell, _draw_tell),
)
