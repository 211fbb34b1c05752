"""Export of SMSR: torch.export with the sparse operator, ONNX without it.

`torch.export` keeps `sparsemask::attended_block`, so that the exported program skips dropped locations and channels
wherever this package is installed. ONNX has no such operator: masks multiply, with equal outputs and no savings.
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
from sparsemask.spaces.smsr.dense import MaskedForm, OpenForm
from sparsemask.spaces.smsr.network import SMSR

INPUT, OUTPUT = "picture", "larger"


def exportable(
    network: SMSR, batch: Tensor | None = None, options=None, size: tuple[int, int] = (64, 96)
) -> Exportable:
    """Describe an SMSR as a function from images (1, 3, H, W) to (1, 3, s·H, s·W), any even H and W.

    Args:
        network: loaded, on the CPU; its masks are exported hard.
        batch: ignored.
        options: ignored.
        size: H and W of the example.
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
        dense=pure(OpenForm(network), lambda net, picture: net(picture)),
    )


def export_program(
    network: SMSR, size: tuple[int, int] = (64, 64), dynamic: bool = True
) -> torch.export.ExportedProgram:
    """Export the network as a program with the sparse operator, from images (1, 3, H, W) to (1, 3, s·H, s·W).

    Args:
        network: loaded; its masks are exported hard.
        size: H and W of the example.
        dynamic: True: any even H and W of at least 4; False: only `size`.
    """
    return traced(_of(network, size, dynamic))


def export_onnx(network: SMSR, path: str | os.PathLike, size: tuple[int, int] = (64, 64), dynamic: bool = True) -> Path:
    """Write the network, its masks multiplying, as an ONNX file, atomically.

    Args:
        network: loaded; its masks are exported hard.
        path: the file; its input is called "picture", its output "larger".
        size: H and W of the example.
        dynamic: as for :func:`export_program`.

    Returns:
        The path.

    Raises:
        UseError: the packages that torch needs to write ONNX are missing.
    """
    return exporting.export_onnx(_of(network, size, dynamic), path)


def _of(network: nn.Module, size: tuple[int, int], dynamic: bool) -> Exportable:
    form = exportable(network, size=size)
    return form if dynamic else form.fixed(torch.zeros(1, 3, *size))
