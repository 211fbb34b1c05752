"""Networks of sparse mask convolutions for other programs: torch.export with the sparse operator, ONNX without it.

`torch.export` keeps `sparsemask::attended_block`, so that the exported program skips what the masks drop wherever this
package is installed. ONNX has no such operator: there the masks multiply, with the same numbers, and nothing is saved.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsemask import exporting, spaces
from sparsemask.exporting import Exportable, pure
from sparsemask.exporting.writing import traced
from sparsemask.spaces.smsr.checkpoints import save_smsr
from sparsemask.spaces.smsr.dense import MaskedForm
from sparsemask.spaces.smsr.network import SMSR

INPUT, OUTPUT = "picture", "larger"


def exportable(
    network: SMSR, batch: Tensor | None = None, options=None, size: tuple[int, int] = (64, 96)
) -> Exportable:
    """An SMSR as a function from pictures (1, 3, H, W) to (1, 3, s·H, s·W), any even H and W.

    network: loaded, on the CPU; its masks are exported hard. size: H and W of the example.
    """
    height, width = (torch.export.Dim(name, min=2, max=1 << 14) for name in ("half_height", "half_width"))
    return Exportable(
        network=network,
        fast=network,
        save=lambda path: save_smsr(path, network, spaces.get("smsr").masks_of(network)),
        program=pure(network, lambda net, picture: net.compute(picture)[0]),
        plain=pure(MaskedForm(network), lambda net, picture: net(picture)),
        inputs={INPUT: torch.zeros(1, 3, *size)},
        outputs=(OUTPUT,),
        dynamic=({2: 2 * height, 3: 2 * width},),
        multiple=2,
    )


def export_program(
    network: SMSR, size: tuple[int, int] = (64, 64), dynamic: bool = True
) -> torch.export.ExportedProgram:
    """The network as an exported program from pictures (1, 3, H, W) to (1, 3, s·H, s·W), the sparse operator in it.

    Args:
        network: loaded; its masks are exported hard.
        size: H and W of the example.
        dynamic: any even H and W of at least 2, else these alone.
    """
    return traced(_of(network, size, dynamic))


def export_onnx(network: SMSR, path: str | os.PathLike, size: tuple[int, int] = (64, 64), dynamic: bool = True) -> Path:
    """Write the network's dense-masked form as an ONNX file, atomically; return the path.

    Args: as for :func:`export_program`; input "picture", output "larger".

    Raises UseError where the packages that torch writes ONNX with are absent.
    """
    return exporting.export_onnx(_of(network, size, dynamic), path)


def _of(network: nn.Module, size: tuple[int, int], dynamic: bool) -> Exportable:
    found = exportable(network, size=size)
    return found if dynamic else found.fixed(torch.zeros(1, 3, *size))
