"""Scores of labelled points, and of the prediction files of several evaluations together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.cloud import IGNORED
from sparsemask.tasks.points.clouds.ply import read_ply, write_ply
from sparsemask.tasks.segmentation.scores import ConfusionMeter, SegmentationScores, class_table

_UNKNOWN = 255  # ignored points in files of predictions


class PointScores(SegmentationScores):
    """Scores of a confusion matrix of points, rows truth; ignored points are in no row.

    Classes that the truth does not hold have no score (the published code gives them the mean of the others, which
    leaves the mean as it is).
    """

    @property
    def iou(self) -> np.ndarray:
        """(C,), NaN for classes absent from the truth."""
        return np.where(self.present, super().iou, np.nan)

    @property
    def oa(self) -> float:
        """Overall accuracy: share of the labelled points that are right."""
        return self.pixel_accuracy

    @property
    def macc(self) -> float:
        """Mean recall of the classes that occur."""
        return float(self.recall[self.present].mean()) if self.present.any() else float("nan")

    protocol = "of labelled points"

    def summary(self) -> str:
        """The means in a line."""
        return f"mIoU {self.miou:.4f}  OA {self.oa:.4f}  mAcc {self.macc:.4f}"

    @property
    def metrics(self) -> dict[str, float]:
        """mIoU, overall accuracy, mean accuracy."""
        return {"miou": self.miou, "oa": self.oa, "macc": self.macc}


def score_text(scores: PointScores, classes: list[str], measured_on: str) -> str:
    """The table by class, the absent classes, and the means."""
    lines = [class_table(scores, classes, "points")]
    absent = scores.absent(classes)
    if absent:
        lines.append(f"absent from these clouds, and left out of the means: {', '.join(absent)}")
    lines.append(f"{scores.summary()}  ({measured_on}, {int(scores.matrix.sum())} points)")
    return "\n".join(lines)


def write_pair(path: Path, prediction: np.ndarray, truth: np.ndarray | None) -> None:
    """Write predicted classes (N,) and, where it is known, the truth as the PLY properties `pred` and `label`."""
    columns = {"pred": prediction.astype(np.uint8)}
    if truth is not None:
        columns["label"] = np.where(truth == IGNORED, _UNKNOWN, truth).astype(np.uint8)
    write_ply(path, columns)


def pooled_text(folders: Iterable[str | Path], classes: list[str], expected: dict[int, int]) -> str:
    """The scores of all predictions below some folders as a table, and how many rooms of each area are missing.

    Args:
        expected: rooms of every area.
    """
    scores, rooms = pooled(folders, len(classes))
    counts = ", ".join(f"area {area}: {count}" for area, count in sorted(rooms.items()))
    missing = [f"area {a}: {n - rooms.get(a, 0)} of {n}" for a, n in expected.items() if rooms.get(a, 0) < n]
    note = f"\nnote: rooms that are not there: {', '.join(missing)}" if missing else ""
    return score_text(scores, classes, f"rooms of {counts}") + note


def pooled(folders: Iterable[str | Path], n_class: int) -> tuple[PointScores, dict[int, int]]:
    """The scores of all points in the prediction files Area_a_room.ply below some folders; and rooms by area.

    Raises:
        UseError: no such files, one without `pred` and `label`, or a room that is there twice.
    """
    meter, rooms, paths = ConfusionMeter(n_class, PointScores), {}, {}
    for folder in folders:
        for path in sorted(Path(folder).rglob("Area_*.ply")):
            match = re.match(r"Area_(\d+)_", path.name)
            if match is None:
                continue
            if path.stem in paths:
                raise UseError(f"{path.stem}: predicted twice, {paths[path.stem]} and {path}")
            paths[path.stem] = path
            columns = read_ply(path)
            if not {"pred", "label"} <= set(columns):
                raise UseError(f"{path}: no predictions of a labelled room (no properties pred and label)")
            if (columns["pred"] >= n_class).any():
                raise UseError(f"{path}: predictions of more than {n_class} classes")
            prediction, truth = (torch.from_numpy(columns[name].astype(np.int64)) for name in ("pred", "label"))
            meter.add(len(paths), prediction, truth)
            rooms[int(match[1])] = rooms.get(int(match[1]), 0) + 1
    if not paths:
        raise UseError(f"no predictions Area_*.ply below {', '.join(map(str, folders))} (eval --out writes them)")
    return meter.scores(), rooms
