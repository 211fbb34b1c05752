"""Super-resolution networks before and after masks: milliseconds, dB on Set5 and kept multiply-adds, by architecture.

    python bench/sr_masked.py --train FOLDER --out work          train each, give it masks, and measure (an hour)
    python bench/sr_masked.py --train FOLDER --out work --light    half of the blocks, for one core (half an hour)
    python bench/sr_masked.py --pairs dense.pth masked.safetensors [...]     measure networks that exist
    python bench/sr_masked.py --pairs ... --rounds 0 --draw masks.png        dB and kept multiply-adds alone, and masks

Set5 is read from $SPARSEMASK_DATA/set5. All forms of all networks are called in turn, in one process on one thread, on
the pictures of Set5 cut to one size: dense by torch's operators, dense compiled by torch.compile (--compiled), masked
as backend "auto" runs it. The dense network is the teacher of the masked one: their difference in dB is what masks
cost. The trainings are short, so that dB say nothing about the architectures.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import io
import os

import numpy as np
import torch
from PIL import Image

from sparsemask.files import write_json
from sparsemask.inference import optimize_for_inference
from sparsemask.pictures.overlay import heat
from sparsemask.retrain import specialize, super_resolution
from sparsemask.spaces import sr_networks
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.spaces.sparsified import SparsifiedNetwork
from sparsemask.spaces.sr_networks.space import load_sparsified
from sparsemask.sparse import repeatable
from sparsemask.tables import table
from sparsemask.tasks.super_resolution.data import to_tensor
from sparsemask.tasks.super_resolution.folders import read_folder
from sparsemask.tasks.super_resolution.image_metrics import psnr, quantise
from sparsemask.tasks.super_resolution.store import PictureStore
from sparsemask.timing import compare, thread_count

# Architecture, channels, blocks: light networks of about the published widths.
ARCHITECTURES = (("SRVGGNetCompact", 64, 16), ("SPAN", 48, 6), ("RLFN", 52, 6), ("PLKSR", 64, 8), ("EDSR", 64, 16))
# And of half of the blocks or less, with the share that masks keep where --keep is less than such a network can have.
LIGHT = (("SRVGGNetCompact", 48, 8), ("SPAN", 48, 3), ("RLFN", 52, 3), ("PLKSR", 48, 3), ("EDSR", 48, 5))
_LIGHT_KEEP = {"EDSR": 0.75}  # its upsampling, without masks, is a third of so small a network
_COLOURS = 160  # so that the file is small
_DRAWN, _SIDE = ("baby", "butterfly", "woman"), 112  # their upper left parts, in pixels
_WARM = 14  # calls in which backend "auto" finds its choice


def train(name: str, n_feats: int, n_blocks: int, options: argparse.Namespace) -> tuple[Path, Path]:
    """Train a network and its masks; runs that are there already are taken as they are."""
    data = ["--hr_path", options.train, "--data_test", "set5", "--exp_path", options.out, "--n_worker", "0"]
    dense, masked = (Path(options.out) / f"{name}-{part}" / "network.safetensors" for part in ("dense", "masked"))
    if not dense.exists():
        flags = ["--architecture", name, "--n_feats", str(n_feats), "--n_blocks", str(n_blocks), "--schedule", "cosine"]
        flags += ["--ema", "0.999", "--max_iter", str(options.steps), "--eval_interval", str(options.steps)]
        flags += ["--type", options.type]
        if super_resolution.main([*flags, *data, "--name", f"{name}-dense"]):
            raise SystemExit(f"{name}: its training failed")
    if not masked.exists():
        keep = max(options.keep, _LIGHT_KEEP.get(name, 0.0)) if options.light else options.keep
        flags = ["--space", "sr", "--weights", str(dense), "--keep", str(keep), "--rounds", "0", "--type", options.type]
        flags += ["--max_iter", str(options.mask_steps), "--eval_interval", str(options.mask_steps)]
        if specialize.main([*flags, *data, "--name", f"{name}-masked"]):
            raise SystemExit(f"{name}: masks could not be trained")
    return dense, masked


def pictures() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(low, high) resolution of Set5 by name, (1, 3, h, w) and (3, 2h, 2w)."""
    store = PictureStore(read_folder(Path(os.environ.get("SPARSEMASK_DATA", "")) / "set5", 2), 2)
    pairs = (store[index] for index in range(len(store)))
    names = [pair.hr.stem for pair in store.pairs]
    return {name: (to_tensor(low)[None], to_tensor(high)) for name, (low, high) in zip(names, pairs, strict=True)}


