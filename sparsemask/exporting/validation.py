"""Run what was written, compare it with the network on real inputs, and time both in turn."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.exporting.exportable import RUNTIME, Exportable, missing
from sparsemask.exporting.precision import FLOAT32, PRECISIONS
from sparsemask.exporting.reading import read_exported
from sparsemask.finite import check_output
from sparsemask.timing import Functions, timer


@dataclass(frozen=True)
class Validation:
    """Result of running an exported file: its size, error and time."""

    path: Path
    megabytes: float
    difference: float | None
    """Largest difference of an output from the network's, over the larger of its largest output and 1."""
    milliseconds: float | None
    eager: float | None
    """Milliseconds of the network in this toolkit's own fast form, on the same input."""
    note: str = ""
    precision: str = FLOAT32
    title: str = ""
    """What it is called in the table; default: the file's name."""
    score: float | None = None
    """The task's metric, by the file."""

    @property
    def good(self) -> bool:
        """Whether the outputs agree with the network's; true where they were not compared."""
        return self.difference is None or self.difference <= PRECISIONS[self.precision].tolerance

    def row(self) -> dict[str, object]:
        """A line of the table."""
        gain = self.eager / self.milliseconds if self.milliseconds and self.eager else None
        return {
            "file": self.title or self.path.name, "MB": self.megabytes, "difference": self.difference,
            "ms": self.milliseconds, "eager": self.eager, "gain": gain, "score": self.score, "note": self.note or None,
        }  # fmt: skip


COLUMNS = {
    "file": "file", "MB": ("MB", ".2f"), "difference": ("difference", ".1e"), "ms": ("ms", ".2f"),
    "eager": ("eager ms", ".2f"), "gain": ("gain", ".2f"), "score": ("score", ".4g"), "note": "note",
}  # fmt: skip


def validate(
    path: str | os.PathLike,
    run: Callable[[object], Tensor] | None,
    exportable: Exportable,
    batches: Sequence,
    rounds: int = 5,
    note: str = "",
) -> Validation:
    """Compare and time one file.

    Args:
        path: of the file.
        run: the file as a function of a batch, see :func:`opened`; None: nothing here can run it.
        batches: real inputs; the first one is timed.
        rounds: calls of each, in turn; 0: none.
        note: a word on what could not be done.
    """
    size = Path(path).stat().st_size / 1e6
    if run is None:
        return Validation(Path(path), size, None, None, None, note)
    worst = _difference(run, exportable, batches)
    if not rounds:
        return Validation(Path(path), size, worst, None, None, note)
    first = batches[0]
    times = _times({"file": lambda: run(first), "eager": lambda: exportable.fast(first)}, rounds)
    return Validation(Path(path), size, worst, times["file"], times["eager"], note)


@dataclass(frozen=True)
class Written:
    """A file of several that are compared.

    Attributes:
        path: of the file.
        title: what it is called; default: its name.
        precision: of its numbers.
        masked: False: it is of the network without masks.
    """

    path: Path
    title: str = ""
    precision: str = FLOAT32
    masked: bool = True


def validate_several(
    files: Sequence[Written],
    exportable: Exportable,
    batches: Sequence,
    rounds: int = 5,
    score: Callable[[Callable[[object], Tensor]], float] | None = None,
) -> list[Validation]:
    """Compare and time ONNX files of one network, in turn.

    Args:
        files: what was written.
        exportable: the network.
        batches: real inputs; the first one is timed.
        rounds: calls of each, in turn; 0: none.
        score: the task's metric of a function of batches; None: it is not measured.

    Returns:
        Of each file.
    """
    runs = [opened(file.path, exportable) for file in files]
    times: dict[Hashable, float] = {}
    if rounds and all(run is not None for run, _ in runs):
        calls = {str(file.path): (lambda run=run: run(batches[0])) for file, (run, _) in zip(files, runs, strict=True)}
        times = _times({**calls, "eager": lambda: exportable.fast(batches[0])}, rounds)
    return [
        Validation(
            file.path, file.path.stat().st_size / 1e6,
            None if run is None else _difference(run, exportable, batches, file.masked),
            times.get(str(file.path)), times.get("eager"), note, file.precision, file.title,
            None if run is None or score is None else score(run),
        )
        for file, (run, note) in zip(files, runs, strict=True)
    ]  # fmt: skip


def _times(functions: Functions, rounds: int) -> dict[Hashable, float]:
    """Milliseconds of each, called in turn with torch's number of threads; with one, its processor time."""
    return timer(torch.device("cpu"), torch.get_num_threads(), warm=True)(functions, rounds)[0]


@torch.no_grad()
def _difference(
    run: Callable[[object], Tensor], exportable: Exportable, batches: Sequence, masked: bool = True
) -> float:
    """Largest difference of outputs from the network's, over the larger of their largest value and 1.

    masked: False: from the network without masks.
    """
    worst, network = 0.0, exportable.network
    if not masked:
        assert exportable.dense is not None
        dense = exportable.dense
        network = lambda batch: dense(*exportable.tensors(batch))
    for batch in batches:
        expected = check_output(network(batch), network)
        actual = torch.as_tensor(run(batch))
        scale = max(1.0, float(expected.abs().max()))
        gap = float((actual - expected).abs().max()) / scale
        worst = max(worst, gap if math.isfinite(gap) else math.inf)  # max() passes NaN over
    return worst


def of_any_size(run: Callable[[Tensor], Tensor], multiple: int) -> Callable[[Tensor], Tensor]:
    """A function of images whose sides are multiples of a number, for images of any size: padded, and cropped again."""

    def padded(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        below, right = -height % multiple, -width % multiple
        output = torch.as_tensor(run(F.pad(images, (0, right, 0, below), mode="replicate")))
        factors = output.shape[-2] / (height + below), output.shape[-1] / (width + right)
        return output[..., : round(height * factors[0]), : round(width * factors[1])]

    return run if multiple == 1 else padded


def opened(path: str | os.PathLike, exportable: Exportable) -> tuple[Callable[[object], Tensor] | None, str]:
    """(a program or an ONNX file as a function of a batch, a word): None, and why, where nothing here runs it."""
    if Path(path).suffix == ".onnx" and missing([RUNTIME]):
        return None, f"not tried: {RUNTIME} is not installed"
    file = read_exported(path, trusted=True)
    return lambda batch: file.run(*exportable.tensors(batch)), ""
