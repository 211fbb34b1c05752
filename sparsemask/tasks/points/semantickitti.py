"""SemanticKITTI: street scans, 19 classes (Behley et al., ICCV 2019)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.tasks.points.clouds.cloud import CloudFile
from sparsemask.tasks.points.data import Clouds, CropSettings, RandomCrops, TrainingCrops
from sparsemask.tasks.points.layouts import semantickitti as kitti
from sparsemask.tasks.points.task import PointsTask


class SemanticKITTITask(PointsTask):
    """Scans, read when needed; training crops are of random scans around random points, coordinates the sensor's."""

    classes = kitti.NAMES
    d_in = 3
    tilt = 5.0
    hold = False
    sample_words = None  # there are no drawn scans
    defaults = {
        "channels": [36, 72, 144, 288], "radius": 0.1, "n_points": 45056, "train_steps": 3000, "val_steps": 500,
        "grid": kitti.GRID, "vote_smooth": 0.98,
    }  # fmt: skip

    @property
    def title(self) -> str:
        """The data in words."""
        return f"SemanticKITTI {' '.join(self.config.data.eval_scans or ['08'])}"

    def files(self, which: str) -> list[CloudFile]:
        """The named sequences or scans, or the published part."""
        config = self.config
        if config.data.sample:
            raise UseError("--task semantickitti: there are no drawn scans; --sample is for --task sample")
        if not config.data.data_root:
            making = "sparsemask prepare-points semantickitti makes it"
            raise UseError(f"--task semantickitti: --data_root FOLDER is missing ({making})")
        part, only = ("train", config.data.train_scans) if which == "training" else ("val", config.data.eval_scans)
        return kitti.list_clouds(config.data.data_root, part, only, config.data.grid)

    def _training(self, clouds: Clouds, settings: CropSettings, length: int) -> TrainingCrops:
        return RandomCrops(clouds, settings, length)

    @property
    def weights(self) -> torch.Tensor:
        """As published, from the training sequences' counts."""
        return torch.from_numpy(kitti.WEIGHTS)

    @staticmethod
    def raw_labels(prediction: np.ndarray) -> bytes:
        """Classes (N,) as a `.label` file holds them: raw labels, uint32."""
        return kitti.raw_labels(prediction).astype("<u4").tobytes()

    def check_original(self, file: CloudFile) -> None:
        """UseError for a scan without projection whose original is not beside."""
        kitti.check_original(file)

    def write(self, folder: Path, index: int, prediction: np.ndarray) -> Path:
        """sequences/NN/predictions/SCAN.label with raw labels, uint32, as the benchmark takes them."""
        clouds = self.clouds("eval")
        sequence, scan = clouds.names[index].split("/")
        prediction = kitti.all_points(clouds.files[index], clouds[index], prediction)
        path = Path(folder) / "sequences" / sequence / "predictions" / f"{scan}.label"
        write_bytes(path, self.raw_labels(prediction))
        return path
