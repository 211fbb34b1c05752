"""Products of kept rows alone against torch's dense convolution, in float32, bfloat16 and int8, on one thread.

    python bench/kernels.py
    python bench/kernels.py --layers 64-64 64-16 --size 128 --shares 0.1 0.5 1 --kinds blob random --types float32
    python bench/kernels.py --types bfloat16 int8
    python bench/kernels.py --types float32 --before SRC      beside kernels of other sources (backends/native/src)

A 3x3 layer as it runs inside a module: lists made before, rows in, rows out; what is dropped has no features. *share*:
the dense convolution's time times the share kept, over the product's, 1 where what is kept is computed at the dense
rate. All are called in turn; the time is the thread's processor time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import torch
import torch.nn.functional as F

from bench.sparse_layers import inside, inside_packed, mask_of
from sparsemask.backends.native import build, library, tiles
from sparsemask.files import write_json
from sparsemask.sparse import Geometry
from sparsemask.tables import table
from sparsemask.timing import BUSY, timer

TYPES = {"float32": torch.float32, "bfloat16": tiles.BFLOAT16, "int8": tiles.INT8}
APART = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.1}  # from the dense convolution at most
LAYERS = ("32-32", "64-64", "128-128", "64-16", "48-48", "16-16")


def kernels_of(folder: str) -> dict:
    """The library that serves, and that of other sources with the same entries, built where it is not yet."""
    own = library.lib()
    sources, build.SOURCES = build.SOURCES, Path(folder).resolve()
    try:
        with library.using(build.Form()) as loaded:
            return {"product": own, "before": loaded}
    finally:
        build.SOURCES = sources


def served(loaded, product):
    """A product by the kernels of a library."""

    def run():
        with library.serving(loaded, build.Form()):
            return product()

    return run


def dense_of(name: str, x: torch.Tensor, weight: torch.Tensor):
    """Torch's convolution with ReLU, by oneDNN; in int8 from numbers in int8 to such."""
    if name != "int8":
        return lambda: F.relu_(F.conv2d(x, weight, padding=1))
    torch.backends.quantized.engine = "onednn"
    scale = weight.float().abs().amax((1, 2, 3)) / 127
    numbers = torch.quantize_per_tensor(x.float(), float(x.abs().max()) / 127, 128, torch.quint8)
    factors = torch.quantize_per_channel(weight.float(), scale, torch.zeros(len(scale)).long(), 0, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(factors, None, [1, 1], [1, 1], [1, 1], 1)
    return lambda: torch.ops.quantized.conv2d_relu(numbers, packed, 6 / 255, 0)


def functions(inputs: int, outputs: int, size: int, kept: float, kind: str, types: list[str], before: dict) -> dict:
    """Dense convolution and products by (type, which); each product is compared with the convolution once.

    before: what :func:`kernels_of` gives, or empty.
    """
    torch.manual_seed(0)
    mask, geometry, found = mask_of(kind, size, kept), Geometry.of(2, 3), {}
    x = (torch.randn(1, inputs, size, size) * mask).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)).contiguous(memory_format=torch.channels_last)
    for name in types:
        of_x = torch.float32 if name == "float32" else torch.bfloat16
        own, factor = x.to(of_x), weight.to(of_x)
        dense = dense_of(name, own, factor)
        if name == "float32":
            product, values = inside(own, factor, mask, geometry), torch.Tensor.float
        else:
            product, values = inside_packed(own, factor, mask, geometry, TYPES[name])
        wanted = F.relu(F.conv2d(own.float(), factor.float(), padding=1)).movedim(1, -1)[mask[:, 0]]
        # The first call after another function finds nothing of its own in the caches: not counted.
        found |= {(name, "dense first"): dense, (name, "dense"): dense}
        found |= {(name, "product first"): product, (name, "product"): product}
        found |= {(name, which): served(loaded, product) for which, loaded in before.items()}
        for which in {"product", *before}:
            assert torch.allclose(values(found[name, which]()), wanted, atol=APART[name]), which
    return found


def rows(options: argparse.Namespace) -> tuple[list[dict], float]:
    """A row for every layer, share and kind of mask; how busy the machine was at most."""
    before = options.kernels
    time, found, most = timer(torch.device("cpu"), 1, options.seconds), [], 0.0
    for layer in options.layers:
        inputs, outputs = map(int, layer.split("-"))
        for kind in options.kinds:
            for kept in options.shares:
                with torch.inference_mode():
                    calls = functions(inputs, outputs, options.size, kept, kind, options.types, before)
                times, busy = time(calls, options.rounds)
                row, most = {"layer": layer, "mask": kind, "kept": kept}, max(most, busy)
                for name in options.types:
                    dense, product = times[name, "dense"], times[name, "product"]
                    row |= {f"{name} dense": dense, name: product, f"{name} share": dense * kept / product}
                    if before:
                        row |= {"before": times[name, "before"], "before share": dense * kept / times[name, "before"]}
                if len(options.types) > 1:
                    row["gain"] = times[options.types[0], "product"] / times[options.types[-1], "product"]
                found.append(row)
    return found, most


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=LAYERS, metavar="IN-OUT", help="channels")
    parser.add_argument("--size", type=int, default=128, help="of the feature maps (default: 128)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5, 1.0])
    parser.add_argument("--kinds", nargs="+", choices=("blob", "random"), default=["blob"])
    parser.add_argument("--types", nargs="+", choices=tuple(TYPES), default=["float32", "bfloat16"])
    parser.add_argument("--before", default=None, metavar="SRC", help="sources of other kernels, for float32 alone")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each (default: 20)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row at most (default: 2)")
    parser.add_argument("--json", default=None, help="file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.types:
        if name != "float32" and tiles.in_use(TYPES[name]) == "none":
            parser.error(f"this processor has no kernels in {name}: choose other --types")
    if options.before and options.types != ["float32"]:
        parser.error("--before goes with --types float32")
    try:
        options.kernels = kernels_of(options.before) if options.before else {}
    except (AttributeError, OSError) as error:  # of another version, or with other entries
        parser.error(f"--before: {error}")
    found, busy = rows(options)
    columns = {"layer": "layer", "mask": "mask", "kept": ("kept", ".1f")}
    for name in options.types:
        columns |= {
            f"{name} dense": (f"{name}, dense ms", ".2f"),
            name: ("ours ms", ".3f"),
            f"{name} share": ("share", ".2f"),
        }
    if options.before:
        columns |= {"before": ("before ms", ".3f"), "before share": ("share", ".2f")}
    if len(options.types) > 1:
        columns["gain"] = (f"{options.types[0]} / {options.types[-1]}", ".2f")
    print(table(found, columns))
    said = [f"{name} by {tiles.in_use(TYPES[name])}" for name in options.types if name != "float32"]
    said.append(f"busy: {busy:.1f} times a quiet machine's time at most (noise from {BUSY})")
    print("; ".join(said))
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
