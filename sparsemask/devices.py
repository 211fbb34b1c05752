"""Devices and arithmetic: what ``--gpu`` and ``--type`` mean."""

from __future__ import annotations

import contextlib
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemask.errors import UseError
from sparsemask.finite import check_output


@dataclass(frozen=True)
class Arithmetic:
    """Where and in what precision a network runs.

    Attributes:
        device: torch device.
        parameters: dtype of weights and inputs.
        autocast: dtype of mixed precision, or None.
    """

    device: torch.device
    parameters: torch.dtype = torch.float32
    autocast: torch.dtype | None = None

    def context(self):
        """Context manager for the forward pass."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

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
    mixed = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return Arithmetic(device, torch.float32, mixed.get(kind))


def processor() -> str:
    """Name of this machine's processor; its architecture where the system has no name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
