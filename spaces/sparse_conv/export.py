"""Networks of sparse mask convolutions for other programs: torch.export with the sparse operator, ONNX without it.

`torch.export` keeps `sparsemask::attended_block`, so that the exported program skips what the masks drop wherever this
package is installed. ONNX has no such operator: there the masks multiply, with the same numbers, and nothing is saved.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from spaces.sparse_conv.dense import MaskedForm
from spaces.sparse_conv.smsr import SMSR
from sparsemask.errors import UseError
from sparsemask.files import write_bytes

INPUT, OUTPUT = "picture", "larger"


class _Pure(nn.Module):
    """The network without what a forward pass leaves behind in it."""

    def __init__(self, network: SMSR):
        super().__init__()
        self.network = network

    def forward(self, picture: Tensor) -> Tensor:
        return self.network.compute(picture)[0]


def export_program(
    network: SMSR, size: tuple[int, int] = (64, 64), dynamic: bool = True
) -> torch.export.ExportedProgram:
    """The network as an exported program from pictures (1, 3, H, W) to (1, 3, s·H, s·W), the sparse operator in it.

    Args:
        network: loaded; its masks are exported hard.
        size: H and W of the example.
        dynamic: any even H and W of at least 2, else these alone.
    """
    picture = torch.zeros(1, 3, *size)
    with torch.no_grad():
        return torch.export.export(_Pure(network).eval(), (picture,), dynamic_shapes=_dynamic(dynamic), strict=False)


def export_onnx(network: SMSR, path: str | os.PathLike, size: tuple[int, int] = (64, 64), dynamic: bool = True) -> Path:
    """Write the network's dense-masked form as an ONNX file, atomically; return the path.

    Args: as for :func:`export_program`; input "picture", output "larger".

    Raises UseError where the packages that torch writes ONNX with are absent.
    """
    path = Path(path)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UseError(f"ONNX export needs {error.name}: pip install 'sparsemask[onnx]'") from None
    picture = torch.zeros(1, 3, *size)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            MaskedForm(network).eval(), (picture,), dynamo=True, dynamic_shapes=_dynamic(dynamic), verbose=False,
            input_names=[INPUT], output_names=[OUTPUT],
        )  # fmt: skip
    write_bytes(path, program.model_proto.SerializeToString())
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks on operators that are not in this network are nobody's concern."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _dynamic(dynamic: bool):
    if not dynamic:
        return None
    height, width = (torch.export.Dim(name, min=2, max=1 << 14) for name in ("half_height", "half_width"))
    return ({2: 2 * height, 3: 2 * width},)
