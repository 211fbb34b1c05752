"""Super-resolution: an image from its bicubic reduction, by L1; PSNR and SSIM as published.

Where images lie: :mod:`sparsemask.tasks.super_resolution.folders`. Networks take and give RGB of 0 to 255, float32
(N, 3, H, W), and enlarge by --scale. Scores are of luma for test sets and of RGB for DIV2K's validation
images (Lim et al., "Enhanced deep residual networks for single image super-resolution", 2017; Wang et al.,
"Exploring sparsity in image super-resolution for efficient inference", CVPR 2021).
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import data
from sparsemask.engine.distributed import warn
from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.options import positive, stage_at, stages
from sparsemask.tasks.protocol import Evaluation, Task, json_rows
from sparsemask.tasks.super_resolution import folders, losses
from sparsemask.tasks.super_resolution.data import SuperResolutionDataset, repeats
from sparsemask.tasks.super_resolution.image_metrics import quantise
from sparsemask.tasks.super_resolution.options import SuperResolutionData, parse_loss, whole_paths
from sparsemask.tasks.super_resolution.scores import Protocol, SuperResolutionMeter, SuperResolutionScores, enlarged


class SuperResolutionTask(Task):
    """Enlarge images. Predictions are (3, H, W) of whole numbers, 0 to 255."""

    primary = "psnr"
    n_output = 3
    data_flags = ("hr_path", "dir_data", "data_test")
    score_flags = ("scale", "data_range", "ssim_divisor", "crop_even")
    n_drawn = 4
    sample_words = "the embedded pictures"
    section = SuperResolutionData

    def __init__(self, config: RunConfig):
        if config.get("scale") is None:
            raise UseError("--task super_resolution needs a network that enlarges pictures: --space smsr")
        if config.data.rgb_range != 255:
            raise UseError(f"--rgb_range {config.data.rgb_range}: pictures have values of 0 to 255 here, and no others")
        super().__init__(config.replace(**whole_paths(config.data)))
        self._stages = stages(config.data.loss, parse_loss)
        self._terms = self._stages[-1][1]
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

    @cached_property
    def train_data(self) -> SuperResolutionDataset:
        """Training patches."""
        config = self.config
        dataset = SuperResolutionDataset(
            self.source("training").pairs,
            config.data.scale,
            stages(config.data.patch_size, positive),
            kind=config.data.ext,
        )
        dataset.repeat = repeats(len(dataset.store), config.get("batch_size") or 16, config.data.test_every)
        dataset.store.fill()
        return dataset

    @cached_property
    def eval_data(self) -> SuperResolutionDataset:
        """Validation images, whole."""
        chosen = self.config.data
        dataset = SuperResolutionDataset(
            self.source("eval").pairs, chosen.scale, None, crop_even=chosen.crop_even, kind=chosen.ext
        )
        dataset.store.fill()
        return dataset

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
            data.say_how_read(split, *filter(None, data_set.pairs[0]))
            notes = []
            if data_set.left_out:
                total = data_set.left_out + len(data_set.store)
                notes.append(f"{data_set.left_out} of {total} are smaller than --patch_size and left out")
            if any(pair.lr is None and pair.hr.parent.name.endswith("HR") for pair in data_set.pairs):
                notes.append(f"no LR_bicubic/X{self.config.data.scale} beside them: made by bicubic")
            if data_set.store.kind == "img" and self.config.data.ext == "auto" and split == "training":
                size = data_set.store.bytes / 1e9
                notes.append(f"{size:.1f} GB, decoded for every patch; --ext sep keeps them decoded on the disk")
            if notes:
                warn(f"{split} pictures: {'; '.join(notes)}")

    def measured_on(self) -> str:
        """The validation images in words."""
        return self.source("eval").title

    def at(self, share: float) -> SuperResolutionTask:
        """With the loss of the stage of --loss that a share of the run lies in."""
        if len(self._stages) == 1:
            return self
        task = copy.copy(self)
        task._terms = stage_at(self._stages, share)
        return task

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
        kind = torch.promote_types(output.dtype, torch.float32)
        output, target = output.to(kind), target.to(kind)
        return sum(weight * losses.FUNCTIONS[name](output, target) for weight, name in self._terms)

    def teacher_loss(
        self, output: torch.Tensor, answer: torch.Tensor, target: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """The loss with the teacher's pictures as target; the temperature is not used."""
        return self.loss(output, answer)

    @torch.no_grad()
    def predict(self, model: Callable, images: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
        """Quantised images, float32 (N,3,sH,sW) on the CPU, of images (N,3,H,W) of 0 to 255."""
        output = arithmetic.run(model, images)
        return quantise(output.float()).cpu()

    def measure(self, model: Callable, evaluation: Evaluation) -> SuperResolutionMeter:
        """See :meth:`Task.measure`; images go one by one, and `quick` leaves out bicubic's scores."""
        source, context = self.eval_data, evaluation.context
        count, indices = evaluation.indices(len(source))
        workers = 0 if source.store.kind == "memory" else context.n_worker
        loader = data.evaluation_loader(source, indices, 1, workers)
        meter = SuperResolutionMeter([source.name(i) for i in range(count)], self.protocol, not evaluation.quick)
        for index, [(images, target)] in zip(indices, data.plainly(loader), strict=True):
            prediction = self.predict(model, images, context.arithmetic)[0]
            self._fits(prediction, target[0])
            meter.add(index, prediction, target[0], images[0])
            evaluation.predicted(index, prediction)
        return meter

    def record(self, scores: SuperResolutionScores) -> dict:
        """The metrics, bicubic's, how they were taken, and those of each image."""
        means, per_image = json_rows(scores)
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

    def sample(self, model: Callable, arithmetic: Arithmetic, index: int) -> tuple:
        """(name, bicubic, prediction, truth, bicubic's PSNR, PSNR) of a validation image; images uint8 (H,W,3)."""
        images, truth = self.eval_data[index]
        prediction = self.predict(model, images[None], arithmetic)[0]
        self._fits(prediction, truth)
        bicubic = enlarged(images, self.protocol.scale)
        psnrs = [self.protocol(enlargement, truth)[0] for enlargement in (bicubic, prediction)]
        return self.eval_data.name(index), *map(_picture, (bicubic, prediction, truth)), *psnrs

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
