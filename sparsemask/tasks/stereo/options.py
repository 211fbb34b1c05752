"""The flags of stereo."""

from __future__ import annotations

from sparsemask.options import positive


def add_options(group) -> None:
    """The flags that say which pairs, and how they are cut."""
    group.add_argument(
        "--data_root", default=None, help="pairs in a public set's layout: SceneFlow, KITTI 2012 or 2015, Middlebury"
    )
    group.add_argument(
        "--training_list",
        default=None,
        help="pairs to train on: a text file, LEFT RIGHT DISPARITY in a line, below --data_root or else its own folder",
    )
    group.add_argument("--eval_list", default=None, help="pairs to validate on, likewise")
    group.add_argument(
        "--crop_height", type=positive, default=256, help="of training crops and generated scenes (default: 256)"
    )
    group.add_argument("--crop_width", type=positive, default=512, help="(default: 512)")
