"""The audit of pairs: round histograms, drawn examples, and a page on which nothing hostile is markup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from tests.eval.browser import MISSING, Browser, browser, check_page
from tests.eval.structure import Structure
from tests.training.pair_outputs import SCORES, Given, records
from thinkserve.eval.instruction import Instruction
from thinkserve.training.pairs.audit import Made, audit
from thinkserve.training.pairs.candidates import candidates_of
from thinkserve.training.pairs.examples import LONGEST
from thinkserve.training.pairs.histogram import bins_of
from thinkserve.training.pairs.tuning import tune
from thinkserve.training.recipe import PairsRecipe, Recipe
from thinkserve.training.report.pair_audit import pair_audit, pair_page

HOSTILE = '"><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> \u202e \x00'
PROBLEMS = ("unclosed", "truncated", "empty")


def statistics(n: int = 40, *, seed: int = 0, keys: dict[str, Any] | None = None) -> dict[str, Any]:
    """Of drawn outputs, hostile in all their texts, a sixth of them broken; as they are read from `pairs.json`."""
    random = Random(seed)
    recipe = Recipe(name="test", pairs=PairsRecipe(**(keys or {})))
    found = []
    for number in range(n):
        outputs: list[Given] = []
        for _ in range(8):
            text = f"{HOSTILE}{random.random()}"
            length = random.randrange(2, 400)
            if random.random() < 1 / 6:
                outputs.append((text, None, random.choice(PROBLEMS)))  # type: ignore[arg-type]
            else:
                outputs.append((f"{text}|{HOSTILE}{'word ' * length}", random.gauss(length / 400, 0.3)))
        found.append(records(f"q{number}{HOSTILE}", *outputs))
    groups = [candidates_of(*three, recipe.pairs, SCORES) for three in found]
    instructions = [Instruction(group.id, f"{HOSTILE} {group.id}", {HOSTILE: HOSTILE}) for group in groups]
    made = Made(instructions, [cut for _, cut, _ in found], groups, tune(groups, recipe.pairs, 0))
    counted = {"arm": "thought", "iteration": 1, **audit(made, recipe, seed)}
    return msgspec.json.decode(msgspec.json.encode(counted), type=dict[str, Any])


def test_bins_have_round_edges_and_count_every_value() -> None:
    """0 to 1 in twentieths."""
    bins = bins_of([at / 100 for at in range(101)])
    assert bins.edges == tuple(at / 20 for at in range(21))
    counted = bins.counted([0.0, 0.05, 0.99, 1.0, 7.0, -7.0])
    assert (counted["n"], sum(counted["counts"])) == (6, 6)
    assert (counted["counts"][0], counted["counts"][1], counted["counts"][-1]) == (2, 1, 3)


def test_whole_numbers_lie_in_the_middle_of_their_bins() -> None:
    assert bins_of([1, 2, 4]).edges == (0.5, 1.5, 2.5, 3.5, 4.5)


def test_one_huge_value_does_not_flatten_all_others() -> None:
    """One of a thousand is beyond the edges, and counted in the last bin."""
    bins = bins_of([*range(999), 10**6])
    assert bins.edges[-1] == 1000
    assert bins.counted([10**6])["counts"][-1] == 1


@pytest.mark.parametrize("values", [[], [0.0], [1.0] * 5, [-1e9, 1e9], [1e-7, 2e-7], [3.0, 3.0000001]])
def test_any_values_have_bins(values: list[float]) -> None:
    bins = bins_of(values)
    assert all(low < high for low, high in zip(bins.edges, bins.edges[1:], strict=False))
    assert 1 <= len(bins.edges) - 1 <= 50
    assert sum(bins.counted(values)["counts"]) == len(values)


def test_examples_are_drawn_by_the_seed_with_broken_ones_among_them() -> None:
    found = statistics()["examples"]
    assert len(found) == 8
    assert [example["rejected"]["problem"] is None for example in found] == [True] * 6 + [False] * 2
    assert found == statistics()["examples"]


def test_long_texts_are_cut_and_say_so() -> None:
    sample = records("q", ("t" * 2 * LONGEST + "|a", 1.0), ("b", 0.0))
    groups = [candidates_of(*sample, PairsRecipe(), SCORES)]
    recipe = Recipe(name="test")
    made = Made([Instruction("q", "Why?")], [sample[1]], groups, tune(groups, recipe.pairs, 0))
    (example,) = audit(made, recipe, 0)["examples"]
    thought = example["chosen"]["thought"]
    assert (len(thought["text"]), thought["characters"]) == (LONGEST, 2 * LONGEST)
    page = pair_page({"arm": "thought", "iteration": 1, **audit(made, recipe, 0)})
    assert f"Cut here: {LONGEST:,} of {2 * LONGEST:,} characters." in Structure(page).text


def test_hostile_texts_stay_text() -> None:
    """In instructions, ids, categories, thoughts and responses; with what shows nothing spelled out."""
    fragment = pair_audit(statistics())
    structure = Structure(fragment)
    assert HOSTILE.replace("\u202e", "<U+202E>").replace("\x00", "<U+0000>") in structure.text
    assert not {"script", "img"} & {name for name, _ in structure.elements}
    assert not [name for _, found in structure.elements for name in found if name.startswith("on")]
    assert "\u202e" not in fragment and "\x00" not in fragment


def test_a_fragment_may_stand_several_times_on_a_page() -> None:
    elements = Structure(pair_audit(statistics())).elements
    assert not [found for _, found in elements if "id" in found]
    assert not {"h1", "h2", "h3", "html", "style"} & {name for name, _ in elements}


def test_all_numbers_are_to_be_read() -> None:
    found = statistics()
    shown = Structure(pair_audit(found)).text
    assert f"{found['counts']['pairs']} pairs" in shown
    for step in found["rho_table"]:
        assert f"{step['chosen_length']:.3g}" in shown or f"{step['chosen_length']:,.0f}" in shown
    for warning in found["warnings"]:
        assert warning in shown
    bars = [element for element in Structure(pair_audit(found)).elements if element[0] == "rect"]
    assert len(bars) > 100


@pytest.mark.parametrize(
    "keys", [{"rho": 0.0}, {"rho": 0.5, "length": "tokens"}, {"broken": "drop"}, {"max_broken": 1.0}]
)
def test_any_recipe_has_a_page(keys: dict[str, Any]) -> None:
    """At rho 0 each histogram is there once; with broken outputs only, there are no lengths to compare."""
    found = statistics(keys=keys)
    structure = Structure(pair_page(found))
    figures = sum(name == "figure" for name, _ in structure.elements)
    assert figures == (4 if found["rho"] else 2)


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} on the path")
def test_the_page_fits_any_screen_and_touches_nothing(tab: Browser, tmp_path: Path) -> None:
    page = tmp_path / "pairs.html"
    page.write_text(pair_page(statistics()), encoding="utf-8")
    check_page(tab, page)
