"""Super-resolution networks as ONNX files of every precision: dB on Set5 and milliseconds beside each other.

    python bench/precisions.py --calibrate t91                          the networks that ship
    python bench/precisions.py --calibrate t91 --weights spanx2_ch48.pth rlfn_x2.pth

Set5 is read from $SPARSEMASK_DATA/set5. All files of one network, and the network by torch, are called in turn on one
thread; the time is the thread's processor time. ONNX Runtime runs the files with one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import functools
import tempfile

import torch

from bench.models import set5
from sparsemask import exporting, models, spaces
from sparsemask.exporting.validation import opened
from sparsemask.files import write_json
from sparsemask.retrain.calibration import calibration_inputs
from sparsemask.spaces import sr_networks
from sparsemask.tables import table
from sparsemask.timing import thread_count, timer


class AsNetwork(torch.nn.Module):
    """A file as the network that it holds."""

    def __init__(self, run, scale: int):
        super().__init__()
        self.run, self.scale = run, scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See :class:`sr_networks.SRNetwork`."""
        return torch.as_tensor(self.run(images))


@torch.no_grad()
def rows_of(word: str, options: argparse.Namespace, folder: Path) -> list[dict]:
    """A row for the network by torch, and one for each file."""
    network = sr_networks.load(models.path_of(word)).requires_grad_(False)
    space = spaces.get("sr")
    form = space.exportable(network, None, {})
    about = {"space": space.name, "task": space.task, "input_shape": form.input_shape}
    inputs = calibration_inputs(options.calibrate, space, form, about)
    calibration = [{"picture": picture.numpy()} for picture in inputs]
    plain = exporting.export_onnx(form, folder / "float32.onnx", about)
    files = {"torch": Path(models.path_of(word)), **{name: folder / f"{name}.onnx" for name in exporting.PRECISIONS}}
    runs = {"torch": form.fast}
    for name in exporting.PRECISIONS:
        if name != exporting.FLOAT32:
            files[name].write_bytes(exporting.reduced(plain, name, calibration))
        runs[name], _ = opened(files[name], form)
    image = torch.rand(1, 3, options.side, options.side, generator=torch.Generator().manual_seed(0)) * 255
    calls = {name: functools.partial(run, image) for name, run in runs.items()}
    times, _ = timer(torch.device("cpu"), 1, 0.0)(calls, options.rounds)
    exact = set5(network)["set5_psnr"]
    rows = []
    for name, run in runs.items():
        score = exact if name == "torch" else set5(AsNetwork(run, network.scale))["set5_psnr"]
        size = files[name].stat().st_size / 1e3
        row = {"network": Path(word).stem, "form": name, "kB": size, "db": score, "change": score - exact}
        rows.append({**row, "ms": times[name], "gain": times[exporting.FLOAT32] / times[name]})
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", required=True, metavar="FOLDER", help="pictures, or a name in $SPARSEMASK_DATA")
    shipped = [name for name in models.available(["super_resolution"]) if not models.find(name).masked]
    parser.add_argument("--weights", nargs="+", default=shipped, help="networks (default: the dense ones that ship)")
    parser.add_argument("--side", type=int, default=256, help="of the timed pictures, in pixels (default: 256)")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each form (default: 7)")
    parser.add_argument("--json", default=None, help="file for the rows")
    options = parser.parse_args()
    rows = []
    with thread_count(1):
        for word in options.weights:
            with tempfile.TemporaryDirectory() as folder:
                rows += rows_of(word, options, Path(folder))
    columns = {
        "network": "network", "form": "form", "kB": ("kB", ".0f"), "db": ("Set5 dB", ".2f"),
        "change": ("change", "+.3f"), "ms": ("ms", ".1f"), "gain": ("float32 / this", ".2f"),
    }  # fmt: skip
    print(table(rows, columns))
    side = f"{options.side}x{options.side}"
    print(f"ms: {side}, the lower quartile of {options.rounds} or more in turn; 1 thread's processor time")
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
