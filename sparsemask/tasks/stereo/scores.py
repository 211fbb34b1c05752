"""Scores of disparities: end-point error and shares of bad pixels, by image and by region.

EPE is the mean absolute error in pixels; > n px the share of pixels with a larger error than n; D1 the share whose
error is larger than 3 px and than 5 % of the truth (KITTI 2015; Menze and Geiger, CVPR 2015). As in GwcNet's
evaluation (Guo et al., CVPR 2019) pixels with 0 < truth < maxdisp count, and metrics are means over images; by
region they are of all pixels together, as KITTI's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sparsemask.finite import check_output
from sparsemask.tables import table
from sparsemask.tasks.protocol import Scores

DISPARITY, SEEN, FOREGROUND = range(3)  # channels of a truth (3, H, W); the latter two are 1, 0, or -1: unknown
REGIONS = ("all", "background", "foreground", "non-occluded", "non-oc. background", "non-oc. foreground")
METRICS = ("epe", "bad1", "bad2", "bad3", "d1")
_HEADERS = {"epe": ("EPE px", ".3f"), "bad1": (">1 px", ".2%"), "bad2": (">2 px", ".2%"), "bad3": (">3 px", ".2%"),
            "d1": ("D1", ".2%")}  # fmt: skip


def valid(truth: torch.Tensor, maxdisp: float) -> torch.Tensor:
    """Where a truth (..., H, W) in pixels counts: 0 < truth < maxdisp, bool."""
    return (truth > 0) & (truth < maxdisp)


def region_masks(truth: torch.Tensor) -> torch.Tensor:
    """bool (6, H, W): REGIONS of a truth (3, H, W); all false where a region is not annotated."""
    visible, front, back = truth[SEEN] == 1, truth[FOREGROUND] == 1, truth[FOREGROUND] == 0
    every = torch.ones_like(visible)
    return torch.stack([every, back, front, visible, visible & back, visible & front])


def count_errors(disparity: torch.Tensor, truth: torch.Tensor, maxdisp: float) -> torch.Tensor:
    """(6, 6) float64: of every region the pixels, and the sums of METRICS over them.

    Args:
        disparity: (H, W) in pixels.
        truth: (3, H, W): disparity, non-occluded, foreground.
        maxdisp: in pixels; larger truths do not count.

    Raises:
        UseError: the disparity is not finite.
    """
    counted = valid(truth[DISPARITY], maxdisp)
    right = truth[DISPARITY][counted].double()
    error = (check_output(disparity, what="a disparity map")[counted].double() - right).abs()
    large = error > 3
    per_pixel = [torch.ones_like(error), error, error > 1, error > 2, large, large & (error > 0.05 * right)]
    return region_masks(truth)[:, counted].double() @ torch.stack([values.double() for values in per_pixel], 1)


@dataclass(frozen=True)
class StereoScores(Scores):
    """Sums over the pixels of some images.

    Attributes:
        names: of the images.
        sizes: (height, width) of each.
        sums: float64 (images, 6, 6), of each image and region the pixels and the sums of METRICS.
        beyond: of each image the pixels whose truth is not below maxdisp.
    """

    names: list[str]
    sizes: list[tuple[int, int]]
    sums: np.ndarray
    beyond: np.ndarray
    maxdisp: int

    columns = {"picture": "pair", "size": "size", **_HEADERS}

    def values(self) -> np.ndarray:
        """(images, 5): METRICS of each image over all its pixels, NaN for one without truth."""
        return _means(self.sums[:, 0])

    @property
    def count(self) -> int:
        """Pairs."""
        return len(self.names)

    @property
    def metrics(self) -> dict[str, float]:
        """The means, and `d1_ok`, 1 - D1, of which more is better."""
        return {**self.means, "d1_ok": 1 - self.means["d1"]}

    @property
    def means(self) -> dict[str, float]:
        """METRICS, means over the images that have a truth; NaN where none has."""
        values = self.values()
        values = values[~np.isnan(values[:, 0])]
        return dict(zip(METRICS, values.mean(0).tolist() if len(values) else [float("nan")] * 5, strict=True))

    @property
    def regions(self) -> dict[str, dict[str, float]]:
        """METRICS of every region that has pixels, over all images' pixels together; and how many, `pixels`."""
        sums = self.sums.sum(0)
        means = _means(sums)
        return {
            name: {"pixels": int(sums[k, 0]), **dict(zip(METRICS, means[k].tolist(), strict=True))}
            for k, name in enumerate(REGIONS)
            if sums[k, 0] > 0
        }

    @property
    def untold(self) -> int:
        """Images without truth that counts."""
        return int((self.sums[:, 0, 0] == 0).sum())

    def rows(self) -> list[dict]:
        """A row of metrics for each image, then their means."""
        rows = [
            {"picture": name, "size": f"{w}x{h}", **dict(zip(METRICS, row, strict=True))}
            for name, (h, w), row in zip(self.names, self.sizes, self.values().tolist(), strict=True)
        ]
        return [*rows, {"picture": "mean", "size": None, **self.means}]

    def text(self) -> str:
        """The table by image, and by region where there is more than one."""
        lines = [table(self.rows(), self.columns)]
        if len(self.regions) > 1:
            rows = [{"region": name, **row} for name, row in self.regions.items()]
            lines += ["", table(rows, {"region": "all pixels together", "pixels": ("pixels", "d"), **_HEADERS})]
        return "\n".join(lines)

    def summary(self) -> str:
        """The means in a line, D1 of the regions behind them."""
        f = self.means
        bad = "  ".join(f">{n} px {f[f'bad{n}']:.2%}" for n in (1, 2, 3))
        line = f"EPE {f['epe']:.3f} px  {bad}  D1 {f['d1']:.2%}"
        if len(self.regions) > 1:
            by_region = ", ".join(f"{name} {row['d1']:.2%}" for name, row in self.regions.items())
            line += f" (all pixels together: {by_region})"
        return line

    @property
    def protocol(self) -> str:
        """Protocol of the scores, for the printed line."""
        line = f"pixels with 0 < truth < {self.maxdisp}"
        with_truth = self.sums[:, 0, 0].sum() + self.beyond.sum()
        if self.beyond.sum():
            line += f", {self.beyond.sum() / with_truth:.1%} of the truth is not below that"
        if self.untold:
            line += f", {self.untold} without such pixels not in the means"
        return line + "; means over pairs"


