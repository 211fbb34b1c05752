"""Scores of the super-resolution models that ship, beside bicubic: Set5, and milliseconds on one thread.

    python bench/models.py                                 the table
    python bench/models.py --ship NETWORK.safetensors --name compact-x2      put a trained network among them

Set5 is read from $SPARSEMASK_DATA/set5. `make models` calls the second form behind the training.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import time

import numpy as np
import torch

from sparsemask import models
from sparsemask.spaces import sr_networks
from sparsemask.tables import table
from sparsemask.tasks.super_resolution.data import to_tensor
from sparsemask.tasks.super_resolution.folders import read_folder
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise, ssim
from sparsemask.tasks.super_resolution.scores import enlarged
from sparsemask.tasks.super_resolution.store import PictureStore

_ROUNDS = 7


@torch.no_grad()
def set5(network: sr_networks.SRNetwork) -> dict[str, float]:
    """Mean luma PSNR and SSIM on Set5, the network's and bicubic's, of quantised images."""
    folder = Path(os.environ.get("SPARSEMASK_DATA", "")) / "set5"
    store = PictureStore(read_folder(folder, network.scale), network.scale)
    rows = []
    for index in range(len(store)):
        low, high = store[index]
        truth = to_tensor(high)
        bicubic = enlarged(to_tensor(low), network.scale)
        larger = quantise(network(to_tensor(low)[None]))[0]
        rows.append([f(image, truth, network.scale) for image in (larger, bicubic) for f in (psnr, ssim)])
    means = np.mean(rows, 0)
    return dict(zip(("set5_psnr", "set5_ssim", "set5_bicubic", "set5_bicubic_ssim"), means.tolist(), strict=True))


@torch.no_grad()
def milliseconds(network: sr_networks.SRNetwork, side: int = 256) -> float:
    """Processor time of an image, the least of some rounds, on one thread."""
    torch.set_num_threads(1)
    image = torch.rand(1, 3, side, side) * 255
    times = []
    for _ in range(_ROUNDS):
        began = time.thread_time()
        sr_networks.upscale(network, image)
        times.append(1000 * (time.thread_time() - began))
    return min(times)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ship", default=None, help="a trained network to be put among the models")
    parser.add_argument("--name", default=None, help="its name")
    options = parser.parse_args()
    if options.ship:
        network = sr_networks.load(options.ship)
        notes = {key: f"{value:.4f}" for key, value in set5(network).items()}
        folder = Path(models.__file__).parent
        sr_networks.save(folder / f"{options.name}{models.SUFFIX}", network, notes)
        print(f"{folder / options.name}{models.SUFFIX}: {notes}")
        return
    rows = []
    for name in models.available():
        network = sr_networks.load(models.find(name).path)
        rows.append({"model": name, **set5(network), "ms": milliseconds(network)})
    columns = {
        "model": "model", "set5_psnr": ("Set5 dB", ".2f"), "set5_bicubic": ("bicubic dB", ".2f"),
        "set5_ssim": ("SSIM", ".4f"), "set5_bicubic_ssim": ("bicubic SSIM", ".4f"),
        "ms": ("ms, 256x256", ".0f"),
    }  # fmt: skip
    print(table(rows, columns))


if __name__ == "__main__":
    main()
