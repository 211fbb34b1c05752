"""Disparity from two pictures: smooth L1 on every head, EPE and D1 as published.

Networks take a :class:`sparsemask.tasks.stereo.batch.StereoPair` and give disparities (B, H, W) in pixels, in
training a list of them, one for each head. Loss and training as in GwcNet (Guo et al., CVPR 2019) and SMStereo
(Wang et al., "Sparse mask CNNs", TPAMI 2022).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask import datasets
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import distributed
from sparsemask.engine.data import Listed, make_loader, plainly
from sparsemask.errors import UseError, say
from sparsemask.synthetic.stereo_scenes import LEAST
from sparsemask.tasks.evaluation import json_value, set_evaluation, shared_indices, spread_indices, summed
from sparsemask.tasks.notes import say_how_read
from sparsemask.tasks.protocol import EvaluationContext, Task
from sparsemask.tasks.stereo import layouts
from sparsemask.tasks.stereo.batch import StereoPair
from sparsemask.tasks.stereo.data import Frames, Scenes, TrainingCrops, TrainingScenes, WholePairs, collate
from sparsemask.tasks.stereo.files import write_disparity
from sparsemask.tasks.stereo.framing import MULTIPLE, picture_of, unpad
from sparsemask.tasks.stereo.options import StereoData
from sparsemask.tasks.stereo.pairs import PairFiles
from sparsemask.tasks.stereo.scores import DISPARITY, StereoMeter, StereoScores, valid

WEIGHTS = (0.5, 0.5, 0.7, 1.0)  # of the heads; a network with fewer has the last ones
_EPOCH, _VALIDATION = 200, 12  # generated scenes
_RANGE = 0.75  # of maxdisp, that they have disparities up to


class StereoTask(Task):
    """Match pictures. Predictions are disparities (H, W) in pixels."""

    primary = "d1_ok"  # 1 - D1, so that more is better
    n_output = 1
    data_flags = ("data_root", "training_list", "eval_list")
    score_flags = ("crop_height", "crop_width")
    sample_words = "generated scenes"
    no_data = "no pairs named (--data_root FOLDER, or --training_list and --eval_list FILE)"
    items = "pairs"
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
        self._made: dict = {}

    @staticmethod
    def sample_folder() -> Path:
        """Where generated scenes would lie; they are drawn when they are needed, and nothing is written."""
        return datasets.cache()

    def _once(self, name: str, make):
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _drawn(self, which: str) -> bool:
        """Whether the "training" or the "eval" pairs are generated scenes: a list wins over --sample."""
        return bool(self.config.data.sample and not self.config[f"{which}_list"])

    @property
    def _size(self) -> tuple[int, int]:
        return self.config.data.crop_height, self.config.data.crop_width

    def files(self, which: str) -> tuple[str, list[PairFiles]]:
        """(name of the set, files) of the "training" or the "eval" pairs that the configuration names."""
        config = self.config
        listed = config[f"{which}_list"]
        if listed:
            return Path(listed).stem, layouts.read_list(listed, config.data.data_root)
        if not config.data.data_root:
            raise UseError(f"no {which} pairs: give --{which}_list or --data_root, or --sample")
        _, found = self._once("root", lambda: layouts.find_pairs(config.data.data_root))
        return Path(config.data.data_root).resolve().name, layouts.split(found, which)

    @property
    def train_data(self) -> TrainingCrops | TrainingScenes:
        """Training crops, or scenes that are new at every draw."""
        config = self.config
        if self._drawn("training"):
            return self._once("train", lambda: TrainingScenes(_EPOCH, self._size, _RANGE * config.network.maxdisp))
        return self._once(
            "train", lambda: TrainingCrops(Frames(self.files("training")[1]), self._size, config.network.maxdisp)
        )

    @property
    def eval_data(self) -> WholePairs:
        """Validation pairs, whole."""
        if self._drawn("eval"):
            most = _RANGE * self.config.network.maxdisp
            return self._once("eval", lambda: WholePairs(Scenes(_VALIDATION, self._size, most)))
        return self._once("eval", lambda: WholePairs(Frames(self.files("eval")[1])))

    def check(self) -> None:
        """Read the first pair of each part; UseError for what is absent or does not fit together."""
        self.train_data.sample(0, np.random.default_rng(0))
        self.eval_data[0]
        for which in ("training", "eval"):
            if not self._drawn(which):
                say_how_read(which, self.files(which)[1][0].left)
        if (
            not (self._drawn("training") or self._drawn("eval"))
            and self.files("training")[1] == self.files("eval")[1]
            and distributed.rank() == 0
        ):
            say("note: the same pairs are for training and for validation", sys.stderr)

    def measured_on(self) -> str:
        """The validation pairs in words."""
        return "generated scenes" if self._drawn("eval") else self.files("eval")[0]

    def count(self, target: torch.Tensor) -> float:
        """What the loss of a batch with truth (B, H, W) is to be divided by: its pixels that count."""
        return int(valid(target, self.config.network.maxdisp).sum())

    def loss(self, output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Sum of the smooth L1 of every head's disparities, weighted by WEIGHTS, where 0 < target < maxdisp.

        output: (B, H, W), or one for each head; target: (B, H, W), all in pixels.
        """
        heads = [output] if isinstance(output, torch.Tensor) else list(output)
        counted = valid(target, self.config.network.maxdisp)
        kind = torch.float64 if heads[0].dtype == torch.float64 else torch.float32
        truth = target[counted].to(kind)
        weights = WEIGHTS[len(WEIGHTS) - len(heads) :]
        return sum(
            weight * F.smooth_l1_loss(head[counted].to(kind), truth, reduction="sum")
            for weight, head in zip(weights, heads, strict=True)
        )

    @torch.no_grad()
    def predict(self, model: Callable, pair: StereoPair, size: Sequence[int], arithmetic: Arithmetic) -> torch.Tensor:
        """Disparities float32 (B, *size) on the CPU, of padded pairs that were of `size` (height, width)."""
        found = arithmetic.run(model, pair)
        if found.shape != (len(pair), *pair.shape[-2:]):
            raise UseError(f"the network makes {tuple(found.shape)} of pairs of {tuple(pair.shape)}")
        return unpad(found.float(), *size).cpu()

    @torch.no_grad()
    def evaluate(
        self,
        model: Callable,
        context: EvaluationContext,
        *,
        limit: int = 0,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
        on_prediction: Callable[[int, torch.Tensor], None] | None = None,
        quick: bool = False,
    ) -> StereoScores:
        """See :meth:`Task.evaluate`; pairs go one by one, and `quick` makes no difference."""
        self.check_views(flips, scales)
        source = self.eval_data
        count, indices = shared_indices(len(source), limit)
        workers = context.n_worker if len(indices) > 1 else 0
        loader = make_loader(Listed(source, indices), workers, collate_fn=collate)
        meter = StereoMeter([source.name(i) for i in range(count)], self.config.network.maxdisp)
        set_evaluation(model)
        for index, (pair, truth) in zip(indices, plainly(loader), strict=True):
            disparity = self.predict(model, pair, truth.shape[-2:], context.arithmetic)[0]
            meter.add(index, disparity, truth[0])
            if on_prediction is not None:
                on_prediction(index, disparity)
        meter.total = summed(meter.total, context.arithmetic)
        return meter.scores()

    def record(self, scores: StereoScores) -> dict:
        """The metrics, those of every region, how they were taken, and those of each pair."""
        *each, mean = [{k: json_value(v) for k, v in row.items()} for row in scores.rows()]
        means = {k: v for k, v in mean.items() if k not in ("picture", "size")}
        return {**means, "protocol": scores.protocol, "regions": scores.regions, "each": each}

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

    @torch.no_grad()
    def samples(self, model: Callable, arithmetic: Arithmetic, n: int = 4) -> list[tuple]:
        """(name, left uint8 (H, W, 3), disparity (H, W), truth (H, W)) of `n` validation pairs spread over the list."""
        source, found = self.eval_data, []
        set_evaluation(model)
        for index in spread_indices(len(source), n):
            pair, truth = source[index]
            size = truth.shape[-2:]
            disparity = self.predict(model, pair, size, arithmetic)[0].numpy()
            left = picture_of(unpad(pair.left, *size)[0])
            found.append((source.name(index), left, disparity, truth[0, DISPARITY].numpy()))
        return found

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write the grid left picture | disparity | truth | error."""
        from sparsemask.pictures.stereo import draw_disparities

        draw_disparities(samples, path)
