"""The page: everything in one file, no request to anywhere, readable without scripts (it has none)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from sparsemask._version import __version__
from sparsemask.files import write_text
from sparsemask.report import front_section, groups_section, html, metrics_section, origin, sections, spatial_section
from sparsemask.report.run_data import Contents, read_run
from sparsemask.runs import Run

FILE = "report.html"
# Enforced by the browser: no script, nothing loaded but what the page carries.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

# Of each section its key, its title, and its markup: empty where a run of this kind cannot have it.
_SECTIONS = (
    ("curves", "Curves", sections.curves),
    ("connections", "Connection weights", sections.connections),
    ("architecture", "Architecture", sections.architecture),
    ("samples", "Sample predictions", sections.samples),
    ("costs", "Costs", sections.costs),
    ("classes", "Quality by class", metrics_section.classes),
    ("confusion", "Confusion matrix", metrics_section.confusion),
    ("reproduce", "How to reproduce", origin.reproduce),
    ("configuration", "Configuration", origin.configuration),
)
_FINE_SECTIONS = (
    ("curves", "Curves", sections.curves),
    ("masks", "Masks", spatial_section.masks),
    ("samples", "Sample predictions", sections.samples),
    ("costs", "Costs", spatial_section.costs),
    ("quality", "Quality", spatial_section.quality),
    ("reproduce", "How to reproduce", origin.reproduce),
    ("configuration", "Configuration", origin.configuration),
)
_GROUP_SECTIONS = (  # by names of their own where the others' stand side by side: these are as wide as the page
    ("curves", "Curves", sections.curves),
    ("layers", "Groups by layer", groups_section.layers),
    ("spent", "Costs", groups_section.costs),
    ("examples", "Sample predictions", sections.samples),
    ("quality", "Quality by class", metrics_section.classes),
    ("matrix", "Confusion matrix", metrics_section.confusion),
    ("reproduce", "How to reproduce", origin.reproduce),
    ("configuration", "Configuration", origin.configuration),
)
_PAPER = "SparseMask", "https://arxiv.org/abs/1904.07642", "arXiv 1904.07642"


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's folder, atomically, from the files that lie in it; return its path.

    Missing parts are named in the page.

    Raises:
        UseError: the folder has no readable configuration of a run.
    """
    path = run.folder / FILE
    write_text(path, build_page(read_run(run)))
    return path


def next_command(run: Run, verb: str) -> str:
    """The command line by which `verb` goes on from a run, the one that its report shows."""
    return origin.command_of(read_run(run), verb)


def build_page(c: Contents) -> str:
    """The page as text."""
    name = html.escape(c.run.folder.resolve().name)
    space = html.escape(c.info.get("space", c.config.get("space", "")))
    started = html.escape(f" · started {_date(c.info['started'])}" if c.info.get("started") else "")
    verb = html.escape(c.verb)
    parts, tiles, paper = _SECTIONS, sections.tiles, _PAPER
    if c.fine:
        by = " by class" if spatial_section.by_class(c) else " by picture" if c.evaluation else ""
        parts = [(key, f"{title}{by}" if key == "quality" else title, make) for key, title, make in _FINE_SECTIONS]
        tiles = spatial_section.tiles
        paper = spatial_section.PAPERS.get(str(c.info.get("space")), spatial_section.PAPERS["smsr"])
    elif c.grouped:
        parts, tiles, paper = _GROUP_SECTIONS, groups_section.tiles, groups_section.PAPER
    elif "front" in c.info:
        parts = [("front", "Front", front_section.front), *(part for part in parts if part[0] != "connections")]
    method, address, number = paper
    head = f"""<p class="kicker">{verb} · {space}</p>
<h1>{name}</h1>
<p class="state{" finished" if c.state == "finished" else ""}"><b>{html.escape(c.state)}</b>{started}</p>"""
    source = f'of\n<code>{html.escape(c.run.folder)}</code>. Method: {method},\n<a href="{address}">{number}</a>'
    made = [(key, title, make(c)) for key, title, make in parts]  # which may find problems: before these are listed
    return shell(f"{name} · {verb}", head, tiles(c), made, c.problems, source)


def shell(
    title: str, head: str, tiles: str, parts: Sequence[tuple[str, str, str]], problems: Sequence[str], source: str
) -> str:
    """A page as text, of markup.

    Args:
        title: of the window.
        head: the header's elements.
        tiles: the key figures.
        parts: of each section its key, its title and what it holds; left out where that is empty.
        problems: plain text, what is missing or not readable.
        source: what it was written from, behind "from the files".
    """
    made = [part for part in parts if part[2]]
    body = [
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{name}</h2>{text}</section>'
        for key, name, text in made
    ]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in made)
    missing = ""
    if problems:
        listed = "".join(f"<li>{html.escape(line)}</li>" for line in dict.fromkeys(problems))
        heading = "<p>Missing or not readable:</p>"
        missing = f'<aside class="problems" aria-label="What is missing">{heading}<ul>{listed}</ul></aside>'
    style = resources.files("sparsemask.report").joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title} · sparsemask</title>
<style>
{style}</style>
</head>
<body>
<header>
{head}
</header>
<nav aria-label="Sections">{links}</nav>
<main>
{missing}
<section aria-label="Key figures">{tiles}</section>
{chr(10).join(body)}
</main>
<footer><p>Written {time.strftime("%Y-%m-%d %H:%M %z")} by sparsemask {__version__} from the files
{source}.</p></footer>
</body>
</html>
"""


def _date(text: object) -> str:
    """'2026-11-20 06:17' of run.json's time stamp; any other text as it is."""
    text = str(text or "")
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return text
