"""Targets in milliseconds: what was asked for, what the report says, and the finished network measured again by itself.

    python bench/shrink_time.py                              three networks, four shares of the whole time each
    python bench/shrink_time.py --networks timm/resnet50 --shares 0.5 --load 2

`--load N` keeps N processes busy beside it, as on a machine that others use. One thread. A time is the least of several
measurements spread over `--seconds`: of the whole network before, and of both in turn after. An error is that of the
finished network against the target. "Whole" is the control: how much the time of the whole network, which is the same,
has changed since it was measured for the report; no other time can be told more exactly than that. "Beside it" is the
error of the finished network's share of the whole one's time, which a change of the machine's speed leaves as it is.
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

_LOAD = """
import os, torch
torch.set_num_threads(1)
x, parent = torch.randn(700, 700), os.getppid()
while os.getppid() == parent:
    x = torch.tanh(x @ x)
"""
_WITHIN = 0.05


def least_times(networks: dict, inputs: Inputs, seconds: float) -> tuple[dict, float]:
    """Least milliseconds by name over some seconds, and how busy the machine was at most."""
    clock, times, busy = timer(torch.device("cpu"), 1, 1.0, warm=True), [], []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < seconds:
        measured = time_networks(networks, inputs, clock)
        times.append(measured[0])
        busy.append(measured[1])
        time.sleep(seconds / 40)
    return {name: min(window[name] for window in times) for name in networks}, max(busy)


def rows(name: str, shares: list[float], side: int, seconds: float) -> list[dict]:
    """A row for every share of a network's time."""
    network, x = build(name, side)
    inputs, result = Inputs.of(x), []
    for share in shares:
        before = least_times({"whole": network}, inputs, seconds)[0]["whole"]
        target, begun = share * before, time.perf_counter()
        small = sparsemask.shrink(network, x, f"{target:.6f} ms").eval()
        took = time.perf_counter() - begun
        times, busy = least_times({"small": small, "whole": network}, inputs, seconds)
        row = {"network": name, "target": target, "said": small.report.after.milliseconds, "again": times["small"]}
        error, drift = times["small"] / target - 1, times["whole"] / small.report.before.milliseconds - 1
        errors = {"error": error, "drift": drift, "beside": (1 + error) / (1 + drift) - 1}
        result.append({**row, **errors, "busy": busy, "took": took})
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
    parser.add_argument("--seconds", type=float, default=10, help="that a time is measured over")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    others = [subprocess.Popen([sys.executable, "-c", _LOAD]) for _ in range(options.load)]
    try:
        found = [row for name in options.networks for row in rows(name, options.shares, options.side, options.seconds)]
    finally:
        for process in others:
            process.kill()
    columns = {
        "network": "network",
        "target": ("target ms", ".2f"),
        "said": ("report ms", ".2f"),
        "again": ("measured again", ".2f"),
        "error": ("error", "+.1%"),
        "drift": ("whole", "+.1%"),
        "beside": ("beside it", "+.1%"),
        "busy": ("wall / processor", ".1f"),
        "took": ("took s", ".0f"),
    }
    print(markdown_table(found, columns))
    for key, of in (("error", "the target"), ("beside", "its share of the whole network's time")):
        print(f"\n{sum(abs(row[key]) <= _WITHIN for row in found)} of {len(found)} within {_WITHIN:.0%} of {of}")


if __name__ == "__main__":
    main()
