"""Every task of the package on a few small samples of its own, made in a folder within a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import small_classes
import small_clouds
import small_pairs
import small_pictures
from sparsemask import tasks
from sparsemask.synthetic import dense_tasks
from sparsemask.tasks import Task
from sparsemask.tasks.points.layouts.semantickitti import LEARNING_MAP
from sparsemask.tasks.points.prepare.command import prepare_semantickitti_scans
from sparsemask.tasks.points.s3dis import SampleTask
from sparsemask.testing.tasks import labelled_options
from tiny import make_data

_SIDE = 48


def segmentation(folder: Path) -> Task:
    """Three validation pictures of four classes."""
    return tasks.get("segmentation", labelled_options(**labelled(folder / "d")))


def labelled(folder: Path) -> dict:
    """The flags of pictures with four classes that are made in a folder."""
    make_data(folder)
    data = {"im_path": folder / "img", "gt_path": folder / "gt", "n_class": 4}
    return {**data, "training_list": folder / "train.txt", "eval_list": folder / "val.txt"}


def _dense(name: str, make: Callable[[Path], None]) -> Callable[[Path], Task]:
    def build(folder: Path) -> Task:
        make(folder)
        return tasks.get(name, labelled_options(task=name, data_root=folder))

    return build


def super_resolution(folder: Path) -> Task:
    """Two pictures, to train on and to validate."""
    small_pictures.make_folder(folder, 2)
    return tasks.get("super_resolution", small_pictures.options(hr_path=folder, data_test=folder))


def stereo(folder: Path) -> Task:
    """Three pairs, one of them to validate."""
    small_pairs.write_scenes(folder, 3, 40, 72, 20)
    return tasks.get("stereo", small_pairs.options(data_root=folder))


def classification(folder: Path) -> Task:
    """Ten validation pictures of 8x8."""
    return tasks.get("classification", small_classes.options(data_root=small_classes.write_npz(folder)))


def s3dis(folder: Path) -> Task:
    """A room to train on and one to validate."""
    return tasks.get("s3dis", small_clouds.options(data_root=str(small_clouds.rooms(folder)), grid=0.25))


def sample(folder: Path) -> Task:
    """The same rooms in place of those that --sample generates."""

    class Few(SampleTask):
        sample_folder = staticmethod(lambda: small_clouds.rooms(folder))

    return Few(small_clouds.options(task="sample", grid=0.25))


def semantickitti(folder: Path) -> Task:
    """A scan to train on, which is validated too."""
    rng = np.random.default_rng(0)
    for part in ("velodyne", "labels"):
        (folder / "sequences/08" / part).mkdir(parents=True)
    np.abs(rng.normal(0, 4, (300, 4))).astype("<f4").tofile(folder / "sequences/08/velodyne/000000.bin")
    rng.choice(sorted(LEARNING_MAP), 300).astype("<u4").tofile(folder / "sequences/08/labels/000000.label")
    prepare_semantickitti_scans(folder, jobs=1)
    options = small_clouds.options(task="semantickitti", data_root=str(folder), train_scans=["08"])
    return tasks.get("semantickitti", options)


BUILD: dict[str, Callable[[Path], Task]] = {
    "segmentation": segmentation,
    "saliency": _dense("saliency", lambda folder: dense_tasks.make_saliency(folder, 3, _SIDE)),
    "edges": _dense("edges", lambda folder: dense_tasks.make_edges(folder, 2, 2, _SIDE)),
    "ade20k": _dense("ade20k", lambda folder: dense_tasks.make_ade20k(folder, 2, 1, _SIDE)),
    "super_resolution": super_resolution,
    "stereo": stereo,
    "classification": classification,
    "s3dis": s3dis,
    "sample": sample,
    "semantickitti": semantickitti,
}
