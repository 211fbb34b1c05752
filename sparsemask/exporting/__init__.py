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
from sparsemask.exporting.validation import Validation, Written, validate, validate_several
from sparsemask.exporting.writing import (
    DENSE,
    FORMS,
    LIBRARY,
    PLAIN,
    SKIP,
    copy_library,
    export_onnx,
    export_program,
    operators_library,
    why_not_form,
)

__all__ = [
    "DENSE",
    "FLOAT32",
    "FORMATS",
    "FORMS",
    "INT8",
    "LIBRARY",
    "PLAIN",
    "PRECISIONS",
    "SKIP",
    "Exportable",
    "ReadFile",
    "Validation",
    "Written",
    "channels_last",
    "copy_library",
    "export_onnx",
    "export_program",
    "format_of",
    "known_suffix",
    "laid_out",
    "operators_library",
    "pure",
    "read_exported",
    "reduced",
    "validate",
    "validate_several",
    "why_not",
    "why_not_form",
    "why_not_precision",
]
