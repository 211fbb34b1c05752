"""The flags of stereo."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemask.config import flag
from sparsemask.options import positive
from sparsemask.tasks.protocol import DataSection


@dataclass(frozen=True, kw_only=True, slots=True)
class StereoData(DataSection):
    """Which pairs, and how they are cut."""

    data_root: str | None = flag(help="pairs in a public set's layout: SceneFlow, KITTI 2012 or 2015, Middlebury")
    training_list: str | None = flag(
        help="pairs to train on: a text file, LEFT RIGHT DISPARITY in a line, below --data_root or else its own folder"
    )
    eval_list: str | None = flag(help="pairs to validate on, likewise")
    crop_height: int = flag(256, positive, help="of training crops and generated scenes (default: 256)")
    crop_width: int = flag(512, positive, help="(default: 512)")
