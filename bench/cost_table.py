"""Predicted against measured milliseconds of random masks, by picture size and number of threads.

    python bench/cost_table.py --sizes 97 256 512 --threads 1 2 --masks 50 --out results.md
    python bench/cost_table.py --wide                            decoders of the wider space

Tables come from the cache (`sparsemask.spaces.connectivity.cost_table`) or are measured first; --anew measures them in
any case. Networks are timed in turn, in the form in which the table predicts them. With one thread, processor time
counts, which is right on a busy machine too; with several it is the clock, which is right on an idle machine alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import numpy as np
import torch

from sparsemask.inference import Form, optimize_for_inference
from sparsemask.masks.decoder import DecoderMask
from sparsemask.spaces.backbones import strides
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.connectivity.cost_measure import timer
from sparsemask.spaces.connectivity.cost_table import CostTable, cost_table
from sparsemask.spaces.connectivity.named_masks import random_decoder
from sparsemask.tables import markdown_table

COLUMNS = {
    "size": "picture",
    "threads": "threads",
    "fastest": "least ms",
    "slowest": "most ms",
    "median": "median error",
    "ninety": "nine in ten below",
    "worst": "worst",
    "busy": "busy",
    "seconds": "table measured in",
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


def measured(table: CostTable, masks: Sequence[np.ndarray | DecoderMask], rounds: int) -> tuple[np.ndarray, float]:
    """Milliseconds of the networks of masks, and how busy the machine was."""
    key = table.key
    example = torch.rand(1, key.in_channels, *key.size)

    def call(form: Form) -> Callable[[], object]:
        return lambda: form(example)

    functions = {}
    for number, mask in enumerate(masks):
        net = PrunedNetwork(mask, key.backbone, key.depth, key.in_channels, key.n_class)
        form = optimize_for_inference(net, example, compiled=False, channels_last=table.channels_last)
        functions[number] = call(form)
    times, busy = timer(torch.device("cpu"), key.threads)(functions, rounds)
    return np.array([times[number] for number in range(len(masks))]), busy


def row(options: argparse.Namespace, size: int, threads: int) -> dict[str, str]:
    """One line of the table: errors of the predictions for one size and number of threads."""
    begun = time.perf_counter()
    make = CostTable.measure if options.anew else cost_table
    table = make(options.backbone, (size, size), threads=threads)
    seconds = time.perf_counter() - begun
    masks: Sequence[np.ndarray | DecoderMask] = random_masks(options.masks, len(table.geometry))
    if options.wide:
        masks = random_decoders(options.masks, strides(options.backbone))
    ms, busy = measured(table, masks, options.rounds)
    errors = np.abs(np.array([table.predict(mask) for mask in masks]) / ms - 1) * 100
    values = {"size": f"{size}x{size}", "threads": str(threads), "busy": f"{max(busy, table.busy):.2f}"}
    values |= {"fastest": f"{ms.min():.1f}", "slowest": f"{ms.max():.1f}", "seconds": f"{seconds:.0f} s"}
    values |= {"median": f"{np.median(errors):.1f} %", "ninety": f"{np.quantile(errors, 0.9):.1f} %"}
    return values | {"worst": f"{errors.max():.1f} %"}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[97, 256, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--masks", type=int, default=50, help="random masks a line")
    parser.add_argument("--wide", action="store_true", help="random decoders of the wider space")
    parser.add_argument("--rounds", type=int, default=7, help="times that every network is timed")
    parser.add_argument("--anew", action="store_true", help="measure the tables, whatever the cache holds")
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
