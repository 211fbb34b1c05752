"""torchvision, also where its wheel was built for another torch: then it imports, without detection's operators."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import torch

from sparsemask.errors import UseError

_declared: list = []  # as long as the process lives: a library that is collected takes its operators away


def import_torchvision() -> None:
    """Import torchvision; what is imported afterwards finds it.

    Models are plain Python. Only the registration of detection's operators fails where the wheel was built for
    another torch: they are declared, without kernels, and the next import succeeds.

    Raises:
        UseError: it is not installed.
    """
    if _declared:
        return
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        spec = importlib.util.find_spec("torchvision")
        if spec is None:
            raise UseError(f"needs torchvision: pip install -r bench/requirements.txt ({error})") from None
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        source = Path(spec.submodule_search_locations[0], "_meta_registrations.py").read_text(encoding="utf-8")
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in sorted(set(re.findall(r"torchvision::(\w+)", source))):
            library.define(f"{name}(Tensor x) -> Tensor")
        _declared.append(library)
