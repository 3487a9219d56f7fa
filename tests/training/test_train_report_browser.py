"""The page of a training run in a real browser: nothing overflows, nothing is fetched, nothing hostile runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eval.browser import MISSING, OPEN, Browser, browser, check_page
from tests.training.train_world import World, build, stopped
from thinkserve.training.report.page import write_report

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} on the path"),
    pytest.mark.timeout(120),
]
NAMES = tuple(f"Reasoning_and_problem_solving_{number}" for number in range(20))
WORLDS = {
    "full": World(instructions=150),
    "long": World(metric="win_rate", iterations=2, instructions=400, skills=NAMES, long=True),
    "hostile": World(iterations=1, instructions=42, hostile=True),
    "stopped": stopped(World(mode="thought", instructions=42), "thought", 1, "validate"),
}


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {name: write_report(build(root / name, world)) for name, world in WORLDS.items()}


@pytest.mark.parametrize("name", WORLDS)
def test_a_page_fits_any_screen_and_touches_nothing(tab: Browser, pages: dict[str, Path], name: str) -> None:
    check_page(tab, pages[name])


def test_the_verdict_is_on_the_first_screen(tab: Browser, pages: dict[str, Path]) -> None:
    """The sentence and all numbers behind it, without scrolling: 900 pixels high, on a desk and on a phone."""
    for width in (400, 1280):
        tab.show(pages["full"], width=width)
        seen = "return Array.from(document.querySelectorAll('.lead, .tile')).map((e) => e.getBoundingClientRect().bottom)"
        ends = tab.evaluate(seen)
        assert len(ends) == 5 and max(ends) < 900, width


def test_colours_can_be_told_from_the_page(tab: Browser, pages: dict[str, Path]) -> None:
    """WCAG AA: 4.5 for text."""
    contrast = """
      const parse = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      const light = (c) => parse(c).reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
      const ratio = (query, behind) => { const [a, b] = [getComputedStyle(document.querySelector(query)).color,
        getComputedStyle(document.querySelector(behind)).backgroundColor].map(light);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
      return [ratio(".tile .figure", ".tile"), ratio(".tile small", ".tile"), ratio(".yes", "body"), ratio(".no", "body"),
        ratio(".thought .said", "body"), ratio(".warnings li, .none, .aside", "body")];
    """
    for dark in (False, True):
        tab.show(pages["full"], width=1280, dark=dark)
        assert min(tab.evaluate(OPEN + contrast)) >= 4.5, dark


def test_examples_are_filtered_by_outcome_and_category(tab: Browser, pages: dict[str, Path]) -> None:
    tab.show(pages["full"], width=1280)
    reading = """const box = document.querySelector("#examples .reading");
      const seen = () => Array.from(box.querySelectorAll(".case")).filter((e) => e.checkVisibility());
      const choose = (name, value) => { const menu = box.querySelector(`select[name=${name}]`); menu.value = value;
        menu.dispatchEvent(new Event("change", { bubbles: true })); };
    """
    assert tab.evaluate(reading + "return seen().length") == 12
    kinds = 'choose("kind", "better"); return Array.from(new Set(seen().map((e) => e.dataset.kind)))'
    assert tab.evaluate(reading + kinds) == ["better"]
    names = 'choose("kind", ""); choose("category", "chain"); return seen().map((e) => e.dataset.category)'
    assert tab.evaluate(reading + names) == ["chain", "chain"]


def test_the_ways_of_decoding_are_tabs_and_headings_inside_stay(tab: Browser, pages: dict[str, Path]) -> None:
    tab.show(pages["full"], width=1280)
    seen = """const box = document.querySelector("#categories .tabs");
      const tab = (name) => Array.from(box.querySelectorAll("[role=tab]")).find((e) => e.textContent === name);
      tab("Greedy").click();
      return Array.from(box.querySelectorAll("h4")).filter((e) => e.checkVisibility()).map((e) => e.textContent)"""
    assert tab.evaluate(seen) == [
        "Thought mode minus direct baseline, iteration 3",
        "Accuracy by category, since the start",
    ]


def test_without_scripts_and_in_print_everything_is_there(tab: Browser, pages: dict[str, Path]) -> None:
    tab.show(pages["full"], width=1280, scripts=False)
    try:
        seen = """const count = (query) => Array.from(document.querySelectorAll(query))
            .filter((e) => e.checkVisibility()).length;
          return [count("#categories .panel"), count(".reading > .case"), count("#examples .filters, .more, .tablist")]"""
        assert tab.evaluate(seen) == [2, 12, 0]
    finally:
        tab.show(pages["full"], width=1280)
    tab.command("Emulation.setEmulatedMedia", media="print")
    try:
        assert tab.evaluate(
            "return Array.from(document.querySelectorAll('#categories .panel')).every((e) => e.checkVisibility())"
        )
    finally:
        tab.command("Emulation.setEmulatedMedia", media="")
