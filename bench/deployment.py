"""ONNX files of every family in other runtimes, beside the network here: ONNX Runtime, OpenVINO, and ncnn.

    pip install 'sparsemask[onnx]' openvino        and, to try ncnn too: ncnn pnnx
    OMP_NUM_THREADS=1 python bench/deployment.py                          a small network of each family
    OMP_NUM_THREADS=1 python bench/deployment.py --run runs/a runs/b      trained ones, on their validation data
    python bench/deployment.py --only smsr hinge --repeats 0              outputs alone

Each network is written by the exporter, for one size (`--open`: its sizes stay open where they can), and the file is
run by all that are installed; for ncnn its converter, pnnx, makes its own files of it, in float32. The first kind have
weights drawn from a seed, and masks that keep a part. Differences are the largest of any output over the larger of the
largest output and 1; milliseconds are medians of calls in turn, with torch's number of threads for all. What a runtime
refuses stands in the table with its reason. Prints Markdown, and writes it and the figures to OUT/deployment.md and
OUT/deployment.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sparsemask import exporting, spaces
from sparsemask.errors import UseError, choose, command, one_line, say
from sparsemask.files import write_json, write_text
from sparsemask.masks.groups import GroupMask
from sparsemask.points import PointBatch, build_graph
from sparsemask.retrain import export
from sparsemask.spaces.connectivity.encoding import mask_word
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.specialized import SpecializedNetwork
from sparsemask.tables import markdown_table
from sparsemask.tasks.stereo.batch import StereoPair
from sparsemask.timing import compare

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn"}
REQUIRED = ("onnxruntime", "openvino")
COLUMNS = {
    "network": "network", "input": "input", "kept": ("locations kept", ".0%"), "eager": ("eager ms", ".2f"),
    "onnxruntime_difference": ("ONNX Runtime: difference", ".0e"), "onnxruntime_ms": ("ms", ".2f"),
    "openvino_difference": ("OpenVINO: difference", ".0e"), "openvino_ms": ("ms ", ".2f"),
    "ncnn_difference": ("ncnn: difference", ".0e"), "ncnn_ms": ("ms  ", ".2f"), "note": "note",
}  # fmt: skip
_ENCODER = {"depth": 32, "n_class": 21}
_WORD = mask_word(named_mask("unet", 9))


@dataclass(frozen=True)
class Case:
    """A network with weights drawn from a seed.

    Attributes:
        space: name of its space.
        config: flags of the network.
        inputs: makes a batch.
        mask: of its supernet; None: the supernet's own.
    """

    space: str
    config: Mapping[str, Any]
    inputs: Callable[[], Any]
    mask: Any = None


def noise(*shape: int) -> Tensor:
    """Normalised images."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def picture(*shape: int) -> Tensor:
    """Images of 0 to 255, smooth, so that networks find flat places and edges."""
    small = torch.rand(*shape[:2], shape[2] // 8, shape[3] // 8, generator=torch.Generator().manual_seed(1))
    return 255 * nn.functional.interpolate(small, shape[2:], mode="bilinear")


def cloud(count: int, dimensions: int, neighbours: int, levels: int) -> PointBatch:
    """A crop of random points with its neighbour lists."""
    features = np.random.default_rng(1).random((count, dimensions), np.float32)
    near, upsample = build_graph(features[:, :3], neighbours, 4, levels)
    batched = lambda arrays: [torch.from_numpy(array)[None] for array in arrays]
    return PointBatch(torch.from_numpy(np.ascontiguousarray(features.T))[None], batched(near), batched(upsample))


CASES = {
    "connectivity": Case("connectivity", _ENCODER, lambda: noise(1, 3, 256, 256), named_mask("sparsemask-voc", 9)),
    "specialised": Case(
        "specialized", {**_ENCODER, "connectivity": _WORD, "place_stride": 8}, lambda: noise(1, 3, 128, 128)
    ),
    "hinge": Case(
        "hinge", {"arch": "resnet20", "n_class": 10, "input_shape": [3, 32, 32]}, lambda: noise(1, 3, 32, 32)
    ),
    "smsr": Case(
        "smsr", {"scale": 2, "n_feats": 32, "n_modules": 3, "n_layers": 4, "reduction": 8},
        lambda: picture(1, 3, 96, 128),
    ),
    "sr with masks": Case(
        "sr", {"dense": '{"architecture": "EDSR", "scale": 2, "n_feats": 32, "n_blocks": 4}'},
        lambda: picture(1, 3, 96, 128),
    ),
    "smstereo": Case(
        "smstereo", {"maxdisp": 48, "groups": 8}, lambda: StereoPair(noise(1, 3, 48, 96), noise(1, 3, 48, 96))
    ),
    "smpointseg": Case(
        "smpointseg", {"d_in": 6, "n_class": 13, "channels": [16, 32, 64], "n_neighbors": 16, "radius": 0.1},
        lambda: cloud(2048, 6, 16, 3),
    ),
}  # fmt: skip


def build(case: Case) -> tuple[nn.Module, Any]:
    """The small network of a case in evaluation mode, and its mask."""
    space = spaces.get(case.space)
    config = {**space.section().values(), **case.config}
    torch.manual_seed(0)
    supernet = space.supernet(config)
    mask = case.mask
    if mask is None and case.space == "hinge":  # half of the groups of every set
        described = space.config(config)
        sets = space.structure(described).reduction.sets
        mask = GroupMask(described, {s.name: np.arange(s.count) % 2 == 0 for s in sets}, space=case.space)
    elif mask is None:
        mask = space.masks_of(supernet)
    network = space.network(mask, config)
    space.load_weights_into(network, space.transfer(supernet.state_dict(), mask, config), "the supernet")
    network.eval().requires_grad_(False)
    if isinstance(network, MaskedNetwork):
        decide(network)
    return network, mask


def decide(network: MaskedNetwork) -> None:
    """Have every mask branch keep some locations and drop others, for half of the channels: at first most keep all."""
    if isinstance(network, SpecializedNetwork):
        channels = [value for name, value in network.named_parameters() if name.endswith("ch_mask")]
        ends = [module.locate[-1] for module in network.masked.values() if module.locate is not None]
        branches = [(end.weight, end.bias) for end in ends]
    else:
        modules = network.mask_modules().values()
        channels = [logits for module in modules for logits in module.channel_parameters()]
        branches = [module.branch_end() for module in modules]
    for logits in channels:
        logits.normal_()
    for weight, bias in branches:
        weight.normal_()
        if bias is not None:
            bias.zero_()


def openvino_reader(path: Path) -> Callable[..., Tensor]:
    """An ONNX file as a function of tensors, by OpenVINO on the CPU in float32, with torch's number of threads."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    output = compiled.output(0)
    return lambda *tensors: torch.from_numpy(compiled([tensor.numpy() for tensor in tensors])[output].copy())


def ncnn_reader(path: Path) -> Callable[..., Tensor]:
    """An ONNX file as a function of tensors, by ncnn on the CPU in float32; its own files are written beside it."""
    import ncnn
    import pnnx

    made = subprocess.run([pnnx.EXEC_PATH, path.name, "fp16=0"], cwd=path.parent, capture_output=True, timeout=300)
    files = [path.with_name(f"{path.stem.replace('-', '_')}.ncnn.{end}") for end in ("param", "bin")]
    if made.returncode or not all(file.exists() for file in files):
        raise RuntimeError(f"pnnx cannot convert it (exit status {made.returncode})")
    network = ncnn.Net()
    network.opt.num_threads = torch.get_num_threads()
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{option}", False)
    if network.load_param(str(files[0])) or network.load_model(str(files[1])):
        unknown = [kind for kind in layer_kinds(files[0]) if ncnn.layer_to_index(kind) < 0]
        raise RuntimeError(f"it has no layer {', '.join(dict.fromkeys(unknown))}" if unknown else "no valid files")

    def run(*tensors: Tensor) -> Tensor:
        extractor = network.create_extractor()
        for number, tensor in enumerate(tensors):
            extractor.input(f"in{number}", ncnn.Mat(tensor[0].numpy()).clone())
        status, output = extractor.extract("out0")
        if status:
            raise RuntimeError(f"extracting ends with {status}")
        return torch.from_numpy(np.array(output))[None]

    return run


def layer_kinds(path: Path) -> list[str]:
    """The kinds of layers that a parameter file of ncnn names, in order."""
    return [line.split()[0] for line in path.read_text().splitlines()[2:]]


READERS: Mapping[str, Callable[[Path], Callable[..., Tensor]]] = {
    "onnxruntime": lambda path: exporting.read_exported(path).run,
    "openvino": openvino_reader,
    "ncnn": ncnn_reader,
}


def measure(
    name: str, exportable: exporting.Exportable, batches: Sequence[Any], path: Path, repeats: int
) -> dict[str, Any]:  # fmt: skip
    """Write a network as ONNX and run it in every runtime.

    Args:
        name: of the row.
        exportable: the network.
        batches: inputs that outputs are compared on; the first is timed.
        path: the file to write.
        repeats: timed calls of each, 0: none.

    Returns:
        A row of the table; `note` says what a runtime refused.
    """
    exporting.export_onnx(exportable, path)
    sizes = ", ".join("x".join(map(str, tensor.shape)) for tensor in exportable.tensors(batches[0])[:1])
    row: dict[str, Any] = {"network": name, "input": sizes}
    with torch.no_grad():
        expected = [exportable.network(batch) for batch in batches]
    if isinstance(exportable.network, MaskedNetwork) and len(exportable.network.masks):
        row["kept"] = float(np.mean([mask.float().mean() for mask in exportable.network.masks]))
    forms: dict[str, Callable[[], object]] = {"eager": lambda: exportable.fast(batches[0])}
    notes = []
    for runtime, reader in READERS.items():
        if runtime not in REQUIRED and exporting.exportable.missing([runtime]):
            continue
        try:
            run = reader(path)
            actual = [run(*exportable.tensors(batch)) for batch in batches]
        except Exception as error:  # whatever a runtime raises belongs in the table
            notes.append(f"{RUNTIMES[runtime]} refuses it: {one_line(error)[:200]}")
            continue
        gap = max(difference(*pair) for pair in zip(actual, expected, strict=True))
        row[f"{runtime}_difference"] = gap
        if not gap <= exporting.PRECISIONS[exporting.FLOAT32].tolerance:
            notes.append(f"{RUNTIMES[runtime]}: other outputs")
        forms[runtime] = lambda run=run: run(*exportable.tensors(batches[0]))
    if repeats:
        times = compare(forms, rounds=repeats)
        row |= {"eager" if form == "eager" else f"{form}_ms": spent for form, spent in times.items()}
    return {**row, "note": "; ".join(notes) or None}


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the larger of the largest output and 1; infinite where an output is not finite."""
    if actual.shape != expected.shape or not actual.isfinite().all():
        return float("inf")
    return float((actual - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def prepared(options: argparse.Namespace, folder: Path):
    """(name, exportable, batches) of every network asked for."""
    for run in options.run or ():
        argv = ["--run", run, "--out", str(folder / "unused.onnx"), *([] if options.open else ["--fixed"])]
        found = export.prepare(*export.read(argv))
        yield Path(run).name, found.exportable, found.batches
    for name in () if options.run else options.only or CASES:
        case = CASES[name]
        network, mask = build(case)
        inputs = case.inputs()
        config = {**spaces.get(case.space).section().values(), **case.config}
        exportable = spaces.get(case.space).exportable(network, inputs, config, mask)
        yield name, exportable if options.open else exportable.fixed(inputs), [inputs]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", metavar="RUN", help="retrained or specialised runs instead of new networks")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--open", action="store_true", help="leave sizes open where the exporter can")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each, 0: none (default: 15)")
    parser.add_argument("--out", type=Path, default=Path("runs-deployment"), help="folder for files and table")
    options = parser.parse_args(argv)
    for name in options.only or ():
        choose(name, CASES, "network")
    absent = [name for name in REQUIRED if exporting.exportable.missing([name])]
    if absent:
        raise UseError(f"{' and '.join(absent)} not installed: pip install 'sparsemask[onnx]' openvino")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, exportable, batches in prepared(options, options.out):
        rows.append(measure(name, exportable, batches, options.out / f"{name.replace(' ', '_')}.onnx", options.repeats))
        say(f"{name}: {rows[-1]['note'] or 'done'}", sys.stderr)
    present = [name for name in RUNTIMES if not exporting.exportable.missing([name])]
    versions = {name: importlib.metadata.version(name) for name in ("torch", *present)}
    text = markdown_table(rows, {name: head for name, head in COLUMNS.items() if any(name in row for row in rows)})
    write_text(options.out / "deployment.md", text + "\n")
    write_json(options.out / "deployment.json", {"versions": versions, "rows": rows})
    say(text)
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    say(f"{said}; {torch.get_num_threads()} thread(s), medians of {options.repeats} in turn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
