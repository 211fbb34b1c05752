"""Super-resolution: an image from its bicubic reduction, by L1; PSNR and SSIM as published.

Where images lie: :mod:`sparsemask.tasks.super_resolution.folders`. Networks take and give RGB of 0 to 255, float32
(N, 3, H, W), and enlarge by --scale. Scores are of luma for test sets and of RGB for DIV2K's validation
images (Lim et al., "Enhanced deep residual networks for single image super-resolution", 2017; Wang et al.,
"Exploring sparsity in image super-resolution for efficient inference", CVPR 2021).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import data, distributed
from sparsemask.errors import UseError, say
from sparsemask.files import write_bytes
from sparsemask.tasks.evaluation import json_value, set_evaluation, shared_indices, spread_indices, summed
from sparsemask.tasks.notes import say_how_read
from sparsemask.tasks.protocol import EvaluationContext, Task
from sparsemask.tasks.super_resolution import folders
from sparsemask.tasks.super_resolution.data import SuperResolutionDataset, repeats
from sparsemask.tasks.super_resolution.image_metrics import quantise
from sparsemask.tasks.super_resolution.options import LOSSES, SuperResolutionData, parse_loss, whole_paths
from sparsemask.tasks.super_resolution.scores import Protocol, SuperResolutionMeter, SuperResolutionScores, enlarged


class SuperResolutionTask(Task):
    """Enlarge images. Predictions are (3, H, W) of whole numbers, 0 to 255."""

    primary = "psnr"
    n_output = 3
    data_flags = ("hr_path", "dir_data", "data_test")
    score_flags = ("scale", "data_range", "ssim_divisor", "crop_even")
    sample_words = "the embedded pictures"
    section = SuperResolutionData

    def __init__(self, config: RunConfig):
        if config.get("scale") is None:
            raise UseError("--task super_resolution needs a network that enlarges pictures: --space smsr")
        if config.data.rgb_range != 255:
            raise UseError(f"--rgb_range {config.data.rgb_range}: pictures have values of 0 to 255 here, and no others")
        super().__init__(config.replace(**whole_paths(config.data)))
        self._terms = parse_loss(config.data.loss)
        self._train = self._eval = None
        self._sources: dict[str, folders.Source] = {}

    @staticmethod
    def sample_folder() -> Path:
        """The images that --sample stands for: photographs that come with scikit-image."""
        return folders.sample_folder()

    def source(self, split: str) -> folders.Source:
        """The "training" or the "eval" images that the configuration names."""
        if split not in self._sources:
            self._sources[split] = folders.find_source(self.config.data, split)
        return self._sources[split]

    @property
    def train_data(self) -> SuperResolutionDataset:
        """Training patches."""
        if self._train is None:
            config = self.config
            dataset = SuperResolutionDataset(
                self.source("training").pairs, config.data.scale, config.data.patch_size, kind=config.data.ext
            )
            dataset.repeat = repeats(len(dataset.store), config.get("batch_size") or 16, config.data.test_every)
            dataset.store.fill()
            self._train = dataset
        return self._train

    @property
    def eval_data(self) -> SuperResolutionDataset:
        """Validation images, whole."""
        if self._eval is None:
            config = self.config
            dataset = SuperResolutionDataset(
                self.source("eval").pairs,
                config.data.scale,
                None,
                crop_even=config.data.crop_even,
                kind=config.data.ext,
            )
            dataset.store.fill()
            self._eval = dataset
        return self._eval

    @property
    def protocol(self) -> Protocol:
        """How the validation images are scored."""
        config = self.config
        return Protocol(
            config.data.scale, self.source("eval").benchmark, config.data.ssim_divisor, config.data.crop_even
        )

    def check(self) -> None:
        """Read all headers and, where they fit into memory, all images; UseError for what is absent or broken.

        Prints notes on images that are left out and on low-resolution ones that are made.
        """
        for split, data_set in (("training", self.train_data), ("validation", self.eval_data)):
            data_set.load(0)
            say_how_read(split, *filter(None, data_set.pairs[0]))
            notes = []
            if data_set.left_out:
                total = data_set.left_out + len(data_set.store)
                notes.append(f"{data_set.left_out} of {total} are smaller than --patch_size and left out")
            if any(pair.lr is None and pair.hr.parent.name.endswith("HR") for pair in data_set.pairs):
                notes.append(f"no LR_bicubic/X{self.config.data.scale} beside them: made by bicubic")
            if data_set.store.kind == "img" and self.config.data.ext == "auto" and split == "training":
                size = data_set.store.bytes / 1e9
                notes.append(f"{size:.1f} GB, decoded for every patch; --ext sep keeps them decoded on the disk")
            if notes and distributed.rank() == 0:
                say(f"{split} pictures: {'; '.join(notes)}", sys.stderr)

    def measured_on(self) -> str:
        """The validation images in words."""
        return self.source("eval").title

    def count(self, target: torch.Tensor) -> float:
        """Divisor of the loss of a batch (N,3,H,W): its number of values."""
        return target.numel()

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Sum over all values of `output` and `target` (N,3,H,W) of 0 to 255, of the terms of --loss."""
        if output.shape != target.shape:
            raise UseError(
                f"the network makes {tuple(output.shape)} where the pictures are {tuple(target.shape)}: "
                f"is --scale {self.config.data.scale} its scale?"
            )
        kind = torch.float64 if output.dtype == torch.float64 else torch.float32
        output, target = output.to(kind), target.to(kind)
        return sum(weight * LOSSES[name](output, target) for weight, name in self._terms)

    @torch.no_grad()
    def predict(self, model: Callable, images: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        """Quantised images, float32 (N,3,sH,sW) on the CPU, of images (N,3,H,W) of 0 to 255."""
        output = arithmetic.run(model, images)
        return quantise(output.float()).cpu()

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
    ) -> SuperResolutionScores:
        """See :meth:`Task.evaluate`; images go one by one, and `quick` leaves out bicubic's scores.

        Args:
            model: also a function that works on tiles.
        """
        self.check_views(flips, scales)
        source = self.eval_data
        count, indices = shared_indices(len(source), limit)
        workers = 0 if source.store.kind == "memory" else context.n_worker
        loader = data.evaluation_loader(source, indices, 1, workers)
        meter = SuperResolutionMeter([source.name(i) for i in range(count)], self.protocol, not quick)
        set_evaluation(model)
        for index, [(images, target)] in zip(indices, data.plainly(loader), strict=True):
            prediction = self.predict(model, images, context.arithmetic)[0]
            self._fits(prediction, target[0])
            meter.add(index, prediction, target[0], images[0])
            if on_prediction is not None:
                on_prediction(index, prediction)
        meter.total = summed(meter.total, context.arithmetic)
        return meter.scores()

    def record(self, scores: SuperResolutionScores) -> dict:
        """The metrics, bicubic's, how they were taken, and those of each image."""
        *per_image, mean = [{k: json_value(v) for k, v in row.items()} for row in scores.rows()]
        means = {k: v for k, v in mean.items() if k not in ("picture", "size")}
        return {**means, "protocol": str(scores.protocol), "each": per_image}

    def report(self, scores: SuperResolutionScores) -> str:
        """The table by image with bicubic beside it, and a line of the means."""
        lines = [scores.text(), ""]
        if scores.equal:
            lines.append(f"{scores.equal} equal to the truth (PSNR infinite): not in the mean PSNR")
        gain = scores.psnr - scores.bicubic_psnr
        lines.append(
            f"PSNR {scores.psnr:.3f} dB  SSIM {scores.ssim:.4f}  {gain:+.3f} dB to bicubic  "
            f"({self.source('eval').title}, {scores.count} pictures; {scores.protocol})"
        )
        return "\n".join(lines)

    def draw_scores(self, scores: SuperResolutionScores, folder: Path) -> None:
        """Draw the PSNR of every image beside bicubic's."""
        from sparsemask.pictures.super_resolution import draw_psnr

        draw_psnr(scores.names, scores.bicubic_psnrs, scores.psnrs, folder / "psnr.png")

    def write(self, folder: Path, index: int, prediction: torch.Tensor) -> Path:
        """Write the prediction (3,H,W) of a validation image into a folder, under its name; returns the file."""
        path = Path(folder) / f"{self.eval_data.name(index)}.png"
        self.save(path, prediction)
        return path

    def save(self, path: Path, prediction: torch.Tensor) -> None:
        """Write a prediction (3,H,W) of 0 to 255 as a PNG."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UseError(f"{path}: predictions are written as .png")
        buffer = io.BytesIO()
        Image.fromarray(_picture(quantise(prediction))).save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())

    @torch.no_grad()
    def samples(self, model: Callable, arithmetic: Arithmetic, n: int = 4) -> list[tuple]:
        """(name, bicubic, prediction, truth, bicubic's PSNR, PSNR) of `n` validation images spread over the list.

        The images are uint8 (H,W,3).
        """
        source, samples, protocol = self.eval_data, [], self.protocol
        set_evaluation(model)
        for index in spread_indices(len(source), n):
            images, truth = source[index]
            prediction = self.predict(model, images[None], arithmetic)[0]
            self._fits(prediction, truth)
            bicubic = enlarged(images, protocol.scale)
            psnrs = [protocol(enlargement, truth)[0] for enlargement in (bicubic, prediction)]
            samples.append((source.name(index), *map(_picture, (bicubic, prediction, truth)), *psnrs))
        return samples

    def draw(self, samples: list[tuple], path: Path) -> None:
        """Write the grid of crops, bicubic | prediction | truth."""
        from sparsemask.pictures.super_resolution import draw_super_resolution

        draw_super_resolution(samples, path)

    def _fits(self, prediction: torch.Tensor, truth: torch.Tensor) -> None:
        """Raise a UseError unless both are of one size."""
        if prediction.shape != truth.shape:
            output_size, target_size = (f"{image.shape[-1]}x{image.shape[-2]}" for image in (prediction, truth))
            raise UseError(
                f"the network makes {output_size} of a picture to become {target_size}: is --scale its scale?"
            )


def _picture(image: torch.Tensor) -> np.ndarray:
    """(3,H,W) of whole numbers as uint8 (H,W,3)."""
    return np.ascontiguousarray(image.to(torch.uint8).permute(1, 2, 0).numpy())
