"""A super-resolution network (EDSR) with fewer channels in its blocks, and its PSNR again after a few steps.

    python examples/super_resolution.py                      drawn images, some minutes of one core
    python examples/super_resolution.py --images PHOTOS      a folder of one's own images

The network doubles the size: residual blocks, a long shortcut, `pixel_shuffle` at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import sparsemask
from sparsemask.synthetic.dense_tasks import draw_salient


class Block(nn.Module):
    """Two convolutions and a shortcut, without batch norm."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class EDSR(nn.Module):
    """(B, 3, H, W) -> (B, 3, 2H, 2W), Lim et al. (arXiv 1707.02921) in small; it adds to the bilinear image."""

    def __init__(self, width: int = 32, blocks: int = 4):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(Block(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1))
        self.up = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(x)
        features = F.pixel_shuffle(self.up(features + self.body(features)), 2)
        return self.tail(features) + F.interpolate(x, scale_factor=2, mode="bilinear")


def large_images(folder: str | None, count: int) -> list[Tensor]:
    """Images, float (3, H, W) in [0, 1]: those of a folder, or drawn ones."""
    if folder is None:
        arrays = [draw_salient(0, number, 128)[0] for number in range(count)]
    else:
        files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".png", ".jpg", ".bmp"))
        arrays = [np.array(Image.open(path).convert("RGB")) for path in files[:count]]
    return [torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays]


def pairs(images: list[Tensor], batch: int, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops, (batch, 3, side / 2, side / 2), and what they were made of, (batch, 3, side, side)."""
    crops = []
    for index in torch.randint(len(images), (batch,), generator=generator).tolist():
        image = images[index]
        y, x = (int(torch.randint(size - side + 1, (1,), generator=generator)) for size in image.shape[1:])
        crops.append(image[:, y : y + side, x : x + side])
    large = torch.stack(crops)
    return F.interpolate(large, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1), large


def train(net: nn.Module, images: list[Tensor], steps: int, lr: float) -> None:
    """Mean absolute error on random crops."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    net.train()
    for _ in range(steps):
        small, large = pairs(images, 8, 48, generator)
        F.l1_loss(net(small), large).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def psnr(net: nn.Module, images: list[Tensor]) -> float:
    """Decibels over crops of images that were not trained on."""
    small, large = pairs(images, 24, 96, torch.Generator().manual_seed(1))
    return float(-10 * F.mse_loss(net.eval()(small).clamp(0, 1), large).log10())


def main() -> None:
    """Train, shrink in two steps with training in between, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of images of at least 96x96; None: drawn ones")
    parser.add_argument("--target", default="50%", help="share of the multiply-adds, or milliseconds ('30 ms')")
    parser.add_argument("--steps", type=int, default=300, help="training steps; half as many for fine-tuning")
    parser.add_argument("--count", type=int, default=64, help="images; every fourth one validates")
    parser.add_argument("--out", default="super_resolution.safetensors")
    options = parser.parse_args()
    torch.manual_seed(0)
    images = large_images(options.images, options.count)
    learnt, validated = [image for n, image in enumerate(images) if n % 4], images[::4]
    net = EDSR()
    train(net, learnt, options.steps, 1e-3)
    print(f"whole network: {psnr(net, validated):.2f} dB")

    small, low = net, torch.zeros(1, 3, 48, 48)
    for small in sparsemask.plan(net, low).steps(2, target=options.target):
        print(f"a step smaller: {psnr(small, validated):.2f} dB")
        train(small, learnt, options.steps // 4, 5e-4)
        print(f"fine-tuned: {psnr(small, validated):.2f} dB")
    print(small.report)

    sparsemask.save(small, options.out)
    again = sparsemask.load(options.out, EDSR())
    print(f"{options.out}: {psnr(again, validated):.2f} dB")


if __name__ == "__main__":
    main()
