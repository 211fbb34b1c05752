"""Trained networks that ship with the package, each with a card that says what it is, of which data and terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from sparsemask.errors import UseError, choose

SUFFIX = ".safetensors"
MASKED = "-masked"
"""How the name of a network with masks ends; before it stands its dense network's."""

Entries = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """What the networks of a task are for.

    Attributes:
        command: of `sparsemask`, which runs them.
        arguments: of a command line with one of them, before --weights.
        purpose: what one of these entries does, in a few words.
        score: its figures, with the metric's name and the data.
    """

    command: str
    arguments: str
    purpose: Callable[[Entries], str]
    score: Callable[[Entries], str]

    def line(self, name: str) -> str:
        """A command line that runs the network of a name."""
        return f"sparsemask {self.command} {self.arguments} --weights {name}"


def _enlarges(entries: Entries) -> str:
    return f"enlarges pictures {entries['scale']} times{', with masks' if 'gain' in entries else ''}"


def _set5(entries: Entries) -> str:
    beside = f"{entries['gain']:.2f} times as fast" if "gain" in entries else f"bicubic {entries['set5_bicubic']:.2f}"
    return f"Set5 {entries['set5_psnr']:.2f} dB, {beside}"


KINDS: Mapping[str, Kind] = {
    "super_resolution": Kind("upscale", "IN OUT", _enlarges, _set5),
    "sample": Kind(
        "segment-points",
        "IN OUT",
        lambda entries: f"labels points of rooms, {len(entries['classes'])} classes",
        lambda entries: f"mIoU {entries['miou']:.3f}, generated rooms",
    ),
    "segmentation": Kind(
        "predict",
        "PICTURES",
        lambda entries: f"labels pixels of drawn shapes, {len(entries['classes'])} classes",
        lambda entries: f"mIoU {entries['miou']:.3f}, sample set",
    ),
}
"""By the task that a network was trained for."""


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

    @cached_property
    def _entries(self) -> dict[str, Any]:
        from sparsemask.weights import metadata

        return metadata(self.path)

    def metadata(self) -> dict[str, Any]:
        """Entries of the file: architecture, arguments, scores."""
        return dict(self._entries)

    @property
    def task(self) -> str:
        """The task that it was trained for, one of :data:`KINDS`."""
        return str(self._entries.get("task", "super_resolution"))  # files of dense networks do not say it

    @property
    def kind(self) -> Kind:
        """What it is for."""
        return KINDS[self.task]

    @property
    def masked(self) -> bool:
        """Whether it is a super-resolution network that was given masks."""
        return self.name.endswith(MASKED)


def available(tasks: Collection[str] = tuple(KINDS)) -> list[str]:
    """Names of the networks that ship, sorted; tasks: only those of some."""
    names = sorted(path.stem for path in _folder().glob(f"*{SUFFIX}"))
    return names if set(tasks) >= set(KINDS) else [name for name in names if find(name).task in tasks]


def find(name: str) -> Model:
    """The network of a name; UseError where there is none."""
    choose(name, available(), "model")
    card = _folder() / f"{name}.md"
    return Model(name, _folder() / f"{name}{SUFFIX}", card.read_text(encoding="utf-8"))


def path_of(word: str, task: str | None = None) -> str:
    """The path of weights that a command line names: a file's, or without one of this name a shipped network's.

    Args:
        word: as the user gave it.
        task: that a shipped network must be of; None: any.

    Raises:
        UseError: a shipped network of another task.
    """
    if Path(word).exists() or word not in available():
        return word
    model = find(word)
    if task not in (None, model.task):
        raise UseError(f"'{word}' is for another command: {model.kind.line(word)}")
    return str(model.path)


def of_scale(scale: int | None) -> Model | None:
    """The dense super-resolution network that magnifies by `scale` (None: by any); None where none ships."""
    models = [model for model in map(find, available(["super_resolution"])) if not model.masked]
    return next((model for model in models if scale in (None, model.metadata()["scale"])), None)


def _folder() -> Path:
    return Path(str(resources.files(__name__)))
