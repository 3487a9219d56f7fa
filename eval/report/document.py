"""The file of a report: one that needs nothing else. Style and script are inlined, and the page forbids itself every other
script and every request, so even markup that got through escaping could do nothing."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from thinkserve.eval.report.elements import Child, Html, tag


def document(title: str, *content: Child, styles: str = "") -> str:
    """A whole page, in the reports' style and with their script.

    Args:
        title: of the window.
        content: of the body.
        styles: more CSS, which has no input in it.
    """
    script = _resource("report.js")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(_resource("report.css") + styles)),
    )
    body = tag("body", *content, tag("script", Html(script)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _policy(script: str) -> str:
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )


def _resource(name: str) -> str:
    return (files("thinkserve.eval.report") / "template" / name).read_text(encoding="utf-8")
