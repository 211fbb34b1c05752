"""Accuracy of networks at half of their multiply-adds on CIFAR-10: `sparsemask.shrink` beside Torch-Pruning.

    python bench/shrink_accuracy.py --data cifar10 --network resnet56 --weights resnet56-4bfd9763.th
    python bench/shrink_accuracy.py --data cifar10 --network mobilenetv2 --weights mobilenet_v2_imagenet.pth --base 150
    python bench/shrink_accuracy.py --table accuracy.jsonl
    python bench/shrink_accuracy.py --data cifar10 --network mobilenetv2 --weights mobilenet_v2_imagenet.pth \
        --base 300 --multiples 1 8 16
    python bench/shrink_accuracy.py --data cifar10 --network mobilenetv2 --weights mobilenet_v2_imagenet.pth \
        --base 300 --policies uniform time

ResNet-56 is the public one for CIFAR; MobileNetV2 begins with ImageNet weights and is trained on CIFAR's pictures at
64x64 first (`--base` steps, the same network for all). Nine ways of choosing channels that each of the tools has are
tried with seed 0 and few steps of fine-tuning (`--screen`) and judged on training pictures that are kept back; the best
one of each tool is then fine-tuned for `--steps` with three seeds and scored on the test pictures. Steps, optimizer,
rates and pictures are the same for all. Torch-Pruning as bench/requirements.txt says. With `--multiples`
or `--policies` the tools are not compared: `sparsemask.shrink` chooses by Taylor over the whole network, keeping
channels in those multiples, and as it does by itself; or by L2 and by Taylor with each of these policies.

`--data` holds arrays x (uint8 N, 32, 32, 3) and y in train*.npz and test*.npz. Finished lines stay in `--out`: the
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import sparsemask  # noqa: I001  (before torch: it says how threads wait)
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.torch_pruning_tool import pruned
from bench.torchvision_import import import_torchvision
from sparsemask.containers import read_npz
from sparsemask.costs import multiply_adds
from sparsemask.errors import UseError, command
from sparsemask.spaces.group_sparsity.loaders import load
from sparsemask.tables import markdown_table
from sparsemask.weights import load_weights

SIDES = {"resnet56": 32, "mobilenetv2": 64}
BATCH, HELD = 128, 2000
Batches = list[tuple[Tensor, Tensor]]
Choice = Callable[[nn.Module, Tensor, Batches], nn.Module]


def ours(importance: str, policy: str, multiple: int | None = None) -> Choice:
    """A way of `sparsemask.shrink`."""

    def shrink(net: nn.Module, x: Tensor, batches: Batches) -> nn.Module:
        options: dict[str, object] = {"importance": importance, "policy": policy, "multiple": multiple}
        if importance in ("taylor", "fisher"):
            options |= {"data": batches, "loss": F.cross_entropy}
        return sparsemask.shrink(net, x, 0.5, timed=False, **options)

    return shrink


def theirs(name: str, gradients: bool = False, **options: bool) -> Choice:
    """A way of Torch-Pruning: an importance of its module, and options of its pruner."""

    def prune(net: nn.Module, x: Tensor, batches: Batches) -> nn.Module:
        import torch_pruning as tp

        def backward(small: nn.Module) -> None:
            small.eval()
            for images, labels in batches:
                F.cross_entropy(small(images), labels).backward()

        importance = getattr(tp.importance, name)
        return pruned(net, x, 0.5, importance, backward if gradients else None, **options)[0]

    return prune


CHOICES: dict[str, dict[str, Choice]] = {
    "sparsemask": {
        f"{importance}, {policy}": ours(importance, policy)
        for importance in ("l2", "taylor", "fpgm")
        for policy in ("uniform", "isomorphic", "global")
    },
    "torch-pruning": {
        f"{words}, {kind}": theirs(name, name == "GroupTaylorImportance", **options)
        for words, name in (
            ("magnitude", "GroupMagnitudeImportance"),
            ("taylor", "GroupTaylorImportance"),
            ("fpgm", "FPGMImportance"),
        )
        for kind, options in (
            ("uniform", {}),
            ("isomorphic", {"global_pruning": True, "isomorphic": True}),
            ("global", {"global_pruning": True}),
        )
    },
}


def read(folder: str, name: str, side: int) -> tuple[Tensor, Tensor]:
    """Pictures, float (N, 3, side, side), normalised with ImageNet's statistics, and labels."""
    files = sorted(Path(folder).glob(f"{name}*.npz"))
    if not files:
        raise UseError(f"--data {folder}: no {name}*.npz")
    arrays = read_npz(files[0])
    x = torch.from_numpy(np.ascontiguousarray(arrays["x"])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (x - mean) / std
    x = x if side == x.shape[-1] else F.interpolate(x, size=side, mode="bilinear", align_corners=False)
    return x.contiguous(), torch.from_numpy(arrays["y"].astype(np.int64))


def train(net: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float, seed: int) -> nn.Module:
    """Fine-tune: SGD, one cycle of a cosine, mirrored and shifted pictures."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    net.train()
    room = x.shape[-1] // 8
    for _ in range(steps):
        chosen = torch.randint(len(x), (BATCH,), generator=generator)
        images = F.pad(x[chosen], (room,) * 4)
        top, left = torch.randint(2 * room + 1, (2,), generator=generator).tolist()
        images = images[..., top : top + x.shape[-1], left : left + x.shape[-1]]
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(-1)
        F.cross_entropy(net(images), y[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of pictures whose class is found."""
    net.eval()
    return float((torch.cat([net(part) for part in x.split(250)]).argmax(1) == y).float().mean())


def build(name: str, weights: str) -> nn.Module:
    """The whole network with the weights of a file."""
    if name == "resnet56":
        return load(weights)
    import_torchvision()
    import timm

    net = timm.create_model("mobilenetv2_100", num_classes=10)
    nn.init.normal_(net.classifier.weight, 0, 0.01)  # timm's range for ten classes begins at a loss of 10
    nn.init.zeros_(net.classifier.bias)
    state = {k: v for k, v in load_weights(weights).items() if not k.startswith("classifier.")}
    return by_order(net, state)


def by_order(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Load tensors whose names are another library's, in order; both sides list the same layers in the same order."""
    own = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    own = {k: v for k, v in own.items() if not k.startswith("classifier.")}
    given = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
    if [v.shape for v in own.values()] != [v.shape for v in given]:
        raise UseError("the weights are of another network: their shapes do not match, layer by layer")
    net.load_state_dict(dict(zip(own, given, strict=True)), strict=False)
    return net


class Lines:
    """Finished lines of a file."""

    def __init__(self, path: Path):
        self.path = path

    def all(self) -> list[dict]:
        """What is there."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def get(self, key: dict, make: Callable[[], dict]) -> dict:
        """The line of a key, made if it is not there."""
        for line in self.all():
            if key.items() <= line.items():
                return line
        line = {**key, **make()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        return line


def row_of(lines: list[dict]) -> dict:
    """A row of the table: lines of one network and way that differ in their seeds."""
    tests = [line["test"] for line in lines]
    each = ", ".join(f"{value:.4f}" for value in tests)
    share = float(np.mean([line["share"] for line in lines]))
    row = {name: lines[0][name] for name in ("network", "tool", "way")}
    return {**row, "share": share, "test": f"{np.mean(tests):.4f} ({each})"}


def table(path: Path) -> str:
    """Markdown: the best way of each tool, fine-tuned."""
    lines, rows = Lines(path).all(), []
    for network in SIDES:
        for line in lines:
            if line["network"] == network and line["what"] == "whole":
                rows.append({"network": network, "tool": "whole network", "test": f"{line['test']:.4f}"})
        for tool in CHOICES:
            final = [e for e in lines if (e["network"], e["tool"], e["what"]) == (network, tool, "final")]
            if final:
                rows.append(row_of(final))
                continue
            screened = [e for e in lines if (e["network"], e["tool"], e["what"]) == (network, tool, "screen")]
            if screened and all("error" in entry for entry in screened):
                rows.append({"network": network, "tool": tool, "way": f"all {len(screened)} ways fail", "test": "-"})
        ways = {e["way"]: None for e in lines if (e["network"], e["what"]) == (network, "alone")}
        rows += [row_of([e for e in lines if e["network"] == network and e.get("way") == way]) for way in ways]
    columns = {
        "network": "network",
        "tool": "tool",
        "way": "channels chosen by",
        "share": ("multiply-adds left", ".1%"),
    }
    return markdown_table(rows, {**columns, "test": "accuracy (by seed)"})


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of train*.npz and test*.npz")
    parser.add_argument("--network", choices=SIDES, default="resnet56")
    parser.add_argument("--weights", help="of the whole network")
    parser.add_argument("--out", type=Path, default=Path("accuracy.jsonl"))
    parser.add_argument("--base", type=int, default=0, help="steps of the whole network before all")
    parser.add_argument("--screen", type=int, default=25, help="steps of fine-tuning of every way")
    parser.add_argument("--steps", type=int, default=120, help="of the best ones")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--multiples", type=int, nargs="+", help="of channels: compare these and the default alone")
    parser.add_argument("--policies", nargs="+", default=[], help="compare these policies of sharing out alone")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--table", type=Path, help="print the table of a file")
    options = parser.parse_args(argv)
    if options.table:
        print(table(options.table))
        return
    if not options.data or not options.weights:
        raise UseError("--data and --weights are needed")
    torch.set_num_threads(1)
    side = SIDES[options.network]
    x, y = read(options.data, "train", side)
    test = read(options.data, "test", side)
    held, x, y = (x[:HELD], y[:HELD]), x[HELD:], y[HELD:]
    lines, key = Lines(options.out), {"network": options.network}
    net = build(options.network, options.weights)
    if options.base:
        torch.manual_seed(0)
        base = options.out.with_suffix(f".{options.network}.pt")
        if base.exists():
            net.load_state_dict(torch.load(base, weights_only=True))
        else:
            train(net, x, y, options.base, options.lr, 0)
            torch.save(net.state_dict(), base)
    net.eval()
    example = x[:1]
    lines.get({**key, "tool": "", "what": "whole"}, lambda: {"test": accuracy(net, *test), "base": options.base})
    batches = list(zip(x[:512].split(BATCH), y[:512].split(BATCH), strict=True))
    best: dict[str, str] = {}

    def shrunk(choice: Choice, steps: int, seed: int) -> tuple[nn.Module, float]:
        torch.manual_seed(seed)
        small = choice(copy.deepcopy(net), example, batches)
        share = multiply_adds(small, example) / multiply_adds(net, example)
        return train(small, x, y, steps, options.lr, seed), share

    def finished(choice: Choice, seed: int) -> dict:
        small, share = shrunk(choice, options.steps, seed)
        return {"share": share, "test": accuracy(small, *test)}

    alone: dict[str, Choice] = {}
    for multiple in (None, *options.multiples) if options.multiples else ():
        alone[f"taylor, global, {multiple or 'default'}"] = ours("taylor", "global", multiple)
    for policy in options.policies:
        alone.update({f"{importance}, {policy}": ours(importance, policy) for importance in ("l2", "taylor")})
    for seed in options.seeds:
        for way, choice in alone.items():
            entry = {**key, "tool": "sparsemask", "what": "alone", "way": way, "seed": seed, "steps": options.steps}
            lines.get(entry, lambda choice=choice, seed=seed: finished(choice, seed))
    for tool, choices in () if alone else CHOICES.items():
        scores = {}
        for way, choice in choices.items():

            def screen(choice: Choice = choice) -> dict:
                try:
                    small, share = shrunk(choice, options.screen, 0)
                except Exception as error:  # a tool that fails is a result too
                    return {"error": f"{type(error).__name__}: {error}"[:200]}
                return {"share": share, "held": accuracy(small, *held)}

            line = lines.get({**key, "tool": tool, "what": "screen", "way": way, "steps": options.screen}, screen)
            if abs(line.get("share", 0) - 0.5) <= 0.03:
                scores[way] = line["held"]
        if scores:
            best[tool] = max(scores, key=scores.__getitem__)
        else:
            print(f"{tool}: none of its ways reaches half of {options.network}'s multiply-adds", flush=True)
    for seed in options.seeds:  # the tools in turn, so that a run that is stopped has both sides
        for tool, way in best.items():
            entry = {**key, "tool": tool, "what": "final", "way": way, "seed": seed, "steps": options.steps}
            lines.get(entry, lambda choice=CHOICES[tool][way], seed=seed: finished(choice, seed))
    print(table(options.out))


if __name__ == "__main__":
    sys.exit(command(main)())
