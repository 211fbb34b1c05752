"""Targets in milliseconds: what was asked for, what the report says, and the finished network measured again by itself.

    python bench/shrink_time.py                              three networks, four shares of the whole time each
    python bench/shrink_time.py --networks timm/resnet50 --shares 0.5 --load 2

`--load N` keeps N processes busy beside it, as on a machine that others use. One thread; an error is that of the second
measurement against the target.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import sparsemask  # noqa: I001  (before torch: it says how threads wait)
import torch

from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.shrinking.fitting import time_networks
from sparsemask.tables import markdown_table
from sparsemask.timing import timer
from zoo_networks import NAMES, build

_LOAD = "import torch; torch.set_num_threads(1); x = torch.randn(700, 700)\nwhile True: x = torch.tanh(x @ x)"
_WITHIN = 0.05


def rows(name: str, shares: list[float], side: int) -> list[dict]:
    """A row for every share of a network's time."""
    network, x = build(name, side)
    inputs, clock, result = Inputs.of(x), timer(x.device, 1, 3.0), []
    for share in shares:
        target = share * time_networks({"whole": network}, inputs, clock)[0]["whole"]
        begun = time.perf_counter()
        small = sparsemask.shrink(network, x, f"{target:.6f} ms").eval()
        seconds = time.perf_counter() - begun
        times, busy = time_networks({"small": small}, inputs, clock)
        row = {"network": name, "target": target, "said": small.report.after.milliseconds, "again": times["small"]}
        result.append({**row, "error": times["small"] / target - 1, "busy": busy, "seconds": seconds})
        print(result[-1], file=sys.stderr, flush=True)
    return result


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", choices=NAMES, metavar="NAME", default=["timm/resnet18", "sr/EDSR", "sr/RCAN"]
    )
    parser.add_argument("--shares", nargs="+", type=float, default=[0.9, 0.75, 0.6, 0.45])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--load", type=int, default=0, help="busy processes beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    others = [subprocess.Popen([sys.executable, "-c", _LOAD]) for _ in range(options.load)]
    try:
        found = [row for name in options.networks for row in rows(name, options.shares, options.side)]
    finally:
        for process in others:
            process.kill()
    columns = {
        "network": "network",
        "target": ("target ms", ".2f"),
        "said": ("report ms", ".2f"),
        "again": ("measured again", ".2f"),
        "error": ("error", "+.1%"),
        "busy": ("wall / processor", ".1f"),
        "seconds": ("took s", ".0f"),
    }
    print(markdown_table(found, columns))
    print(f"\n{sum(abs(row['error']) <= _WITHIN for row in found)} of {len(found)} within {_WITHIN:.0%}")


if __name__ == "__main__":
    main()
