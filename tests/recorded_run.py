"""A run's folder as a search or a retraining leaves it, written by hand: no training needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sparsemask.masks import save_mask
from sparsemask.options import write_config
from sparsemask.report import names_of, record_confusion
from sparsemask.runs import Run
from sparsemask.spaces.connectivity import named_mask

CLASSES = ["background", "cat", "dog", "sheep"]
MATRIX = np.array([[900, 50, 40, 10], [20, 60, 20, 0], [0, 0, 0, 0], [5, 5, 10, 80]])
STEPS = list(range(20, 420, 20))


def make_search(folder: Path, **config) -> Run:
    """A finished search of nine features: every connection of "unet" ends at 1, all others at 0."""
    run = _begin(folder, "search", {"thres": 0.001, "sparse": 0.03, **config})
    mask = named_mask("unet", 9)
    ends = np.concatenate([mask[i, : i + 1].reshape(-1) for i in range(9)]).astype(float)
    rows = []
    for step in STEPS:
        share = step / STEPS[-1]
        rows.append({"step": step, "weights": (1 - share + 2 * share * ends).round(6).tolist()})
    run.history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.note(kept=names_of(mask), **_COSTS)
    return run


def make_retrain(folder: Path, classes: list[str] = CLASSES, **config) -> Run:
    """A finished, evaluated retraining of "unet"."""
    run = _begin(folder, "retrain", {"mask_path": str(folder / "mask.npy"), **config})
    mask = named_mask("unet", 9)
    save_mask(run.folder / "mask.npy", mask, {"run": "runs/s", "checkpoint": "runs/s/last.pt", "sha256": "ab" * 32})
    record_confusion(run, classes, MATRIX)
    iou = dict.fromkeys(classes, 0.5)
    run.note(network="network.safetensors", connections=int(mask.sum()), **_COSTS)
    run.note(eval={"miou": 0.4321, "pixel_accuracy": 0.91, "iou": iou, "pictures": 241})
    return run


_COSTS = {
    "parameters": 2971349, "decoder_parameters": 747477, "multiply_adds": 507069184, "milliseconds": 44.4,
    "input_size": 225, "strides": [32, 32, 32, 16, 16, 8, 4, 2, 2],
    "channels": [1280, 320, 160, 96, 64, 32, 24, 16, 32],
    "timed": {"device": "cpu", "threads": 2, "spread": 1.25},
}  # fmt: skip


def _begin(folder: Path, verb: str, config: dict) -> Run:
    run = Run(folder)
    folder.mkdir(parents=True)
    common = {"lr": 0.5, "seed": 7, "sample": True, "type": "float32", "space": "connectivity", "scales": [0.75, 1.0]}
    write_config(run.config, {**common, **config})
    run.note(verb=verb, space="connectivity", started="2026-11-20T06:17:52+0000", state="finished", seconds=325)
    run.note(environment={"sparsemask": "9.9", "python": "3.11.1", "processor": "A Processor", "cores": 2})
    run.note(result={"miou": 0.25, "pixel_accuracy": 0.8})
    rows = [{"step": s, "loss": 3 - s / 200, "lr": 0.5 / s} for s in STEPS]
    for row in rows[9::10]:
        row["val_miou"] = row["step"] / 1600
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.history.write_text("")
    run.pictures.mkdir()
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(run.pictures / "samples.png")
    return run
