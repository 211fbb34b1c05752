"""What the dense tasks share: whose pictures, the loop over the validation set, averaging over views, samples.

A dense task says in a class what is its own: how its files are read, its loss, how the network's output becomes a
prediction, and how predictions are scored and shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask import datasets
from sparsemask.engine import data, distributed
from sparsemask.errors import UseError
from sparsemask.tasks.notes import say_how_read, warn
from VOC12.dataset import SegmentationDataset
from VOC12.images import picture_size
from VOC12.survey import survey

IGNORE = 255


class Meter(Protocol):
    """Counts over pictures that can be summed over processes.

    total: tensor of sums, replaced by the sum over all processes before `scores` is called.
    """

    total: torch.Tensor

    def add(self, index: int, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count the prediction (H, W) of validation picture `index`; target (H, W), 255 ignored."""

    def scores(self):
        """What the sums say."""


class DenseTask:
    """A label for every pixel. Subclasses set `primary` and `n_output` and give what raises NotImplementedError."""

    primary: str  # the figure that decides, of those that `figures` gives
    n_output: int  # channels of the network's output
    items = "pictures"
    score_flags = ()
    data_flags = ("data_root", "voc_root", "im_path", "gt_path", "training_list", "eval_list")
    reads_indices = False  # whether labels are index PNG, in which --ignore_index marks what does not count
    reads_voc = False  # whether VOC as VOC12/prepare.py leaves it is data for this task

    def __init__(self, options: argparse.Namespace):
        ignored = getattr(options, "ignore_index", IGNORE)
        if ignored != IGNORE and not self.reads_indices:
            raise UseError(
                f"--ignore_index {ignored}: is for --task segmentation; other tasks' labels have their own rules"
            )
        self._options = options
        self._train = self._eval = None

    @staticmethod
    def sample_folder() -> Path:
        """The pictures that --sample stands for, drawn on first use."""
        raise UseError("this task has no sample set: give --im_path, --gt_path, --training_list and --eval_list")

    def layout(self, root: Path, which: str) -> list[tuple[Path, Path]]:
        """(picture, label) paths of the "training" or the "eval" set below a --data_root."""
        raise NotImplementedError

    def dataset(self, pairs: list[tuple[Path, Path]], **settings) -> SegmentationDataset:
        """The data set of such pairs."""
        raise NotImplementedError

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum of the loss; `output` (N,C,h,w) is resized to `target` (N,H,W), 255 is ignored."""
        raise NotImplementedError

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """What may be averaged over views of one picture, from logits (N,C,H,W)."""
        raise NotImplementedError

    def decide(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The prediction (N,H,W)."""
        raise NotImplementedError

    def meter(self, quick: bool) -> Meter:
        """A fresh count; `quick`: while training, where a rough figure will do."""
        raise NotImplementedError

    def figures(self, scores) -> dict[str, float]:
        """The figures of some scores by name."""
        raise NotImplementedError

    def record(self, scores) -> dict:
        """What run.json keeps of an evaluation: the figures, and what else is worth keeping."""
        return self.figures(scores)

    def report(self, scores, pictures: int) -> str:
        """The scores over `pictures` pictures, for printing."""
        raise NotImplementedError

    def draw_scores(self, scores, folder: Path) -> None:
        """Draw the scores into a folder."""
        raise NotImplementedError

    def save(self, path: Path, prediction: torch.Tensor) -> None:
        """Write one prediction (H,W) as a PNG."""
        raise NotImplementedError

    def write(self, folder: Path, index: int, prediction: torch.Tensor) -> None:
        """Write the prediction of a validation picture into a folder, under its name."""
        self.save(folder / f"{self.eval_data.name(index)}.png", prediction)

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write the picture | truth | prediction grid of some `samples`."""
        raise NotImplementedError

    def pairs(self, which: str) -> list[tuple[Path, Path]]:
        """(picture, label) paths of the "training" or the "eval" set that the options name."""
        o = self._options
        root = self.sample_folder() if o.sample else o.data_root
        if root:
            return self.layout(Path(root), which)
        if o.voc_root:
            raise UseError(f"--voc_root has no labels for --task {o.task}: give --data_root, or folders and lists")
        return datasets.pairs(o, which)

    def _dataset(self, which: str) -> SegmentationDataset:
        o = self._options
        more = {"scales": tuple(o.scales)} if o.scales else {}
        return self.dataset(self.pairs(which), crop_size=o.crop_size, training=which == "training", **more)

    @property
    def train_data(self) -> SegmentationDataset:
        """Training pictures."""
        if self._train is None:
            self._train = self._dataset("training")
        return self._train

    @property
    def eval_data(self) -> SegmentationDataset:
        """Validation pictures."""
        if self._eval is None:
            self._eval = self._dataset("eval")
        return self._eval

    def measured_on(self) -> str:
        """The validation pictures in words."""
        o = self._options
        named = "the sample set" if o.sample else o.data_root or o.voc_root or o.eval_list
        return f"validation pictures of {Path(str(named)).name}"

    def check(self) -> None:
        """Read both lists, the first pair of each, and labels until every class has been seen.

        Says which classes never occur, and what reading changes in the first pictures.

        Raises:
            UseError: what is absent or of another kind, and labels that teach nothing.
        """
        for which, data_set in (("training", self.train_data), ("validation", self.eval_data)):
            data_set.load(0)
            say_how_read(which, data_set.pairs[0][0])
            self._check_labels(which, data_set)

    def _check_labels(self, which: str, data_set: SegmentationDataset) -> None:
        """Refuse labels that teach nothing, and name the classes that never occur."""
        found = survey([label for _, label in data_set.pairs], data_set.read, data_set.n_class)
        wrong = found.unlabelled(which, data_set.ignore_index)
        if which == "training":
            wrong = wrong or found.single(data_set.classes, which)
        if wrong:
            advice = found.masks() if self.reads_indices else None
            raise UseError(f"{wrong}; {advice}" if advice else wrong)
        if absent := found.absent(data_set.classes, which):
            warn(f"note: {absent}")

    def count(self, target: torch.Tensor) -> float:
        """What the loss of a batch (N,H,W) is to be divided by: its labelled pixels."""
        return int((target != IGNORE).sum())

    @torch.no_grad()
    def predict(
        self,
        model: torch.nn.Module,
        images: torch.Tensor,
        arithmetic,
        flips: bool = False,
        scales: tuple[float, ...] = (1.0,),
    ) -> torch.Tensor:
        """(N,H,W) prediction for images (N,3,H,W); flips, scales: averaged over mirrored and rescaled copies."""
        size = images.shape[-2:]
        total = torch.zeros((), device=images.device)
        for scale in scales:
            scaled = images
            if scale != 1.0:
                to = [max(1, round(s * scale)) for s in size]
                scaled = F.interpolate(images, size=to, mode="bilinear", align_corners=False)
            for mirrored in (False, True) if flips else (False,):
                logits = arithmetic.run(model, scaled.flip(-1) if mirrored else scaled)
                logits = resize(logits.flip(-1) if mirrored else logits, size)
                total = total + self.probabilities(logits.float())
        return self.decide(total / (len(scales) * (1 + flips)))

    @torch.no_grad()
    def scores(
        self,
        model: torch.nn.Module,
        arithmetic,
        options: argparse.Namespace,
        limit: int = 0,
        flips: bool = False,
        scales: tuple[float, ...] = (1.0,),
        each=None,
        quick: bool = False,
    ):
        """Scores of `model` on the validation pictures (the first `limit`), over all processes.

        flips, scales: see :meth:`predict`. each(index, prediction): called with every picture's (H,W) prediction,
        padding removed. quick: roughly, as while training.
        """
        source = self.eval_data
        indices = np.arange(len(source))[: limit or None][distributed.rank() :: distributed.world()]
        batch = getattr(options, "eval_batch_size", 1)
        loader = data.evaluation_loader(source, indices, batch, options.n_worker)
        meter = self.meter(quick)
        model.eval()
        done = 0
        for groups in data.plainly(loader):
            for images, target in groups:
                images = images.to(arithmetic.device, arithmetic.parameters)
                prediction = self.predict(model, images, arithmetic, flips, scales).cpu()
                for one, truth in zip(prediction, target, strict=True):
                    index = int(indices[done])
                    one, truth = self._unpad(index, one, truth)
                    meter.add(index, one, truth)
                    if each is not None:
                        each(index, one)
                    done += 1
        meter.total = distributed.total(meter.total.to(arithmetic.device)).cpu()
        return meter.scores()

    def evaluate(self, model, arithmetic, options, limit: int = 0) -> dict[str, float]:
        """Figures for the training loop."""
        return self.figures(self.scores(model, arithmetic, options, limit, quick=True))

    def _unpad(self, index: int, *padded: torch.Tensor) -> list[torch.Tensor]:
        """Cut the centred padding off (H, W) maps of a validation picture."""
        height, width = picture_size(self.eval_data.pairs[index][0])
        top, left = ((have - size) // 2 for have, size in zip(padded[0].shape, (height, width), strict=True))
        return [one[top : top + height, left : left + width] for one in padded]

    def samples(self, model, arithmetic, options, n: int = 6) -> list[tuple]:
        """(picture, truth, prediction) of `n` validation pictures spread over the list."""
        source, found = self.eval_data, []
        model.eval()
        for index in np.unique(np.linspace(0, len(source) - 1, min(n, len(source))).astype(int)):
            images = source[int(index)][0][None].to(arithmetic.device, arithmetic.parameters)
            prediction = self.predict(model, images, arithmetic)[0].cpu()
            picture, truth = source.load(int(index))
            found.append((picture, truth, self._unpad(int(index), prediction)[0].numpy()))
        return found


def resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with aligned corners, as published; skipped when the size is right already."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)
