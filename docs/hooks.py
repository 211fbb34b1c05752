"""Hooks of the documentation site: pages from the repository's root, and a check that no public name is missing."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
# Packages whose `__all__` is public. All of its names must have a docstring and stand on a page of docs/api.
PUBLIC = (
    "sparsemask",
    "sparsemask.sparse",
    "sparsemask.spaces.connectivity",
    "sparsemask.spaces.group_sparsity",
    "sparsemask.spaces.group_sparsity.shrinking",
    "sparsemask.spaces.sparse_conv",
    "sparsemask.spaces.specialized",
)
log = logging.getLogger("mkdocs.hooks")  # warnings of loggers below "mkdocs" fail a strict build


def on_page_markdown(markdown: str, page, **_) -> str:
    """The root's file in place of the page that points to it, with links as they are in docs/."""
    name = PAGES.get(page.file.src_uri)
    if name is None:
        return markdown
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    text = text.replace("[MIT licence](LICENSE)", "MIT licence")
    for target, source in PAGES.items():
        text = text.replace(f"]({source})", f"]({target})")
    return text


def on_post_build(config) -> None:
    """Warns of public names that no page documents."""
    pages = Path(config.site_dir, "api").glob("*.html")
    documented = {name for page in pages for name in re.findall(r' id="([\w.]+)"', page.read_text(encoding="utf-8"))}
    for package in PUBLIC:
        for name, home in public_names(package):
            place = re.compile(rf"{re.escape(home)}\.(?:[a-z_]+\.)?{name}")  # its package or a module of that
            if not any(map(place.fullmatch, documented)):
                log.warning("%s.%s is public, but has no docstring or stands on no page of docs/api", package, name)


def public_names(package: str) -> list[tuple[str, str]]:
    """The names in the package's `__all__`, and where each is from, without importing it."""
    tree = ast.parse((ROOT / "build/package" / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    names = []
    for entry in assigned["__all__"].elts:
        if isinstance(entry, ast.Starred):  # loaded on first use: name -> module
            lazy = assigned[entry.value.id]
            names += [(key.value, value.value) for key, value in zip(lazy.keys, lazy.values, strict=True)]
        else:
            names.append((entry.value, package))
    return [(name, home) for name, home in names if not name.startswith("__")]
