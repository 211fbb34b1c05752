"""The options of stereo, small; and generated scenes as files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from small_config import configured
from sparsemask.config import RunConfig
from sparsemask.files import write_bytes
from sparsemask.pictures.files import encoded
from sparsemask.spaces.smstereo.space import SMStereoNetwork
from sparsemask.synthetic.stereo_scenes import make_scene
from sparsemask.tasks.stereo.files import write_disparity
from sparsemask.tasks.stereo.options import StereoData


def options(**given) -> RunConfig:
    """The task's configuration, crops of 32x64, disparities below 32."""
    more = {"task": "stereo", "n_worker": 0, "maxdisp": 32, "crop_height": 32, "crop_width": 64}
    return configured(StereoData, SMStereoNetwork, **{**more, **given})


def write_scenes(
    folder: str | os.PathLike, count: int, height: int = 128, width: int = 256, most: float = 48, seed: int = 0
) -> list[Path]:
    """Write scenes as files: 0000_left.png, 0000_right.png, 0000_disp.pfm, ..., and the list pairs.txt.

    Returns:
        The files of disparities.
    """
    folder, written = Path(folder), []
    for number in range(count):
        frame = make_scene(np.random.default_rng([seed, number]), height, width, most)
        stem = f"{number:04d}"
        for side, image in (("left", frame.left), ("right", frame.right)):
            write_bytes(folder / f"{stem}_{side}.png", encoded(Image.fromarray(image), "PNG"))
        written.append(folder / f"{stem}_disp.pfm")
        write_disparity(written[-1], frame.disparity)
    names = (path.name.removesuffix("_disp.pfm") for path in written)
    lines = (f"{name}_left.png {name}_right.png {name}_disp.pfm\n" for name in names)
    write_bytes(folder / "pairs.txt", "".join(lines).encode())
    return written
