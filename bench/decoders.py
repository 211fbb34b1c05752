"""Searched decoders beside those that people use: trained, evaluated and timed alike, in one command.

    pip install -r bench/requirements.txt
    python bench/decoders.py --voc_root VOCdevkit --pretrained_model mobilenet_v2.pth --out runs-decoders \
        --mask searched=mask.npy --seeds 0 1 2 --sizes 256 512

Ours: the networks of named masks (`--named`), of random ones (`--random N`; `--alike N`: as fast as the last mask file,
a search's control) and of mask files (`--mask NAME=FILE`). Theirs: segmentation_models.pytorch's Unet, FPN,
DeepLabV3Plus, PAN and Linknet with its MobileNetV2. All have the same ImageNet weights, views of the pictures, order of
them, steps, optimizer and rates; on the embedded sample set, without
`--voc_root`, all begin with random weights or with `--pretrained_model`. A network's score is the mean IoU over the
classes that occur in the held-out validation pictures, seen whole. Sides are multiples of 32, 128 at
least, which theirs need.

A network's milliseconds are those of its scores at the picture's size, one picture, after all have been trained: the
networks are timed in turn, in one process, the lower quartile counts; eagerly as they are and with folded batch norms
and channels last, the faster of the two, and compiled (`--compile`).

Results are lines of OUT/results.jsonl, one a finished training: the command goes on where it was stopped, on another
machine too, so that a GPU can train (`--device cuda --sizes`) and a CPU time afterwards. It prints Markdown, and writes
it and the figures to OUT/decoders.md and OUT/decoders.json, which bench/front_picture.py draws.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.mask_data import N_CLASS, Cache, Log, choose_pictures, prepare_pool
from bench.mask_table import BACKBONE, DEPTH, build, evaluate_whole, new_encoder, run_jobs, train_whole
from bench.torchvision_import import import_torchvision
from sparsemask.costs import count_parameters, multiply_adds
from sparsemask.errors import UseError, command
from sparsemask.files import write_json, write_text
from sparsemask.inference import Foldable
from sparsemask.masks.decoder import DecoderMask, as_decoder, load_decoder
from sparsemask.spaces.connectivity.cost_table import cost_table
from sparsemask.spaces.connectivity.named_masks import is_named, named_mask, random_decoder
from sparsemask.tables import format_count, markdown_table
from sparsemask.weights import load_weights

THEIRS = ("Unet", "FPN", "DeepLabV3Plus", "PAN", "Linknet")
NAMED = ("unet", "sparseacn", "sparsemask-voc", "dense")
FEATURES = 9
ALIKE = (0.9, 1.05)  # of the milliseconds of another mask


def import_smp():
    """segmentation_models.pytorch.

    Raises:
        UseError: it is not installed.
    """
    import_torchvision()
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise UseError(f"needs segmentation_models.pytorch: pip install -r bench/requirements.txt ({error})") from None
    return segmentation_models_pytorch


def build_network(spec: dict, pretrained: str | None) -> nn.Module:
    """A network of the comparison.

    Args:
        spec: {"kind": "smp", "name": ...}, or {"kind": ..., "mask": numbers of `DecoderMask.packed`}.
        pretrained: a file of ImageNet weights of MobileNetV2 in torchvision's layout, or None.
    """
    if spec["kind"] != "hand-made":
        from bench.mask_truth import unpack

        return build(unpack(spec["mask"]), new_encoder(pretrained))
    network = getattr(import_smp(), spec["name"])("mobilenet_v2", encoder_weights=None, classes=N_CLASS)
    if pretrained:
        state = {k: v for k, v in load_weights(pretrained).items() if not k.startswith("classifier.")}
        # The encoder's own method leaves tensors out; this one refuses what is missing or unknown.
        nn.Module.load_state_dict(network.encoder, state, strict=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network


def forward(network: nn.Module, x: Tensor) -> Tensor:
    """Scores of the picture's size."""
    return network(x, x.shape[-2:]) if isinstance(network, Foldable) else network(x)


def _train(spec: dict, seed: int, settings: dict) -> tuple[float, float]:
    """Mean IoU of a network with a seed, and seconds."""
    from bench.mask_table import _worker

    began, device = time.monotonic(), _worker["device"]
    torch.manual_seed(seed)
    network = build_network(spec, _worker["pretrained"]).to(device)
    rates = (settings["lr"], settings["lr"] * settings["encoder_share"])
    train_whole(network, _worker["cache"], device, settings["steps"], settings["batch"], *rates, seed, forward)
    return evaluate_whole(network, _worker["cache"], device, forward), time.monotonic() - began


