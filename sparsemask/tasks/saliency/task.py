"""Salient object detection: binary cross-entropy, F-beta and mean absolute error.

Where images lie: :mod:`sparsemask.tasks.saliency.data`.
"""

from __future__ import annotations

from pathlib import Path

from sparsemask.tasks.dense.data import Pair
from sparsemask.tasks.dense.task import MapTask
from sparsemask.tasks.saliency import data
from sparsemask.tasks.saliency.scores import SaliencyMeter, SaliencyScores


class SaliencyTask(MapTask):
    """Detect salient objects: a probability for every pixel."""

    primary = "f_beta"
    classes = ("background", "salient")

    @staticmethod
    def sample_folder() -> Path:
        """Drawn images in ECSSD's layout."""
        from sparsemask.synthetic.dense_tasks import saliency_sample

        return saliency_sample()

    def layout(self, root: Path, split: str) -> list[Pair]:
        """The pairs below a folder in one of the layouts."""
        config = self.config
        return data.split(data.all_pairs(root), split, config.data.training_list, config.data.eval_list)

    def dataset(self, pairs: list[Pair], **settings) -> data.SaliencyDataset:
        """Images with their masks."""
        return data.SaliencyDataset(pairs, self.classes, **settings)

    def meter(self, quick: bool) -> SaliencyMeter:
        """Curves over all thresholds; they cost little."""
        return SaliencyMeter()

    def report(self, scores: SaliencyScores) -> str:
        """One line; a second one where masks are empty."""
        line = (
            f"F-beta {scores.max_f:.4f} (at {scores.threshold:.2f})  adaptive F-beta {scores.adaptive:.4f}  "
            f"MAE {scores.mae:.4f}  ({scores.count} pictures)"
        )
        if scores.empty:
            line += f"\nnothing salient in {scores.empty} of them: they count for MAE only"
        return line

    def draw_scores(self, scores: SaliencyScores, folder: Path) -> None:
        """Draw precision over recall."""
        from sparsemask.pictures import draw_precision_recall
        from sparsemask.tasks.saliency.scores import f_beta

        best = int(scores.f.argmax())
        draw_precision_recall(
            scores.precision,
            scores.recall,
            folder / "precision_recall.png",
            f_beta,
            (float(scores.recall[best]), float(scores.precision[best]), f"Fβ {scores.max_f:.3f}"),
        )
