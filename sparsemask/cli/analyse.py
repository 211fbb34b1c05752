"""Analyse: how many activations of a network are zero, layer by layer and channel by channel.

    sparsemask analyse IN.png ... --weights smsr_x2.pt     a network without its masks: what its ReLUs leave
    sparsemask analyse IN.png ... --weights FILE --masked  as it runs, what the masks drop included
    sparsemask analyse IN.png ... --run runs/NAME          the network of a run, of any space

Prints a table; --out FOLDER writes zeros.png and zeros.csv (layer, channel, share of zeros).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsemask import families, runs
from sparsemask.errors import UseError, command
from sparsemask.options import Parser

_MOSTLY = 0.9


def parser() -> Parser:
    """The command's flags."""
    result = Parser("analyse", prog="sparsemask analyse", description=__doc__)
    result.add_argument("pictures", nargs="+", metavar="IN", help="pictures, over which shares are taken")
    result.add_argument("--weights", default=None, help="a super-resolution network's weights")
    result.add_argument("--run", default=None, help="a run's folder instead")
    result.add_argument("--masked", action="store_true", help="with the network's masks, where it has some")
    result.add_argument("--out", default=None, help="folder for zeros.png and zeros.csv")
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    if bool(options.weights) == bool(options.run):
        raise UseError("whose activations? give --weights FILE or --run FOLDER, one of the two")
    from sparsemask.activations import zero_shares
    from sparsemask.pictures.files import read_picture
    from sparsemask.tables import table

    network, prepare, source = _load(options)
    images = [read_picture(path) for path in options.pictures]
    for path, image in zip(options.pictures, images, strict=True):
        for text in image.remarks:
            print(f"note: {path}: {text}")
    inputs = [prepare(image.colour) for image in images]
    layers = zero_shares(network, inputs)
    if not layers:
        raise UseError(f"{source}: no ReLU in this network")
    rows = [
        {
            "layer": _short(layer.name), "channels": len(layer.zeros), "mean": layer.mean,
            "least": float(layer.zeros.min()), "most": float(layer.zeros.max()), "above": layer.above(_MOSTLY),
        }
        for layer in layers
    ]  # fmt: skip
    columns = {
        "layer": "layer", "channels": "channels", "mean": ("zeros", ".3f"), "least": ("least", ".3f"),
        "most": ("most", ".3f"), "above": f"channels > {_MOSTLY:g}",
    }  # fmt: skip
    print(table(rows, columns))
    total = sum(float(layer.zeros.sum()) * layer.count for layer in layers)
    count = sum(len(layer.zeros) * layer.count for layer in layers)
    masked = "with its masks" if options.masked else "without masks"
    print(f"\n{100 * total / count:.1f} % of all activations are zero ({source}, {masked}, {len(inputs)} picture(s))")
    if options.out:
        for path in write(layers, Path(options.out), f"Zero activations: {Path(str(source)).name}"):
            print(f"wrote {path}")
    return 0


def _load(options):
    """(network, function from colours (H, W, 3) of 0 to 255 to its input, where it comes from)."""
    import torch

    from sparsemask import spaces
    from sparsemask.spaces.protocols import HasLayerwiseForm, PreparesImages
    from sparsemask.weights import file_space

    if options.weights:
        name, source = file_space(options.weights) or "smsr", options.weights
        space = spaces.get(name)
        network = space.load(source).network
    else:
        run = runs.find(options.run)
        name, source = str(run.info().get("space", "connectivity")), options.run
        space = spaces.get(name)
        network = families.find("retrain", space).load_run(run)
    if isinstance(space, HasLayerwiseForm):
        network = space.layerwise_form(network, options.masked)
    if isinstance(space, PreparesImages):
        return network, space.prepare, source
    from sparsemask.VOC12.dataset import IMAGENET_MEAN, IMAGENET_STD

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return network, lambda colour: (torch.from_numpy(colour).permute(2, 0, 1)[None] / 255 - mean) / std, source


def write(layers, folder: Path, title: str) -> list[Path]:
    """zeros.png and zeros.csv in a folder; their paths."""
    from sparsemask.files import write_text
    from sparsemask.pictures.activations import draw_zeros

    folder.mkdir(parents=True, exist_ok=True)
    lines = ["layer,channel,zeros"]
    for layer in layers:
        lines += [f"{layer.name},{k},{value:.6f}" for k, value in enumerate(layer.zeros.tolist())]
    write_text(folder / "zeros.csv", "\n".join(lines) + "\n")
    names = [_short(layer.name) for layer in layers]
    return [
        draw_zeros(names, [layer.zeros.numpy() for layer in layers], folder / "zeros.png", title),
        folder / "zeros.csv",
    ]


def _short(name: str) -> str:
    """A module's name without the wrapper around the network."""
    return name.removeprefix("network.") or "output"
