"""How long a waiting thread spins before it sleeps: small networks on two threads, alone and on a busy machine.

    python bench/waiting.py                       a decoder at 97x97: each setting, with one and two threads
    python bench/waiting.py --busy 2              the same beside two processes that compute all the time

Settings are read when torch loads, so that each measurement is a process of its own; they are run in turn, several
times, and of each the least median counts. *passive*: threads sleep at once. *active*: they spin.
A number: GOMP_SPINCOUNT, spins before sleeping. *ours*: what `import sparsemask` sets. Ratios are to one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COLUMNS = {
    "setting": "setting", "one": ("one thread, ms", ".2f"), "two": ("two threads, ms", ".2f"),
    "ratio": ("two / one", ".2f"), "train": ("training step, two threads, ms", ".0f"),
}  # fmt: skip
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def settings(counts: list[int]) -> dict[str, dict[str, str]]:
    """Environment variables by setting; those of `ours` are left to the package."""
    spins = {str(count): {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(count)} for count in counts}
    named = {"passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "active": {"OMP_WAIT_POLICY": "ACTIVE"}}
    return {**named, **spins, "ours": {}}


def child(threads: int, size: int, rounds: int, train: bool) -> None:
    """Print the median milliseconds of a call, or of a training step, in this process."""
    import sparsemask  # noqa: F401, I001  (before torch: it says how threads wait)
    import torch

    from sparsemask.inference import optimize_for_inference
    from sparsemask.spaces.connectivity import PrunedNetwork, named_mask

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = PrunedNetwork(named_mask("sparsemask-voc", 9))
    images = torch.randn(1, 3, size, size)
    if train:
        optimizer = torch.optim.SGD(network.parameters(), 1e-3)
        images = torch.randn(2, 3, size, size)

        def call() -> None:
            optimizer.zero_grad()
            network(images).square().mean().backward()
            optimizer.step()

    else:
        fast = optimize_for_inference(network.eval(), images, compiled=False, channels_last=True)
        call = lambda: fast(images)  # noqa: E731
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    print(1e3 * statistics.median(times))


def burn() -> None:
    """Compute for ever, on one thread."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.randn(256, 256)
    while True:
        torch.mm(matrix, matrix)


def measured(environment: dict[str, str], threads: int, options: argparse.Namespace, train: bool = False) -> float:
    """Median milliseconds of a process with these variables."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, __file__, "--child", str(threads), "--size", str(options.size)]
    command += ["--rounds", str(max(3, options.rounds // 8) if train else options.rounds)] + ["--train"] * train
    done = subprocess.run(
        command, env={**inherited, **environment}, capture_output=True, text=True, check=True
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=97, help="of the images (default: 97)")
    parser.add_argument("--rounds", type=int, default=60, help="timed calls of a process (default: 60)")
    parser.add_argument("--processes", type=int, default=3, help="of each setting, in turn (default: 3)")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 5000, 10000, 50000], help="spins to try")
    parser.add_argument("--settings", nargs="+", help="of those in the table, by name (default: all)")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it (default: none)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--burn", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.burn:
        burn()
    if options.child:
        child(options.child, options.size, options.rounds, options.train)
        return
    from sparsemask.tables import table

    beside = [subprocess.Popen([sys.executable, __file__, "--burn"]) for _ in range(options.busy)]
    try:
        tried = settings(options.counts)
        tried = {name: tried[name] for name in options.settings or tried}
        taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in tried}
        for _ in range(options.processes):
            for name, environment in tried.items():
                taken[name].append(
                    (
                        measured(environment, 1, options),
                        measured(environment, 2, options),
                        measured(environment, 2, options, train=True),
                    )
                )
    finally:
        for process in beside:
            process.kill()
    rows = []
    for name, times in taken.items():
        one, two, train = (min(column) for column in zip(*times, strict=True))
        rows.append({"setting": name, "one": one, "two": two, "ratio": two / one, "train": train})
    beside_words = f"{options.busy} processes computing beside it" if options.busy else "nothing started beside it"
    print(f"{options.size}x{options.size}, least of {options.processes} processes' medians, {beside_words}\n")
    print(table(rows, COLUMNS))


if __name__ == "__main__":
    main()