class StereoMeter:
    """Errors of every image of a validation set; `total` (n, 39) is filled image by image.

    Rows of images that another process has scored stay 0, so that the sum over processes is the whole.
    """

    def __init__(self, names: list[str], maxdisp: int):
        self.names, self.maxdisp = names, maxdisp
        self.total = torch.zeros(len(names), 39, dtype=torch.float64)

    def add(self, index: int, disparity: torch.Tensor, truth: torch.Tensor) -> None:
        """Score image `index`: disparity (H, W), truth (3, H, W)."""
        head = [*disparity.shape, float((truth[DISPARITY] >= self.maxdisp).sum())]
        sums = count_errors(disparity, truth, self.maxdisp)
        self.total[index] = torch.cat([torch.tensor(head, dtype=torch.float64), sums.flatten()])

    def scores(self) -> StereoScores:
        """Scores of the sums."""
        values = self.total.numpy()
        sizes = [(int(h), int(w)) for h, w in values[:, :2]]
        return StereoScores(self.names, sizes, values[:, 3:].reshape(-1, 6, 6), values[:, 2], self.maxdisp)


def _means(sums: np.ndarray) -> np.ndarray:
    """(..., 5): sums (..., 6) over their number of pixels, NaN where there are none."""
    count = sums[..., :1]
    return np.divide(sums[..., 1:], count, out=np.full_like(sums[..., 1:], np.nan), where=count > 0)
