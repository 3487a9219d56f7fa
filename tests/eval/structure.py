"""What a page is made of, read by the standard library's parser."""

from __future__ import annotations

from html.parser import HTMLParser

from thinkserve.eval.report.elements import VOID


class Structure(HTMLParser):
    """The elements of a page; whether each one that was opened is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        assert len(attributes) == len(dict(attributes)), f"an attribute of {name} is there twice"
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        """All that is to be read."""
        return "".join(self.words).replace("\u00a0", " ")

    def all(self, name: str) -> list[dict[str, str | None]]:
        """The attributes of the elements of a name."""
        return [attributes for found, attributes in self.elements if found == name]
