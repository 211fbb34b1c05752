"""Half of a timm classifier's multiply-adds, and its accuracy again after a few steps.

    python examples/classifier.py                            a small ResNet, drawn shapes, two minutes of one core
    python examples/classifier.py --model resnet18 --target "3 ms"

The network is trained on drawn 32x32 images first, so that the example needs no download; with pretrained weights that
part is left out (`timm.create_model(..., pretrained=True)`).
"""

from __future__ import annotations

import argparse

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsemask
from sparsemask.synthetic.classification import draw_picture


def images(numbers: range) -> tuple[Tensor, Tensor]:
    """Drawn images, float (N, 3, 32, 32), and their classes (N,)."""
    drawn = np.stack([draw_picture(0, number) for number in numbers])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor([n % 10 for n in numbers])


def train(net: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float) -> None:
    """Any training loop does; this is the shortest."""
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))
    net.train()
    for _ in range(steps):
        batch = torch.randint(len(x), (32,))
        F.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images whose class is found."""
    net.eval()
    return float((torch.cat([net(part) for part in x.split(100)]).argmax(1) == y).float().mean())


def main() -> None:
    """Train, shrink, fine-tune, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet10t", help="any of timm.list_models()")
    parser.add_argument("--target", default="50%", help="share of the multiply-adds, or milliseconds ('3 ms')")
    parser.add_argument("--steps", type=int, default=300, help="training steps; half as many for fine-tuning")
    parser.add_argument("--images", type=int, default=2000, help="drawn for training")
    parser.add_argument("--out", default="classifier.safetensors")
    options = parser.parse_args()
    torch.manual_seed(0)
    x, y = images(range(options.images))
    test = images(range(options.images, options.images + max(options.images // 4, 10)))
    net = timm.create_model(options.model, num_classes=10)
    train(net, x, y, options.steps, 0.05)
    print(f"whole network: accuracy {accuracy(net, *test):.3f}")

    batches = list(zip(x[:256].split(64), y[:256].split(64), strict=True))
    small = sparsemask.shrink(
        net, x[:1], target=options.target, importance="taylor", data=batches, loss=F.cross_entropy
    )
    print(small.report)
    print(f"before fine-tuning: accuracy {accuracy(small, *test):.3f}")
    train(small, x, y, options.steps // 2, 0.02)
    print(f"fine-tuned: accuracy {accuracy(small, *test):.3f}")

    sparsemask.save(small, options.out)
    again = sparsemask.load(options.out, timm.create_model(options.model, num_classes=10))
    print(f"{options.out}: accuracy {accuracy(again, *test):.3f}")


if __name__ == "__main__":
    main()
