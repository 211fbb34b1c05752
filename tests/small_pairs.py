"""The options of stereo, small."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from sparsemask.options import Parser
from sparsemask.tasks.stereo.options import StereoData


def options(**given) -> Namespace:
    """The task's flags with their defaults, crops of 32x64, disparities below 32."""
    parser = Parser("search")
    parser.add_section("data", StereoData)
    made = {"task": "stereo", "sample": False, "n_worker": 0, "maxdisp": 32, "crop_height": 32, "crop_width": 64}
    return parser.resolve({**made, **{k: str(v) if isinstance(v, Path) else v for k, v in given.items()}})