def fold_sequences(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, batch norms that directly follow a convolution in a sequence folded into it."""
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            for first, second in zip(names, names[1:], strict=False):
                conv, norm = module._modules[first], module._modules[second]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module._modules[first] = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                    module._modules[second] = nn.Identity()
    return network


def folded(network: nn.Module) -> nn.Module:
    """A copy with folded batch norms, channels last."""
    if isinstance(network, Foldable):
        network = copy.deepcopy(network).eval()
        network.fold()
    else:
        network = fold_sequences(network)
    return network.to(memory_format=torch.channels_last)


def time_in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of calls that are made in turn, the lower quartile of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for number in range(rounds + 2):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if number >= 2:
                    times[name].append((time.perf_counter() - began) * 1e3)
    return {name: float(np.percentile(values, 25)) for name, values in times.items()}


def time_networks(specs: dict[str, dict], side: int, rounds: int, compiled: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of each network at a size: {"eager": ..., "compiled": ...}."""
    last = torch.channels_last
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {}
    for name, spec in specs.items():
        network = build_network(spec, None).eval().requires_grad_(False)
        quick = folded(network)
        image = x.contiguous(memory_format=last)
        calls[f"plain {name}"] = lambda network=network: forward(network, x)
        calls[f"folded {name}"] = lambda quick=quick, image=image: forward(quick, image)
        if compiled:
            call = torch.compile(lambda image, quick=quick: forward(quick, image), dynamic=False)
            with torch.no_grad():
                call(image)
            calls[f"compiled {name}"] = lambda call=call, image=image: call(image)
    found = time_in_turn(calls, rounds)
    times = {}
    for name in specs:
        times[name] = {"eager": min(found[f"plain {name}"], found[f"folded {name}"])}
        if compiled:
            times[name]["compiled"] = found[f"compiled {name}"]
    return times


def alike(count: int, like: np.ndarray | DecoderMask, side: int) -> Iterator[DecoderMask]:
    """Random decoders of the wider space that are predicted to take about as long as another one, on one thread."""
    from sparsemask.search.connectivity.one_shot import DecoderSpace  # with Optuna, which the rest does not need

    prices = cost_table(BACKBONE, (side, side), depth=DEPTH, n_class=N_CLASS, threads=1)
    wanted, rng, strides = prices.predict(like), np.random.default_rng(0), tuple(new_encoder(None).strides)
    widths = DecoderSpace(strides, DEPTH, True).widths
    drawn = (random_decoder(rng, FEATURES, strides, widths) for _ in range(100_000))
    near = (mask for mask in drawn if ALIKE[0] * wanted <= prices.predict(mask) <= ALIKE[1] * wanted)
    return itertools.islice(near, count)


def choose_networks(options: argparse.Namespace) -> dict[str, dict]:
    """The networks that a command line asks for, by name."""
    specs: dict[str, dict] = {}

    def add(name: str, kind: str, mask: np.ndarray | DecoderMask) -> None:
        if name in specs:
            raise UseError(f"two networks have the name '{name}'")
        specs[name] = {"kind": kind, "mask": as_decoder(mask, DEPTH).packed().flatten().tolist()}

    for name in options.named:
        if not is_named(name):
            raise UseError(f"--named {name}: no such mask")
        add(name, "named", named_mask(name, FEATURES, strides=new_encoder(None).strides))
    for entry in options.mask:
        name, _, path = entry.partition("=")
        if not path:
            raise UseError(f"--mask {entry}: NAME=FILE is expected")
        add(name, "searched", load_decoder(path))
    if options.random:
        from bench.mask_table import table_masks

        random = [entry.mask for entry in table_masks(options.random, options.crop) if entry.name is None]
        for number, mask in enumerate(random):
            add(f"random {number}", "random", mask)
    if options.alike:
        if not options.mask:
            raise UseError("--alike: draws masks that take as long as the last --mask, and none is given")
        like = load_decoder(options.mask[-1].partition("=")[2])
        for number, mask in enumerate(alike(options.alike, like, options.crop)):
            add(f"alike {number}", "random", mask)
    for name in options.theirs:
        specs[name] = {"kind": "hand-made", "name": name}
    return specs


def report(specs: dict[str, dict], rows: list[dict], times: dict[str, dict[str, dict[str, float]]], side: int) -> dict:
    """Figures of every network, by name."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["network"], {})[row["seed"]] = row["miou"]
    found = {}
    for name, spec in specs.items():
        network = build_network(spec, None).eval()
        found[name] = {
            "kind": spec["kind"],
            "parameters": count_parameters(network),
            "multiply_adds": multiply_adds(lambda x, network=network: forward(network, x), (1, 3, side, side)),
            "miou": [scores[name][seed] for seed in sorted(scores.get(name, {}))],
            "ms": {size: networks[name] for size, networks in times.items() if name in networks},
        }
    return found


def as_markdown(figures: dict[str, dict], side: int) -> str:
    """The figures as a table, the cheapest eager network first."""
    sizes = sorted({size for figure in figures.values() for size in figure["ms"]}, key=lambda s: int(s.split("/")[0]))
    rows, columns = [], {"network": "network", "kind": "kind", "parameters": ("parameters", format_count)}
    columns["multiply_adds"] = (f"multiply-adds, {side}×{side}", format_count)
    for name, figure in figures.items():
        row = {"network": name, **{key: figure[key] for key in ("kind", "parameters", "multiply_adds")}}
        for size in sizes:
            pixels, threads = size.split("/")
            for form, value in figure["ms"].get(size, {}).items():
                row[f"{size} {form}"] = value
                words = f"ms, {pixels}×{pixels}, {threads} thread{'s' if threads != '1' else ''}, {form}"
                columns[f"{size} {form}"] = (words, ".1f")
        if figure["miou"]:
            each = ", ".join(f"{value:.3f}" for value in figure["miou"])
            row["miou"] = f"{np.mean(figure['miou']):.3f}" + (f" ({each})" if len(figure["miou"]) > 1 else "")
        rows.append(row)
    columns["miou"] = "mIoU"
    key = f"{sizes[0]} eager" if sizes else "multiply_adds"
    return markdown_table(sorted(rows, key=lambda row: row.get(key, 0)), columns)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs-decoders")
    parser.add_argument("--voc_root", help="a VOC devkit; without it the embedded sample set")
    parser.add_argument("--pretrained_model", help="ImageNet weights of MobileNetV2, torchvision's layout")
    parser.add_argument("--mask", action="append", default=[], metavar="NAME=FILE", help="a mask file; repeatable")
    parser.add_argument("--named", nargs="*", default=list(NAMED), help="named masks")
    parser.add_argument("--random", type=int, default=0, help="random masks, spread over multiply-adds")
    parser.add_argument("--alike", type=int, default=0, help="random masks that take about as long as the last --mask")
    parser.add_argument("--theirs", nargs="*", choices=THEIRS, default=list(THEIRS), help="hand-made decoders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.003, help="of AdamW, outside the encoder")
    parser.add_argument("--encoder_share", type=float, default=0.1, help="the encoder's rate as a share of that")
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--views", type=int, help="views of each training picture (8; VOC: 4)")
    parser.add_argument("--pictures", type=int, help="training pictures at most")
    parser.add_argument("--held_out", type=int, help="validation pictures (60; VOC: 120)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512], help="sides that are timed, on the CPU")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of the timings")
    parser.add_argument("--rounds", type=int, default=20, help="of the timings")
    parser.add_argument("--compile", action="store_true", help="time compiled forms too")
    options = parser.parse_args(argv)
    if any(side % 32 or side < 128 for side in (options.crop, *options.sizes)):
        raise UseError("--crop and --sizes are multiples of 32, 128 at least: the hand-made decoders need that")
    if options.voc_root and not options.pretrained_model:
        raise UseError("a VOC devkit needs ImageNet weights: --pretrained_model FILE")
    specs, out = choose_networks(options), Path(options.out)
    side = 256 if options.voc_root else 128
    pictures = choose_pictures(
        options.voc_root, options.crop, side, views=options.views, limit=options.pictures, held_out=options.held_out
    )
    settings = {name: getattr(options, name) for name in ("steps", "batch", "lr", "encoder_share")}
    log = Log(
        out, {**settings, "pictures": {**asdict(pictures), "root": ""}, "pretrained": bool(options.pretrained_model)}
    )
    cache = Cache(out / pictures.key)
    done = {(row["network"], row["seed"], str(row["mask"])) for row in log.rows()}
    tasks, names = [], {}
    for seed in options.seeds:
        for name, spec in specs.items():
            if (name, seed, str(spec.get("mask"))) not in done:
                task = (spec, seed, settings)
                names[id(task)] = name
                tasks.append(task)
    if tasks:
        prepare_pool(pictures, cache)
    begin = (str(cache.folder), options.device, None, options.pretrained_model)
    for number, (task, (miou, seconds)) in enumerate(run_jobs(options.jobs, begin, _train, tasks), 1):
        name = names[id(task)]
        row = {"network": name, "seed": task[1], "miou": miou, "seconds": round(seconds, 1)}
        log.add({**row, "mask": task[0].get("mask")})
        print(f"{number}/{len(tasks)}: {name}, seed {task[1]}: mIoU {miou:.3f}, {seconds:.0f} s", flush=True)
    times = {}
    for size in options.sizes:
        for threads in options.threads:
            torch.set_num_threads(threads)
            times[f"{size}/{threads}"] = time_networks(specs, size, options.rounds, options.compile)
    current = {(name, str(spec.get("mask"))) for name, spec in specs.items()}
    rows = [row for row in log.rows() if (row["network"], str(row["mask"])) in current]
    figures = report(specs, rows, times, side)
    text = as_markdown(figures, side)
    write_json(out / "decoders.json", {"set": pictures.name, "settings": settings, "networks": figures})
    write_text(out / "decoders.md", text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(command(main)())
