"""The report in a real browser: nothing overflows, nothing is fetched, nothing hostile runs, and the controls work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eval.browser import MISSING, Browser, browser, check_page
from tests.eval.report_world import THREE, World, build
from thinkserve.eval.report.writing import write_report

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} on the path"),
    pytest.mark.timeout(120),
]
LONG = {
    f"an-organisation-with-a-long-name/model-{n}b-instruct-2026-preview": 0.2 + 0.05 * n for n in range(12)
}
WORLDS = {
    "three": World(THREE),
    "one": World({"x": 0.4}, bench="alpaca-eval", games=1, instructions=80),
    "twelve": World(LONG, bench="arena-hard-v0.1", clusters=True, instructions=120),
    "bare": World({"m": 0.4, "n": 0.6}, bench="mine", topics=False, lengths=False, judgments=False, instructions=30),
    "tiny": World({"m": 0.4, "n": 0.6}, instructions=5),
}  # fmt: skip


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("worlds")
    found = {name: write_report([build(root / name, world)])[0] for name, world in WORLDS.items()}
    several = [root / name for name in ("three", "one", "tiny")]
    return {**found, "several": write_report(several, root / "several.html")[0]}


@pytest.mark.parametrize("name", [*WORLDS, "several"])
def test_a_report_fits_any_screen_and_touches_nothing(
    tab: Browser, pages: dict[str, Path], name: str
) -> None:
    check_page(tab, pages[name])


def test_dark_and_light_differ_and_text_can_be_read(tab: Browser, pages: dict[str, Path]) -> None:
    """WCAG AA: 4.5 for text, between the colours of the text and of the page."""
    contrast = """
      const parse = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      const light = (c) => parse(c).reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
      const page = light(getComputedStyle(document.body).backgroundColor);
      const ratio = (e) => { const l = light(getComputedStyle(e).color);
        return (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05); };
      const probe = document.createElement("span"); document.body.append(probe);
      const series = Array.from({ length: 8 }, (_, at) => { probe.className = `t${at}`; return ratio(probe); });
      probe.remove();
      return [page, ratio(document.body), ratio(document.querySelector(".how")), ...series];
    """
    pages_seen = []
    for dark in (False, True):
        tab.show(pages["three"], width=1280, dark=dark)
        page, *ratios = tab.evaluate(contrast)
        assert min(ratios) >= 4.5, (dark, ratios)
        pages_seen.append(page)
    assert pages_seen[0] > 0.9 and pages_seen[1] < 0.1


def test_tabs_switch_by_mouse_and_by_keyboard(tab: Browser, pages: dict[str, Path]) -> None:
    tab.show(pages["three"], width=1280)
    shown = """const box = document.querySelector("#r0-categories .tabs");
      const seen = () => Array.from(box.querySelectorAll(".panel")).filter((e) => e.checkVisibility())
        .map((e) => e.dataset.title).join();
      const tab = (name) => Array.from(box.querySelectorAll("[role=tab]")).find((e) => e.textContent === name);
    """
    assert tab.evaluate(shown + "return seen()") == "Category"
    assert tab.evaluate(shown + 'tab("Topic").click(); return seen()') == "Topic"
    key = 'tab("Topic").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" })); return seen()'
    assert tab.evaluate(shown + key) == "Subcategory"
    assert tab.evaluate(shown + 'return tab("Subcategory") === document.activeElement') is True


def test_many_models_are_chosen_from_a_menu(tab: Browser, pages: dict[str, Path]) -> None:
    tab.show(pages["twelve"], width=1280)
    chosen = """const menu = document.querySelector("#r0-categories .chooser"); menu.value = "3";
      menu.dispatchEvent(new Event("change"));
      return Array.from(menu.parentElement.querySelectorAll(":scope > .panel")).filter((e) => e.checkVisibility())
        .map((e) => e.dataset.title)"""
    assert tab.evaluate(chosen) == ["an-organisation-with-a-long-name/model-8b-instruct-2026-preview"]


def test_disagreements_are_filtered_by_category_and_reason(tab: Browser, pages: dict[str, Path]) -> None:
    tab.show(pages["three"], width=1280)
    reading = """const box = document.querySelector(".reading");
      const seen = () => Array.from(box.querySelectorAll(".case")).filter((e) => e.checkVisibility());
      const choose = (name, value) => { const menu = box.querySelector(`select[name=${name}]`); menu.value = value;
        menu.dispatchEvent(new Event("change", { bubbles: true })); };
    """
    assert tab.evaluate(reading + "return seen().length") == 12
    assert tab.evaluate(reading + 'box.querySelector(".more").click(); return seen().length') == 60
    kinds = 'choose("kind", "loss"); return Array.from(new Set(seen().map((e) => e.dataset.kind)))'
    assert tab.evaluate(reading + kinds) == ["loss"]
    both = """const before = seen().length; const name = seen()[0].dataset.category.split("\\n")[0];
      choose("category", name);
      return [before, seen().length, seen().every((e) => e.dataset.category.split("\\n").includes(name)),
              box.querySelector("output").textContent]"""
    before, count, all_of_it, said = tab.evaluate(reading + both)
    assert all_of_it and said == f"{count} of {count} shown" and 0 < count < before


def test_the_table_of_scores_is_sorted_by_a_click(tab: Browser, pages: dict[str, Path]) -> None:
    tab.show(pages["three"], width=1280)
    sort = """const table = document.querySelector("table.scores");
      const button = Array.from(table.querySelectorAll("th button")).find((e) => e.textContent === "Characters");
      const first = () => table.tBodies[0].rows[0].cells[0].dataset.value;
      button.click(); const most = first(); button.click();
      return [most, first(), button.parentElement.getAttribute("aria-sort")]"""
    assert tab.evaluate(sort) == ["pocket-27m", "llama-3.1-8b-instruct", "ascending"]


def test_without_scripts_everything_is_there(tab: Browser, pages: dict[str, Path]) -> None:
    """Every panel and every match is shown, and no control that would do nothing."""
    tab.show(pages["three"], width=1280, scripts=False)
    try:
        seen = """const count = (query) => Array.from(document.querySelectorAll(query))
            .filter((e) => e.checkVisibility()).length;
          return [count("#r0-categories .panel"), count(".case"), count(".filters, .tablist, .more, th button")]"""
        assert tab.evaluate(seen) == [3, 60, 0]
    finally:
        tab.show(pages["three"], width=1280)
