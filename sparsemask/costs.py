"""What a network costs: parameters, executed multiply-adds, and milliseconds on the device at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from sparsemask.errors import UseError
from sparsemask.tables import format_count
from sparsemask.timing import (
    Inputs,
    Timing,
    compare,
    device_of,
    dtype_of,
    evaluating,
    make_inputs,
    milliseconds,
)

__all__ = [
    "Cost",
    "Timing",
    "compare",
    "count_parameters",
    "format_count",
    "make_inputs",
    "measure",
    "milliseconds",
    "multiply_adds",
    "parameters_by_part",
]

_BUILTIN = {"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "inductor", "rngprims"}
_warned: set[str] = set()


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass in evaluation mode on inputs of a given shape."""

    parameters: int
    multiply_adds: int
    milliseconds: float | None = None
    """Median; None where the time was not measured."""
    spread: float | None = None
    """Interquartile range in milliseconds."""
    kept_fraction: float = 1.0
    """Share of the masked computation that was kept, 1 for a network without masks inside."""
    device: str = "cpu"
    threads: int = 1
    parts: dict[str, int] = field(default_factory=dict)
    """Parameters of each direct child; they sum to `parameters`."""

    @property
    def decoder_parameters(self) -> int | None:
        """Parameters outside the child named `backbone`; None where there is no such child."""
        return self.parameters - self.parts["backbone"] if "backbone" in self.parts else None


def count_parameters(net: nn.Module, part: str | None = None) -> int:
    """Number of parameters, trainable or not; shared ones count once.

    Args:
        net: any module.
        part: name of a submodule, whose parameters alone are counted; None: all.

    Raises:
        UseError: there is no such submodule.
    """
    if part is not None:
        try:
            net = net.get_submodule(part)
        except AttributeError:
            raise UseError(f"{type(net).__name__} has no part '{part}'") from None
    return sum(parameter.numel() for parameter in net.parameters())


def parameters_by_part(net: nn.Module) -> dict[str, int]:
    """Parameters of each direct child, the module's own under ''; shared ones count in the first child."""
    counted: set[int] = set()
    parts = {}
    groups = [*((name, child.parameters()) for name, child in net.named_children()), ("", net.parameters())]
    for name, parameters in groups:
        fresh = {id(p): p.numel() for p in parameters if id(p) not in counted}
        counted.update(fresh)
        if fresh:
            parts[name] = sum(fresh.values())
    return parts


def multiply_adds(net: nn.Module | Callable[..., Any], inputs: Inputs, device: torch.device | str | None = None) -> int:
    """Multiply-adds that one forward pass executes: convolutions and matrix products, without biases.

    The network is run once, in evaluation mode and without gradients; its modes are restored and no random state
    changes. Custom operators count by the formula registered with
    `torch.utils.flop_counter.register_flop_formula` (floating-point operations, two per multiply-add). An operator
    without a formula is named in a warning, once, and counts as 0.

    Args:
        net: a module or a function.
        inputs: as for :func:`sparsemask.timing.milliseconds`.
        device: where it runs; None: the network's own.

    Returns:
        The number of multiply-adds.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_FORMULAS)
    with evaluating(net):
        tensors = make_inputs(inputs, device_of(net, device, inputs), dtype_of(net))
        with _Uncounted(), counter:
            net(*tensors)
    return counter.get_total_flops() // 2


def measure(
    net: nn.Module,
    inputs: Inputs,
    time: bool = True,
    kept_fraction: float = 1.0,
    device: torch.device | str | None = None,
    **timing: Any,
) -> Cost:
    """Parameters, executed multiply-adds and time of a network.

    Args:
        net: a module.
        inputs: as for :func:`sparsemask.timing.milliseconds`.
        time: whether it is timed.
        kept_fraction: noted in the result, in [0, 1].
        device: where it runs; None: the network's own.
        timing: other arguments of :func:`sparsemask.timing.milliseconds`.
    """
    device = device_of(net, device, inputs)
    clock = milliseconds(net, inputs, device=device, **timing) if time else None
    return Cost(
        parameters=count_parameters(net),
        multiply_adds=multiply_adds(net, inputs, device),
        milliseconds=clock.median if clock else None,
        spread=clock.spread if clock else None,
        kept_fraction=kept_fraction,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
        parts=parameters_by_part(net),
    )


# Products that torch's own table leaves out. The formulas get shapes and give operations, two a multiply-add.
_MORE_FORMULAS = {
    torch.ops.aten.mv: lambda a, b, *_, out_shape=None, **__: 2 * a[0] * a[1],
    torch.ops.aten.addmv: lambda c, a, b, *_, out_shape=None, **__: 2 * a[0] * a[1],
    torch.ops.aten.dot: lambda a, b, *_, out_shape=None, **__: 2 * a[0],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
    ),
}
# Operators of torch that multiply much and have no formula.
_SILENT = {"aten.mkldnn_rnn_layer", "aten._cudnn_rnn", "aten._trilinear", "aten._cdist_forward"}
_SILENT |= {"aten._transformer_encoder_layer_fwd", "aten._native_multi_head_attention"}


class _Uncounted(TorchDispatchMode):
    """A dispatch mode below the counter that reports operators without a cost formula."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket if isinstance(func, OpOverload) else None
        name = str(packet) if packet is not None else "aten."
        custom = name.split(".")[0] not in _BUILTIN and packet not in flop_registry
        if (custom or name in _SILENT) and name not in _warned:
            _warned.add(name)
            warnings.warn(f"operator {name} has no formula for its cost, its multiply-adds are missing", stacklevel=2)
        return func(*args, **(kwargs or {}))
