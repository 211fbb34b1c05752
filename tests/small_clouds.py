"""Clouds of a few hundred points, in memory and on the disk, and flags of a network that trains on them in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from small_config import configured
from sparsemask.config import RunConfig
from sparsemask.spaces.smpointseg.space import SMPointSegNetwork
from sparsemask.synthetic.rooms import make_rooms
from sparsemask.tasks.points.clouds.cloud import Cloud, CloudFile
from sparsemask.tasks.points.data import Clouds, CropSettings
from sparsemask.tasks.points.options import PointsData

NETWORK = ["--channels", "4", "8", "--n_neighbors", "4", "--radius", "0.3"]
CROPS = ["--n_points", "64", "--grid", "0.25", "--train_steps", "4", "--val_steps", "2", "--test_area", "1"]


def cloud(seed: int, points: int = 200, colours: bool = True, classes: int = 13) -> Cloud:
    """Random points of a room, with labels from -1 on."""
    rng = np.random.default_rng(seed)
    xyz = (rng.random((points, 3)) * [4, 3, 2]).astype(np.float32)
    labels = rng.integers(-1, classes, points).astype(np.int32)
    return Cloud(f"Area_{1 + seed}_room", xyz, rng.random((points, 3), dtype=np.float32) if colours else None, labels)


def clouds(sizes=(200, 150, 300), **more) -> Clouds:
    """Such clouds, all in memory."""
    made = {f"Area_{1 + n}_room": cloud(n, size, **more) for n, size in enumerate(sizes)}
    return Clouds([CloudFile(name, Path(name), lambda file: made[file.name]) for name in made])


def settings(**more) -> CropSettings:
    """Crops of 64 points on two levels."""
    given = {"n_points": 64, "k": 4, "ratio": 4, "levels": 2, "colours": True, "centred": True}
    return CropSettings(**{**given, **more})


def rooms(folder: Path) -> Path:
    """Prepared rooms of two areas."""
    return make_rooms(folder, areas=2, rooms=1, points=900, grid=0.25)


def options(**given) -> RunConfig:
    """Configuration of a point task as a verb leaves it."""
    usual = {
        "task": "s3dis", "test_area": 1, "n_points": 64, "train_steps": 4, "val_steps": 2, "n_worker": 0,
        "batch_size": 2, "channels": [4, 8], "n_neighbors": 4,
    }  # fmt: skip
    return configured(PointsData, SMPointSegNetwork, **{**usual, **given})
