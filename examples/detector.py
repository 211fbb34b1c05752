"""A detector of YOLO's kind (C2f, SPPF, two heads), half as costly, and its score again after a few steps.

    python examples/detector.py                              drawn images with boxes, some minutes of one core

Each image has one to three shapes of three classes. The score is the share of shapes that are found: the class is right
and the box overlaps by half or more.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsemask
from sparsemask.synthetic.classification import OUTLINES

SIZE, CLASSES, STRIDES = 96, ("disc", "square", "cross"), (8, 16)


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, with a shortcut."""

    def __init__(self, width: int, shortcut: bool):
        super().__init__()
        self.first, self.second, self.shortcut = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Halves of a tensor, of which one goes through bottlenecks; all that comes about is concatenated."""

    def __init__(self, inputs: int, outputs: int, depth: int = 1, shortcut: bool = True):
        super().__init__()
        width = outputs // 2
        self.split, self.join = Conv(inputs, 2 * width), Conv((2 + depth) * width, outputs)
        self.blocks = nn.ModuleList(Bottleneck(width, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.join(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Max pools one after the other, concatenated."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.last = Conv(width, width // 2), Conv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """(B, 3, H, W) -> at each stride (B, classes + 4, H / stride, W / stride): scores, and a box in units of cells."""

    def __init__(self, width: int = 16):
        super().__init__()
        w = width
        self.stem = nn.Sequential(Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w))
        self.near = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2))
        self.far = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w), SPPF(8 * w))
        self.down = C2f(12 * w, 4 * w, shortcut=False)
        self.again, self.up = Conv(4 * w, 4 * w, 3, 2), C2f(12 * w, 8 * w, shortcut=False)
        heads = (nn.Sequential(Conv(c, 4 * w, 3), nn.Conv2d(4 * w, len(CLASSES) + 4, 1)) for c in (4 * w, 8 * w))
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        near = self.near(self.stem(x))
        far = self.far(near)
        near = self.down(torch.cat([F.interpolate(far, scale_factor=2.0), near], 1))
        far = self.up(torch.cat([self.again(near), far], 1))
        return [head(features) for head, features in zip(self.heads, (near, far), strict=True)]


def draw(number: int) -> tuple[np.ndarray, list[tuple[int, float, float, float]]]:
    """An image (SIZE, SIZE, 3) and its shapes: class, middle and radius in pixels."""
    rng = np.random.default_rng(number)
    image = rng.uniform(0, 0.4, 3) + rng.normal(0, 0.05, (SIZE, SIZE, 3))
    down, across = np.mgrid[:SIZE, :SIZE] + 0.5
    shapes: list[tuple[int, float, float, float]] = []
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(8, 18)
        x, y = rng.uniform(radius, SIZE - radius, 2)
        if any(np.hypot(x - a, y - b) < radius + r for _, a, b, r in shapes):
            continue
        kind = int(rng.integers(len(CLASSES)))
        inside = OUTLINES[CLASSES[kind]]((across - x) / radius, (down - y) / radius) < 0
        image[inside] = rng.uniform(0.5, 1, 3)
        shapes.append((kind, x, y, radius))
    return image.clip(0, 1), shapes


def images(numbers: range) -> tuple[Tensor, list[Tensor], list]:
    """Images (N, 3, SIZE, SIZE); at each stride the targets (N, classes + 4, ...), boxes NaN off the shapes; shapes."""
    drawn = [draw(number) for number in numbers]
    x = torch.from_numpy(np.stack([image for image, _ in drawn])).float().permute(0, 3, 1, 2) * 2 - 1
    targets = [torch.full((len(drawn), len(CLASSES) + 4, SIZE // s, SIZE // s), float("nan")) for s in STRIDES]
    for n, (_, shapes) in enumerate(drawn):
        for stride, target in zip(STRIDES, targets, strict=True):
            target[n, : len(CLASSES)] = 0
            for kind, middle_x, middle_y, radius in shapes:
                if (radius < 13) == (stride == STRIDES[0]):  # small shapes are the finer head's
                    i, j = int(middle_y / stride), int(middle_x / stride)
                    target[n, kind, i, j] = 1
                    box = [middle_x / stride - j, middle_y / stride - i, radius / stride, radius / stride]
                    target[n, len(CLASSES) :, i, j] = torch.tensor(box)
    return x, targets, [shapes for _, shapes in drawn]


def loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Cross-entropy of the classes, cells with shapes weighing more, and absolute errors of their boxes."""
    total, shapes = torch.zeros(()), sum(target[:, : len(CLASSES)].sum() for target in targets)
    for out, target in zip(outputs, targets, strict=True):
        scores, wanted = out[:, : len(CLASSES)], target[:, : len(CLASSES)]
        weight = torch.full((len(CLASSES), 1, 1), 10.0)
        total = total + F.binary_cross_entropy_with_logits(scores, wanted, pos_weight=weight, reduction="sum")
        there = wanted.amax(1, keepdim=True) > 0
        total = total + ((out[:, len(CLASSES) :] - target[:, len(CLASSES) :].nan_to_num()).abs() * there).sum()
    return total / shapes


