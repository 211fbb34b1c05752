"""Where and by which backend a command computes that runs a network over a user's files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from sparsemask.devices import Arithmetic


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Add --backend and --gpu."""
    parser.add_argument("--backend", default="auto", help="of the sparse convolutions (default: auto)")
    parser.add_argument("--gpu", type=int, default=0, help="CUDA device; -1, or no CUDA: the CPU (default: 0)")


def place(network: nn.Module, options: argparse.Namespace) -> Arithmetic:
    """Move a network to the device that the flags name, and have it computed by their backend."""
    from sparsemask.devices import arithmetic
    from sparsemask.sparse import set_backend

    compute = arithmetic(options.gpu)
    set_backend(network.to(compute.device), options.backend)
    return compute
