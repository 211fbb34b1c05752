"""Devices and arithmetic: what ``--gpu`` and ``--type`` mean."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemask.errors import UseError
from sparsemask.finite import check_output
from sparsemask.ops import dispatch


@dataclass(frozen=True)
class Arithmetic:
    """Where and in what precision a network runs.

    Attributes:
        device: torch device.
        parameters: dtype of weights and inputs.
        autocast: dtype of mixed precision, or None.
        int8: whether what skips is computed in int8 beside it (:func:`sparsemask.ops.dispatch.int8`).
    """

    device: torch.device
    parameters: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    int8: bool = False

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Context manager for the forward pass."""
        with contextlib.ExitStack() as around:
            if self.autocast is not None:
                around.enter_context(torch.autocast(self.device.type, dtype=self.autocast))
            if self.int8:
                around.enter_context(dispatch.int8())
            yield

    def run(self, model, inputs):
        """`model(inputs)` on the device in this precision, as every evaluation calls it.

        Raises :class:`sparsemask.finite.NotFiniteError` where the output holds NaN or infinite values.
        """
        inputs = inputs.to(self.device, self.parameters)
        with self.context():
            return check_output(model(inputs), model)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaler: active for float16, else a no-op. It skips steps until its scale suits the gradients."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast is torch.float16)


def arithmetic(gpu: int = 0, kind: str = "float32", local_rank: int = 0) -> Arithmetic:
    """Device and precision of ``--gpu`` and ``--type``.

    Args:
        gpu: a CUDA index; negative, or without CUDA: the CPU.
        kind: value of ``--type``.
        local_rank: number of this process on its machine, which chooses the GPU among several processes.

    Raises:
        UseError: there is no such device, or int8 is wanted where no kernels compute in it.
    """
    if gpu >= 0 and torch.cuda.is_available():
        index = gpu + local_rank
        if index >= torch.cuda.device_count():
            raise UseError(f"--gpu {index}: this machine has {torch.cuda.device_count()} CUDA device(s)")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if kind == "float64":
        return Arithmetic(device, torch.float64)
    if kind == "int8":
        reason = _no_int8(device)
        if reason is not None:
            raise UseError(f"--type int8: {reason}")
        return Arithmetic(device, torch.float32, torch.bfloat16, int8=True)
    mixed = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return Arithmetic(device, torch.float32, mixed.get(kind))


def _no_int8(device: torch.device) -> str | None:
    """Why native kernels do not compute in int8 here; None where they do."""
    absent = dispatch.find("native").why_not(device, torch.bfloat16)
    if absent is None:
        from sparsemask.backends.native import tiles

        if tiles.in_use(tiles.INT8) == "none":
            return "native kernels compute in int8 by AVX512-VNNI, which this processor does not have"
    return absent


def processor() -> str:
    """Name of this machine's processor; its architecture where the system has no name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
