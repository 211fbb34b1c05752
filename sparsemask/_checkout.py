"""Import names: one name for every package, in a checkout as in an installation.

Installed, `search`, `prune`, `retrain`, `spaces` and `VOC12` lie inside of `sparsemask`. In a checkout they stand
beside it, where `python search/run.py` finds them; there, a finder makes `sparsemask.spaces` of the folder `spaces`.
The spellings that only a checkout has (`import spaces`, `python -m search.run`) are other names of the same modules:
nothing is imported twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

FOLDERS = ("VOC12", "prune", "retrain", "search", "spaces")
_PACKAGE = "sparsemask"


class _Alias:
    """Loader of a module under a second name: returns the module already loaded."""

    def __init__(self, spec: ModuleSpec):
        self._spec = spec

    def create_module(self, alias: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._spec.name)
        self._spec = module.__spec__ or self._spec
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the alias's there

    def get_code(self, alias: str) -> CodeType:
        """What `python -m search.run` runs."""
        return self._spec.loader.get_code(self._spec.name)  # type: ignore[union-attr,no-any-return]


class _Finder:
    """Finds `sparsemask.spaces` beside `sparsemask`, and `spaces.x` as `sparsemask.spaces.x`."""

    def __init__(self, root: str):
        self._root = root

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, _, rest = name.partition(".")
        if top == _PACKAGE and rest in FOLDERS:
            return importlib.util.spec_from_file_location(name, os.path.join(self._root, rest, "__init__.py"))
        if top in FOLDERS and rest and sys.modules.get(top) is sys.modules.get(f"{_PACKAGE}.{top}"):
            spec = importlib.util.find_spec(f"{_PACKAGE}.{name}")
            if spec is not None:
                alias = ModuleSpec(name, _Alias(spec), origin=spec.origin)  # type: ignore[arg-type]
                alias.submodule_search_locations = spec.submodule_search_locations
                return alias
        return None


def install() -> None:
    """Make the packages of a checkout known; does nothing where they are installed."""
    package = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(package)
    if not os.path.isdir(os.path.join(package, "spaces")) and os.path.isdir(os.path.join(root, "spaces")):
        sys.meta_path.insert(0, _Finder(root))


def unify(name: str) -> None:
    """Make a package imported as `spaces` the same module as `sparsemask.spaces`; called by its `__init__`.

    The import system returns the entry of `sys.modules`, so that the duplicate that calls this is dropped.
    """
    if name in FOLDERS:
        sys.modules[name] = importlib.import_module(f"{_PACKAGE}.{name}")
