"""Does the search learn anything? Searched masks beside named ones and random ones of as many connections.

    python bench/masks.py --voc_root VOCdevkit --out runs-masks --seeds 0 1 2 [flags of the trainings]

For every seed: search, prune, retrain the searched mask, the named ones and a random one of as many connections, and
evaluate each on all validation pictures. Runs that are finished are not run again, so that the command goes on where it
was stopped. Two runs at a time, one thread each. Prints Markdown; writes it to OUT/results.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sparsemask.masks import count_connections, load_mask
from sparsemask.tables import markdown_table

# Those with at least 45 validation pictures in the sample of VOC that the results speak of.
CLASSES = ["background", "cat", "cow", "dog", "horse", "person", "sheep"]
NAMED = ("fcn", "unet", "sparseacn", "dense", "sparsemask-voc")


def run(script: str, argv: list[str], log: Path) -> None:
    """One verb, one thread, its output in a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        call = [sys.executable, str(ROOT / script), *argv]
        if subprocess.call(call, stdout=file, stderr=file, env=env):
            raise RuntimeError(f"{script} failed, see {log}")


def state(folder: Path) -> dict:
    """What a run says of itself."""
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.exists() else {}


def search(seed: int, out: Path, data: list[str], more: list[str]) -> Path:
    """Search and prune with a seed; the mask file."""
    name, mask = f"search-{seed}", out / f"searched-{seed}.npy"
    log = out / "logs" / f"{name}.log"
    if state(out / name).get("state") != "finished":
        flags = ["--exp_path", str(out), "--name", name, "--seed", str(seed), "--resume"]
        run("search/run.py", ["--search", *data, *more, *flags], log)
    if not mask.exists():
        run("prune/prune.py", ["--run", str(out / name), "--out", str(mask)], log)
    return mask


def retrain(name: str, mask: str, seed: int, out: Path, data: list[str], more: list[str]) -> None:
    """Retrain a mask with a seed and evaluate it on every validation picture."""
    folder, log = out / f"{name}-{seed}", out / "logs" / f"{name}-{seed}.log"
    if state(folder).get("state") != "finished":
        flags = ["--exp_path", str(out), "--name", folder.name, "--seed", str(seed), "--mask_path", mask, "--resume"]
        run("retrain/train.py", [*data, *more, *flags], log)
    if "eval" not in state(folder):
        run("retrain/eval.py", ["--run", str(folder)], log)


def summary(out: Path, seeds: list[int], classes: list[str]) -> str:
    """Mean and range over the seeds, a row a network; then per-class IoU of the first seed's searched network."""
    rows = []
    for name in ("searched", "random", *NAMED):
        infos = [state(out / f"{name}-{seed}") for seed in seeds]
        infos = [i for i in infos if "eval" in i]
        if not infos:
            continue
        chosen = [float(np.mean([i["eval"]["iou"][c] or 0 for c in classes])) for i in infos]
        whole = [i["eval"]["miou"] for i in infos]
        rows.append(
            {
                "network": name,
                "connections": "/".join(str(i.get("connections") or "-") for i in infos),
                "parameters": f"{infos[0]['parameters'] / 1e6:.2f} M",
                "chosen": f"{np.mean(chosen):.3f} ({', '.join(f'{v:.3f}' for v in chosen)})",
                "whole": f"{np.mean(whole):.3f} ({', '.join(f'{v:.3f}' for v in whole)})",
            }
        )
    columns = {"network": "network", "connections": "connections by seed", "parameters": "parameters"}
    columns |= {"chosen": f"mean IoU of {len(classes)} classes", "whole": "mIoU"}
    return markdown_table(rows, columns)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc_root", required=True)
    parser.add_argument("--out", default="runs-masks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--search_flags", default="", help="flags of the search alone, in one string")
    parser.add_argument("--only", nargs="+", default=None, help="these networks only")
    parser.add_argument("--classes", nargs="+", default=CLASSES, help="classes of the mean")
    options, more = parser.parse_known_args()
    out = Path(options.out)
    data = ["--voc_root", options.voc_root, "--n_worker", "0"]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        extra = [*more, *options.search_flags.split()]
        masks = dict(zip(options.seeds, pool.map(lambda s: search(s, out, data, extra), options.seeds), strict=True))
        jobs = []
        for seed, mask in masks.items():
            count = count_connections(load_mask(mask))
            networks = {"searched": str(mask), "random": f"random-{count}", **{n: n for n in NAMED}}
            for name, path in networks.items():
                if options.only is None or name in options.only:
                    jobs.append(pool.submit(retrain, name, path, seed, out, data, more))
        for job in concurrent.futures.as_completed(jobs):
            job.result()
    text = summary(out, options.seeds, options.classes)
    (out / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