@torch.no_grad()
def draw(networks: dict[str, SparsifiedNetwork], data: dict, path: str) -> None:
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
def quality(network: torch.nn.Module, data: list, kept: bool) -> tuple[float, float]:
    """Mean luma PSNR, and the mean share of the multiply-adds that was executed."""
    scores, shares = [], []
    with repeatable():
        for low, high in data:
            scores.append(psnr(quantise(network(low))[0], high, 2))
            shares.append(float(mean_kept(network)) if kept else 1.0)
    return float(np.mean(scores)), float(np.mean(shares))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default=None, metavar="FOLDER", help="pictures to train on")
    parser.add_argument("--out", default="sr_masked", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=3000, help="of the dense trainings (default: 3000)")
    parser.add_argument("--mask_steps", type=int, default=2000, help="of the masks' trainings (default: 2000)")
    parser.add_argument("--keep", type=float, default=0.5, help="(default: 0.5)")
    parser.add_argument("--architectures", nargs="+", default=None, help="some of them (default: all)")
    parser.add_argument("--pairs", nargs="+", default=[], metavar="FILE", help="dense and masked networks in turn")
    parser.add_argument("--size", type=int, default=128, help="side of the timed pictures (default: 128)")
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
    files = {Path(masked).parent.name: (dense, masked) for dense, masked in pairs}
    if options.train:
        rows = LIGHT if options.light else ARCHITECTURES
        known = [row for row in rows if row[0] in (options.architectures or [row[0] for row in rows])]
        files |= {name: train(name, n_feats, n_blocks, options) for name, n_feats, n_blocks in known}
    data = pictures()
    inputs = [low[..., : options.size, : options.size] for low, _ in data.values()]
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    rows, forms = [], {}
    with thread_count(1), torch.no_grad():
        for name, (dense_file, masked_file) in files.items():
            dense, masked = sr_networks.load(dense_file), load_sparsified(masked_file)
            dense.fold()
            before, (after, kept) = quality(dense, [*data.values()], False)[0], quality(masked, [*data.values()], True)
            rows.append({"network": name, "dense_db": before, "db": after, "cost": before - after, "kept": kept})
            forms[name, "dense"] = dense.to(memory_format=torch.channels_last)
            if options.compiled:
                forms[name, "compiled"] = optimize_for_inference(dense, inputs[0], compiled=True)
            forms[name, "masked"] = masked
        calls = {
            (key, number): (lambda form=form, x=x: form(x))
            for key, form in forms.items()
            for number, x in enumerate(inputs)
        }
        times = compare(calls, options.rounds, warmup=_WARM) if options.rounds else {}
        if options.draw:
            drawn = {name.removesuffix("-masked"): forms[name, "masked"] for name in files}
            draw(drawn, data, options.draw)
    for row in rows:
        for form in ("dense", "compiled", "masked"):
            mine = [ms for ((name, kind), _), ms in times.items() if (name, kind) == (row["network"], form)]
            if mine:
                row[f"{form}_ms"] = float(np.mean(mine))
        if times:
            row["gain"] = row.get("compiled_ms", row.get("dense_ms")) / row["masked_ms"]
    columns = {
        "network": "network", "dense_ms": ("dense ms", ".1f"), "compiled_ms": ("compiled ms", ".1f"),
        "masked_ms": ("masked ms", ".1f"), "gain": ("gain", ".2f"), "dense_db": ("dense dB", ".2f"),
        "db": ("masked dB", ".2f"), "cost": ("cost dB", ".2f"), "kept": ("kept", ".3f"),
    }  # fmt: skip
    print(table(rows, {name: column for name, column in columns.items() if name in rows[0]}))
    if times:
        size = f"{options.size}x{options.size}"
        print(f"Set5 x2; ms: mean over pictures of {size}, medians of {options.rounds} in turn, 1 thread")
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
