"""Documentation: links, anchors, images, commands and names of the API reference exist. `make docs` builds the site."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tiny import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
SCRIPT = re.compile(r"python (\w+/\w+\.py)")
REFERENCE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub and the site make them."""
    headings = HEADING.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links of the page to files or headings that do not exist."""
    broken = []
    for link in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[a](#a-title) [b](#none) [c](page.md) [d](absent.md) `[e](absent.md)` [f](https://x.org)\n"
    )
    assert broken_links(page) == ["#none", "absent.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_scripts_that_exist(page):
    scripts = set(SCRIPT.findall(page.read_text()))
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


def test_every_image_is_shown():
    text = "".join(page.read_text() for page in PAGES)
    assert [image.name for image in (ROOT / "docs/images").iterdir() if f"images/{image.name})" not in text] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda page: page.stem)
def test_names_of_the_reference_can_be_imported(page):
    for name in REFERENCE.findall(page.read_text()):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name


def test_every_results_page_names_commands_and_machines():
    overview = (ROOT / "docs/results.md").read_text()
    for page in (ROOT / "docs/results").glob("*.md"):
        text = page.read_text()
        assert f"(results/{page.name})" in overview, page.name
        for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:] or [text]:
            title = section.partition("\n")[0]
            assert "**Command" in section and "**Machine" in section, f"{page.name}: {title}"
