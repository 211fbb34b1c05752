"""Write a trained network for other programs, run what was written on validation pictures, and time it beside ours.

    python retrain/export.py --out net.onnx                         the newest retrain run as ONNX
    python retrain/export.py --run runs/NAME --out a.safetensors a.pt2 a.onnx
    python retrain/export.py --pretrained_model network.safetensors --mask_path M --out net.onnx
    python retrain/export.py --space sr --weights compact-x2 --data_test set5 --out net.onnx      a dense network
    python retrain/export.py --run runs/NAME --out net.onnx --precision int8 --calibrate photos
    python retrain/export.py --run runs/NAME --out net.onnx --form skip

The suffix says the format: .safetensors (weights, for this toolkit), .pt2 (torch.export, with the sparse operators) or
.onnx (masks multiply; --form skip: they skip, by a library of operators beside the file). Batch norms are folded; sizes
stay open where the format allows it. ONNX files can be of a lower precision.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemask import exporting, flags, spaces, tasks
from sparsemask._version import __version__
from sparsemask.config import RunConfig, Section, flag
from sparsemask.devices import Arithmetic
from sparsemask.errors import UseError, command, say
from sparsemask.exporting.validation import COLUMNS, of_any_size, opened
from sparsemask.files import write_bytes
from sparsemask.options import Parser, natural, positive
from sparsemask.retrain.calibration import calibration_inputs
from sparsemask.retrain.dense_weights import dense_weights, open_dense
from sparsemask.retrain.trained import open_trained, read_flags, trained_parser
from sparsemask.spaces.protocols import Exportable, HasFastForm
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.planning import Planner
from sparsemask.tables import table
from sparsemask.timing import NOISE
from sparsemask.weights import describe_safetensors


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSection(Section):
    """Files to write, and how they are compared with the network."""

    title = "export"
    out: Sequence[str] | None = flag(nargs="+", metavar="FILE", help="files to write; suffixes say formats")
    fixed: bool = flag(False, help="for the size of the first validation picture alone")
    eval_limit: int = flag(3, positive, help="validation pictures compared (default: 3)")
    repeats: int = flag(7, natural, help="timed calls of each form, 0: none (default: 7)")
    form: str = flag(
        exporting.PLAIN,
        choices=tuple(exporting.FORMS),
        help="of ONNX files; plain: masks multiply; skip: operators that skip, with their library beside the file; "
        "dense: without masks (default: plain)",
    )
    precision: str = flag(
        exporting.FLOAT32,
        choices=tuple(exporting.PRECISIONS),
        help="of ONNX files; float16 and bfloat16: weights in half as many bytes; int8: computed in integers "
        "(default: float32)",
    )
    calibrate: str | None = flag(
        metavar="FOLDER", help="pictures like those to come, on which --precision int8 measures the ranges of integers"
    )


@dataclass(frozen=True)
class Export:
    """A network and what is said of it, measured and compared, file by file.

    Attributes:
        form: the network.
        batches: inputs to compare on.
        about: what files say of themselves, plain values by name.
        repeats: timed calls.
        reload: reads the network of a safetensors file.
        precision: of ONNX files.
        calibration: inputs that integers are calibrated on.
        score: the task's metric of a function of batches; None: not measured.
        onnx: form of ONNX files.
    """

    form: exporting.Exportable
    batches: list
    about: Mapping
    repeats: int
    reload: Callable[[Path], torch.nn.Module]
    precision: str = exporting.FLOAT32
    calibration: Sequence[torch.Tensor] = ()
    score: Callable[[Callable], float] | None = None
    onnx: str = exporting.PLAIN


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
    precision = given.get("precision", exporting.FLOAT32)
    for path in paths:
        refuse(exporting.why_not(exporting.known_suffix(path)))
        refuse(exporting.why_not_precision(precision, path.suffix))
    if precision == exporting.INT8 and not given.get("calibrate"):
        raise UseError("--precision int8: --calibrate FOLDER is missing: pictures like those to come")
    if precision != exporting.INT8 and given.get("calibrate"):
        raise UseError(f"--calibrate {given['calibrate']} is for --precision int8")
    form = given.get("form", exporting.PLAIN)
    if form != exporting.PLAIN:
        if not any(path.suffix == ".onnx" for path in paths):
            raise UseError(f"--form {form} is for .onnx files, --out names none")
        if precision != exporting.FLOAT32:
            raise UseError(f"--form {form}: files of lower precision have the form {exporting.PLAIN}")
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
        task: whose metric counts.
        arithmetic: that it was opened with.
        reload: reads the network of a safetensors file.
    """

    space: str
    network: torch.nn.Module
    exportable: exporting.Exportable
    batches: list
    config: RunConfig
    about: dict
    task: tasks.Task
    arithmetic: Arithmetic
    reload: Callable[[Path], torch.nn.Module]


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
    given = {**given, "gpu": -1}
    dense = dense_weights(given)
    restored = open_trained(command_parser, given) if dense is None else open_dense(command_parser, given, dense)
    config, network = restored.config, restored.model.eval().requires_grad_(False)
    task = tasks.get(config.data.task, config)
    source = task.eval_data
    batches = [batch_of(source[i][0]) for i in range(min(len(source), config.evaluation.eval_limit))]
    exportable = spaces.get(space).exportable(network, batches[0], config, restored.mask)
    batches = large_enough([exportable.fitted(batch) for batch in batches], exportable.least)
    if config.evaluation.fixed:
        exportable = exportable.fixed(batches[0])
        batches = [batch for batch in batches if shapes(exportable, batch) == shapes(exportable, batches[0])]
    about = {"toolkit": f"sparsemask {__version__}", "space": space, **task.description()}
    about["input_shape"] = exportable.input_shape
    reload = spaces.get(space).teacher if dense is not None else lambda path: spaces.get(space).load(path).network
    return Prepared(space, network, exportable, batches, config, about, task, restored.arithmetic, reload)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    command_parser, given = read(argv)
    paths = [Path(path) for path in given["out"]]
    for path in paths:  # before anything is computed
        exporting.format_of(path)
    found = prepare(command_parser, given)
    exportable, batches, config, about, task = found.exportable, found.batches, found.config, found.about, found.task
    evaluation = config.evaluation
    for path in paths:
        refuse(exporting.why_not(path.suffix, exportable))
    refuse(exporting.why_not_form(evaluation.form, exportable))
    precision, calibration, score = evaluation.precision, [], None
    if precision == exporting.INT8:
        calibration = calibration_inputs(evaluation.calibrate, spaces.get(found.space), exportable, about)
    if precision != exporting.FLOAT32:
        about = {**about, "precision": precision}
        score = scorer(task, exportable, found.arithmetic, config)
    if evaluation.repeats and isinstance(found.network, MaskedNetwork):
        plan(found.space, found.network, batches[0], [path for path in paths if path.suffix == ".safetensors"])
    if evaluation.form != exporting.PLAIN:
        about = {**about, "form": evaluation.form}
    work = Export(
        exportable, batches, about, evaluation.repeats, found.reload, precision, calibration, score, evaluation.form
    )
    found_files = [(path, export(path, work)) for path in paths]
    validations = [validation for _, several in found_files for validation in several]
    columns = {**COLUMNS, "score": (task.primary, COLUMNS["score"][1])}
    if score is None:
        del columns["score"]
    say(table([validation.row() for validation in validations], columns))
    threads = torch.get_num_threads()
    counted = "one thread's processor time" if threads == 1 else f"{threads} threads"
    timing = f"lower quartiles of {evaluation.repeats} calls or more in turn, {counted}"
    say(f"difference: the largest over {len(batches)} input(s), to the outputs' size; ms: {timing}")
    for path, several in found_files:
        for line in advice(path, several, evaluation.form):
            say(line)
    if score is not None:
        count = min(len(task.eval_data), evaluation.eval_limit)
        say(f"{task.primary}: of {task.measured_on()}, {count} {task.items}")
    bad = [str(validation.path) for validation in validations if not validation.good]
    if bad:
        say(f"{', '.join(bad)}: the outputs are not those of the network", sys.stderr)
    return 1 if bad else 0


