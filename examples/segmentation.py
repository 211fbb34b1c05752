"""A U-Net with an encoder of timm, half as costly, and its IoU again after a few steps.

python examples/segmentation.py                          drawn images with masks, two minutes of one core
python examples/segmentation.py --encoder mobilenetv2_100 --policy isomorphic
"""

from __future__ import annotations

import argparse

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsemask
from sparsemask.synthetic.dense_tasks import draw_salient


class UNet(nn.Module):
    """(B, 3, H, W) -> (B, classes, H, W): features of a timm encoder, concatenated on the way up."""

    def __init__(self, encoder: str, classes: int = 1, width: int = 32):
        super().__init__()
        self.encoder = timm.create_model(encoder, features_only=True)
        channels = self.encoder.feature_info.channels()[::-1]
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a + b, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            )
            for a, b in zip([channels[0], *[width] * (len(channels) - 2)], channels[1:], strict=True)
        )
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, *rest = self.encoder(x)[::-1]
        for step, feature in zip(self.steps, rest, strict=True):
            y = step(torch.cat([F.interpolate(y, size=feature.shape[-2:], mode="nearest"), feature], 1))
        return F.interpolate(self.classify(y), size=x.shape[-2:], mode="bilinear")


def images(numbers: range, size: int = 64) -> tuple[Tensor, Tensor]:
    """Drawn images, float (N, 3, size, size), and masks of what stands out, (N, 1, size, size) in {0, 1}."""
    drawn = [draw_salient(0, number, size) for number in numbers]
    x = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2) / 127.5 - 1
    return x, torch.from_numpy(np.stack([mask for _, mask in drawn]))[:, None].gt(127).float()


def train(net: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float) -> None:
    """Binary cross-entropy on random batches."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    net.train()
    for _ in range(steps):
        batch = torch.randint(len(x), (8,))
        F.binary_cross_entropy_with_logits(net(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def iou(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Intersection over union of the masks."""
    found = torch.cat([net.eval()(part) for part in x.split(16)]) > 0
    return float((found & (y > 0)).sum() / (found | (y > 0)).sum())


def main() -> None:
    """Train, shrink, fine-tune, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet10t", help="any of timm.list_models() that has feature maps")
    parser.add_argument("--policy", default="time", help="time, uniform, global or isomorphic")
    parser.add_argument("--target", default="50%", help="share of the multiply-adds, or milliseconds ('20 ms')")
    parser.add_argument("--steps", type=int, default=200, help="training steps; half as many for fine-tuning")
    parser.add_argument("--images", type=int, default=300, help="drawn for training")
    parser.add_argument("--out", default="segmentation.safetensors")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = images(range(options.images))
    test = images(range(options.images, options.images + max(options.images // 4, 4)))
    net = UNet(options.encoder)
    train(net, *data, options.steps, 1e-3)
    print(f"whole network: IoU {iou(net, *test):.3f}")

    small = sparsemask.shrink(net, data[0][:1], target=options.target, policy=options.policy)
    print(small.report)
    print(f"before fine-tuning: IoU {iou(small, *test):.3f}")
    train(small, *data, options.steps // 2, 5e-4)
    print(f"fine-tuned: IoU {iou(small, *test):.3f}")

    sparsemask.save(small, options.out)
    again = sparsemask.load(options.out, UNet(options.encoder))
    print(f"{options.out}: IoU {iou(again, *test):.3f}")


if __name__ == "__main__":
    main()
