"""Compile an exported network to machine code that C++ loads, with what it says of itself.

    python retrain/export.py --run runs/NAME --out net.pt2
    python examples/cpp/compile.py net.pt2 compiled.pt2

Takes a minute for an ordinary network, and a C++ compiler. Networks with masks over locations call operators of this
toolkit, which are not in C++ programs: they go to C++ as ONNX.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

if __name__ == "__main__":  # from a checkout, not installed
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from sparsemask.errors import UseError, command
from sparsemask.exporting.reading import read_program
from sparsemask.prediction import Description

NEEDED = ("output", "classes", "mean", "std", "input_size")


def compiled(path: Path, out: Path) -> dict[str, str]:
    """Compile an exported program.

    Args:
        path: the program, `.pt2`.
        out: the package to write, `.pt2` too.

    Returns:
        What it says of itself, JSON texts by name.

    Raises:
        UseError: no program of a segmentation network without masks.
    """
    entries = dict(read_program(path).entries)  # which refuses files that would run code
    program = torch.export.load(path)
    own = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("sparsemask.")}
    if own:
        raise UseError(f"{path}: calls {', '.join(sorted(own))}, which C++ does not have: export it as ONNX")
    if Description.from_entries(entries, path) is None:
        raise UseError(f"{path}: does not say what its classes are: export it again")
    about = {name: json.dumps(entries[name]) for name in NEEDED if name in entries}
    settings = {"aot_inductor.metadata": about}
    torch._inductor.aoti_compile_and_package(program, package_path=str(out), inductor_configs=settings)
    return about


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="the exported network, .pt2")
    parser.add_argument("out", type=Path, help="the package to write, .pt2")
    options = parser.parse_args(argv)
    if options.out.suffix != ".pt2" or options.out.resolve() == options.program.resolve():
        raise UseError(f"{options.out}: expected another name that ends in .pt2")
    about = compiled(options.program, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {len(json.loads(about['classes']))} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
