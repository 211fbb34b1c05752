"""Every form of an exported network beside the network here: eager, .pt2, and ONNX that skips, multiplies, or is dense.

    OMP_NUM_THREADS=1 python bench/exports.py                        a small network of each family, weights from a seed
    OMP_NUM_THREADS=1 python bench/exports.py "--run runs/seg --fixed" "--space smsr --pretrained_model smsr_x2.pt \\
        --data_test set5 --fixed" --threads 1 2 --out exports.json

Each argument is a command line of retrain/export.py without --out. All forms of a network are timed in turn on its
first validation item, by torch and by ONNX Runtime with the same number of threads: one thread by its processor time,
so that other processes change little, more by the clock. Ratios above 1: the file is faster than eager. The dense form
is the same weights without masks, which is another function. What outputs differ from those expected is beside.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import deployment
from sparsemask import exporting, spaces
from sparsemask.errors import UseError, command, say
from sparsemask.exporting.validation import opened
from sparsemask.retrain import export
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.tables import markdown_table
from sparsemask.timing import thread_count, timer

PROGRAM = "pt2"
COLUMNS = {
    "network": "network", "input": "input", "threads": "threads", "eager": ("eager ms", ".1f"),
    PROGRAM: ("`.pt2` ms", ".1f"), "pt2 gain": ("eager / `.pt2`", ".2f"),
    exporting.SKIP: ("ONNX skips, ms", ".1f"), "skip gain": ("eager / skips", ".2f"),
    exporting.PLAIN: ("ONNX multiplies, ms", ".1f"), exporting.DENSE: ("ONNX dense, ms", ".1f"),
    "best": ("dense / best ONNX", ".2f"), "difference": ("largest difference: `.pt2`, skips", ".0e"),
    "plain difference": ("multiplies, dense", ".0e"),
}  # fmt: skip


def title(line: str) -> str:
    """What a network is called: its run, else its space."""
    words = shlex.split(line)
    for flag in ("--run", "--space"):
        if flag in words[:-1]:
            return Path(words[words.index(flag) + 1]).name
    return line


def networks(lines: list[str]) -> Iterator[tuple[str, exporting.Exportable, object]]:
    """(name, exportable, input) of every network."""
    for name in () if lines else deployment.CASES:
        case = deployment.CASES[name]
        network, mask = deployment.build(case)
        config = {**spaces.get(case.space).section().values(), **case.config}
        inputs = case.inputs()
        yield name, spaces.get(case.space).exportable(network, inputs, config, mask).fixed(inputs), inputs
    for line in lines:
        found = export.prepare(*export.read([*shlex.split(line), "--out", "unused.onnx"]))
        if isinstance(found.network, MaskedNetwork):
            export.plan(found.space, found.network, found.batches[0], [])
        yield title(line), found.exportable, found.batches[0]


def forms(exportable: exporting.Exportable, folder: Path) -> dict[str, Path]:
    """The files of every form that the network has."""
    files = {PROGRAM: exporting.export_program(exportable, folder / "net.pt2")}
    kinds = [exporting.PLAIN] if exportable.dense is None else [exporting.SKIP, exporting.PLAIN, exporting.DENSE]
    for kind in kinds:
        files[kind] = exporting.export_onnx(exportable, folder / f"{kind}.onnx", form=kind)
    return files


def rows(name: str, exportable: exporting.Exportable, inputs: object, options: argparse.Namespace) -> Iterator[dict]:
    """A row for each number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        files = forms(exportable, Path(folder))
        for threads in options.threads:
            with thread_count(threads), torch.no_grad():
                calls: dict[str, Callable] = {"eager": functools.partial(exportable.fast, inputs)}
                worst = {"difference": 0.0, "plain difference": 0.0}
                for kind, path in files.items():
                    run, note = opened(path, exportable)
                    if run is None:
                        raise UseError(note)
                    dense = exportable.dense if kind == exporting.DENSE else None
                    wanted = exportable.network(inputs) if dense is None else dense(*exportable.tensors(inputs))
                    which = "difference" if kind in (PROGRAM, exporting.SKIP) else "plain difference"
                    gap = deployment.difference(torch.as_tensor(run(inputs)), wanted)
                    worst[which] = max(worst[which], gap)
                    calls[kind] = functools.partial(run, inputs)
                times, busy = timer(torch.device("cpu"), threads, options.seconds)(calls, options.rounds)
            size = ", ".join("x".join(map(str, tensor.shape)) for tensor in exportable.tensors(inputs)[:1])
            row = {"network": name, "input": size, "threads": threads, "busy": busy, **worst}
            row |= {str(kind): spent for kind, spent in times.items()}
            row["pt2 gain"] = times["eager"] / times[PROGRAM]
            if exporting.SKIP in times:
                row["skip gain"] = times["eager"] / times[exporting.SKIP]
                row["best"] = times[exporting.DENSE] / min(times[exporting.SKIP], times[exporting.PLAIN])
            yield row


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="LINE", help="flags of retrain/export.py that name a network")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the timing of a row, about (default: 20)")
    parser.add_argument("--out", type=Path, default=None, help="json file of the figures")
    options = parser.parse_args(argv)
    found = []
    for name, exportable, inputs in networks(options.networks):
        for row in rows(name, exportable, inputs, options):
            found.append(row)
            say(markdown_table([row], COLUMNS).splitlines()[-1], sys.stderr)  # as they come
    say(markdown_table(found, COLUMNS))
    say(f"busy: {max(row['busy'] for row in found):.1f} times a quiet machine's time at most")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
