"""Make what is installed: a pure wheel, a source distribution, and wheels of a platform with compiled kernels inside.

    python bench/wheels.py --out dist                                       for this machine's processor family
    python bench/wheels.py --out dist --cross aarch64=aarch64-linux-gnu-g++ for another one, too

A pure wheel compiles the kernels where they are first used. A platform wheel needs no compiler: its library holds
every instruction set of the processor family, chosen at run time, and computes with the OpenMP of torch. Its tag is the
highest version of glibc whose symbols it needs, 2.17 at least. A library that needs more than manylinux allows is
refused; where auditwheel is installed it is asked as well.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from sparsemask.backends.native import build  # noqa: E402
from sparsemask.errors import UseError, command, one_line  # noqa: E402

FOLDERS = ("VOC12", "prune", "retrain", "search", "spaces", "sparsemask")
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PLACE = "sparsemask/backends/native/shipped"
OLDEST = (2, 17)  # glibc, of manylinux2014: no older tag is of use, since torch has none
# What manylinux_2_17 allows beside glibc.
ALLOWED = {"GLIBCXX": (3, 4, 19), "CXXABI": (1, 3, 7), "GCC": (4, 8, 0)}
LIBRARIES = re.compile(r"(libstdc\+\+\.so\.6|libm\.so\.6|libgcc_s\.so\.1|libc\.so\.6|ld-linux-\S+)")


def copy_source(folder: Path) -> Path:
    """A copy of what is installed, since a build writes into it; compiled kernels and caches are left out."""
    for name in FOLDERS:
        left_out = shutil.ignore_patterns("data", "__pycache__", "shipped", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def built(kind: str, source: Path, out: Path) -> Path:
    """A distribution by the build backend, in a process of its own.

    Args:
        kind: wheel or sdist.
        source: a copy of the checkout.
        out: an existing folder.
    """
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    if done.returncode:
        raise UseError(f"the {kind} could not be built: {one_line(done.stderr)[-500:]}")
    return out / done.stdout.strip().splitlines()[-1]


def glibc_of(library: Path) -> tuple[int, ...]:
    """The version of glibc that a library needs, as binutils reads it.

    Raises:
        UseError: it needs other libraries, or newer symbols of them, than every Linux of manylinux_2_17 has.
    """
    read = lambda *flags: subprocess.run(["readelf", "-W", *flags, library], capture_output=True, text=True, check=True)
    others = [name for name in re.findall(r"NEEDED.*\[(.*?)\]", read("-d").stdout) if not LIBRARIES.fullmatch(name)]
    if others:
        raise UseError(f"{library.name} needs {', '.join(others)}, which not every Linux has")
    highest = OLDEST
    for name, version in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", read("-V").stdout):
        numbers = tuple(map(int, version.split(".")))
        if name == "GLIBC":
            highest = max(highest, numbers)
        elif numbers > ALLOWED[name]:
            raise UseError(f"{library.name} needs {name}_{version}, which manylinux_2_17 does not allow")
    return highest


def platform_wheel(pure: Path, machine: str, cxx: Sequence[str]) -> Path:
    """The pure wheel with kernels for a processor family in it, beside it.

    Args:
        pure: the wheel.
        machine: as `platform.machine()` names the family.
        cxx: a compiler for it.
    """
    with tempfile.TemporaryDirectory() as place:
        library = build.ship(Path(place), list(cxx), machine)
        major, minor = glibc_of(library)[:2]
        tag = f"py3-none-manylinux_{major}_{minor}_{machine}"
        out = pure.with_name(pure.name.replace("py3-none-any", tag))
        added = {f"{PLACE}/{file.name}": file.read_bytes() for file in sorted(Path(place).iterdir())}
    with zipfile.ZipFile(pure) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (about,) = (name for name in files if name.endswith(".dist-info/WHEEL"))
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    text = files[about].decode().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    files[about] = text.replace("Tag: py3-none-any", f"Tag: {tag}").encode()
    listing = files.pop(record)
    files = {**{name: data for name, data in files.items() if ".dist-info/" not in name}, **added,
             **{name: data for name, data in files.items() if ".dist-info/" in name}}  # fmt: skip
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    assert len(lines) == len(listing.decode().strip().splitlines()) + len(added) - 1
    files[record] = ("\n".join([*lines, f"{record},,"]) + "\n").encode()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    _audit(out, tag)
    return out


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def _audit(wheel: Path, tag: str) -> None:
    """Have auditwheel say that the wheel keeps what its tag promises; without it only a line says so."""
    if importlib.util.find_spec("auditwheel") is None:
        print(f"{wheel.name}: symbols read by readelf; auditwheel is not installed and was not asked")
        return
    done = subprocess.run([sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True)
    promised = tag.partition("manylinux_")[2]
    said = one_line(done.stdout)
    found = re.search(r'consistent with the following platform tag: "manylinux_(\d+_\d+\w+)"', said)
    if found is None:
        raise UseError(f"{wheel.name}: auditwheel finds no manylinux tag: {said or one_line(done.stderr)}")
    sizes = [tuple(map(int, text.split("_")[:2])) for text in (found[1], promised)]
    if sizes[0] > sizes[1]:
        raise UseError(f"{wheel.name}: auditwheel finds manylinux_{found[1]}, newer than its tag")
    print(f"{wheel.name}: auditwheel finds manylinux_{found[1]}")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="dist", help="folder (default: dist)")
    parser.add_argument(
        "--cross", action="append", default=[], metavar="MACHINE=CXX", help="a wheel for another processor family"
    )
    options = parser.parse_args(argv)
    try:
        wanted = {platform.machine(): build.compiler()}
    except build.NoCompiler as error:
        raise UseError(str(error)) from error
    for text in options.cross:
        machine, equals, cxx = text.partition("=")
        if not equals or not shutil.which(cxx.split()[0] if cxx.split() else ""):
            raise UseError(f"--cross {text}: MACHINE=CXX, with a compiler that is installed")
        wanted[machine] = cxx.split()
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = copy_source(Path(folder))
        made = [built("sdist", source, out), built("wheel", source, out)]
    for machine, cxx in wanted.items():
        made.append(platform_wheel(made[1], machine, cxx))
    for path in made:
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
