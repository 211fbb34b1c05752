"""Disparity from two pictures: the task, its files, the layouts of public sets, and what networks take.

Pictures are rectified: the point that the left picture shows at (x, y) is at (x - d, y) in the right one, where d >= 0
is its disparity in pixels. Disparity maps are float32 (H, W) of the left picture; 0 is no value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsemask.tasks.stereo.task import StereoTask

__all__ = ["StereoTask"]


def __getattr__(name: str) -> object:  # readers and generated data are imported without the task
    if name == "StereoTask":
        from sparsemask.tasks.stereo.task import StereoTask

        return StereoTask
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
