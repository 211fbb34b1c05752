"""SMStereo: what skipping saves, layer kind by layer kind and in a whole network, and the memory it takes.

    python bench/stereo.py layers                  the six kinds at 10 to 70 % kept, both sides in one run, medians
    python bench/stereo.py network --weights FILE  a trained network on generated scenes, dense beside sparse
    python bench/stereo.py memory                  540x960 and 192 disparities, whole and in tiles, each in a process

Dense layers are oneDNN's, channels last, batch norms folded. Kept voxels are drawn in blobs, as learnt masks have them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from sparsemask.spaces.smstereo.mask_module import MaskedConv  # noqa: E402
from sparsemask.spaces.smstereo.network import SMStereo  # noqa: E402
from sparsemask.sparse import backend  # noqa: E402
from sparsemask.tables import table  # noqa: E402
from sparsemask.tasks.stereo.batch import StereoPair  # noqa: E402

KINDS = (  # name, inputs, outputs, stride, transposed, how often the input's grid is halved
    ("1: 32-64 stride 2", 32, 64, 2, False, 0), ("2: 64-64", 64, 64, 1, False, 1),
    ("3: 64-128 stride 2", 64, 128, 2, False, 1), ("4: 128-128", 128, 128, 1, False, 2),
    ("5: 128-64 transposed", 128, 64, 1, True, 2), ("6: 64-32 transposed", 64, 32, 1, True, 1),
)  # fmt: skip
CHANNELS = 0.15  # of what is kept, the dense channels' share


def blobs(size: tuple[int, ...], share: float, seed: int) -> Tensor:
    """Bool (1, 1, *size): smooth noise above the quantile that keeps `share`."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(max(2, n // 6) for n in size), generator=draw)
    noise = F.interpolate(coarse, size, mode="trilinear") + 0.1 * torch.randn(1, 1, *size, generator=draw)
    return noise > noise.flatten().kthvalue(max(1, round((1 - share) * noise.numel())))[0]


def timed(run) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


