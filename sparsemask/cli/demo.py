"""The demo: search, prune, retrain and compare on the embedded sample set, in minutes on two cores.

    sparsemask demo [--out demo]

Runs the same commands a user would type, then prints one table: the searched network beside named ones.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sparsemask.datasets import ROOT
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, positive
from sparsemask.tables import duration

# Name in the table, and the mask: the searched one first.
NETWORKS = {"searched": None, "fcn": "fcn", "unet": "unet", "dense": "dense"}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("demo", prog="sparsemask demo", description=__doc__)
    parser.add_argument("--out", default="demo", help="folder for the runs and pictures (default: demo)")
    parser.add_argument("--max_iter", type=positive, default=None, help="steps of every training (default: preset)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    options = parser.parse_args(argv)
    out, began = Path(options.out), time.monotonic()
    runs_folder = out / "runs"
    if runs_folder.exists() and any(runs_folder.iterdir()):
        raise UseError(f"{runs_folder} is not empty: remove it, or choose another --out")
    common = ["--sample", "--exp_path", str(runs_folder), "--seed", str(options.seed)]
    if options.max_iter:
        common += ["--max_iter", str(options.max_iter)]
    _step("search", ["--search", "--name", "search", *common])
    mask, search_run = out / "mask.npy", runs_folder / "search"
    _step("prune", ["--run", str(search_run), "--out", str(mask)])
    for name, mask_name in NETWORKS.items():
        start = ["--search_checkpoint", str(search_run / "checkpoints" / "last.pt")]
        _step("retrain", ["--mask_path", mask_name or str(mask), "--name", name, *start, *common])
    rows = compare(runs_folder)
    _report(rows, out, search_run)
    print(f"{duration(time.monotonic() - began)} in all")
    return 0


def _step(verb: str, arguments: list[str]) -> None:
    """Run one verb as a process of its own, showing the command."""
    script = {"search": "search/run.py", "prune": "prune/prune.py", "retrain": "retrain/train.py"}[verb]
    if (ROOT / script).is_file() and Path.cwd().resolve() == ROOT:
        command, call = f"python {script}", [sys.executable, script]
    else:
        command, call = f"sparsemask {verb}", [sys.executable, "-m", "sparsemask.cli", verb]
    print(f"\n$ {command} {' '.join(arguments)}", flush=True)
    status = subprocess.call([*call, *arguments])
    if status in (130, -2):
        raise KeyboardInterrupt(f"the demo ends with its {verb}")
    if status:
        raise UseError(f"the demo ends here: {verb} gave exit status {status} (its own line is above)")


def compare(runs_folder: Path) -> list[dict]:
    """A row per network, all timed in turn in this one process, so that the milliseconds compare."""
    import torch

    from sparsemask.costs import compare as in_turn
    from sparsemask.retrain.connectivity import FAMILY
    from sparsemask.runs import Run

    rows, calls = [], {}
    for name in NETWORKS:
        run = Run(runs_folder / name)
        info = run.info()
        model, size = FAMILY.load_run(run), info["input_size"]
        calls[name] = functools.partial(model, torch.randn(1, 3, size, size))
        rows.append({"name": name, "miou": info["result"]["miou"], "highlight": name == "searched", **info})
    with torch.inference_mode():
        times = in_turn(calls, rounds=30)
    for row in rows:
        row["milliseconds"] = times[row["name"]]
    return rows


def _report(rows: list[dict], out: Path, search_run: Path) -> None:
    from sparsemask.costs import format_count
    from sparsemask.pictures import draw_comparison
    from sparsemask.tables import table

    draw_comparison(rows, out / "comparison.png", title="The sample set: quality and time")
    columns = {
        "name": "network",
        "connections": "connections",
        "parameters": ("parameters", format_count),
        "multiply_adds": ("multiply-adds", format_count),
        "milliseconds": ("ms", ".1f"),
        "miou": ("mIoU", ".3f"),
    }
    print(f"\nOne {rows[0]['input_size']}x{rows[0]['input_size']} picture, this machine's CPU:\n")
    print(table(rows, columns))
    print("\npictures:")
    for path in [out / "comparison.png", *sorted((search_run / "pictures").glob("*.png"))]:
        print(f"  {path}")
    print(f"  {out / 'runs'}/*/pictures/  (architecture, curves and predictions of every network)")
