"""Sparse mask convolution against the clock: ratios of one run, medians.

    python bench/sparse.py smsr --weights smsr_x2.pt --pictures set5      SMSR on pictures
    python bench/sparse.py types --weights smsr_x2.pt --pictures set5     float32, bfloat16 and int8 in turn
    python bench/sparse.py layers                                         one layer: kernels, channels, sizes, shares
    python bench/sparse.py auto --count 200                               is `auto` ever slower than dense?
    python bench/sparse.py memory --weights smsr_x2.pt --pictures set5    peak memory, each form in a process of its own

--out FOLDER keeps tables (Markdown), figures (json) and plots. --threads (default: 2) is what the targets speak of.
*Efficiency* is the gain in time over the gain in executed multiply-adds: 1 means that skipping costs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from bench import sparse_auto, sparse_layers, sparse_smsr
from bench.connectivity import high_water
from bench.sparse_plots import draw_efficiency, draw_smsr
from sparsemask.backends.native import tiles
from sparsemask.sparse import backend
from sparsemask.tables import markdown_table


def smsr(options: argparse.Namespace) -> dict:
    """SMSR on every picture."""
    rows = sparse_smsr.run(options.weights, options.pictures, options.rounds, not options.eager, options.backends)
    for name in ("native", "auto"):
        for row in rows:
            if f"gain {name}" in row:
                row[f"efficiency {name}"] = row[f"gain {name}"] / row["flop_gain"]
                row[f"over public {name}"] = row["ms public style"] / row[f"ms {name}"]
    told = {"picture": "picture", "size": "size", "kept": "kept", "flop_gain": "FLOP gain"}
    told |= {k: k.removeprefix("ms ") + " ms" for k in rows[0] if k.startswith("ms ")}
    told |= {f"gain {n}": f"dense / {n}" for n in ("public style", *options.backends) if f"gain {n}" in rows[0]}
    told |= {k: k.replace("over public", "public style /") for k in rows[0] if k.startswith("over public")}
    told |= {k: k for k in rows[0] if k.startswith("efficiency")}
    show(rows, told)
    for name, published in sparse_smsr.PUBLISHED_RATIO.items():
        found = next((r["public_ratio"] for r in rows if name in r["picture"]), None)
        if found:
            print(f"public style / dense on {name}: {found:.2f} here, {published:.2f} as described elsewhere")
    if options.out:
        draw_smsr(rows, Path(options.out) / "smsr.png", options.backends)
    return {"rows": rows}


def types(options: argparse.Namespace) -> dict:
    """SMSR in every arithmetic."""
    with tiles.using(options.products) if options.products else contextlib.nullcontext("the processor's") as by:
        rows = sparse_smsr.run_types(options.weights, options.pictures, options.rounds, options.seconds)
    print(f"bfloat16 by {by}")
    show(rows, {key: key for key in rows[0]})
    return {"rows": rows}


def layers(options: argparse.Namespace) -> dict:
    """The sweep."""
    o = options
    rows = sparse_layers.sweep(o.kernels, o.channels, o.sizes, o.shares, o.kinds, o.rounds)
    told = {k: k for k in ("kernel", "channels", "size", "mask", "kept")} | {"ms dense": "dense ms"}
    told |= {k: k for k in rows[0] if k.startswith(("gain", "efficiency")) and "dense" not in k}
    show(rows, told)
    if options.out:
        draw_efficiency(rows, Path(options.out) / "layers.png")
    return {"rows": rows}


def auto(options: argparse.Namespace) -> dict:
    """Random configurations."""
    found = sparse_auto.run(options.count, options.rounds, options.seed)
    for key, value in found.items():
        if key != "worst":
            print(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}")
    show(found["worst"], {k: k for k in found["worst"][0]})
    return found


def memory(options: argparse.Namespace) -> dict:
    """Peak resident memory of one picture, by form."""
    found = {}
    for form in ("dense", "sparse"):
        call = [sys.executable, __file__, "memory-of", "--form", form, "--weights", options.weights]
        call += ["--pictures", options.pictures, "--threads", str(options.threads)]
        found[form] = float(subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()[-1])
    print(f"peak beyond start: dense {found['dense']:.0f} MB, sparse {found['sparse']:.0f} MB")
    print(f"sparse / dense: {found['sparse'] / found['dense']:.2f}")
    return found


@torch.inference_mode()
def memory_of(options: argparse.Namespace) -> dict:
    """For `memory`: this process's peak over what it held before the largest picture."""
    _, model = sparse_smsr.networks(options.weights)
    x = max(sparse_smsr.pictures(options.pictures).values(), key=torch.Tensor.numel)
    x = x.contiguous(memory_format=torch.channels_last)
    call = sparse_smsr.DenseForm(model) if options.form == "dense" else model
    with backend("native"):
        call(x[..., :32, :32])  # libraries are loaded, kernels built
        before = high_water()
        for _ in range(3):
            call(x)
    print(high_water() - before)
    return {}


def show(rows: list[dict], columns: dict) -> None:
    """Print a Markdown table."""
    text = lambda v: f"{v:.0f}" if isinstance(v, float) and v >= 100 else f"{v:.2f}" if isinstance(v, float) else v
    print(markdown_table([{k: text(r.get(k, "")) for k in columns} for r in rows], columns))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smsr", "types", "layers", "auto", "memory", "memory-of"))
    parser.add_argument("--weights", help="SMSR's x2 checkpoint")
    parser.add_argument("--pictures", help="folder of low-resolution pictures, or a benchmark's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10.0, help="types: for each picture about (default: 10)")
    parser.add_argument(
        "--products", choices=("amx", "dot"),
        help="types: what bfloat16 is computed by (default: the processor's best); torch's says ONEDNN_MAX_CPU_ISA",
    )  # fmt: skip
    parser.add_argument("--eager", action="store_true", help="smsr: without torch.compile")
    parser.add_argument("--backends", nargs="+", default=["reference", "gather", "native", "auto"])
    parser.add_argument("--kernels", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.3, 0.5, 0.7, 1.0])
    parser.add_argument("--kinds", nargs="+", default=["random", "blob"])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--form", default="sparse", help=argparse.SUPPRESS)
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    if options.what in ("smsr", "types", "memory") and not (options.weights and options.pictures):
        parser.error(f"{options.what} needs --weights and --pictures")
    torch.set_num_threads(options.threads)
    if options.out:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    if options.what not in ("types", "memory-of"):
        print(f"{options.threads} threads, medians of {options.rounds} rounds\n")
    commands = {"smsr": smsr, "types": types, "layers": layers, "auto": auto, "memory": memory, "memory-of": memory_of}
    found = commands[options.what](options)
    if options.out and options.what != "memory-of":
        (Path(options.out) / f"{options.what}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
