"""The compiled kernels: those that a wheel brings, or compiled on first use and kept.

There is one shared library per source, compiler, machine and form.

The library is built in a folder of its own, written through to the disk and renamed into place under a lock that a
killed build lets go of. Its size and hash stand beside it and are compared before it is loaded: a library that was cut
short would be loaded as far as it goes and kill the process later.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsemask import locks
from sparsemask.datasets import cache
from sparsemask.errors import UseError, choose
from sparsemask.files import atomic_write, sha256, write_json

SOURCES = Path(__file__).resolve().parent / "src"
OPERATORS = SOURCES.parent / "onnxruntime_ops"  # nodes of ONNX Runtime that call the kernels
SHIPPED = Path(__file__).resolve().parent / "shipped" / "libsparsemask.so"  # in wheels of a platform alone
VERSION = 4  # what sm_version() answers
WIDTHS = (4, 8, 16)  # floats of a vector
VARIABLE = "SPARSEMASK_VECTOR_WIDTH"
SANITIZED = "SPARSEMASK_SANITIZED_KERNELS"  # "1": compiled with sanitizers, see Form
_COMMON = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
# -O1: what the sanitizers watch is the code as written, and they compile it several times faster so.
_SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
# Without operators that only newer C++ libraries have.
_PORTABLE = ("-fno-sized-deallocation", "-fvisibility-inlines-hidden")
# Of each instruction set: the floats of its vectors, and the flags that compile for it.
INSTRUCTION_SETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "plain": (4, ()),
    "avx2": (8, ("-mavx2", "-mfma")),
    "avx512": (16, ("-mavx512f", "-mavx512vl", "-mavx2", "-mfma")),
}


class NoCompiler(RuntimeError):
    """There is nothing to build the kernels with; the message says what was looked for."""


@dataclass(frozen=True)
class Form:
    """What a library is compiled as.

    Args:
        width: floats of a vector, 4, 8 or 16. The vectors are the compiler's, so that every width can be compiled for
            every instruction set; only the natural one is fast. None: one part for each instruction set of the
            processor family, of which the best serves, chosen at run time.
        instruction_set: "plain", "avx2" or "avx512"; given together with `width`.
        sanitized: with the address and the undefined-behaviour sanitizer. Such a library is loaded into a process that
            was started with the address sanitizer's runtime in LD_PRELOAD.
        portable: for machines other than this one. No runtime of OpenMP is linked: the one of torch serves.
        operators: with the operators of ONNX Runtime, for processes without torch.
    """

    width: int | None = None
    instruction_set: str | None = None
    sanitized: bool = False
    portable: bool = False
    operators: bool = False

    def __post_init__(self) -> None:
        if (self.width is None) != (self.instruction_set is None):
            raise ValueError("a width goes with an instruction set")

    @property
    def name(self) -> str:
        """A word for it, for file names."""
        words = [] if self.width is None else [f"{self.instruction_set}-{self.width}"]
        words += ["sanitized"] * self.sanitized + ["portable"] * self.portable + ["onnxruntime"] * self.operators
        return "-".join(words) or "all"

    def common(self) -> tuple[str, ...]:
        """Compiler flags of every source."""
        return _COMMON + (_SANITIZED if self.sanitized else ()) + (_PORTABLE if self.portable else ())

    def linking(self) -> tuple[str, ...]:
        """Compiler flags of the last call, which makes the library."""
        # A process has the kernels twice then: each library calls its own.
        own = ("-Wl,-Bsymbolic",) if self.operators and sys.platform == "linux" else ()
        return tuple(flag for flag in self.common() if not (self.portable and flag == "-fopenmp")) + own


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else g++, clang++ or c++; NoCompiler without one."""
    named = os.environ.get("CXX", "").split()
    for candidate in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(candidate[0]):
            return candidate
    looked = f"CXX={' '.join(named)}" if named else "g++, clang++, c++"
    raise NoCompiler(f"no C++ compiler found ({looked})")


def instruction_sets(machine: str) -> tuple[str, ...]:
    """Those that are built for a processor family, as `platform.machine()` names it; the plainest first."""
    return tuple(INSTRUCTION_SETS) if machine.lower() in ("x86_64", "amd64") else ("plain",)


