"""A report read back as a browser would: elements, attributes and texts."""

from __future__ import annotations

import html.parser

from sparsemask.report import build_page
from sparsemask.report.run_data import read_run
from sparsemask.runs import Run

_VOID = {"meta", "link", "img", "br", "input"}


class Page(html.parser.HTMLParser):
    """A page's elements and texts; an element that is closed wrongly fails the test."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str, **attrs: str) -> list[dict]:
        found = [a for t, a in self.elements if t == tag]
        return [a for a in found if all(a.get(k) == v for k, v in attrs.items())]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(run: Run) -> Page:
    """A run's report, parsed."""
    return Page(build_page(read_run(run)))
