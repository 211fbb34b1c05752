"""Scores of the models that ship: dB on Set5 beside bicubic, mIoU on generated data, milliseconds on one thread.

    python bench/models.py                                 a table of each kind
    python bench/models.py --ship NETWORK.safetensors --name compact-x2      put a trained network among them

Set5 is read from $SPARSEMASK_DATA/set5. `make models` calls the second form behind the training: the scores go into the
file, and into the card by hand. Networks with masks are timed in turn with the dense one that they were made of, on
inputs of the same size whatever their scale, Set5 reduced by two (114 to 256 pixels a side); the faster one of torch's
operators and torch.compile is what they are compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bench import sr_masked
from sparsemask import models, tasks
from sparsemask.cli.enlarging import Enlarger, Masked, find_enlarger
from sparsemask.retrain import eval as evaluation
from sparsemask.retrain.trained import open_trained
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.tables import Columns, table
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise, ssim
from sparsemask.tasks.super_resolution.scores import enlarged
from sparsemask.timing import thread_count
from sparsemask.weights import describe_safetensors, metadata, read_checkpoint, save_safetensors

_ROUNDS, _SIDE = 7, 256
_SPACES = {"sample": "smpointseg", "segmentation": "connectivity"}


def set5(enlarger: Enlarger) -> dict[str, float]:
    """Mean luma PSNR and SSIM on Set5, the network's and bicubic's, of quantised images; with masks what they keep."""
    scale, rows, kept = enlarger.scale, [], []
    for low, truth in sr_masked.set5(scale).values():
        larger = quantise(enlarger.run(low, tile=0, memory=None, ensemble=False))[0]
        rows.append([f(image, truth, scale) for image in (larger, enlarged(low[0], scale)) for f in (psnr, ssim)])
        if isinstance(enlarger, Masked):
            kept.append(float(mean_kept(enlarger.network)))
    means = np.mean(rows, 0).tolist()
    scores = dict(zip(("set5_psnr", "set5_ssim", "set5_bicubic", "set5_bicubic_ssim"), means, strict=True))
    return {**scores, "kept": float(np.mean(kept))} if kept else scores


def super_resolution(path: Path, name: str) -> dict[str, float]:
    """On Set5; of networks with masks also how many times as fast as their dense network they are."""
    enlarger = find_enlarger(str(path), None)
    scores = {"scale": enlarger.scale, **set5(enlarger)}
    if isinstance(enlarger, Masked):
        dense = models.find(name.removesuffix(models.MASKED)).path
        images = [low for low, _ in sr_masked.set5().values()]
        with thread_count(1):
            times, _ = sr_masked.in_turn({name: sr_masked.load(str(dense), str(path))}, images, _ROUNDS, compiled=True)
        scores["gain"] = min(times[name, "dense"], times[name, "compiled"]) / times[name, "masked"]
    return scores


def rooms(path: Path, name: str) -> dict[str, float]:
    """On the generated rooms of area 5, and the mIoU of the first of them alone, which is quick to be had again."""
    return {**generated(path), "first_room_miou": generated(path, limit=1)["miou"]}


def shapes(path: Path, name: str) -> dict[str, float]:
    """On the sample set's validation pictures."""
    return generated(path)


def generated(path: Path, limit: int = 0) -> dict[str, float]:
    """Scores on the validation data of its task that this package generates; limit: of the first items, 0: of all."""
    space = _SPACES[metadata(path)["task"]]
    given = {"pretrained_model": str(path), "space": space, "sample": True, "gpu": -1, "n_worker": 0}
    restored = open_trained(evaluation.parser(space), given)
    task = tasks.get(restored.config.data.task, restored.config)
    context = tasks.EvaluationContext.from_config(restored.arithmetic, restored.config)
    return dict(task.evaluate(restored.model, context, limit=limit).metrics)


@dataclass(frozen=True)
class Bench:
    """How the models of a task are scored.

    Attributes:
        scores: of a file and a name.
        columns: of their table, the name left out.
    """

    scores: Callable[[Path, str], dict[str, float]]
    columns: Columns


_POINTS = {"miou": ("mIoU", ".3f"), "oa": ("OA", ".3f"), "macc": ("mAcc", ".3f")}
_PIXELS = {"miou": ("mIoU", ".3f"), "pixel_accuracy": ("pixel accuracy", ".3f")}
BENCHES = {
    "super_resolution": Bench(
        super_resolution,
        {
            "set5_psnr": ("Set5 dB", ".2f"), "set5_bicubic": ("bicubic dB", ".2f"), "set5_ssim": ("SSIM", ".4f"),
            "set5_bicubic_ssim": ("bicubic SSIM", ".4f"), "ms": (f"ms, {_SIDE}x{_SIDE}", ".0f"),
            "kept": ("kept", ".3f"), "gain": ("times as fast", ".2f"),
        },
    ),
    "sample": Bench(rooms, _POINTS),
    "segmentation": Bench(shapes, _PIXELS),
}  # fmt: skip


@torch.no_grad()
def milliseconds(enlarger: Enlarger) -> float:
    """Processor time of a picture, the least of some rounds, on one thread."""
    torch.set_num_threads(1)
    image = torch.rand(1, 3, _SIDE, _SIDE) * 255
    times = []
    for _ in range(_ROUNDS):
        began = time.thread_time()
        enlarger.run(image, tile=None, memory=None, ensemble=False)
        times.append(1000 * (time.thread_time() - began))
    return min(times)


def ship(file: Path, name: str) -> None:
    """Put a trained network among the models, with its scores in its file."""
    entries = metadata(file)
    task = entries.get("task", "super_resolution")
    scores = BENCHES[task].scores(file, name)
    path = Path(models.__file__).parent / f"{name}{models.SUFFIX}"
    save_safetensors(path, read_checkpoint(file), {})
    rounded = {key: round(value, 4) for key, value in scores.items()}
    describe_safetensors(path, {**entries, **rounded})
    print(f"{path}: {path.stat().st_size} bytes, {rounded}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ship", default=None, help="a trained network to be put among the models")
    parser.add_argument("--name", default=None, help="its name")
    options = parser.parse_args()
    if options.ship:
        ship(Path(options.ship), options.name)
        return
    for task, bench in BENCHES.items():
        rows = []
        for name in models.available([task]):
            path = models.find(name).path
            times = {"ms": milliseconds(find_enlarger(str(path), None))} if task == "super_resolution" else {}
            rows.append({"model": name, **bench.scores(path, name), **times})
        print(f"{table(rows, {'model': 'model', **bench.columns})}\n")


if __name__ == "__main__":
    main()