def asked_width() -> tuple[int, str | None] | None:
    """(width, instruction set or None) of $SPARSEMASK_VECTOR_WIDTH, "16" or "16/avx2"; None where it is not set.

    Raises UseError for anything else.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    width, _, instruction_set = text.partition("/")
    if width not in map(str, WIDTHS):
        raise UseError(f"{VARIABLE}={text}: the kernels have vectors of 4, 8 or 16 floats")
    if instruction_set:
        choose(instruction_set, instruction_sets(platform.machine()), f"instruction set in {VARIABLE}")
    return int(width), instruction_set or None


def is_sanitized() -> bool:
    """Whether the environment asks for kernels with sanitizers."""
    return os.environ.get(SANITIZED) == "1"


def commands(cxx: list[str], out: Path, machine: str, form: Form = Form()) -> list[list[str]]:
    """The compiler calls that make `out`, in order; the objects go beside it."""
    common, calls, objects = form.common(), [], []
    built = instruction_sets(machine) if form.width is None else (form.instruction_set,)
    for name in built:
        width, flags = INSTRUCTION_SETS[name]
        width = form.width or width
        objects.append(out.parent / f"sm_{name}.o")
        defines = (f"-DSM_NAMESPACE=sm_{name}", f"-DSM_WIDTH={width}")
        calls.append([*cxx, *common, *flags, *defines, "-c", str(SOURCES / "isa.cpp"), "-o", str(objects[-1])])
    objects.append(out.parent / "kernels.o")
    if form.width is not None:
        defines = (f"-DSM_ONLY=sm_{form.instruction_set}", f"-DSM_ONLY_WIDTH={form.width}")
    else:
        defines = ("-DSM_X86",) if len(built) > 1 else ()
    entries = OPERATORS / "operators.cpp" if form.operators else SOURCES / "kernels.cpp"
    calls.append([*cxx, *common, *defines, "-c", str(entries), "-o", str(objects[-1])])
    calls.append([*cxx, *form.linking(), "-shared", *map(str, objects), "-o", str(out)])
    return calls


def library(form: Form = Form()) -> ctypes.CDLL:
    """The loaded library, built now where it is not yet or where it is broken; NoCompiler or OSError otherwise."""
    if form == Form() and is_shipped():
        try:
            return _load_shipped()
        except (OSError, AttributeError) as error:
            said = f"the kernels that came with this wheel cannot be loaded here ({error}): building them"
            print(said, file=sys.stderr, flush=True)
    path = cached(form)
    if path.exists():
        if _whole(path):
            with contextlib.suppress(OSError, AttributeError):
                return _load(path)
        print(f"the kernels in {path} are broken, building them again", file=sys.stderr, flush=True)
    with _locked(path.parent):
        if path.exists():  # another process was first, unless it is the broken one
            if _whole(path):
                with contextlib.suppress(OSError, AttributeError):
                    return _load(path)
            path.unlink()
        _build(path, form)
    return _load(path)


def operators() -> Path:
    """The library of ONNX Runtime's operators, built now where it is not yet; with sanitizers if $SANITIZED says so.

    Raises:
        NoCompiler: there is nothing to build it with.
        OSError: the compiler fails.
    """
    form = Form(operators=True)
    if is_sanitized():
        width, instruction_set = asked_width() or (None, None)
        form = Form(width if instruction_set else None, instruction_set, sanitized=True, operators=True)
    library(form)
    return cached(form)


def cached(form: Form = Form()) -> Path:
    """Where the library for these sources, this compiler, this machine and this form lies or will lie."""
    digest = _digest(platform.machine(), form)
    with contextlib.suppress(NoCompiler, OSError):  # without a compiler, what another one has built will do
        digest.update(subprocess.run([*compiler(), "--version"], capture_output=True).stdout)
    folder = "" if form == Form() else f"-{form.name}"
    return cache() / "kernels" / f"{digest.hexdigest()[:16]}{folder}" / "libsparsemask.so"


def _digest(machine: str, form: Form) -> hashlib._Hash:
    """Of all that a library is made of, the compiler aside."""
    digest = hashlib.sha256(repr((VERSION, machine, form, form.common(), INSTRUCTION_SETS)).encode())
    folders = (SOURCES, OPERATORS) if form.operators else (SOURCES,)
    for file in (file for folder in folders for file in sorted(folder.iterdir())):
        digest.update(file.name.encode() + file.read_bytes())
    return digest


def is_shipped() -> bool:
    """Whether a wheel brought a library of these sources for this machine."""
    try:
        record = json.loads(_beside(SHIPPED).read_text(encoding="utf-8"))
        return record["sources"] == _digest(platform.machine(), Form(portable=True)).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def ship(folder: Path, cxx: list[str], machine: str) -> Path:
    """Make the library of a wheel, with the file beside it that says what it is.

    Args:
        folder: where they go; made where it is absent.
        cxx: the compiler, for that machine.
        machine: processor family, as `platform.machine()` names it.

    Raises:
        OSError: the compiler fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, form = folder / SHIPPED.name, Form(portable=True)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / path.name
        _compile(out, cxx, machine, form)
        shutil.copyfile(out, path)
    record = {"size": path.stat().st_size, "sha256": sha256(path), "sources": _digest(machine, form).hexdigest()}
    write_json(_beside(path), record)
    return path


