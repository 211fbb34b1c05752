"""Speed and memory of the connectivity family: ours beside the plain form, both sides in one run, medians and ratios.

    python bench/connectivity.py step                     the search step: forward, loss, backward, update
    python bench/connectivity.py inference [--compiled]   the derived network: plain eager / optimised
    python bench/connectivity.py loader --voc_root VOCdevkit    training pictures a second on one core

The plain form is the formulas by the letter (tests/literal_connectivity.py): every connection convolved, normalised,
upsampled and, for the step, checkpointed by itself, as the public implementation does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "tests")]

import sparsemask  # noqa: I001, F401  (before torch: it says how threads wait)
import numpy as np
import torch
import torch.nn.functional as F

import literal_connectivity as literal
from sparsemask.search.losses import sparse_loss
from sparsemask.inference import optimize_for_inference
from sparsemask.tables import table
from sparsemask.timing import compare
from sparsemask.spaces.connectivity import FullyDenseNetwork, PrunedNetwork, named_mask


def _stepper(kind: str, size: int, batch: int):
    """A function that does one training step of the given kind."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(0, 21, (batch, size, size))
    derived = kind == "derived"
    net = PrunedNetwork(named_mask("sparsemask-voc", 9)) if derived else FullyDenseNetwork()
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)

    def step() -> None:
        if kind.startswith("literal"):
            weights = [(w + 0.1 * torch.randn(w.shape)).clamp(0, 2) for w in net.raw_weights()]
            logits = literal.supernet(net, images, weights, checkpointed=kind == "literal checkpointed")
        else:
            logits = net(images)
            weights = [] if derived else net.connection_weights()
        logits = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=True)
        loss = F.cross_entropy(logits, labels) + 0.01 * sum(sparse_loss(w) for w in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not derived:
            net.clamp_weights_()

    return step


def _peak(kind: str, size: int, batch: int, answer) -> None:
    step = _stepper(kind, size, batch)
    before = high_water()
    for _ in range(3):
        step()
    answer.put((before, high_water()))


def high_water() -> float:
    """Peak resident megabytes of this process image (getrusage would hand down the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def step(options: argparse.Namespace) -> None:
    """Search step."""
    kinds = ["ours", "literal", "literal checkpointed", "derived"]
    steps = {kind: _stepper(kind, options.size, options.batch) for kind in kinds}
    times = _in_turn(steps, options.rounds)
    context, rows = multiprocessing.get_context("spawn"), []
    for kind in kinds:
        answer = context.Queue()
        child = context.Process(target=_peak, args=(kind, options.size, options.batch, answer))
        child.start()
        before, peak = answer.get()
        child.join()
        rows.append(
            {"form": kind, "ms": times[kind], "ratio": times[kind] / times["literal checkpointed"], "peak": peak}
        )
        rows[-1]["grown"] = peak - before
    columns = {"form": "search step", "ms": ("ms", ".0f"), "ratio": ("/ checkpointed", ".2f")}
    columns |= {"peak": ("peak MB", ".0f"), "grown": ("beyond start", ".0f")}
    print(f"batch {options.batch}, {options.size}x{options.size}, {torch.get_num_threads()} threads")
    print(table(rows, columns))


def _in_turn(steps: dict, rounds: int) -> dict[str, float]:
    """Median milliseconds, the functions called in turn (gradients on, unlike costs.compare)."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, function in steps.items():
            began = time.perf_counter()
            function()
            if number:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def inference(options: argparse.Namespace) -> None:
    """Derived network of the published mask, one picture."""
    torch.manual_seed(0)
    net = PrunedNetwork(named_mask(options.mask, 9)).eval()
    x = torch.randn(1, 3, options.size, options.size)
    with torch.no_grad():
        net.train()(torch.randn(2, 3, 129, 129))  # statistics other than the initial ones
        net.eval()
        expected = net(x)
    fast = optimize_for_inference(net, x, compiled=None if options.compiled else False)
    error = float((fast(x) - expected).abs().max() / expected.abs().max())
    with torch.no_grad():
        calls = {"plain": lambda: literal.pruned(net, x), "network": lambda: net(x), "optimised": lambda: fast(x)}
        times = compare(calls, rounds=options.rounds)
    rows = [{"form": n, "ms": t, "gain": times["plain"] / t} for n, t in times.items()]
    print(f"mask {options.mask}, {options.size}x{options.size}, {torch.get_num_threads()} threads; {fast.form}")
    print(table(rows, {"form": "form", "ms": ("ms", ".1f"), "gain": ("plain / it", ".2f")}))
    print(f"largest difference of the logits, relative: {error:.1e}")


def loader(options: argparse.Namespace) -> None:
    """Training pictures a second on one core."""
    from sparsemask.VOC12 import lists
    from sparsemask.VOC12.dataset import SegmentationDataset

    torch.set_num_threads(1)
    data = SegmentationDataset(lists.devkit_pairs(options.voc_root, "train_aug"), crop_size=options.size)
    rng, rates = np.random.default_rng(0), []
    for _ in range(options.rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        for index in rng.integers(len(data), size=100):
            data.sample(int(index), rng)
        rates.append((100 / (time.perf_counter() - wall), 100 / (time.process_time() - cpu)))
    wall, cpu = (statistics.median(r) for r in zip(*rates, strict=True))
    print(f"crop {options.size}, one core: {wall:.0f} pictures/s on the clock, {cpu:.0f} by CPU time")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "inference", "loader"))
    parser.add_argument("--size", type=int, default=None, help="257 (step), 512 (inference), 513 (loader)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mask", default="sparsemask-voc")
    parser.add_argument("--compiled", action="store_true", help="also try torch.compile, and keep the faster")
    parser.add_argument("--voc_root", default=None)
    options = parser.parse_args()
    options.size = options.size or {"step": 257, "inference": 512, "loader": 513}[options.what]
    {"step": step, "inference": inference, "loader": loader}[options.what](options)


if __name__ == "__main__":
    main()
