"""`report.html` and `report.md` without a browser: what is in them, and that nothing in them is markup that was judged."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.eval.report_world import HOSTILE, THREE, World, build
from tests.eval.structure import Structure
from thinkserve.errors import ThinkserveError, UsageError
from thinkserve.eval.answer import Answer
from thinkserve.eval.folder import RunFolder, answer_json
from thinkserve.eval.judgment import Judgment, to_json
from thinkserve.eval.match import Verdict
from thinkserve.eval.records import RecordLog, write_records
from thinkserve.eval.report.elements import tag, text
from thinkserve.eval.report.writing import open_report, write_report
from thinkserve.eval.scores import Comparison, Difference, Group, Scores, read_scores, write_scores
from thinkserve.thoughts import Response

SMALL = World(THREE, instructions=90, hostile=90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("run") / "small", SMALL)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report([folder])[0].read_text(encoding="utf-8")


def test_every_element_is_closed_and_every_id_is_there_once(page: str) -> None:
    structure = Structure(page)
    ids = [attributes["id"] for _, attributes in structure.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] or "" for attributes in structure.all("a")]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_the_page_needs_and_allows_nothing_else(page: str) -> None:
    structure = Structure(page)
    assert not [found for _, found in structure.elements if {"src", "srcset", "action", "style"} & set(found)]
    assert not structure.all("link") and not structure.all("iframe")
    assert not [found for _, found in structure.elements if any(name.startswith("on") for name in found)]
    policies = [m["content"] or "" for m in structure.all("meta") if m.get("http-equiv")]
    script = page.split("<script>")[1].split("</script>")[0]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert len(policies) == 1 and f"'sha256-{digest}'" in policies[0]
    assert policies[0].startswith("default-src 'none'")
    assert not re.search(r"@import|url\(|https?:", page.split("<style>")[1].split("</style>")[0])


def test_hostile_responses_stay_text(page: str) -> None:
    """Each is there word for word, with what shows nothing spelled out, and made no element."""
    structure = Structure(page)
    for hostile in HOSTILE:
        shown = hostile.replace("\u202e", "<U+202E>").replace("\x00", "<U+0000>")
        assert shown in structure.text
    assert len(structure.all("script")) == 1 and not structure.all("img")
    assert "\u202e" not in page and "\x00" not in page


def test_a_model_of_a_hostile_name_breaks_neither_page_nor_table(tmp_path: Path) -> None:
    name = '"><script>alert(1)</script>|`x`\n[bold]'
    html, markdown = write_report([build(tmp_path, World({name: 0.5, "plain": 0.4}, instructions=40))])
    structure = Structure(html.read_text())
    assert len(structure.all("script")) == 1
    assert "<script>alert(1)</script>|`x`" in structure.text
    assert_tables_are_right(markdown.read_text())


def test_all_numbers_of_the_scores_are_there(folder: Path, page: str) -> None:
    """Of every model, overall and by category: each rate with its interval, rounded as it is shown."""
    shown = Structure(page).text
    for name, group in read_scores(folder / "scores.json").models.items():
        assert name in shown
        groups = [group, *(g for scheme in group.categories.values() for g in scheme.values())]
        for found in groups:
            assert f"{found.n:,}" in shown
            for number in (found.score, found.style_controlled_score):
                assert number is None or f"{number:.1f}".replace("-", "\u2212") in shown
            for ci in (found.ci, found.style_controlled_ci):
                if ci is not None:
                    assert f"{ci[0]:.1f} to {ci[1]:.1f}".replace("-", "\u2212") in shown
        assert group.mean_length is not None and f"{group.mean_length:,.0f}" in shown


def test_warnings_and_facts_are_in_plain_sight(page: str) -> None:
    shown = Structure(page).text
    assert "The judge is not the official one" in shown
    for fact in ("gpt-4.1", "o3-mini-2025-01-31", "aligned"):
        assert fact in shown


def test_groups_that_say_nothing_are_named_and_not_drawn(page: str) -> None:
    structure = Structure(page)
    assert "Too few to say:" in structure.text
    drawn = [a["aria-label"] or "" for a in structure.all("svg") if a.get("class") == "plot"]
    assert any("Style-controlled score" in label for label in drawn)
    # 90 instructions in 20 topics: none of "Law" has 20 or more.
    assert "Law" in structure.text
    rows = [a for a in structure.all("li") if a.get("class") == "tiny"]
    assert rows


def test_charts_are_described_to_those_who_cannot_see_them(page: str) -> None:
    structure = Structure(page)
    for attributes in structure.all("svg"):
        told = attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        nested = "x" in attributes or "overflow" in attributes
        assert told or nested, attributes
    tables = structure.all("table")
    assert tables and all(a.get("scope") for a in structure.all("th"))


def test_what_thinking_buys_and_costs_is_said(page: str) -> None:
    """The difference is said of whoever is ahead; the cost is that of `scores.json`."""
    shown = Structure(page).text
    assert "What thinking buys and costs: pocket-27m against pocket-27m-direct" in shown
    assert "342 + 480 tokens, 7.25 s" in shown
    assert "Head to head, judged against each other: pocket-27m wins 58.4 %" in shown


def scores_with(difference: Difference) -> Scores:
    groups = {
        "a": Group(100, win_rate=40.0, standard_error=2.0),
        "b": Group(100, win_rate=48.0, standard_error=2.0),
    }
    comparison = Comparison("a", "b", "win_rate", difference)
    return Scores("mine", "judge", "base", "aligned", groups, (comparison,))


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (
            Difference(100, -8.0, (-12.0, -4.0), 0.0004),
            "b is 8.0 points ahead of a in win rate (95 % interval +4.0 to +12.0, p < 0.001, 100 instructions).",
        ),
        (
            Difference(100, 8.0, (4.0, 12.0), 0.02),
            "a is 8.0 points ahead of b in win rate (95 % interval +4.0 to +12.0, p = 0.020, 100 instructions).",
        ),
        (
            Difference(100, 1.0, (-3.0, 5.0), 0.62),
            "a and b cannot be told apart in win rate: 1.0 points for the first (95 % interval \u22123.0 to +5.0, p = 0.62, "
            + "100 instructions).",
        ),
        (
            Difference(7, 30.0, (10.0, 50.0), 0.01, note="too few to say: 7 instructions"),
            "7 instructions are too few to say whether a or b is better.",
        ),
    ],
)
def test_a_difference_is_said_no_stronger_than_its_interval(
    tmp_path: Path, difference: Difference, said: str
) -> None:
    write_scores(tmp_path / "scores.json", scores_with(difference))
    assert said in Structure(write_report([tmp_path])[0].read_text()).text


def test_a_folder_with_scores_alone_makes_a_report(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.json", scores_with(Difference(100, 1.0, (-3.0, 5.0), 0.62)))
    shown = Structure(write_report([tmp_path])[0].read_text()).text
    assert "This run kept no lengths of thoughts" in shown
    assert "no judgments to read side by side" in shown


def judged(raw: str | None, **more: Any) -> Judgment:
    found = Judgment("k", "q", 0, True, "m", "base", "judge", "0" * 64, raw, verdict=Verdict("A<B", 0.0))
    return replace(found, **more)


def run_of_one(path: Path, judgment: Judgment, response: str = "yes") -> RunFolder:
    folder = RunFolder(path)
    write_scores(folder.scores, Scores("mine", "judge", "base", "aligned", {"m": Group(1, win_rate=0.0)}))
    for model in ("m", "base"):
        write_records(folder.answers(model), [answer_json(Answer("q", Response(response)), model)])
    write_records(folder.judgments("judge", "m"), [to_json(judgment)])
    return folder


def test_what_a_judge_thought_is_left_out(tmp_path: Path) -> None:
    folder = run_of_one(tmp_path, judged("<think>secret musings</think>B is better: [[B>A]]"))
    shown = Structure(write_report([folder.path])[0].read_text()).text
    assert "B is better" in shown and "secret musings" not in shown
    assert "The judge's own thought (14 characters) is not shown." in shown


def test_the_last_judgment_of_a_game_is_shown(tmp_path: Path) -> None:
    folder = run_of_one(tmp_path, judged("the first attempt", verdict=None, failure="no verdict"))
    with RecordLog(folder.judgments("judge", "m")) as log:
        log.append(to_json(judged("the second attempt")))
    shown = Structure(write_report([folder.path])[0].read_text()).text
    assert "the second attempt" in shown and "the first attempt" not in shown


def test_a_judgment_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    folder = run_of_one(tmp_path, judged("whole"))
    with folder.judgments("judge", "m").open("ab") as file:
        file.write(b'{"key": "k2", "id": "q", "ga')
    assert "whole" in write_report([folder.path])[0].read_text()


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    folder = run_of_one(tmp_path, judged("short"), response="x" * 50_000)
    assert (
        "Cut here: 20,000 of 50,000 characters." in Structure(write_report([folder.path])[0].read_text()).text
    )


def test_a_malformed_judgment_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    folder = run_of_one(tmp_path, judged("fine"))
    with folder.judgments("judge", "m").open("ab") as file:
        file.write(b'{"id": 7}\n')
    with pytest.raises(UsageError, match=r"m\.jsonl:2: no judgment: .*"):
        write_report([folder.path])
    assert not folder.report_html.exists() and not folder.report_md.exists()


@pytest.mark.parametrize("content", [None, b"{}", b"not json"])
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        write_report([tmp_path])
    with pytest.raises(UsageError, match="at least one run"):
        write_report([])


def test_a_report_goes_where_it_is_asked_to(tmp_path: Path, folder: Path) -> None:
    html, markdown = write_report([folder], tmp_path / "deep" / "page.html")
    assert (html, markdown) == (tmp_path / "deep" / "page.html", tmp_path / "deep" / "page.md")
    assert html.is_file() and markdown.is_file()


def test_runs_are_put_together_only_where_they_can_be(tmp_path: Path) -> None:
    """The same bench, judge, baseline and compat share a table; another judge has one of its own, with the reason."""
    one = build(tmp_path / "one", World({"x": 0.5, "y": 0.4}, instructions=30))
    two = build(tmp_path / "two", World({"x": 0.6}, instructions=30, seed=8))
    other = build(tmp_path / "other", World({"x": 0.6}, instructions=30, judge="gemini-2.5"))
    structure = Structure(write_report([one, two, other], tmp_path / "all.html")[0].read_text())
    names = [a["data-value"] for a in structure.all("th") if a.get("role") == "rowheader"]
    assert sorted(filter(None, names)) == ["x", "x (one)", "x (two)", "y"]
    assert "because numbers with another judge cannot be compared. Here: judge gemini-2.5." in structure.text


def test_a_report_is_shown_in_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def show(url: str) -> bool:
        shown.append(url)
        return len(shown) == 1

    monkeypatch.setattr("webbrowser.open", show)
    open_report(tmp_path / "report.html")
    assert shown == [(tmp_path / "report.html").as_uri()]
    with pytest.raises(ThinkserveError, match="open .*report.html yourself"):
        open_report(tmp_path / "report.html")


def assert_tables_are_right(markdown: str) -> None:
    """Every row of a table has as many cells as its head."""
    cells: int | None = None
    for line in markdown.split("\n"):
        if line.startswith("|"):
            count = len(re.findall(r"(?<!\\)\|", line)) - 1
            assert cells in (None, count), line
            cells = count
        else:
            cells = None


def test_the_markdown_has_the_numbers_in_tables(folder: Path, page: str) -> None:
    markdown = (folder / "report.md").read_text()
    assert_tables_are_right(markdown)
    group = read_scores(folder / "scores.json").models["pocket-27m"]
    assert group.score is not None and group.ci is not None
    row = next(line for line in markdown.split("\n") if line.startswith("| pocket-27m |"))
    assert f"{group.score:.1f} ({group.ci[0]:.1f} to {group.ci[1]:.1f})" in row
    assert "> The judge is not the official one" in markdown
    assert "## Judge health" in markdown and "## Comparisons" in markdown


def test_markup_is_escaped_wherever_it_comes_in() -> None:
    assert tag("p", "<b>", 3, None, tag("i", "&"), title='"x"', hidden=True, lang=None) == (
        '<p title="&quot;x&quot;" hidden>&lt;b&gt;3<i>&amp;</i></p>'
    )
    assert text("\ud800\x1b\u202e\n") == "???&lt;U+001B&gt;&lt;U+202E&gt;\n".replace(
        "???", "\ufffd\ufffd\ufffd"
    )