def _load_shipped() -> ctypes.CDLL:
    if not _whole(SHIPPED):
        raise OSError(f"{SHIPPED} is damaged")
    _show_openmp()
    return _load(SHIPPED)


def _show_openmp() -> None:
    """Let libraries that are linked without a runtime of OpenMP find the one that torch computes with."""
    import torch

    package = Path(torch.__file__).parent
    of_torch = sorted([*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*.so*")])
    for name in [*map(str, of_torch), "libgomp.so.1", "libomp.so", "libiomp5.so"]:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return


def _build(path: Path, form: Form) -> None:
    cxx = compiler()
    what = "the sparse kernels" if form == Form() else f"the sparse kernels ({form.name})"
    if form.operators:
        what = "the operators of ONNX Runtime"
    print(f"building {what} with {cxx[0]} (once, some seconds) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        out = Path(folder) / path.name
        _compile(out, cxx, platform.machine(), form)
        # Its size and hash first: a library without them is taken for broken.
        write_json(_beside(path), {"size": out.stat().st_size, "sha256": sha256(out)})
        with out.open("rb") as made, atomic_write(path) as file:
            shutil.copyfileobj(made, file)


def _compile(out: Path, cxx: list[str], machine: str, form: Form) -> None:
    *compiling, linking = commands(cxx, out, machine, form)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_started(call)) for call in compiling]  # side by side
        for process in running:
            _finished(process, cxx[0])
        _finished(stack.enter_context(_started(linking)), cxx[0])


@contextlib.contextmanager
def _started(call: list[str]) -> Iterator[subprocess.Popen]:
    """A compiler at work; it does not outlive the block."""
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _finished(process: subprocess.Popen, name: str) -> None:
    output, _ = process.communicate()
    if process.returncode:
        first = next((line for line in output.splitlines() if "error" in line), output[:200])
        raise OSError(f"{name} could not build the sparse kernels: {first.strip()}")


def _beside(path: Path) -> Path:
    """The file that says how large a library is and what its hash is."""
    return path.with_suffix(".json")


def _whole(path: Path) -> bool:
    """Whether a library is what was built."""
    try:
        record = json.loads(_beside(path).read_text(encoding="utf-8"))
        return record["size"] == path.stat().st_size and record["sha256"] == sha256(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    if loaded.sm_version() != VERSION:
        raise OSError(f"{path}: of another version")
    return loaded


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the lock goes with the process that holds it."""
    with locks.acquire(folder / "lock"):
        for left in folder.glob("build-*"):  # of a build that was killed: we alone hold the lock
            shutil.rmtree(left, ignore_errors=True)
        for left in folder.glob(".*.part"):
            left.unlink(missing_ok=True)
        yield