def train(net: nn.Module, x: Tensor, targets: list[Tensor], steps: int, lr: float) -> None:
    """Any training loop does."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))
    net.train()
    for _ in range(steps):
        batch = torch.randint(len(x), (16,))
        loss(net(x[batch]), [target[batch] for target in targets]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def found(net: nn.Module, x: Tensor, shapes: list) -> float:
    """Share of the shapes that are found: the cell at the middle scores the class best, and the box overlaps."""
    outputs = [torch.cat(parts) for parts in zip(*(net.eval()(part) for part in x.split(16)), strict=True)]
    hits = total = 0
    for n, of_image in enumerate(shapes):
        for kind, middle_x, middle_y, radius in of_image:
            head = int(radius >= 13)
            stride, out = STRIDES[head], outputs[head][n]
            i, j = int(middle_y / stride), int(middle_x / stride)
            scores, (dx, dy, w, h) = out[: len(CLASSES), i, j], (out[len(CLASSES) :, i, j] * stride).tolist()
            x0, y0 = j * stride + dx, i * stride + dy
            wide = min(middle_x + radius, x0 + w) - max(middle_x - radius, x0 - w)
            high = min(middle_y + radius, y0 + h) - max(middle_y - radius, y0 - h)
            both = max(wide, 0) * max(high, 0)
            overlap = both / max(4 * radius**2 + 4 * w * h - both, 1e-9)
            hits += int(scores.argmax()) == kind and float(scores.max()) > 0 and overlap >= 0.5
            total += 1
    return hits / total


def main() -> None:
    """Train, shrink, fine-tune, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="50%", help="share of the multiply-adds, or milliseconds ('20 ms')")
    parser.add_argument("--steps", type=int, default=400, help="training steps; half as many for fine-tuning")
    parser.add_argument("--images", type=int, default=600, help="drawn for training")
    parser.add_argument("--out", default="detector.safetensors")
    options = parser.parse_args()
    torch.manual_seed(0)
    x, targets, _ = images(range(options.images))
    test, _, shapes = images(range(options.images, options.images + max(options.images // 4, 4)))
    net = Detector()
    train(net, x, targets, options.steps, 4e-3)
    print(f"whole network: {found(net, test, shapes):.3f} of the shapes found")

    batches = [(x[n : n + 16], [target[n : n + 16] for target in targets]) for n in range(0, min(len(x), 128), 16)]
    small = sparsemask.shrink(net, x[:1], options.target, importance="taylor", data=batches, loss=loss)
    print(small.report)
    print(f"before fine-tuning: {found(small, test, shapes):.3f}")
    train(small, x, targets, options.steps // 2, 2e-3)
    print(f"fine-tuned: {found(small, test, shapes):.3f}")

    sparsemask.save(small, options.out)
    again = sparsemask.load(options.out, Detector())
    print(f"{options.out}: {found(again, test, shapes):.3f}")


if __name__ == "__main__":
    main()
