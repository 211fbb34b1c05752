"""Where and by which backend a command computes that runs a network over a user's files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from sparsemask.devices import Arithmetic


def add_computing(parser: argparse.ArgumentParser, types: bool = True) -> None:
    """Add --backend and --gpu; --type, where the command has arithmetic to choose."""
    parser.add_argument("--backend", default="auto", help="of the sparse convolutions (default: auto)")
    parser.add_argument("--gpu", type=int, default=0, help="CUDA device; -1, or no CUDA: the CPU (default: 0)")
    if types:
        parser.add_argument(
            "--type", choices=("float32", "bfloat16", "float16", "int8"), default="float32",
            help="arithmetic; bfloat16 and float16 mean mixed precision: faster on processors with AMX or AVX512-BF16 "
            "and on GPUs, a little less exact; int8: what skips in integers, the rest in bfloat16, on processors with "
            "AVX512-VNNI (default: float32)",
        )  # fmt: skip


def place(network: nn.Module, options: argparse.Namespace, kind: str = "float32") -> Arithmetic:
    """Move a network to the device that the flags name, and have it computed by their backend; kind: of --type."""
    from sparsemask.devices import arithmetic
    from sparsemask.sparse import set_backend

    compute = arithmetic(options.gpu, kind)
    set_backend(network.to(compute.device), options.backend)
    return compute
