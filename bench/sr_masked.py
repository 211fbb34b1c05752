"""Super-resolution networks before and after masks: milliseconds, dB on Set5 and kept multiply-adds, by architecture.

    python bench/sr_masked.py --train FOLDER --out work          train each, give it masks, and measure (an hour)
    python bench/sr_masked.py --train FOLDER --out work --light    half of the blocks, for one core (half an hour)
    python bench/sr_masked.py --train FOLDER --architectures SMSR SPAN --seeds 0 1 2     against SMSR, several seeds
    python bench/sr_masked.py --pairs dense.pth masked.safetensors [...]     measure networks that exist
    python bench/sr_masked.py --pairs - smsr_x2.pt                           SMSR, which never was dense
    python bench/sr_masked.py --pairs ... --rounds 0 --draw masks.png        dB and kept multiply-adds alone, and masks

Set5 is read from $SPARSEMASK_DATA/set5. All forms of all networks are called in turn, in one process on one thread, on
the pictures of Set5, cut to one size: dense by torch's operators, dense compiled by torch.compile (--compiled), dense
with 3x3 convolutions by squares, as `sparsemask upscale` computes it, and masked as backend "auto" runs it. The dense
network is the teacher of the masked one: their difference in dB is what masks cost. SMSR is trained with its masks from
the start, for as many steps on as many patches as the others' two trainings together; its dense form, the same weights
without masks, is timed alone. The trainings are short, so that dB say nothing about what the architectures can do.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import functools
import io
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from sparsemask import spaces
from sparsemask.files import write_json
from sparsemask.inference import optimize_for_inference, with_fast_convolutions
from sparsemask.pictures.overlay import heat
from sparsemask.retrain import specialize, super_resolution
from sparsemask.search import run as search
from sparsemask.spaces import sr_networks
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.sparse import repeatable
from sparsemask.tables import table
from sparsemask.tasks.super_resolution.data import to_tensor
from sparsemask.tasks.super_resolution.folders import Pair, read_folder, sample_pairs
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise
from sparsemask.tasks.super_resolution.store import PictureStore
from sparsemask.timing import thread_count, timer
from sparsemask.weights import file_space

# Architecture, channels, blocks: light networks of about the published widths.
SMSR, NONE = "SMSR", "-"
ARCHITECTURES = (
    ("SRVGGNetCompact", 64, 16), ("SPAN", 48, 6), ("RLFN", 52, 6), ("PLKSR", 64, 8), ("EDSR", 64, 16), (SMSR, 64, 5),
)  # fmt: skip
# And of half of the blocks or less, with the share that masks keep where --keep is less than such a network can have.
LIGHT = (("SRVGGNetCompact", 48, 8), ("SPAN", 48, 3), ("RLFN", 52, 3), ("PLKSR", 48, 3), ("EDSR", 48, 5), (SMSR, 32, 3))
_LIGHT_KEEP = {"EDSR": 0.75}  # its upsampling, without masks, is a third of so small a network
_COLOURS = 160  # so that the file is small
_DRAWN, _SIDE = ("baby", "butterfly", "woman"), 112  # their upper left parts, in pixels
_WARM = 14  # calls in which backend "auto" finds its choice


def train(name: str, n_feats: int, n_blocks: int, seed: int, options: argparse.Namespace) -> tuple[str, str]:
    """Train a network and its masks; runs that are there already are taken as they are."""
    flags = ["--hr_path", options.train, "--data_test", "set5", "--exp_path", options.out, "--n_worker", "0"]
    flags += ["--patch_size", str(options.patch_size), "--schedule", "cosine", "--ema", "0.999", "--seed", str(seed)]
    flags += ["--type", options.type]
    folders = {part: Path(options.out) / f"{name}-{seed}-{part}" for part in ("dense", "masked")}

    def run(main: Callable[[list[str]], int], part: str, file: str, steps: int, *own: object) -> str:
        length = ["--max_iter", str(steps), "--eval_interval", str(steps), "--name", folders[part].name]
        if not (folders[part] / file).exists() and main([*map(str, own), *length, *flags]):
            raise SystemExit(f"{name}, seed {seed}: the training of its {part} form failed")
        return str(folders[part] / file)

    if name == SMSR:
        size = "--n_feats", n_feats, "--n_modules", n_blocks
        steps = options.steps + options.mask_steps
        return NONE, run(
            search.main,
            "masked",
            "checkpoints/last.pt",
            steps,
            "--search",
            "--space",
            "smsr",
            "--keep",
            options.keep,
            *size,
        )
    size = "--architecture", name, "--n_feats", n_feats, "--n_blocks", n_blocks
    dense = run(super_resolution.main, "dense", "network.safetensors", options.steps, *size)
    keep = max(options.keep, _LIGHT_KEEP.get(name, 0.0)) if options.light else options.keep
    masks = "--space", "sr", "--weights", dense, "--keep", keep, "--truth", options.truth, "--rounds", 0
    return dense, run(specialize.main, "masked", "network.safetensors", options.mask_steps, *masks)


def load(dense_file: str, masked_file: str) -> tuple[torch.nn.Module, MaskedNetwork]:
    """A network without masks and with them; where no dense one is named, its own weights without masks."""
    space = spaces.get(file_space(masked_file) or "smsr")
    assert isinstance(space, MaskedSpace)
    masked = space.load(masked_file).network
    assert isinstance(masked, MaskedNetwork)
    if dense_file == NONE:
        return space.dense_form(masked), masked
    dense = sr_networks.load(dense_file)
    dense.fold()
    return dense, masked


def set5(scale: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Set5, of $SPARSEMASK_DATA/set5, as :func:`pictures` gives it."""
    return pictures(read_folder(Path(os.environ.get("SPARSEMASK_DATA", "")) / "set5", scale), scale)


