"""SMPointSeg: time and memory of inference, of a training step and of a whole scan, and what masks save.

    python bench/points.py                          everything, both sides in one run, medians
    python bench/points.py --scan FILE.bin          on another scan than the first of $SPARSEMASK_DATA

Weights are random, the points real: a crop of a SemanticKITTI scan, 45 056 points 6 cm apart. Memory is the most that a
process of its own holds, torch included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from bench.point_forms import public_style  # noqa: E402
from sparsemask.spaces.smpointseg.network import CONFIGS  # noqa: E402
from sparsemask.spaces.sparse_conv import Reading, SMPointSeg  # noqa: E402
from sparsemask.spaces.sparse_conv.masking import mean_kept  # noqa: E402
from sparsemask.sparse import backend  # noqa: E402
from sparsemask.tables import table  # noqa: E402
from sparsemask.tasks.points.clouds.cloud import read_cloud  # noqa: E402
from sparsemask.tasks.points.clouds.grid import grid_subsample  # noqa: E402
from sparsemask.tasks.points.data import CropSettings, Pick, cut  # noqa: E402

POINTS, GRID = 45_056, 0.06
FORMS = ("ours", "public style")


def the_crop(path: Path, seed: int = 0):
    """The points nearest to a point near the sensor, as the network takes them."""
    cloud = read_cloud(path)
    xyz = grid_subsample(cloud.xyz, GRID)[0]
    centre = xyz[np.argmin((xyz**2).sum(1))]
    near = np.argpartition(((xyz - centre) ** 2).sum(1), POINTS)[:POINTS]
    settings = CropSettings(POINTS, 16, 4, 4, colours=False, centred=False)
    thin = type(cloud)(cloud.name, xyz)
    return cut(thin, Pick(0, near, centre), settings, np.random.default_rng(seed), training=False)[0]


def the_network(form: str, training: bool = False) -> SMPointSeg:
    """A network of the published configuration."""
    torch.manual_seed(0)
    reading = Reading() if form == "ours" else Reading(s2d="full", point_mask="all")
    return SMPointSeg(**CONFIGS["semantickitti"], reading=reading).train(training)


def calls(form: str, what: str, crop):
    """The function that is timed."""
    network = the_network(form, what == "training step")
    if what == "inference":

        def run():
            with torch.no_grad():
                return network(crop)
    else:
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        labels = torch.from_numpy(np.random.default_rng(0).integers(0, 19, (1, POINTS)))

        def run():
            optimizer.zero_grad()
            (F.cross_entropy(network(crop), labels) + 0.06 * mean_kept(network)).backward()
            optimizer.step()

    if form == "ours":
        return run

    def literal():
        with public_style():
            return run()

    return literal


def seconds(run) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def child(form: str, what: str, path: Path) -> None:
    """Print the most that a process doing nothing else holds, torch included, in MB."""
    run = calls(form, what, the_crop(path))
    Path("/proc/self/clear_refs").write_text("5")  # from here on
    for _ in range(3):
        run()
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)


def memory(form: str, what: str, path: Path) -> float:
    """Of a process of its own, in MB."""
    command = [sys.executable, __file__, "--scan", str(path), "--child", form, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def compare(path: Path, crop, rounds: int) -> None:
    """Ours beside the public style."""
    rows = []
    for what in ("inference", "training step"):
        runs = {form: calls(form, what, crop) for form in FORMS}
        for run in runs.values():
            run()
        times = {form: [] for form in FORMS}
        for _ in range(rounds):
            for form in FORMS:
                for _ in range(3 if form == "ours" else 1):
                    times[form].append(seconds(runs[form]))
        for form in FORMS:
            rows.append({"what": what, "form": form, "s": statistics.median(times[form])})
            rows[-1]["mb"] = memory(form, what, path)
        rows[-2]["gain"] = rows[-1]["s"] / rows[-2]["s"]
        rows[-1]["gain"] = 1.0
    columns = {"what": "what", "form": "form", "s": ("seconds", ".3f"), "mb": ("MB", ".0f"), "gain": ("gain", ".2f")}
    print(table(rows, columns))


def settle(network: SMPointSeg, dense: float, points: float) -> None:
    """Masks drawn at random: a share of dense channels, a share of kept points. The branches run as ever."""
    draw = torch.Generator().manual_seed(1)
    for block in network.encoder:
        chosen = (torch.rand(block.ch_mask.shape[:2], generator=draw) < dense).float()
        block.ch_mask.data.copy_(torch.stack([chosen, 1 - chosen], -1))
        locate = type(block)._locate

        def drawn(rows, level, block=block, locate=locate):
            locate(block, rows, level)
            keep = (torch.rand(len(rows), 1, generator=torch.Generator().manual_seed(2)) < points).float()
            return torch.cat([1 - keep, keep], 1)

        block._locate = drawn


@torch.no_grad()
def saved(crop, rounds: int) -> None:
    """Time against all kept, at several ways of keeping less, beside the executed multiply-adds."""
    ways = [(1.0, 1.0), (0.25, 0.27), (0.1, 0.39), (0.45, 0.0), (0.0, 0.45), (0.5, 0.5), (0.1, 0.1)]
    networks, rows, times = [], [], [[] for _ in ways]
    for dense, points in ways:
        network = the_network("ours")
        settle(network, dense, points)
        with FlopCounterMode(display=False) as counter:
            network(crop)
        networks.append(network)
        kept = float(mean_kept(network))
        rows.append({"dense": dense, "points": points, "kept": kept, "g": counter.get_total_flops() / 2e9})
    for _ in range(rounds):
        for network, spent in zip(networks, times, strict=True):
            spent.append(min(seconds(lambda n=network: n(crop)) for _ in range(2)))
    for row, spent in zip(rows, times, strict=True):
        row["ms"] = 1e3 * statistics.median(spent)
        row["gain"] = statistics.median(a / b for a, b in zip(times[0], spent, strict=True))
        row["flops"] = rows[0]["g"] / row["g"]
        row["share"] = row["gain"] / row["flops"]
    columns = {
        "dense": ("dense channels", ".2f"), "points": ("kept points", ".2f"), "kept": ("kept fraction", ".3f"),
        "g": ("G multiply-adds", ".2f"), "ms": ("ms", ".1f"), "flops": ("gain in multiply-adds", ".2f"),
        "gain": ("gain in time", ".2f"), "share": ("time / multiply-adds", ".2f"),
    }  # fmt: skip
    print(table(rows, columns))


def whole(path: Path, rounds: int) -> None:
    """From the file to a class for each of its points."""
    from types import SimpleNamespace

    from sparsemask.devices import arithmetic
    from sparsemask.tasks.points.whole import recipe, segment

    network = the_network("ours")
    made = recipe(network, {}, "random weights")
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        cloud = read_cloud(path)
        read = time.perf_counter() - began
        done = segment(cloud, network, made, arithmetic(-1), False, lambda one: float(mean_kept(one)))
        found.append(SimpleNamespace(whole=time.perf_counter() - began, steps={"read": read, **done.seconds}))
    found.sort(key=lambda one: one.whole)
    middle = found[len(found) // 2]
    said = ", ".join(f"{name} {spent:.3f}" for name, spent in middle.steps.items())
    print(f"whole scan, {len(cloud)} points: {middle.whole:.2f} s ({said})")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    path = options.scan
    if path is None:
        root = Path(os.environ.get("SPARSEMASK_DATA", "../shared/data"))
        path = root / "semantickitti_sample/sequences/00/velodyne/000000.bin"
    if options.child:
        child(*options.child, path)
        return
    crop = the_crop(path)
    with backend("auto"):
        compare(path, crop, options.rounds)
        saved(crop, 3 * options.rounds)
        whole(path, options.rounds)


if __name__ == "__main__":
    main()
