"""One thread, as on a small machine: kernels that skip and whole networks, dense beside sparse, medians of one run.

    python bench/one_thread.py                                        layers, a block, whole networks
    python bench/one_thread.py --weights smsr_x2.pt --run runs/NAME   with trained networks where there are some

Layers: one sparse mask convolution, half of its channels dense, at some kept fractions. Networks: with random weights,
or trained ones; each beside its own dense form, which is optimised likewise. *gain*: dense over sparse; *efficiency*:
that over the gain in executed multiply-adds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsemask import spaces
from sparsemask.inference import optimize_for_inference
from sparsemask.sparse import SparseMaskConv, backend
from sparsemask.tables import table
from sparsemask.timing import compare
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask

LAYERS = {  # channels in and out, kernel, height and width
    "1x1, 64 to 64": (64, 64, 1, 64),
    "3x3, 64 to 64": (64, 64, 3, 64),
    "3x3, 32 to 32": (32, 32, 3, 128),
}
COLUMNS = {
    "what": "what", "kept": ("kept", ".2f"), "dense": ("dense ms", ".2f"), "sparse": ("sparse ms", ".2f"),
    "gain": ("gain", ".2f"), "efficiency": ("efficiency", ".2f"),
}  # fmt: skip


def row(what: str, dense, sparse, x, rounds: int, kept: float | None = None) -> dict:
    """Both functions on x, in turn, and their multiply-adds."""
    with torch.inference_mode():
        counts = [_count(one, x) for one in (dense, sparse)]
        times = compare({"dense": lambda: dense(x), "sparse": lambda: sparse(x)}, rounds=rounds)
    flops = counts[0] / max(counts[1], 1)
    gain = times["dense"] / times["sparse"]
    return {"what": what, "kept": kept, **times, "gain": gain, "efficiency": gain / flops}


def _count(call, x) -> int:
    with FlopCounterMode(display=False) as counter:
        call(x)
    return counter.get_total_flops()


def layers(rounds: int, shares: list[float]) -> list[dict]:
    """Lone layers by the native kernels."""
    return [_layer(name, share, rounds) for name in LAYERS for share in shares]


def _layer(name: str, share: float, rounds: int) -> dict:
    inputs, outputs, kernel, size = LAYERS[name]
    layer = SparseMaskConv(inputs, outputs, kernel).eval().requires_grad_(False)
    plain = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.ReLU(inplace=True))
    plain = plain.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    ins, outs = (torch.arange(n) % 2 == 0 for n in (inputs, outputs))
    mask = _blobs(size, share)
    x = (torch.randn(1, inputs, size, size) * (mask | ins.view(1, -1, 1, 1))).contiguous(
        memory_format=torch.channels_last
    )
    with backend("native"):
        return row(name, plain, lambda y: layer(y, mask, ins, outs), x, rounds, share)


def _blobs(size: int, share: float) -> Tensor:
    """A mask (1, 1, size, size) of smooth shapes that keeps that share."""
    torch.manual_seed(0)
    smooth = nn.functional.interpolate(torch.randn(1, 1, size // 8, size // 8), (size, size), mode="bicubic")
    return smooth > smooth.flatten().quantile(1 - share)


def networks(options: argparse.Namespace) -> list[dict]:
    """Whole networks."""
    torch.manual_seed(0)
    size, found = options.size, []
    picture = torch.randn(1, 3, size, size)
    forms = {
        name: optimize_for_inference(PrunedNetwork(named_mask(name, 9)).eval(), picture, compiled=False)
        for name in ("dense", "sparsemask-voc")
    }
    what = f"published connections, {size}x{size}"
    found.append(row(what, forms["dense"], forms["sparsemask-voc"], picture, options.rounds))
    if options.weights:
        space = spaces.get("smsr")
        net = space.load(options.weights).network
        small = 255 * torch.rand(1, 3, size // 4, size // 4)
        found.append(row(f"SMSR, {size // 4}x{size // 4}, noise", space.dense_form(net), net, small, options.rounds))
    if options.run:
        space = spaces.get("specialized")
        net = space.load(Path(options.run) / "network.safetensors").network
        given = picture.contiguous(memory_format=torch.channels_last)
        dense, sparse = space.dense_form(net), space.fast_form(net)
        found.append(row(f"specialised, {size}x{size}", dense, sparse, given, options.rounds))
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7])
    parser.add_argument("--size", type=int, default=256, help="of the networks' pictures (default: 256)")
    parser.add_argument("--weights", default=None, help="SMSR's checkpoint or safetensors")
    parser.add_argument("--run", default=None, help="a specialised run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"one thread, medians of {options.rounds} rounds in turn\n")
    print(table([*layers(options.rounds, options.shares), *networks(options)], COLUMNS))


if __name__ == "__main__":
    main()