def export(path: Path, work: Export) -> list[exporting.Validation]:
    """Write one file and compare its outputs with the network's.

    Args:
        path: the file; its suffix selects the format.
        work: the network, and what it is compared on.

    Returns:
        Of the file; for one of lower precision also of the same in float32; for an ONNX file of a network with masks
        also of its other forms, which are not kept, where times are taken.
    """
    note, repeats = "", work.repeats
    if work.precision != exporting.FLOAT32:
        return _export_reduced(path, work)
    if path.suffix == ".onnx" and work.form.dense is not None:
        return _export_forms(path, work)
    if path.suffix == ".safetensors":
        work.form.save(path)
        describe_safetensors(path, {key: value for key, value in work.about.items() if key != "input_shape"})
        run, repeats = work.reload(path), 0  # weights are no program: nothing to time
    else:
        {".pt2": exporting.export_program, ".onnx": exporting.export_onnx}[path.suffix](work.form, path, work.about)
        run, note = opened(path, work.form)
    return [exporting.validate(path, run, work.form, work.batches, repeats, note)]


def _export_reduced(path: Path, work: Export) -> list[exporting.Validation]:
    """Write one ONNX file in a lower precision, beside one in float32 that is not kept."""
    names = list(work.form.inputs)
    inputs = [
        {name: tensor.numpy() for name, tensor in zip(names, work.form.tensors(batch), strict=True)}
        for batch in work.calibration
    ]
    with tempfile.TemporaryDirectory() as folder:
        plain = exporting.export_onnx(work.form, Path(folder) / "float32.onnx", work.about)
        write_bytes(path, exporting.reduced(plain, work.precision, inputs))
        files = [
            exporting.Written(path, precision=work.precision),
            exporting.Written(plain, f"the same in {exporting.FLOAT32}"),
        ]
        return exporting.validate_several(files, work.form, work.batches, work.repeats, work.score)