def pictures(pairs: Sequence[Pair], scale: int = 2) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(low, high) resolution by name, (1, 3, h, w) and (3, s·h, s·w) for a scale s."""
    store = PictureStore(pairs, scale)
    loaded = (store[index] for index in range(len(store)))
    names = [pair.hr.stem for pair in store.pairs]
    return {name: (to_tensor(low)[None], to_tensor(high)) for name, (low, high) in zip(names, loaded, strict=True)}


@torch.no_grad()
def draw(networks: dict[str, MaskedNetwork], data: dict, path: str) -> None:
    """How many of the regions of each network compute at each location of three pictures, a row a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.3 * (1 + len(networks)), 1.45 * len(_DRAWN)), dpi=100, layout="constrained")
    panels = figure.subplots(len(_DRAWN), 1 + len(networks), squeeze=False)
    for number, (row, name) in enumerate(zip(panels, _DRAWN, strict=True)):
        low = data[name][0][..., :_SIDE, :_SIDE]
        picture = low[0].permute(1, 2, 0).byte().numpy()
        row[0].imshow(picture)
        for panel, (title, network) in zip(row[1:], networks.items(), strict=True):
            network(low)
            panel.imshow(heat(picture, [mask[0, 0].numpy() for mask in network.masks]))
            panel.set_xlabel(f"{float(mean_kept(network)):.2f}", fontsize=8)
            if number == 0:
                panel.set_title(title, fontsize=8)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    written = io.BytesIO()
    figure.savefig(written)
    Image.open(written).convert("RGB").quantize(_COLOURS).save(path, optimize=True)


@torch.no_grad()
def quality(
    network: torch.nn.Module, data: Collection[tuple[torch.Tensor, torch.Tensor]], scale: int = 2
) -> tuple[float, float]:
    """Mean luma PSNR, and of networks with masks the mean share of the multiply-adds that was executed."""
    scores, shares = [], []
    with repeatable():
        for low, high in data:
            scores.append(psnr(quantise(network(low))[0], high, scale))
            shares.append(float(mean_kept(network)) if isinstance(network, MaskedNetwork) else 1.0)
    return float(np.mean(scores)), float(np.mean(shares))


@torch.no_grad()
def in_turn(
    pairs: Mapping[str, tuple[torch.nn.Module, MaskedNetwork]],
    images: Sequence[torch.Tensor],
    rounds: int,
    compiled: bool = False,
) -> tuple[dict[tuple[str, str], float], float]:
    """Milliseconds of networks without and with masks, all called in turn in this process.

    Args:
        pairs: (without, with masks) by name.
        images: (1, 3, h, w) of 0 to 255.
        rounds: timed calls of each form on each image.
        compiled: time the networks without masks compiled, too.

    Returns:
        Means over the images by (name, "dense", "fast", "compiled" or "masked"); and the share of the time in which the
        processor worked for this process.
    """
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in images]
    forms: dict[tuple[str, str], torch.nn.Module] = {}
    for name, (dense, masked) in pairs.items():
        forms[name, "dense"] = dense.to(memory_format=torch.channels_last)
        forms[name, "fast"] = with_fast_convolutions(dense)
        if compiled:
            forms[name, "compiled"] = optimize_for_inference(dense, inputs[0], compiled=True)
        forms[name, "masked"] = masked
    calls = {
        (key, number): functools.partial(form, x) for key, form in forms.items() for number, x in enumerate(inputs)
    }
    for key in _WARM * [key for key in calls if key[0][1] == "masked"]:
        calls[key]()
    times, busy = timer(torch.device("cpu"), 1)(calls, rounds)
    return {key: float(np.mean([ms for (of, _), ms in times.items() if of == key])) for key in forms}, busy


def _title(masked_file: str) -> str:
    """The name of the run or folder that a file lies in."""
    folder = Path(masked_file).resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder).name.removesuffix("-masked")


