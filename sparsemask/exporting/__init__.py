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
from sparsemask.exporting.precision import FLOAT32, INT8, PRECISIONS, reduced, why_not_precision
from sparsemask.exporting.reading import ReadFile, read_exported
from sparsemask.exporting.validation import Validation, validate, validate_reduced
from sparsemask.exporting.writing import export_onnx, export_program

__all__ = [
    "FLOAT32",
    "FORMATS",
    "INT8",
    "PRECISIONS",
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
    "reduced",
    "validate",
    "validate_reduced",
    "why_not",
    "why_not_precision",
]
