"""Write a report, and show it."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from thinkserve.errors import ThinkserveError
from thinkserve.eval.folder import RunFolder
from thinkserve.eval.records import write_whole
from thinkserve.eval.report.loading import read_runs
from thinkserve.eval.report.markdown import markdown
from thinkserve.eval.report.page import page
from thinkserve.eval.report.rankings import rank


def write_report(folders: Sequence[Path], html: Path | None = None) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` of one run, or of several together.

    Args:
        folders: of runs that have scores.
        html: where to; the Markdown goes beside it. None: into the first folder.

    Returns:
        Both paths.

    Raises:
        UsageError: a folder is no run's, or one of its files is malformed; nothing was written.
        ThinkserveError: the files cannot be written.
    """
    rankings = rank(read_runs(folders))
    first = RunFolder(folders[0])
    to_html = html if html is not None else first.report_html
    to_markdown = html.with_suffix(".md") if html is not None else first.report_md
    contents = (page(rankings).encode(), markdown(rankings).encode("utf-8", "replace"))
    try:
        write_whole(to_html, contents[0])
        write_whole(to_markdown, contents[1])
    except OSError as exc:
        raise ThinkserveError(f"{to_html}: the report cannot be written: {exc.strerror or exc}") from exc
    return to_html, to_markdown


def open_report(path: Path) -> None:
    """Show a report in the user's browser.

    Raises:
        ThinkserveError: there is no browser to show it in.
    """
    if not webbrowser.open(path.resolve().as_uri()):
        raise ThinkserveError(f"no browser could be started: open {path} yourself")
