"""Doctor: what is installed here, what computes, and what is missing, on one screen.

    sparsemask doctor             versions, processor, devices, kernels, caches, weights, data
    sparsemask doctor --build     build the kernels now, where they are not yet

A line that begins with "!" says what is missing and what to do. The exit status is 1 where something is broken, 0
otherwise: what is merely absent has a slower or smaller substitute.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsemask._version import __version__
from sparsemask.command_lines import spoken
from sparsemask.errors import UseError, command
from sparsemask.options import Parser
from sparsemask.processes import usable_cores

REQUIRED = ("torch", "numpy", "scipy", "scikit-image", "pillow", "optuna", "tensorboardX", "safetensors")
# Packages of the extras, by the extra's name.
OPTIONAL = {
    "timm": ("timm",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "postgres": ("psycopg",),
    "las": ("laspy", "lazrs"),
}


@dataclass
class Findings:
    """Lines under headings, and what is wrong.

    Attributes:
        rows: (heading, text) in order.
        broken: what does not work, a line each.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, heading: str, text: str) -> None:
        """Add a line under a heading."""
        self.rows.append((heading, text))

    def missing(self, heading: str, text: str) -> None:
        """Add a line on what is absent."""
        self.rows.append((heading, f"! {text}"))

    def wrong(self, heading: str, text: str) -> None:
        """Add a line on what is broken."""
        self.missing(heading, text)
        self.broken.append(text)

    def text(self) -> str:
        """All lines, the headings to the left, each once."""
        wide, lines, before = max(len(heading) for heading, _ in self.rows), [], None
        for heading, text in self.rows:
            lines.append(f"{'' if heading == before else heading:{wide}}  {text}")
            before = heading
        return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("doctor", prog="sparsemask doctor", description=__doc__)
    parser.add_argument("--build", action="store_true", help="build the kernels now, where they are not yet")
    options = parser.parse_args(argv)
    findings = Findings()
    for examine in (versions, machine, lambda found: kernels(found, options.build), caches, data):
        examine(findings)
    print(findings.text())
    return 1 if findings.broken else 0


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(findings: Findings) -> None:
    """Versions of this toolkit, of Python and of packages."""
    place = Path(__file__).resolve().parents[1]
    findings.add("sparsemask", f"{__version__} in {place}, Python {platform.python_version()}")
    installed = {package: version_of(package) for package in REQUIRED}
    findings.add("packages", ", ".join(f"{name} {version}" for name, version in installed.items() if version))
    if absent := [name for name, version in installed.items() if version is None]:
        findings.wrong("packages", f"not installed: {', '.join(absent)}: pip install {' '.join(absent)}")
    for extra, packages in OPTIONAL.items():
        present = [f"{name} {version_of(name)}" for name in packages if version_of(name)]
        if len(present) == len(packages):
            findings.add("extras", ", ".join(present))
        else:
            lacking = [name for name in packages if not version_of(name)]
            findings.missing("extras", f"without {', '.join(lacking)}: pip install 'sparsemask[{extra}]'")


def machine(findings: Findings) -> None:
    """Processor, memory, threads, devices."""
    import torch

    from sparsemask.containers import memory
    from sparsemask.devices import processor

    gigabytes = f"{memory() / 1e9:.0f} GB of memory" if memory() < 1 << 60 else "memory unknown"
    cores = usable_cores()
    findings.add("machine", f"{processor()}, {cores} core(s) of {os.cpu_count() or cores}, {gigabytes}")
    threads = torch.get_num_threads()
    named = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)]
    findings.add("threads", f"{threads} of torch's" + (f" ({', '.join(named)})" if named else ""))
    if threads > cores:
        findings.missing("threads", f"{threads} threads share {cores} core(s): OMP_NUM_THREADS={cores} is faster")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            findings.add("devices", f"cuda:{index} {properties.name}, {properties.total_memory / 1e9:.0f} GB")
    else:
        findings.add("devices", "the CPU alone, no CUDA")


def kernels(findings: Findings, build_now: bool) -> None:
    """Whether the kernels in C++ are built, for what, and whether they compute right here."""
    from sparsemask.backends.native import build, library, selfcheck, tiles

    usable = build.is_shipped()
    try:
        cxx = build.compiler()
        usable = True
        said = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=False).stdout
        findings.add("compiler", said.splitlines()[0] if said else cxx[0])
    except (build.NoCompiler, OSError) as error:
        if not usable:
            findings.missing("compiler", f"{error}; a wheel of this platform needs none")
    path = build.SHIPPED if build.is_shipped() else build.cached()
    if not path.exists() and not usable:
        findings.missing("kernels", "none: sparse convolutions run in PyTorch, slower")
        return
    if not path.exists() and not build_now:
        findings.missing("kernels", "not built yet: built at first use, or now by sparsemask doctor --build")
        return
    try:
        library.lib()
        wrong = selfcheck.trust()
        sets = ", ".join(library.supported())
    except UseError as error:
        findings.wrong("kernels", str(error))
        return
    except (build.NoCompiler, OSError) as error:
        findings.missing("kernels", f"{error}; PyTorch computes in their place")
        return
    if wrong is not None:
        findings.wrong("kernels", f"compute wrong results on this processor ({wrong}): please report it")
        return
    made = "of this wheel, for" if path == build.SHIPPED else "built for"
    findings.add("kernels", f"{made} {sets}; vectors of {library.width()} floats; right on this processor")
    halves = {"amx": "bfloat16 by matrix tiles (AMX)", "dot": "bfloat16 by dot products (AVX512-BF16)"}
    findings.add("kernels", halves.get(tiles.in_use(), "float32 alone: neither AMX nor AVX512-BF16 here"))
    if tiles.in_use(tiles.INT8) == "vnni":
        findings.add("kernels", "int8 by dot products (AVX512-VNNI)")
    findings.add("kernels", str(path))


def caches(findings: Findings) -> None:
    """The cache folder, whether it can be written, and what lies in it."""
    from sparsemask.datasets import cache

    folder = cache()
    if not folder.is_dir():
        findings.add("cache", f"{folder}, not there yet")
        return
    parts = {part.name: _size(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    words = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in parts.items())
    findings.add("cache", f"{folder}{': ' + words if words else ', empty'}")
    if not os.access(folder, os.W_OK):
        findings.wrong("cache", f"{folder} cannot be written: set SPARSEMASK_HOME to another folder")


def data(findings: Findings) -> None:
    """Weights of the default encoder, and VOC."""
    from sparsemask import datasets

    name = "mobilenet_v2"
    try:
        weights = datasets.backbone_weights(name, None)
    except UseError as error:
        findings.wrong("weights", str(error))
    else:
        where = os.environ.get("SPARSEMASK_WEIGHTS") or datasets.cache() / "weights"
        if weights is None:
            text = f"none of {name} in {where}: encoders start from random weights; put {name}*.pth there"
            findings.missing("weights", text)
        else:
            findings.add("weights", f"{name}: {weights}")
    voc = datasets.prepared()
    if voc is None:
        prepare = spoken("prepare", datasets.ARCHIVES)
        findings.missing("data", f"PASCAL VOC 2012 is not prepared ({prepare}); one's own and --sample need nothing")
    else:
        findings.add("data", f"PASCAL VOC 2012 in {voc}")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            total += path.stat().st_size
    return total
