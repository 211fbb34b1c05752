"""Scores of super-resolution: PSNR and SSIM by image, beside those of bicubic enlargement."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from sparsemask.resize import imresize
from sparsemask.tables import table
from sparsemask.tasks.protocol import Scores
from sparsemask.tasks.super_resolution.image_metrics import psnr, ssim


@dataclass(frozen=True)
class Protocol:
    """How images are scored; see :mod:`sparsemask.tasks.super_resolution.image_metrics`."""

    scale: int
    benchmark: bool = True
    divisor: int = 255
    crop_even: bool = False

    def __call__(self, sr: torch.Tensor, hr: torch.Tensor) -> tuple[float, float]:
        """PSNR in dB and SSIM of a quantised image (3, H, W) of 0 to 255."""
        return (psnr(sr, hr, self.scale, self.benchmark), ssim(sr, hr, self.scale, self.benchmark, self.divisor))

    def __str__(self) -> str:
        rim = self.scale + (0 if self.benchmark else 6)
        text = f"x{self.scale}, PSNR on {'luma' if self.benchmark else 'RGB'}, rim of {rim} left out"
        text += f", SSIM luma over {self.divisor}"
        return text + (", low resolution cropped to even sides" if self.crop_even else "")


@dataclass(frozen=True)
class SuperResolutionScores(Scores):
    """Scores of some images, arrays of one length; bicubic's are NaN where they were not asked for.

    Attributes:
        sizes: height and width of the high-resolution images as scored.
    """

    names: list[str]
    sizes: list[tuple[int, int]]
    psnrs: np.ndarray
    ssims: np.ndarray
    bicubic_psnrs: np.ndarray
    bicubic_ssims: np.ndarray
    protocol: Protocol = field(default_factory=lambda: Protocol(2))

    columns = {
        "picture": "picture", "size": "size", "bicubic_psnr": ("bicubic dB", ".2f"), "psnr": ("PSNR dB", ".3f"),
        "ssim": ("SSIM", ".4f"),
    }  # fmt: skip

    @property
    def metrics(self) -> dict[str, float]:
        """Mean PSNR in dB and mean SSIM."""
        return {"psnr": self.psnr, "ssim": self.ssim}

    @property
    def count(self) -> int:
        """Images."""
        return len(self.names)

    def summary(self) -> str:
        """The means in a line."""
        return f"PSNR {self.psnr:.3f} dB  SSIM {self.ssim:.4f}"

    @property
    def psnr(self) -> float:
        """Mean PSNR of the images that differ from the truth; infinite if all are equal to it."""
        return _mean(self.psnrs)

    @property
    def ssim(self) -> float:
        """Mean SSIM."""
        return float(self.ssims.mean())

    @property
    def bicubic_psnr(self) -> float:
        """Mean PSNR of bicubic."""
        return _mean(self.bicubic_psnrs)

    @property
    def bicubic_ssim(self) -> float:
        """Mean SSIM of bicubic."""
        return float(self.bicubic_ssims.mean())

    @property
    def equal(self) -> int:
        """Images equal to the truth, whose PSNR is infinite."""
        return int(np.isposinf(self.psnrs).sum())

    def rows(self) -> list[dict]:
        """A row of metrics for each image, then their means."""
        metrics = ("bicubic_psnr", "psnr", "bicubic_ssim", "ssim")
        values = np.stack([self.bicubic_psnrs, self.psnrs, self.bicubic_ssims, self.ssims], axis=1).tolist()
        rows = [
            {"picture": name, "size": f"{width}x{height}", **dict(zip(metrics, row, strict=True))}
            for name, (height, width), row in zip(self.names, self.sizes, values, strict=True)
        ]
        means = (self.bicubic_psnr, self.psnr, self.bicubic_ssim, self.ssim)
        return [*rows, {"picture": "mean", "size": None, **dict(zip(metrics, means, strict=True))}]

    def text(self) -> str:
        """The table by image."""
        columns = {
            "picture": "picture",
            "size": "size",
            "bicubic_psnr": ("bicubic dB", ".3f"),
            "psnr": ("PSNR dB", ".3f"),
            "bicubic_ssim": ("bicubic SSIM", ".4f"),
            "ssim": ("SSIM", ".4f"),
        }
        return table(self.rows(), columns)


class SuperResolutionMeter:
    """PSNR and SSIM of every image of a validation set; `total` (n, 6) is filled image by image.

    Rows of images that another process has scored stay 0, so that the sum over processes is the whole.
    """

    def __init__(self, names: list[str], protocol: Protocol, bicubic: bool = True):
        self.names, self.protocol, self.bicubic = names, protocol, bicubic
        self.total = torch.zeros(len(names), 6, dtype=torch.float64)

    def add(self, index: int, prediction: torch.Tensor, truth: torch.Tensor, lr: torch.Tensor) -> None:
        """Score image `index`: prediction and truth (3, H, W), quantised; lr (3, h, w), what it was made from."""
        row = [*truth.shape[-2:], *self.protocol(prediction, truth)]
        row += self.protocol(enlarged(lr, self.protocol.scale), truth) if self.bicubic else [float("nan")] * 2
        self.total[index] = torch.tensor(row, dtype=torch.float64)

    def scores(self) -> SuperResolutionScores:
        """Scores of the sums."""
        values = self.total.numpy()
        sizes = [(int(h), int(w)) for h, w in values[:, :2]]
        return SuperResolutionScores(self.names, sizes, *values[:, 2:].T, protocol=self.protocol)


def enlarged(lr: torch.Tensor, scale: int) -> torch.Tensor:
    """Bicubic enlargement (3, scale * h, scale * w) of (3, h, w), values 0 to 255, as 8-bit images are enlarged."""
    image = lr.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return torch.from_numpy(imresize(image, scale)).permute(2, 0, 1).float()


def _mean(values: np.ndarray) -> float:
    finite = values[~np.isposinf(values)]
    return float(finite.mean()) if len(finite) else float("inf")
