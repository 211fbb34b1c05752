"""How much is there to learn? Random masks retrained with several seeds: spread of masks against spread of seeds.

    python bench/mask_spread.py --voc_root VOCdevkit --out runs-spread --counts 8 24 --masks 8 --seeds 0 1 [flags]

Where masks of one size differ no more than the seeds of one mask do, no search can beat chance at this budget. Random
masks only: their mean is what chance gives. Finished runs are not run again; two runs at a time, one thread each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.masks import CLASSES, retrain, state
from sparsemask.masks import save_mask
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.tables import markdown_table


def spread(scores: np.ndarray) -> dict:
    """Analysis of variance of scores (masks, seeds): standard deviations of the seeds and of the masks themselves.

    The masks' own variance is what the variance of their means exceeds the seeds' share in it by (0 where it does not).
    """
    seeds = scores.shape[1]
    within = scores.var(axis=1, ddof=1).mean()
    between = scores.mean(axis=1).var(ddof=1) - within / seeds
    agree = np.corrcoef(scores[:, 0], scores[:, 1])[0, 1]
    return {"mean": scores.mean(), "seeds": within**0.5, "masks": max(between, 0.0) ** 0.5, "agree": agree}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc_root", required=True)
    parser.add_argument("--out", default="runs-spread")
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 24], help="connections of the masks")
    parser.add_argument("--masks", type=int, default=8, help="masks of each size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="two or more")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    options, more = parser.parse_known_args()
    if len(options.seeds) < 2 or options.masks < 2:
        parser.error("a spread needs two masks and two seeds at least")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    data = ["--voc_root", options.voc_root, "--n_worker", "0"]
    runs = [(k, m, s) for k in options.counts for m in range(options.masks) for s in options.seeds]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = []
        for count, number, seed in runs:
            path = out / f"random-{count}-{number}.npy"
            if not path.exists():
                save_mask(path, named_mask(f"random-{count}", 9, number))
            jobs.append(pool.submit(retrain, path.stem, str(path), seed, out, data, more))
        for job in concurrent.futures.as_completed(jobs):
            job.result()
    rows = []
    for count in options.counts:
        scores = np.zeros((options.masks, len(options.seeds)))
        for number in range(options.masks):
            for place, seed in enumerate(options.seeds):
                iou = state(out / f"random-{count}-{number}-{seed}")["eval"]["iou"]
                scores[number, place] = np.mean([iou[c] or 0 for c in options.classes])
        found = spread(scores)
        rows.append({"connections": count, **{k: f"{v:.3f}" for k, v in found.items()}})
    columns = {"connections": "connections", "mean": f"mean IoU of {len(options.classes)} classes"}
    columns |= {"seeds": "standard deviation of seeds", "masks": "of masks", "agree": "correlation of two seeds"}
    text = markdown_table(rows, columns)
    (out / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
