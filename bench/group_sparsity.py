"""Time of a network without a share of its inner filters, or of its blocks, beside the plain one: both folded, in turn.

    python bench/group_sparsity.py --compiled --threads 2       ResNet-56, half of the filters, batch 1 and 128
    python bench/group_sparsity.py --arch resnet20 --share 0.25 --batch 8
    python bench/group_sparsity.py --variant blocks --share 0.67 --batch 1      two of three residual blocks

Random weights: time does not ask what they are. Filters are kept in eights, the block of channels of most CPUs, at
least eight a layer; channels that shortcuts tie together all stay. Blocks are kept evenly over the depth. A bound on
what pruning to that share gains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import numpy as np
import torch

from sparsemask import spaces
from sparsemask.spaces.group_sparsity.fast import compare_times
from sparsemask.masks.groups import GroupMask
from sparsemask.spaces.group_sparsity.reduction import Reduction
from sparsemask.tables import table

EIGHT = 8


def narrowed(reduction: Reduction, share: float) -> dict[str, np.ndarray]:
    """By set: the first filters, a share of all in eights; all where more than one layer makes the channels.

    Of residual blocks the share, evenly spread.
    """
    kept = {}
    for one in reduction.sets:
        if one.branches:
            kept[one.name] = np.diff(np.floor(np.arange(one.count + 1) * share + 0.5)) > 0
            continue
        count = one.count if len(one.members) > 1 else max(EIGHT, round(one.count * share / EIGHT) * EIGHT)
        kept[one.name] = np.arange(one.count) < count
    return kept


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet56")
    parser.add_argument("--variant", default="channels", choices=("channels", "blocks", "channels+blocks"))
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    space = spaces.get("hinge")
    config = space.config({"arch": options.arch, "variant": options.variant})
    hinged = space.hinged(space.plain(config), config)
    hinged.network.eval()
    kept = narrowed(hinged.reduction, options.share)
    small = space.compressed(hinged, GroupMask(config, kept, ())).network
    ratio = hinged.reduction.ratio(kept, "multiply-adds")
    rows = []
    for batch in options.batch:
        networks = {"plain": space.plain(config), "small": small}
        place = (batch, torch.device("cpu"), options.compiled)
        times = compare_times(networks, config["input_shape"], *place, rounds=options.rounds)
        rows.append({"batch": batch, "multiply-adds": ratio, **times, "gain": times["plain"] / times["small"]})
    titles = {"plain": ("plain ms", ".2f"), "small": ("small ms", ".2f"), "gain": ("gain", ".2f")}
    print(table(rows, {"batch": "batch", "multiply-adds": ("multiply-adds", ".1%"), **titles}))


if __name__ == "__main__":
    main()
