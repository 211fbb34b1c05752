"""Memory of `sparsemask upscale` at 4K output: the most that a process holds, network by network.

    python bench/upscale_memory.py                 all architectures, with few blocks: memory does not depend on them
    python bench/upscale_memory.py --size 480 270 --memory 500M

Each network runs in a process of its own, on an image of noise, within --memory; printed are what was planned and the
peak of the resident set, as the system counts it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import resource
import subprocess
import time

import numpy as np

from sparsemask.options import amount

NETWORKS = {
    "SRVGGNetCompact": {"n_feats": 64, "n_blocks": 2},
    "RLFN": {"n_feats": 52, "n_blocks": 1},
    "SPAN": {"n_feats": 48, "n_blocks": 2},
    "PLKSR": {"n_feats": 64, "n_blocks": 1},
    "EDSR": {"n_feats": 64, "n_blocks": 1},
}


def one(name: str, size: list[int], memory: float | None, scale: int) -> None:
    """Enlarge an image by one network, as the command does."""
    import torch

    from sparsemask.inference import with_fast_convolutions
    from sparsemask.pictures.files import Picture, encode_picture
    from sparsemask.spaces import sr_networks
    from sparsemask.spaces.sr_networks import tiles

    torch.manual_seed(0)
    network = sr_networks.ARCHITECTURES[name](scale=scale, **NETWORKS[name]).eval()
    network.fold()
    network = with_fast_convolutions(network)
    image = Picture((255 * np.random.default_rng(0).random((size[1], size[0], 3))).astype(np.float32))
    pixels = torch.from_numpy(image.colour).permute(2, 0, 1)[None]
    plan = tiles.planned(network, tuple(pixels.shape), memory)
    began = time.perf_counter()
    output = sr_networks.upscale(network, pixels, memory)
    larger = image.enlarged(output[0].permute(1, 2, 0).numpy())
    encode_picture(larger, "PNG")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{network.title}: {image.size} -> {larger.size}, tiles of {plan.tile}, peak {peak / 1e6:.0f} MB, "
        f"{time.perf_counter() - began:.0f} s",
        flush=True,
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[1920, 1080], help="input pixels (default: 1920 1080)")
    parser.add_argument("--memory", default=None, help="budget (default: the command's, 1G where that suffices)")
    parser.add_argument("--scale", type=int, default=2, help="of the networks (default: 2)")
    parser.add_argument("--network", choices=list(NETWORKS), default=None, help="one alone")
    options = parser.parse_args()
    if options.network:
        return one(options.network, options.size, options.memory and amount(options.memory), options.scale)
    for name in NETWORKS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--network", name], check=True)
    return None


if __name__ == "__main__":
    main()
