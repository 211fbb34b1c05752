"""Trained networks for other programs: as safetensors, torch's exported program, ONNX; each is run again and timed.

A space says with an :class:`Exportable` how its networks are called from tensors alone; the rest is the same for all.
"""

from sparsemask.exporting.exportable import (
    FORMATS,
    Exportable,
    channels_last,
    format_of,
    known_suffix,
    laid_out,
    pure,
    why_not,
)
from sparsemask.exporting.reading import ReadFile, read_exported
from sparsemask.exporting.validation import Validation, validate
from sparsemask.exporting.writing import export_onnx, export_program

__all__ = [
    "FORMATS",
    "Exportable",
    "ReadFile",
    "Validation",
    "channels_last",
    "export_onnx",
    "export_program",
    "format_of",
    "known_suffix",
    "laid_out",
    "pure",
    "read_exported",
    "validate",
    "why_not",
]