def averages(rows: list[dict]) -> list[dict]:
    """A row for every architecture of several seeds, their mean."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(str(row["network"]).rpartition("-")[0], []).append(row)
    means = []
    for name, group in groups.items():
        if name and len(group) > 1:
            values = {key: float(np.mean([row[key] for row in group])) for key in group[0] if key != "network"}
            means.append({"network": f"{name}, mean", **values})
    return means


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default=None, metavar="FOLDER", help="pictures to train on")
    parser.add_argument("--out", default="sr_masked", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=3000, help="of the dense trainings (default: 3000)")
    parser.add_argument("--mask_steps", type=int, default=2000, help="of the masks' trainings (default: 2000)")
    parser.add_argument("--keep", type=float, default=0.5, help="(default: 0.5)")
    parser.add_argument("--truth", type=float, default=0.0, help="of the masks' trainings, as theirs (default: 0)")
    parser.add_argument("--patch_size", type=int, default=32, help="of all trainings, low resolution (default: 32)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings (default: 0)")
    parser.add_argument("--architectures", nargs="+", default=None, help="some of them (default: all)")
    parser.add_argument(
        "--pairs", nargs="+", default=[], metavar="FILE", help="dense and masked networks in turn; -: of itself"
    )
    parser.add_argument("--photographs", action="store_true", help="dB on scikit-image's photographs, too")
    parser.add_argument("--size", type=int, default=128, help="side of the timed pictures, 0: whole (default: 128)")
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each form, 0: none (default: 10)")
    parser.add_argument("--light", action="store_true", help="train networks of half of the blocks")
    parser.add_argument("--type", default="float32", help="arithmetic of the trainings, as theirs (default: float32)")
    parser.add_argument("--draw", default=None, metavar="PNG", help="draw the masks of three pictures")
    parser.add_argument("--compiled", action="store_true", help="time the dense networks compiled, too")
    parser.add_argument("--json", default=None, help="file for the rows")
    options = parser.parse_args()
    if len(options.pairs) % 2 or not (options.pairs or options.train):
        parser.error("give --train FOLDER, or --pairs with a masked network behind each dense one")
    pairs = zip(options.pairs[::2], options.pairs[1::2], strict=True)
    files = {_title(masked): (dense, masked) for dense, masked in pairs}
    if options.train:
        rows = LIGHT if options.light else ARCHITECTURES
        known = [row for row in rows if row[0] in (options.architectures or [row[0] for row in rows])]
        files |= {f"{row[0]}-{seed}": train(*row, seed, options) for seed in options.seeds for row in known}
    data = set5()
    photographs = pictures([*sample_pairs("training"), *sample_pairs("eval")]) if options.photographs else {}
    inputs = [low[..., : options.size or None, : options.size or None] for low, _ in data.values()]
    rows, networks, times, busy = [], {}, {}, 1.0
    with thread_count(1), torch.no_grad():
        for name, (dense_file, masked_file) in files.items():
            dense, masked = networks[name] = load(dense_file, masked_file)
            row = {"network": name}
            for prefix, used in (("", data), ("photo_", photographs)):
                if used:
                    row[f"{prefix}db"], row[f"{prefix}kept"] = quality(masked, used.values())
                    row[f"{prefix}dense_db"] = math.nan if dense_file == NONE else quality(dense, used.values())[0]
                    row[f"{prefix}cost"] = row[f"{prefix}dense_db"] - row[f"{prefix}db"]
            rows.append(row)
        if options.rounds:
            times, busy = in_turn(networks, inputs, options.rounds, options.compiled)
        if options.draw:
            draw({name: masked for name, (_, masked) in networks.items()}, data, options.draw)
    for row in rows:
        for form in ("dense", "compiled", "fast", "masked"):
            if (row["network"], form) in times:
                row[f"{form}_ms"] = times[row["network"], form]
        if times:
            row["gain"] = row.get("compiled_ms", row.get("dense_ms")) / row["masked_ms"]
            row["fast_gain"] = row["fast_ms"] / row["masked_ms"]
    rows += averages(rows)
    columns = {
        "network": "network", "dense_ms": ("dense ms", ".1f"), "compiled_ms": ("compiled ms", ".1f"),
        "fast_ms": ("dense by squares ms", ".1f"), "masked_ms": ("masked ms", ".1f"), "gain": ("gain", ".2f"),
        "fast_gain": ("gain over squares", ".2f"), "dense_db": ("dense dB", ".2f"),
        "db": ("masked dB", ".2f"), "cost": ("cost dB", ".2f"), "kept": ("kept", ".3f"),
        "photo_dense_db": ("photographs: dense dB", ".2f"), "photo_db": ("masked dB", ".2f"),
        "photo_cost": ("cost dB", ".2f"), "photo_kept": ("kept", ".3f"),
    }  # fmt: skip
    print(table(rows, {name: column for name, column in columns.items() if name in rows[0]}))
    if times:
        size = f"cut to {options.size}x{options.size}" if options.size else "whole"
        print(f"Set5 x2; ms: mean over pictures, {size}; processor time of 1 thread, all in turn, busy {busy:.2f}")
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
