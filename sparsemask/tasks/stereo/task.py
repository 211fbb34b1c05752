"""Disparity from two images: smooth L1 on every head, EPE and D1 as published.

Networks take a :class:`sparsemask.tasks.stereo.batch.StereoPair` and give disparities (B, H, W) in pixels, in
training a list of them, one for each head. Loss and training as in GwcNet (Guo et al., CVPR 2019) and SMStereo
(Wang et al., "Sparse mask CNNs", TPAMI 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask import datasets
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine.data import Listed, make_loader, plainly, say_how_read
from sparsemask.engine.distributed import warn
from sparsemask.errors import UseError
from sparsemask.synthetic.stereo_scenes import LEAST
from sparsemask.tasks.protocol import Evaluation, Task, json_rows
from sparsemask.tasks.stereo import layouts
from sparsemask.tasks.stereo.batch import MULTIPLE, StereoPair, picture_of, unpad
from sparsemask.tasks.stereo.data import Frames, Scenes, TrainingCrops, TrainingScenes, WholePairs, collate
from sparsemask.tasks.stereo.files import PairFiles, write_disparity
from sparsemask.tasks.stereo.options import StereoData
from sparsemask.tasks.stereo.scores import DISPARITY, StereoMeter, StereoScores, valid

WEIGHTS = (0.5, 0.5, 0.7, 1.0)  # of the heads; a network with fewer has the last ones
_EPOCH, _VALIDATION = 200, 12  # generated scenes
_RANGE = 0.75  # of maxdisp, that they have disparities up to


class StereoTask(Task):
    """Match images. Predictions are disparities (H, W) in pixels."""

    primary = "d1_ok"  # 1 - D1, so that more is better
    n_output = 1
    data_flags = ("data_root", "training_list", "eval_list")
    score_flags = ("crop_height", "crop_width")
    sample_words = "generated scenes"
    no_data = "no pairs named (--data_root FOLDER, or --training_list and --eval_list FILE)"
    items = "pairs"
    n_drawn = 4
    section = StereoData

    def __init__(self, config: RunConfig):
        if "maxdisp" not in config:
            raise UseError(f"--task {config.data.task} needs a network that takes pairs: --space smstereo")
        if config.network.maxdisp % MULTIPLE:
            raise UseError(f"--maxdisp {config.network.maxdisp}: must be a multiple of {MULTIPLE}")
        for name in ("crop_height", "crop_width"):
            side = config[name]
            if side % MULTIPLE or side < LEAST:
                raise UseError(f"--{name} {side}: must be a multiple of {MULTIPLE}, {LEAST} at least")
        super().__init__(config)

    @staticmethod
    def sample_folder() -> Path:
        """Where generated scenes would lie; they are drawn when they are needed, and nothing is written."""
        return datasets.cache()

    def _drawn(self, split: str) -> bool:
        """Whether the "training" or the "eval" pairs are generated scenes: a list wins over --sample."""
        return bool(self.config.data.sample and not self.config[f"{split}_list"])

    @property
    def _size(self) -> tuple[int, int]:
        return self.config.data.crop_height, self.config.data.crop_width

    def files(self, split: str) -> tuple[str, list[PairFiles]]:
        """(name of the set, files) of the "training" or the "eval" pairs that the configuration names."""
        config = self.config
        listed = config[f"{split}_list"]
        if listed:
            return Path(listed).stem, layouts.read_list(listed, config.data.data_root)
        if not config.data.data_root:
            raise UseError(f"no {split} pairs: give --{split}_list or --data_root, or --sample")
        return Path(config.data.data_root).resolve().name, layouts.split(self._pairs, split)

    @cached_property
    def _pairs(self) -> list[PairFiles]:
        """All pairs below --data_root."""
        return layouts.find_pairs(self.config.data.data_root)[1]

    @property
    def _most(self) -> float:
        """The largest disparity of generated scenes, in pixels."""
        return _RANGE * self.config.network.maxdisp

    @cached_property
    def train_data(self) -> TrainingCrops | TrainingScenes:
        """Training crops, or scenes that are new at every draw."""
        if self._drawn("training"):
            return TrainingScenes(_EPOCH, self._size, self._most)
        return TrainingCrops(Frames(self.files("training")[1]), self._size, self.config.network.maxdisp)

    @cached_property
    def eval_data(self) -> WholePairs:
        """Validation pairs, whole."""
        drawn = self._drawn("eval")
        return WholePairs(Scenes(_VALIDATION, self._size, self._most) if drawn else Frames(self.files("eval")[1]))

    def check(self) -> None:
        """Read the first pair of each part; UseError for what is absent or does not fit together."""
        self.train_data.sample(0, np.random.default_rng(0))
        self.eval_data[0]
        for split in ("training", "eval"):
            if not self._drawn(split):
                say_how_read(split, self.files(split)[1][0].left)
        drawn = self._drawn("training") or self._drawn("eval")
        if not drawn and self.files("training")[1] == self.files("eval")[1]:
            warn("note: the same pairs are for training and for validation")

    def measured_on(self) -> str:
        """The validation pairs in words."""
        return "generated scenes" if self._drawn("eval") else self.files("eval")[0]

    def count(self, target: torch.Tensor) -> float:
        """Divisor of the loss of a batch with truth (B, H, W): its valid pixels."""
        return int(valid(target, self.config.network.maxdisp).sum())

    def loss(self, output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Sum of the smooth L1 of every head's disparities, weighted by WEIGHTS, where 0 < target < maxdisp.

        Args:
            output: (B, H, W), or one for each head, in pixels.
            target: (B, H, W), in pixels.
        """
        heads = [output] if isinstance(output, torch.Tensor) else list(output)
        counted = valid(target, self.config.network.maxdisp)
        kind = torch.promote_types(heads[0].dtype, torch.float32)
        truth = target[counted].to(kind)
        weights = WEIGHTS[len(WEIGHTS) - len(heads) :]
        return sum(
            weight * F.smooth_l1_loss(head[counted].to(kind), truth, reduction="sum")
            for weight, head in zip(weights, heads, strict=True)
        )

    def teacher_loss(
        self,
        output: torch.Tensor | Sequence[torch.Tensor],
        answer: torch.Tensor,
        target: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        """Mean smooth L1 of every head's disparities to the teacher's over all pixels, times `count`.

        Pixels without truth count too: there the teacher is all that there is to learn from. Heads are weighted by
        WEIGHTS; the temperature is not used.
        """
        heads = [output] if isinstance(output, torch.Tensor) else list(output)
        if not isinstance(answer, torch.Tensor) or answer.shape != heads[-1].shape:
            shape = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
            raise UseError(f"gives {shape}, expected disparities {tuple(heads[-1].shape)}")
        wanted = answer.float()
        weights = WEIGHTS[len(WEIGHTS) - len(heads) :]
        means = [weight * F.smooth_l1_loss(head.float(), wanted) for weight, head in zip(weights, heads, strict=True)]
        return torch.stack(means).sum() * self.count(target)

    @torch.no_grad()
    def predict(self, model: Callable, pair: StereoPair, size: Sequence[int], arithmetic: Arithmetic) -> torch.Tensor:
        """Disparities float32 (B, *size) on the CPU, of padded pairs that were of `size` (height, width)."""
        disparity = arithmetic.run(model, pair)
        if disparity.shape != (len(pair), *pair.shape[-2:]):
            raise UseError(f"the network makes {tuple(disparity.shape)} of pairs of {tuple(pair.shape)}")
        return unpad(disparity.float(), *size).cpu()

    def measure(self, model: Callable, evaluation: Evaluation) -> StereoMeter:
        """See :meth:`Task.measure`; pairs go one by one, and `quick` makes no difference."""
        source, context = self.eval_data, evaluation.context
        count, indices = evaluation.indices(len(source))
        workers = context.n_worker if len(indices) > 1 else 0
        loader = make_loader(Listed(source, indices), workers, collate_fn=collate)
        meter = StereoMeter([source.name(i) for i in range(count)], self.config.network.maxdisp)
        for index, (pair, truth) in zip(indices, plainly(loader), strict=True):
            disparity = self.predict(model, pair, truth.shape[-2:], context.arithmetic)[0]
            meter.add(index, disparity, truth[0])
            evaluation.predicted(index, disparity)
        return meter

    def record(self, scores: StereoScores) -> dict:
        """The metrics, those of every region, how they were taken, and those of each pair."""
        means, per_pair = json_rows(scores)
        return {**means, "protocol": scores.protocol, "regions": scores.regions, "each": per_pair}

    def report(self, scores: StereoScores) -> str:
        """The tables by pair and by region, and a line of the means."""
        return f"{scores.text()}\n\n{scores.summary()}  ({self.measured_on()}; {scores.protocol})"

    def draw_scores(self, scores: StereoScores, folder: Path) -> None:
        """Draw the EPE of every pair."""
        from sparsemask.pictures.stereo import draw_errors

        draw_errors(scores.names, scores.values()[:, 0], scores.values()[:, -1], folder / "epe.png")

    def write(self, folder: Path, index: int, prediction: torch.Tensor) -> Path:
        """Write the disparity (H, W) of a validation pair into a folder, under its name; returns the file."""
        path = Path(folder) / f"{self.eval_data.name(index)}.png"
        self.save(path, prediction)
        return path

    def save(self, path: Path, prediction: torch.Tensor) -> None:
        """Write a disparity (H, W) as 16-bit PNG (256 times the pixels) or PFM, by the suffix."""
        write_disparity(path, np.asarray(prediction))

    def sample(self, model: Callable, arithmetic: Arithmetic, index: int) -> tuple:
        """(name, left uint8 (H, W, 3), disparity (H, W), truth (H, W)) of a validation pair."""
        pair, truth = self.eval_data[index]
        size = truth.shape[-2:]
        disparity = self.predict(model, pair, size, arithmetic)[0].numpy()
        left = picture_of(unpad(pair.left, *size)[0])
        return self.eval_data.name(index), left, disparity, truth[0, DISPARITY].numpy()

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write the grid left image | disparity | truth | error."""
        from sparsemask.pictures.stereo import draw_disparities

        draw_disparities(samples, path)
