"""Runs that draw no images and write no report: most of the time of networks as small as those of the tests."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from sparsemask import pictures, report

PACKAGES = {"VOC12", "prune", "retrain", "search", "spaces", "sparsemask"}


def _drawing_functions() -> list[Callable]:
    """Every public function that draws an image, and the one that writes a run's report."""
    modules = [
        importlib.import_module(one.name) for one in pkgutil.walk_packages(pictures.__path__, f"{pictures.__name__}.")
    ]
    functions = [value for module in modules for value in vars(module).values() if inspect.isfunction(value)]
    drawing = [function for function in functions if function.__name__.startswith("draw_")]
    return [*{*drawing}, report.write_report]


def _stand_in(function: Callable) -> Callable:
    """A function of the same parameters that writes nothing and returns the path it was given."""
    names = list(inspect.signature(function).parameters)

    def nothing(*arguments: object, **named: object) -> Path | None:
        given = {**dict(zip(names, arguments, strict=False)), **named}
        return Path(given["path"]) if "path" in given else given["run"].folder / "report.html"

    return nothing


def _loaded() -> Iterator[ModuleType]:
    yield from (module for name, module in list(sys.modules.items()) if name.partition(".")[0] in PACKAGES)


def _replace(replacements: dict[Callable, Callable]) -> None:
    """Put one function in another's place wherever a loaded module of ours has it."""
    for module in _loaded():
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value in replacements:
                setattr(module, name, replacements[value])


@contextmanager
def without_images() -> Iterator[None]:
    """Within it no image is drawn and no report is written, nor by modules that are loaded meanwhile."""
    stand_ins = {function: _stand_in(function) for function in _drawing_functions()}
    _replace(stand_ins)
    try:
        yield
    finally:
        _replace({stand_in: function for function, stand_in in stand_ins.items()})
