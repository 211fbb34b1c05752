"""Predicted against measured milliseconds of random masks, by picture size and number of threads.

    python bench/cost_table.py --sizes 97 256 512 --threads 1 2 --masks 50 --out results.md
    python bench/cost_table.py --wide                            decoders of the wider space

A table is measured anew, and the networks are timed in turn with what the table is made of, because a shared machine's
speed drifts by some percent from minute to minute. They are networks that do not calibrate it. The column "kept table"
has the median error of the table in the cache (`sparsemask.spaces.connectivity.cost_table`), which is of another time
and so has that drift in it. With one thread processor time counts, with several the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import numpy as np
import torch

from sparsemask.inference import optimize_for_inference
from sparsemask.masks.decoder import DecoderMask
from sparsemask.spaces.backbones import strides
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.connectivity.cost_table import CostTable, cost_table
from sparsemask.spaces.connectivity.named_masks import random_decoder
from sparsemask.tables import markdown_table
from sparsemask.timing import Functions, timer

COLUMNS = {
    "size": "picture",
    "threads": "threads",
    "fastest": "least ms",
    "slowest": "most ms",
    "median": "median error",
    "ninety": "nine in ten below",
    "worst": "worst",
    "kept": "kept table",
    "busy": "busy",
    "seconds": "measured in",
}


def random_masks(count: int, length: int, seed: int = 0) -> list[np.ndarray]:
    """Masks with 1 to two thirds of all connections, none of which calibrates a table."""
    rng = np.random.default_rng(seed)
    most = length * (length + 1) * 2 // 3
    return [named_mask(f"random-{rng.integers(1, most + 1)}", length, 10_000 + n) for n in range(count)]


def random_decoders(count: int, strides: list[int], seed: int = 1) -> list[DecoderMask]:
    """Decoders of the wider space, none of which calibrates a table."""
    rng = np.random.default_rng(seed)
    return [random_decoder(rng, len(strides), strides) for _ in range(count)]


class Together:
    """A timer that times some networks in every round in which it times a table's steps.

    Args:
        networks: functions that call them, by number.
        threads: of torch.
    """

    def __init__(self, networks: Mapping[int, Callable[[], object]], threads: int):
        self.networks, self._timer = networks, timer(torch.device("cpu"), threads)
        self.ms = np.zeros(len(networks))

    def __call__(self, functions: Functions, rounds: int) -> tuple[dict[Hashable, float], float]:
        times, busy = self._timer({**functions, **self.networks}, rounds)
        self.ms = np.array([times.pop(number) for number in self.networks])
        return times, busy


def network(table: CostTable, mask: np.ndarray | DecoderMask, example: torch.Tensor) -> Callable[[], object]:
    """The call of a mask's network, in the form that the table predicts."""
    key = table.key
    net = PrunedNetwork(mask, key.backbone, key.depth, key.in_channels, key.n_class)
    form = optimize_for_inference(net, example, compiled=False, channels_last=table.channels_last)
    return lambda: form(example)


def row(options: argparse.Namespace, size: int, threads: int) -> dict[str, str]:
    """One line of the table: errors of the predictions for one size and number of threads."""
    kept = cost_table(options.backbone, (size, size), threads=threads)
    masks: Sequence[np.ndarray | DecoderMask] = random_masks(options.masks, len(kept.geometry))
    if options.wide:
        masks = random_decoders(options.masks, strides(options.backbone))
    example = torch.rand(1, kept.key.in_channels, size, size)
    clock = Together({n: network(kept, mask, example) for n, mask in enumerate(masks)}, threads)
    begun = time.perf_counter()
    table = CostTable.measure(options.backbone, (size, size), threads=threads, clock=clock, rounds=options.rounds)
    seconds = time.perf_counter() - begun
    errors, old = (np.abs(np.array([t.predict(mask) for mask in masks]) / clock.ms - 1) * 100 for t in (table, kept))
    values = {"size": f"{size}x{size}", "threads": str(threads), "busy": f"{table.busy:.2f}"}
    values |= {"fastest": f"{clock.ms.min():.1f}", "slowest": f"{clock.ms.max():.1f}", "seconds": f"{seconds:.0f} s"}
    values |= {"median": f"{np.median(errors):.1f} %", "ninety": f"{np.quantile(errors, 0.9):.1f} %"}
    return values | {"worst": f"{errors.max():.1f} %", "kept": f"{np.median(old):.1f} %"}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[97, 256, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--masks", type=int, default=50, help="random masks a line")
    parser.add_argument("--wide", action="store_true", help="random decoders of the wider space")
    parser.add_argument("--rounds", type=int, default=7, help="times that everything is timed, at least")
    parser.add_argument("--out", help="also write the table to this file")
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        for threads in options.threads:
            rows.append(row(options, size, threads))
            print(rows[-1], flush=True)
    text = markdown_table(rows, COLUMNS)
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