_TITLES = {
    exporting.PLAIN: "the same, masks multiply",
    exporting.DENSE: "the same without masks",
}


def _export_forms(path: Path, work: Export) -> list[exporting.Validation]:
    """Write an ONNX file of a network with masks, and for the time of the measurement its plain and its dense form."""
    exporting.export_onnx(work.form, path, work.about, work.onnx)
    if work.onnx == exporting.SKIP:
        exporting.copy_library(path)
    files = [exporting.Written(path, masked=work.onnx != exporting.DENSE)]
    with tempfile.TemporaryDirectory() as folder:
        for form, title in _TITLES.items() if work.repeats else ():
            if form != work.onnx:
                other = exporting.export_onnx(work.form, Path(folder) / f"{form}.onnx", form=form)
                files.append(exporting.Written(other, title, masked=form != exporting.DENSE))
        return exporting.validate_several(files, work.form, work.batches, work.repeats)


def advice(path: Path, validations: Sequence[exporting.Validation], form: str) -> list[str]:
    """Say which form of an ONNX file is the faster one here, where it is not the one that was written.

    Args:
        path: the file.
        validations: of :func:`export`.
        form: that was written.
    """
    lines = []
    if form == exporting.SKIP and path.suffix == ".onnx":
        lines.append(f"{path}: its operators are in {path.parent / exporting.LIBRARY}: register_custom_ops_library")
    times = {one.title: one.milliseconds for one in validations if one.milliseconds is not None}
    own = times.get("")
    others = {name: times[title] for name, title in _TITLES.items() if title in times}
    if own is None or not others:
        return lines
    best = min(others, key=lambda name: others[name])
    if others[best] < own * (1 - NOISE):
        what = "without masks, another function" if best == exporting.DENSE else "masks multiply"
        lines.append(
            f"{path}: {own:.3g} ms; the {best} form ({what}) is faster here, {others[best]:.3g} ms: --form {best}"
        )
    elif form == exporting.PLAIN:
        lines.append(f"{path}: masks multiply, nothing is skipped: --form {exporting.SKIP} writes one that skips")
    return lines


def scorer(
    task: tasks.Task, exportable: exporting.Exportable, arithmetic: Arithmetic, config: RunConfig
) -> Callable[[Callable], float] | None:
    """Return a function that measures the task's metric of a file on the validation pictures that it is compared on.

    Args:
        task: whose metric.
        exportable: the network.
        arithmetic: of the command.
        config: of the command.

    Returns:
        None for networks of other inputs than one picture, and for files of one size.
    """
    if list(exportable.inputs) != ["picture"] or exportable.dynamic is None:
        return None
    context = tasks.EvaluationContext.from_config(arithmetic, config)

    def score(run: Callable) -> float:
        scores = task.evaluate(of_any_size(run, exportable.multiple), context, limit=config.evaluation.eval_limit)
        return float(task.metrics(scores)[task.primary])

    return score


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


def large_enough(batches: list, least: int) -> list:
    """Return the batches whose pictures have a shortest side of at least so many pixels; UseError without any."""
    kept = [batch for batch in batches if not isinstance(batch, torch.Tensor) or min(batch.shape[-2:]) >= least]
    if not kept:
        raise UseError(f"no validation picture has {least}x{least} pixels, which files of this network take at least")
    return kept


def shapes(exportable: exporting.Exportable, batch) -> list[tuple[int, ...]]:
    """Sizes of a batch's tensors."""
    return [tuple(tensor.shape) for tensor in exportable.tensors(batch)]


def refuse(reason: str | None) -> None:
    """Raise a UseError where there is a reason."""
    if reason is not None:
        raise UseError(reason)


if __name__ == "__main__":
    sys.exit(main())
