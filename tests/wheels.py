"""Wheels of this checkout, and environments that they are installed in, for tests of what strangers get."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tiny import environment

STANDINS = ("spaces", "search")  # packages of these names are on the index


def pip(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *argv],
        capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def build(source: Path, folder: Path) -> Path:
    """The pure wheel of a source tree, as pip builds it."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source.resolve()))
    return next(folder.glob("*.whl"))


def install(python: Path, *what: str) -> None:
    """Into the environment of `python`, whatever the dependencies' environment has installed."""
    pip("--python", str(python), "install", "--no-deps", "--no-index", "--ignore-installed", *what)


def make_environment(folder: Path) -> Path:
    """An environment with this one's dependencies, and with packages called `spaces` and `search`; its Python."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    assert packages.is_dir()
    # By a .pth file: those that lie there, an editable installation's among them, are not read.
    here = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(here) + "\n")
    for name in STANDINS:
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("STANDIN = True\n")
    return python


def bare(home: Path, **more: str) -> dict[str, str]:
    """A stranger's environment variables: nothing of this checkout's."""
    return {k: v for k, v in environment(home, **more).items() if k != "PYTHONPATH"}


def run(call: list[object], cwd: Path, **more: str) -> str:
    """What a command of an environment prints; it must not fail."""
    done = subprocess.run(
        list(map(str, call)), cwd=cwd, env=bare(cwd / "home", **more), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
