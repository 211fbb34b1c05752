"""Write a trained network for other programs, run what was written on validation pictures, and time it beside ours.

    python retrain/export.py --out net.onnx                         the newest retrain run as ONNX
    python retrain/export.py --run runs/NAME --out a.safetensors a.pt2 a.onnx
    python retrain/export.py --pretrained_model network.safetensors --mask_path M --out net.onnx

The suffix says the format: .safetensors (weights, for this toolkit), .pt2 (torch.export, with the sparse operators) or
.onnx (masks multiply). Batch norms are folded; sizes stay open where the format allows it.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemask import exporting, flags, spaces, tasks
from sparsemask._version import __version__
from sparsemask.config import RunConfig, Section, flag
from sparsemask.errors import UseError, command, say
from sparsemask.exporting.validation import COLUMNS, opened
from sparsemask.options import Parser, natural, positive
from sparsemask.retrain.trained import open_trained, read_flags, trained_parser
from sparsemask.spaces.protocols import Exportable, HasFastForm
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.planning import Planner
from sparsemask.tables import table
from sparsemask.weights import describe_safetensors


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSection(Section):
    """Files to write, and how they are compared with the network."""

    title = "export"
    out: Sequence[str] | None = flag(nargs="+", metavar="FILE", help="files to write; suffixes say formats")
    fixed: bool = flag(False, help="for the size of the first validation picture alone")
    eval_limit: int = flag(3, positive, help="validation pictures compared (default: 3)")
    repeats: int = flag(7, natural, help="timed calls of each form, 0: none (default: 7)")


def parser(space: str = "connectivity", task: str | None = None) -> Parser:
    """The command's flags."""
    return trained_parser(Parser("export", prog="retrain/export.py", description=__doc__), ExportSection, space, task)


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """Parse a command line without reading data.

    Returns:
        The parser of the command line's space, and the flags given on it.

    Raises:
        UseError: an invalid command line, or a format that cannot be written here.
    """
    space = space or flags.space_of(argv, newest="retrain")
    command_parser = parser(space, flags.task_of(argv))
    given = read_flags(command_parser, argv, space)
    paths = [Path(path) for path in given.get("out") or ()]
    if not paths:
        raise UseError("--out is missing: files to write, such as network.onnx")
    for path in paths:
        refuse(exporting.why_not(exporting.known_suffix(path)))
    if given.get("type", "float32") != "float32":
        raise UseError(f"--type {given['type']}: networks are exported in float32")
    return command_parser, given


@dataclass(frozen=True)
class Prepared:
    """A trained network that is ready to be written.

    Attributes:
        space: name of its space.
        network: as it was trained.
        exportable: how it is written.
        batches: validation inputs.
        config: the command's.
        about: what its files say of themselves, plain values by name.
    """

    space: str
    network: torch.nn.Module
    exportable: exporting.Exportable
    batches: list
    config: RunConfig
    about: dict


def prepare(command_parser: Parser, given: dict) -> Prepared:
    """Open the trained network that a command line names, and the data that it is compared on.

    Args:
        command_parser: of :func:`read`.
        given: flags, likewise.

    Raises:
        UseError: there is none, or its space writes no files for others.
    """
    space = given["space"]
    if not isinstance(spaces.get(space), Exportable):
        able = [name for name in spaces.available() if isinstance(spaces.get(name), Exportable)]
        raise UseError(f"--space {space}: its networks cannot be exported; those of {', '.join(able)} can")
    restored = open_trained(command_parser, {**given, "gpu": -1})
    config, network = restored.config, restored.model.eval().requires_grad_(False)
    task = tasks.get(config.data.task, config)
    source = task.eval_data
    batches = [batch_of(source[i][0]) for i in range(min(len(source), config.evaluation.eval_limit))]
    exportable = spaces.get(space).exportable(network, batches[0], config, restored.mask)
    batches = [exportable.fitted(batch) for batch in batches]
    if config.evaluation.fixed:
        exportable = exportable.fixed(batches[0])
        batches = [batch for batch in batches if shapes(exportable, batch) == shapes(exportable, batches[0])]
    about = {"toolkit": f"sparsemask {__version__}", "space": space, **task.description()}
    about["input_shape"] = exportable.input_shape
    return Prepared(space, network, exportable, batches, config, about)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    command_parser, given = read(argv)
    paths = [Path(path) for path in given["out"]]
    for path in paths:  # before anything is computed
        exporting.format_of(path)
    found = prepare(command_parser, given)
    exportable, batches, evaluation = found.exportable, found.batches, found.config.evaluation
    for path in paths:
        refuse(exporting.why_not(path.suffix, exportable))
    if evaluation.repeats:
        plan(found.space, found.network, batches[0], [path for path in paths if path.suffix == ".safetensors"])
    validations = [export(path, exportable, batches, found.space, found.about, evaluation.repeats) for path in paths]
    say(table([validation.row() for validation in validations], COLUMNS))
    timing = f"{evaluation.repeats} in turn, {torch.get_num_threads()} thread(s)"
    say(f"difference: the largest over {len(batches)} input(s), to the outputs' size; ms: medians of {timing}")
    bad = [str(validation.path) for validation in validations if not validation.good]
    if bad:
        say(f"{', '.join(bad)}: the outputs are not those of the network", sys.stderr)
    return 1 if bad else 0


def export(path: Path, exportable: exporting.Exportable, batches: list, space: str, about: dict, repeats: int):
    """Write one file and compare its outputs with the network's.

    Args:
        path: the file; its suffix selects the format.
        exportable: the network.
        batches: inputs to compare on.
        space: name of the network's space.
        about: what the file says of itself, plain values by name.
        repeats: timed calls.

    Returns:
        A :class:`sparsemask.exporting.Validation`.
    """
    note = ""
    if path.suffix == ".safetensors":
        exportable.save(path)
        describe_safetensors(path, {key: value for key, value in about.items() if key != "input_shape"})
        run, repeats = spaces.get(space).load(path).network, 0  # weights are no program: nothing to time
    else:
        {".pt2": exporting.export_program, ".onnx": exporting.export_onnx}[path.suffix](exportable, path, about)
        run, note = opened(path, exportable)
    return exporting.validate(path, run, exportable, batches, repeats, note)


def plan(space: str, network: torch.nn.Module, batch: object, written: Sequence[Path]) -> None:
    """Find how a network with masks is computed fastest here, and say it; other networks have one way.

    Args:
        space: name of the network's space.
        network: it follows the plan from now on, as eager calls that files are timed against.
        batch: of the size to plan for.
        written: files of its weights, beside which the plan is kept.
    """
    known = spaces.get(space)
    if not isinstance(known, MaskedSpace) or isinstance(known, HasFastForm):
        return
    planner = Planner(known, network)
    planner.see(batch)
    for line in planner.lines():
        say(line)
    for path in written:
        planner.save(path)


def batch_of(sample) -> object:
    """Turn one input into a batch; inputs of points and pairs are batches already."""
    return sample[None].float() if isinstance(sample, torch.Tensor) else sample


def shapes(exportable: exporting.Exportable, batch) -> list[tuple[int, ...]]:
    """Sizes of a batch's tensors."""
    return [tuple(tensor.shape) for tensor in exportable.tensors(batch)]


def refuse(reason: str | None) -> None:
    """Raise a UseError where there is a reason."""
    if reason is not None:
        raise UseError(reason)


if __name__ == "__main__":
    sys.exit(main())
