"""Compile the kernels on first use and keep them: one shared library per source, compiler and machine.

The library is built in a folder of its own and renamed into place under a lock that a killed build lets go of, so that
neither a broken cache nor a lock left behind can do harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparsemask.datasets import cache

SOURCES = Path(__file__).resolve().parent / "src"
VERSION = 1  # what sm_version() answers
_COMMON = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno")
# Name of each instruction set's part, floats of its vectors, its flags.
_X86 = (
    ("sm_plain", 4, ()),
    ("sm_avx2", 8, ("-mavx2", "-mfma")),
    ("sm_avx512", 16, ("-mavx512f", "-mavx512vl", "-mavx2", "-mfma")),
)


class NoCompiler(RuntimeError):
    """There is nothing to build the kernels with; the message says what was looked for."""


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else g++, clang++ or c++; NoCompiler without one."""
    named = os.environ.get("CXX", "").split()
    for candidate in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(candidate[0]):
            return candidate
    looked = f"CXX={' '.join(named)}" if named else "g++, clang++, c++"
    raise NoCompiler(f"no C++ compiler found ({looked})")


def parts(machine: str) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """The instruction sets that are built for a processor family, as `platform.machine()` names it."""
    return _X86 if machine.lower() in ("x86_64", "amd64") else _X86[:1]


def commands(cxx: list[str], out: Path, machine: str) -> list[list[str]]:
    """The compiler calls that make `out`, in order; the objects go beside it."""
    calls, objects = [], []
    built = parts(machine)
    for name, width, flags in built:
        objects.append(out.parent / f"{name}.o")
        defines = (f"-DSM_NAMESPACE={name}", f"-DSM_WIDTH={width}")
        calls.append([*cxx, *_COMMON, *flags, *defines, "-c", str(SOURCES / "isa.cpp"), "-o", str(objects[-1])])
    objects.append(out.parent / "kernels.o")
    defines = ("-DSM_X86",) if len(built) > 1 else ()
    calls.append([*cxx, *_COMMON, *defines, "-c", str(SOURCES / "kernels.cpp"), "-o", str(objects[-1])])
    calls.append([*cxx, "-shared", "-fopenmp", *map(str, objects), "-o", str(out)])
    return calls


def library() -> ctypes.CDLL:
    """The loaded library, built now where it is not yet or where it is broken; NoCompiler or OSError otherwise."""
    path = cached()
    if path.exists():
        with contextlib.suppress(OSError, AttributeError):
            return _load(path)
        print(f"the kernels in {path} are broken, building them again", file=sys.stderr, flush=True)
    with _locked(path.parent):
        if path.exists():  # another process was first, unless it is the broken one
            with contextlib.suppress(OSError, AttributeError):
                return _load(path)
            path.unlink()
        _build(path)
    return _load(path)


def cached() -> Path:
    """Where the library for these sources, this compiler and this machine lies or will lie."""
    digest = hashlib.sha256(repr((VERSION, platform.machine(), _COMMON, _X86)).encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    with contextlib.suppress(NoCompiler, OSError):  # without a compiler, what another one has built will do
        digest.update(subprocess.run([*compiler(), "--version"], capture_output=True).stdout)
    return cache() / "kernels" / digest.hexdigest()[:16] / "libsparsemask.so"


def _build(path: Path) -> None:
    cxx = compiler()
    print(f"building the sparse kernels with {cxx[0]} (once, some seconds) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        out = Path(folder) / path.name
        for call in commands(cxx, out, platform.machine()):
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode:
                first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                raise OSError(f"{cxx[0]} could not build the sparse kernels: {first.strip()}")
        os.replace(out, path)


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    if found.sm_version() != VERSION:
        raise OSError(f"{path}: of another version")
    return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob("build-*"):  # of a build that was killed: we alone hold the lock
            shutil.rmtree(left, ignore_errors=True)
        yield
