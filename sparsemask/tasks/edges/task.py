"""Boundary detection: class-balanced cross-entropy, ODS, OIS, AP and R50, on BSDS500 folders or edge PNG.

--data_root is BSDS500: images/{train,val,test}/*.jpg, groundTruth/{train,val,test}/*.mat (or grey .png).
--training_list and --eval_list then name splits: train, val, test or trainval (default: trainval and test).
--im_path and --gt_path with two lists take grey PNG: white is an edge, grey the share of annotators who say so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sparsemask.tasks.dense.data import Pair
from sparsemask.tasks.dense.task import MapTask
from sparsemask.tasks.edges.data import EdgesDataset, bsds_pairs
from sparsemask.tasks.edges.scores import EdgeMeter, EdgeScores, precision_recall


class EdgesTask(MapTask):
    """Detect object boundaries."""

    primary = "ods"
    classes = ("no edge", "edge")

    @staticmethod
    def sample_folder() -> Path:
        """Drawn images in BSDS500's layout."""
        from sparsemask.synthetic.dense_tasks import edges_sample

        return edges_sample()

    def layout(self, root: Path, split: str) -> list[Pair]:
        """The pairs of a split of BSDS500."""
        config = self.config
        return bsds_pairs(
            root,
            (config.data.training_list or "trainval") if split == "training" else (config.data.eval_list or "test"),
        )

    def dataset(self, pairs: list[Pair], **settings) -> EdgesDataset:
        """Images with their boundaries."""
        return EdgesDataset(pairs, self.classes, **settings)

    def weights(self, target: torch.Tensor) -> torch.Tensor:
        """β = |Y-| / |Y| for edges and 1 - β for the rest, image by image (Xie and Tu 2015, section 3.1).

        An image without edges, or with nothing else, weighs nothing.
        """
        edge, rest = target == 1, target == 0
        edges, rests = (pixels.sum((-2, -1), keepdim=True, dtype=torch.float32) for pixels in (edge, rest))
        beta = rests / (edges + rests).clamp(min=1)
        return beta * edge + (1 - beta) * rest

    def meter(self, quick: bool) -> EdgeMeter:
        """Matched pixels at 99 thresholds, at nine while training."""
        return EdgeMeter(self.eval_data.truths, quick)

    def report(self, scores: EdgeScores) -> str:
        """One line."""
        return (
            f"ODS {scores.ods:.4f} (at {scores.threshold:.2f})  OIS {scores.ois:.4f}  AP {scores.ap:.4f}  "
            f"R50 {scores.r50:.4f}  ({scores.count} pictures)"
        )

    def draw_scores(self, scores: EdgeScores, folder: Path) -> None:
        """Draw precision over recall."""
        from sparsemask.pictures import draw_precision_recall

        precision, recall, f = precision_recall(scores.counts)
        best = int(f.argmax())
        draw_precision_recall(
            precision,
            recall,
            folder / "precision_recall.png",
            lambda p, r: 2 * p * r / np.maximum(p + r, 1e-9),
            (float(recall[best]), float(precision[best]), f"ODS {scores.ods:.3f}"),
        )
