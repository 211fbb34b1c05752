"""Fast forms of trained networks: batch norms folded, channels last, compiled where measured to be faster.

The result computes the same function up to rounding, is for evaluation only, and shares no memory with the network. The
process keeps the memory that it frees from then on (:func:`sparsemask.memory.keep_freed_memory`).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from sparsemask.memory import keep_freed_memory
from sparsemask.ops import dispatch
from sparsemask.ops.concat_conv import joined_conv, keeps_size
from sparsemask.ops.layout import to_channels_last
from sparsemask.timing import compare

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Foldable(Protocol):
    """A network that has an evaluation form of its own."""

    def fold(self) -> None:
        """Fold the batch norms in place, irreversibly."""


def optimize_for_inference(
    network: nn.Module,
    example: torch.Tensor,
    compiled: bool | None = None,
    channels_last: bool | None = None,
    rounds: int = 7,
) -> Form:
    """A fast form of `network`.

    Args:
        network: any module; a :class:`Foldable` one, as the connectivity networks are, is folded first.
        example: an input of the size that will be used (B, C, H, W), on the device that will be used.
        compiled: compile (True), do not (False), or measure both and keep the faster (None). Compiling needs a C++
            compiler on a CPU; without one the eager form is kept.
        channels_last: the memory format, likewise.
        rounds: timing rounds of every comparison.

    Returns:
        A callable of the input. Its attribute ``form`` says what was chosen.
    """
    keep_freed_memory()
    folded = copy.deepcopy(network).eval()
    if isinstance(folded, Foldable):
        folded.fold()
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    forms: dict[str, Callable] = {}
    if channels_last in (None, False):
        forms["contiguous"] = Form(folded, "contiguous")
    if channels_last in (None, True):
        forms["channels last"] = Form(copy.deepcopy(folded), "channels last")
    best = _fastest(forms, example, rounds)
    if compiled is not False and _can_compile(example.device):
        forms = {"compiled": Form(best.network, f"{best.form}, compiled", compiled=True)}
        if compiled is None:
            forms["eager"] = best
        best = _fastest(forms, example, rounds)
    return best


class Form:
    """One form of a network: memory format, eager or compiled."""

    def __init__(self, network: nn.Module, form: str, compiled: bool = False):
        self.form, self.compiled = form, compiled
        self.last = form.startswith("channels last")
        self.network = network.to(memory_format=torch.channels_last) if self.last else network
        self._call = torch.compile(self.network, mode="default") if compiled else self.network

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode() if not self.compiled else torch.no_grad():
            if self.last:
                x = to_channels_last(x)
            return self._call(x)


def _fastest(forms: dict[str, Callable], example: torch.Tensor, rounds: int):
    if len(forms) == 1:
        form = next(iter(forms.values()))
        if form.compiled:
            form(example)  # compile now, not at the first image
        return form
    times = compare(
        {name: (lambda form=form: form(example)) for name, form in forms.items()}, rounds=rounds, device=example.device
    )
    return forms[min(times, key=times.get)]


def _can_compile(device: torch.device) -> bool:
    return device.type != "cpu" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))


class _FastConv2d(nn.Conv2d):
    """A convolution by the faster one of torch and the backend in use; with gradients, and compiled, torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not dispatch.beats_dense(self.weight, x):
            return super().forward(x)
        return joined_conv([x], self.weight, self.bias)


def with_fast_convolutions(network: Network) -> Network:
    """A copy of a network, of the same weights, whose 3x3 convolutions are the backend's where it is faster than torch.

    `native` computes those of at least 32 channels in float32 by squares of outputs, see
    docs/notes/sparse_kernels.md; features should lie channels-last. The copy is for evaluation. Its outputs equal
    the network's to rounding.

    Args:
        network: any; one without such convolutions comes back as a copy that computes the same.
    """
    held: dict[int, object] = {id(one): one for one in [*network.parameters(), *network.buffers()]}
    fast = copy.deepcopy(network, held)
    for module in fast.modules():
        if type(module) is nn.Conv2d and keeps_size(module):
            module.__class__ = _FastConv2d
    return fast


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Fold an evaluation-mode batch norm into the convolution before it, in place."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = conv.bias if conv.bias is not None else torch.zeros_like(norm.running_mean)
    conv.weight = nn.Parameter(conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1)))
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)


def fold_pairs(module: nn.Module) -> None:
    """Fold every batch norm ``bnX`` into its neighbour ``convX`` of the same module, in place.

    For modules that apply the two in turn, as the backbones of `spaces` do by that naming.
    """
    for owner in module.modules():
        for name, conv in list(owner.named_children()):
            its_norm = name.replace("conv", "bn", 1)
            norm = dict(owner.named_children()).get(its_norm)
            if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d:
                fold_batch_norm(conv, norm)
                owner.set_submodule(its_norm, nn.Identity())
