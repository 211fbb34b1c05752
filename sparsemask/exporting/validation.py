"""Run what was written, compare it with the network on real inputs, and time both in turn."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsemask.exporting.exportable import RUNTIME, Exportable, missing
from sparsemask.exporting.reading import read_exported
from sparsemask.finite import check_output
from sparsemask.timing import compare

TOLERANCE = 1e-4  # of the largest output, or of one


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

    @property
    def good(self) -> bool:
        """Whether the outputs agree with the network's; true where they were not compared."""
        return self.difference is None or self.difference <= TOLERANCE

    def row(self) -> dict[str, object]:
        """A line of the table."""
        gain = self.eager / self.milliseconds if self.milliseconds and self.eager else None
        return {
            "file": self.path.name, "MB": self.megabytes, "difference": self.difference, "ms": self.milliseconds,
            "eager": self.eager, "gain": gain, "note": self.note or None,
        }  # fmt: skip


COLUMNS = {
    "file": "file", "MB": ("MB", ".2f"), "difference": ("difference", ".1e"), "ms": ("ms", ".2f"),
    "eager": ("eager ms", ".2f"), "gain": ("gain", ".2f"), "note": "note",
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
    worst = 0.0
    with torch.no_grad():
        for batch in batches:
            expected = check_output(exportable.network(batch), exportable.network)
            actual = torch.as_tensor(run(batch))
            scale = max(1.0, float(expected.abs().max()))
            gap = float((actual - expected).abs().max()) / scale
            worst = max(worst, gap if math.isfinite(gap) else math.inf)  # max() passes NaN over
        if not rounds:
            return Validation(Path(path), size, worst, None, None, note)
        first = batches[0]
        times = compare({"file": lambda: run(first), "eager": lambda: exportable.fast(first)}, rounds=rounds)
    return Validation(Path(path), size, worst, times["file"], times["eager"], note)


def opened(path: str | os.PathLike, exportable: Exportable) -> tuple[Callable[[object], Tensor] | None, str]:
    """(a program or an ONNX file as a function of a batch, a word): None, and why, where nothing here runs it."""
    if Path(path).suffix == ".onnx" and missing([RUNTIME]):
        return None, f"not tried: {RUNTIME} is not installed"
    file = read_exported(path)
    return lambda batch: file.run(*exportable.tensors(batch)), ""