def multiply_adds(run) -> int:
    """Of one call, as counted by torch."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@torch.no_grad()
def layers(rounds: int, name: str, size: tuple[int, int, int], shares: list[float]) -> None:
    """Each kind at several kept fractions."""
    rows = []
    for label, inputs, outputs, stride, transposed, halved in KINDS:
        torch.manual_seed(0)
        layer = MaskedConv(inputs, outputs, stride, transposed, relu=not transposed).eval()
        grid = tuple(n >> halved for n in size)
        x = torch.randn(1, inputs, *grid).contiguous(memory_format=torch.channels_last_3d)
        out = tuple(2 * n for n in grid) if transposed else tuple(n // stride for n in grid)
        before = torch.arange(inputs) < round(0.3 * inputs)  # dense channels first, as the hourglass orders them
        for share in shares:
            dense = CHANNELS * share
            own = torch.arange(outputs) < round(dense * outputs)
            mask = blobs(out, (share - dense) / (1 - dense), 1)

            def sparse(layer=layer, x=x, mask=mask, before=before, own=own):
                with backend(name):
                    return layer(x, mask, before, own)

            def whole(layer=layer, x=x):
                return layer.everything(x)

            gain = multiply_adds(whole) / multiply_adds(sparse)
            for run in (whole, sparse):
                run()
            times = [(timed(whole), timed(sparse)) for _ in range(rounds)]
            ratio = statistics.median(a / b for a, b in times)
            rows.append(
                {
                    "layer": label, "kept": share, "dense": statistics.median(a for a, _ in times),
                    "ms": statistics.median(b for _, b in times), "gain": ratio, "flops": gain, "share": ratio / gain,
                }
            )  # fmt: skip
    columns = {
        "layer": "layer", "kept": ("kept", ".1f"), "dense": ("dense ms", ".1f"), "ms": ("sparse ms", ".1f"),
        "gain": ("gain in time", ".2f"), "flops": ("in multiply-adds", ".2f"), "share": ("time / multiply-adds", ".2f"),
    }  # fmt: skip
    print(table(rows, columns))
    print(f"input grid {' x '.join(map(str, size))}, backend {name}, {torch.get_num_threads()} thread(s)")


@torch.no_grad()
def network(path: Path, rounds: int, height: int, width: int, name: str) -> None:
    """A trained network on a generated scene, dense beside sparse: its hourglasses, aggregation, the whole."""
    from sparsemask.spaces.smstereo.checkpoints import load_smstereo
    from sparsemask.synthetic.stereo_scenes import make_scene
    from sparsemask.tasks.stereo.batch import make_pair

    model = load_smstereo(path)
    scene = make_scene(np.random.default_rng(0), height, width, 0.75 * model.maxdisp)
    pair = make_pair(scene.left, scene.right)
    volume = model.volume(pair.left, pair.right)
    before = model.aggregate(volume.clone())

    def hourglasses(masked: bool, x: Tensor) -> Tensor:
        for module in model.hourglasses:
            x = module(x)[0] if masked else module.everything(x)
        return x

    def aggregation(masked: bool) -> Tensor:
        x = hourglasses(masked, model.aggregate(volume.clone()))
        return model.regress(model.classif3, x, (height, width))

    parts = {
        "hourglasses": lambda masked: hourglasses(masked, before),
        "aggregation": aggregation,
        "whole": lambda masked: model.compute(pair.left, pair.right, masked),
    }
    rows = []
    with backend(name):
        for part, run in parts.items():
            gain = multiply_adds(lambda run=run: run(False)) / multiply_adds(lambda run=run: run(True))
            run(False), run(True)
            times = [(timed(lambda run=run: run(False)), timed(lambda run=run: run(True))) for _ in range(rounds)]
            ratio = statistics.median(a / b for a, b in times)
            dense, sparse = (statistics.median(one) for one in zip(*times, strict=True))
            rows.append(
                {"part": part, "dense": dense, "ms": sparse, "gain": ratio, "flops": gain, "share": ratio / gain}
            )
        kept = model.compute(pair.left, pair.right)[1]
    columns = {
        "part": "part", "dense": ("dense ms", ".1f"), "ms": ("sparse ms", ".1f"), "gain": ("gain in time", ".2f"),
        "flops": ("in multiply-adds", ".2f"), "share": ("time / multiply-adds", ".2f"),
    }  # fmt: skip
    print(table(rows, columns))
    share = float(torch.cat(kept).mean())
    print(
        f"{path}, {width}x{height}, {model.maxdisp} disparities, kept {share:.3f}, backend {name}, "
        f"{torch.get_num_threads()} thread(s)"
    )


def child(form: str, budget: float, size: tuple[int, int]) -> None:
    """Print seconds, the most memory of one form, in tiles where there is a budget, and what was held before (GB)."""
    from sparsemask.tasks.stereo.tiles import fitting_tile, run_tiles

    torch.manual_seed(0)
    model = SMStereo().eval()
    pair = StereoPair(*torch.randn(2, 1, 3, *size))
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")

    def run(part):
        return model.compute(part.left, part.right, masked=form == "sparse")[0][-1]

    began = time.perf_counter()
    with torch.no_grad():
        if budget:
            tile = fitting_tile(*size, model.maxdisp, budget * 1e9)
            run_tiles(run, pair, model.maxdisp, tile)
        else:
            tile = size
            run(pair)
    print(time.perf_counter() - began, held("VmHWM"), before, *tile)


def held(what: str) -> float:
    """GB of this process, by the system's account: VmRSS now, VmHWM at most."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(what))
    return int(line.split()[1]) * 1024 / 1e9


def memory(size: tuple[int, int], budgets: list[float]) -> None:
    """Both forms in one piece, and the sparse one within budgets, in processes of their own."""
    rows = []
    for form, budget in [("dense", 0), ("sparse", 0), *(("sparse", one) for one in budgets)]:
        command = [sys.executable, __file__, "child", "--form", form, "--budgets", str(budget), "--picture"]
        done = subprocess.run([*command, *map(str, size)], capture_output=True, text=True, check=True)
        spent, most, before, tall, wide = map(float, done.stdout.split())
        said = f"{budget:g} GB" if budget else "-"
        rows.append(
            {"form": form, "budget": said, "tile": f"{wide:.0f}x{tall:.0f}", "s": spent, "gb": most, "before": before}
        )
    columns = {"form": "form", "budget": "budget", "tile": "tiles", "s": ("seconds", ".1f")}
    print(table(rows, {**columns, "gb": ("GB at most, torch included", ".2f"), "before": ("GB before", ".2f")}))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "network", "memory", "child"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backend", default="native")
    parser.add_argument("--size", type=int, nargs=3, default=[24, 68, 120], help="grid of the finest layers' input")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7])
    parser.add_argument("--weights", type=Path, help="network's: a run's network.safetensors")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--picture", type=int, nargs=2, help="height and width (default: 256 512; memory: 544 960)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.7], help="GB, of memory's tiles")
    parser.add_argument("--form", default="sparse", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "network" and options.weights is None:
        parser.error("network needs --weights FILE")
    if options.what == "layers":
        layers(options.rounds, options.backend, tuple(options.size), options.shares)
    elif options.what == "network":
        network(options.weights, options.rounds, *(options.picture or (256, 512)), options.backend)
    elif options.what == "memory":
        memory(tuple(options.picture or (544, 960)), options.budgets)
    else:
        child(options.form, options.budgets[0], tuple(options.picture))


if __name__ == "__main__":
    main()
