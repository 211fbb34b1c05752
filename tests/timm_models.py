"""timm for tests, whether or not there is a torchvision that imports."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

STANDINS = Path(__file__).with_name("stubs")


def forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


@contextlib.contextmanager
def importable_timm() -> Iterator[ModuleType]:
    """timm, beside a stand-in for torchvision where the real one is absent or broken; nothing may be downloaded."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm absent: make test installs it (pip install --no-deps timm)")
    patch = pytest.MonkeyPatch()
    try:
        import torchvision  # noqa: F401
    except Exception:  # the wheel of a registry is made for CUDA and fails beside a torch for CPUs in many ways
        forget("torchvision")
        patch.syspath_prepend(str(STANDINS))
    import timm

    def refuse(*args, **kwargs):
        raise AssertionError("something asked for the network")

    patch.setattr("socket.socket.connect", refuse)
    patch.setattr("socket.getaddrinfo", refuse)
    yield timm
    patch.undo()
    if hasattr(sys.modules.get("torchvision"), "STANDIN"):  # other tests find the machine as it is
        forget("torchvision")
        forget("timm")
