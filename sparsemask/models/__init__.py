"""Trained networks that ship with the package, each with a card that says what it is, of which data and terms."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sparsemask.errors import choose

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Model:
    """A network that ships.

    Attributes:
        name: what it is called on a command line.
        path: its safetensors file.
        card: its model card, Markdown.
    """

    name: str
    path: Path
    card: str

    def metadata(self) -> dict[str, Any]:
        """Entries of the file: architecture, arguments, scores."""
        from sparsemask.weights import metadata

        return metadata(self.path)


def available() -> list[str]:
    """Names of the networks that ship, sorted."""
    return sorted(path.stem for path in _folder().glob(f"*{SUFFIX}"))


def find(name: str) -> Model:
    """The network of a name; UseError where there is none."""
    choose(name, available(), "model")
    card = _folder() / f"{name}.md"
    return Model(name, _folder() / f"{name}{SUFFIX}", card.read_text(encoding="utf-8"))


def path_of(word: str) -> str:
    """The path of weights that a command line names: a file's, or without one of this name a shipped network's."""
    return str(find(word).path) if not Path(word).exists() and word in available() else word


def of_scale(scale: int | None) -> Model | None:
    """The super-resolution network that magnifies by `scale` (None: by any); None where none ships."""
    models = map(find, available())
    return next((model for model in models if scale in (None, model.metadata().get("scale"))), None)


def _folder() -> Path:
    return Path(str(resources.files(__name__)))
