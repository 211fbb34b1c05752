"""S3DIS: indoor rooms, 13 classes (Armeni et al., CVPR 2016); and the generated rooms in its layout."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.cloud import CloudFile
from sparsemask.tasks.points.clouds.original import carry_back, check_original
from sparsemask.tasks.points.layouts import s3dis
from sparsemask.tasks.points.layouts.labels import class_counts, class_weights
from sparsemask.tasks.points.scores import pooled_text, write_pair
from sparsemask.tasks.points.task import PointsTask


class S3DISTask(PointsTask):
    """Rooms, all in memory; crops around the noisy centre, by possibility."""

    classes = s3dis.NAMES
    d_in = 6
    noise = 0.35
    centred = True
    defaults = {
        "channels": [32, 64, 128, 256, 512], "radius": 0.05, "n_points": 40960, "train_steps": 500, "val_steps": 100,
        "grid": s3dis.GRID, "vote_smooth": 0.95,
    }  # fmt: skip

    @property
    def title(self) -> str:
        """The data in words."""
        rooms = "generated rooms" if self.config.data.sample else "S3DIS"
        return f"{rooms}, area {self.config.data.test_area}"

    def files(self, split: str) -> list[CloudFile]:
        """The rooms of the test area, or of all others."""
        config = self.config
        root = self.sample_folder() if config.data.sample else config.data.data_root
        if not root:
            raise UseError("--task s3dis: --data_root FOLDER is missing (sparsemask prepare-points s3dis makes it)")
        return s3dis.list_clouds(
            root, "train" if split == "training" else "val", config.data.test_area, config.data.grid
        )

    @cached_property
    def weights(self) -> torch.Tensor:
        """As published, from all rooms' counts; of generated rooms from their own."""
        if not self.config.data.sample:
            return torch.from_numpy(s3dis.WEIGHTS)
        return torch.from_numpy(class_weights(class_counts(self.clouds("training"), self.n_output)))

    @classmethod
    def pooled_text(cls, folders: list[str]) -> str:
        """The scores of the predictions of all areas as one table."""
        return pooled_text(folders, list(cls.classes), s3dis.ROOMS)

    def check_original(self, file: CloudFile) -> None:
        """UseError for a room without projection whose original is not beside."""
        hint = "sparsemask prepare-points s3dis RAW makes both"
        check_original(str(file.path), file.path.with_suffix(""), s3dis.original_path(file), hint)

    def write(self, folder: Path, index: int, prediction: np.ndarray) -> Path:
        """ROOM.ply with the properties pred and label."""
        clouds = self.clouds("eval")
        path = Path(folder) / f"{clouds.names[index]}.ply"
        room, file = clouds[index], clouds.files[index]
        truth = room.full_labels
        if room.projection is None:
            original = s3dis.read_original(file)
            prediction, truth = carry_back(prediction, room, lambda: original.coordinates), original.labels
        write_pair(path, prediction, truth)
        return path


class SampleTask(S3DISTask):
    """The generated rooms."""

    @classmethod
    def pooled_text(cls, folders: list[str]) -> str:
        """The scores of the predictions of all areas as one table; how many rooms there are is not known."""
        return pooled_text(folders, list(cls.classes), {})

    def __init__(self, config):
        if config.data.data_root:
            raise UseError("--data_root: of which layout? give --task s3dis or --task semantickitti too")
        super().__init__(config.replace(sample=True))
