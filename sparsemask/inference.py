"""Fast forms of trained networks: batch norms folded, channels last, compiled where measured to be faster.

The result computes the same function up to rounding, is for evaluation only, and shares no memory with the network. The
process keeps the memory that it frees from then on (:func:`sparsemask.memory.keep_freed_memory`).
"""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from sparsemask.memory import keep_freed_memory
from sparsemask.ops import dispatch
from sparsemask.ops.concat_conv import joined_conv, keeps_size
from sparsemask.ops.layout import to_channels_last
from sparsemask.timing import compare, timer

_ROUNDS, _SECONDS = 3, 0.1  # of a module's two forms
Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Foldable(Protocol):
    """A network that has an evaluation form of its own."""

    def fold(self) -> None:
        """Fold the batch norms in place, irreversibly."""


@runtime_checkable
class Mergeable(Protocol):
    """Layers in turn that a single one is equal to, as pairs of group sparsity are."""

    def single_layer(self) -> nn.Module:
        """The single one, of the same mode."""


def optimize_for_inference(
    network: nn.Module,
    example: torch.Tensor,
    compiled: bool | None = None,
    channels_last: bool | None = None,
    rounds: int = 7,
) -> Form:
    """A fast form of `network`.

    Parts that are :class:`Mergeable` are merged where that is measured to be faster.

    Args:
        network: any module; a :class:`Foldable` one, as the connectivity networks are, is folded first.
        example: an input of the size that will be used (B, C, H, W), on the device that will be used.
        compiled: compile (True), do not (False), or measure both and keep the faster (None). Compiling needs a C++
            compiler on a CPU; without one the eager form is kept.
        channels_last: the memory format, likewise.
        rounds: timing rounds of every comparison.

    Returns:
        A callable of the input. Its attribute ``form`` says what was chosen, ``merged`` which parts were merged.
    """
    keep_freed_memory()
    folded = copy.deepcopy(network).eval()
    if isinstance(folded, Foldable):
        folded.fold()
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    forms: dict[str, Form] = {}
    if channels_last in (None, False):
        forms["contiguous"] = Form(folded, "contiguous")
    if channels_last in (None, True):
        forms["channels last"] = Form(copy.deepcopy(folded), "channels last")
    best = _fastest(forms, example, rounds)
    # One by one parts are so short that a measurement may be wrong by more than they differ.
    forms = {"as it is": best}
    for kind, names in zip(("some", "all"), _faster_merged(best, example), strict=True):
        if names and names not in [one.merged for one in forms.values()]:
            network = merge_parts(copy.deepcopy(best.network), names).requires_grad_(False)
            forms[kind] = Form(network, f"{best.form}, merged", merged=names)
    best = _fastest(forms, example, rounds)
    if compiled is not False and _can_compile(example.device):
        forms = {"compiled": Form(best.network, f"{best.form}, compiled", compiled=True, merged=best.merged)}
        if compiled is None:
            forms["eager"] = best
        best = _fastest(forms, example, rounds)
    return best


def merge_parts(network: Network, names: Sequence[str]) -> Network:
    """Put the single layers that they are equal to in the place of parts of a network, which are
    :class:`Mergeable`, in place; returns the network."""
    for name in names:
        part = network.get_submodule(name)
        assert isinstance(part, Mergeable)
        network.set_submodule(name, part.single_layer())
    return network


def _faster_merged(form: Form, example: Tensor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parts of a form that are faster as single layers, each measured on what it reads in the network; and all."""
    parts = {name: part for name, part in form.network.named_modules() if isinstance(part, Mergeable)}
    if not parts:
        return (), ()
    inputs: dict[nn.Module, Tensor] = {}

    def note(part: nn.Module, args: tuple) -> None:
        inputs.setdefault(part, args[0])

    hooks = [part.register_forward_pre_hook(note) for part in parts.values()]
    try:
        form(example)
    finally:
        for hook in hooks:
            hook.remove()
    time_all, names = timer(example.device, torch.get_num_threads(), _SECONDS, warm=True), []
    for name, part in parts.items():
        if part not in inputs:
            continue
        calls = {
            kind: functools.partial(one, inputs[part]) for kind, one in (("two", part), ("one", _merged(form, part)))
        }
        times, _ = time_all(calls, _ROUNDS)
        if times["one"] < times["two"]:
            names.append(name)
    return tuple(names), tuple(parts)


def _merged(form: Form, part: Mergeable) -> nn.Module:
    """A part as a single layer, laid out as a form is."""
    merged = part.single_layer()
    return merged.to(memory_format=torch.channels_last) if form.last else merged


class Form:
    """One form of a network: memory format, eager or compiled, parts that were merged."""

    def __init__(self, network: nn.Module, form: str, compiled: bool = False, merged: tuple[str, ...] = ()):
        self.form, self.compiled, self.merged = form, compiled, merged
        self.last = form.startswith("channels last")
        self.network = network.to(memory_format=torch.channels_last) if self.last else network
        self._call = torch.compile(self.network, mode="default") if compiled else self.network

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode() if not self.compiled else torch.no_grad():
            if self.last:
                x = to_channels_last(x)
            return self._call(x)


def _fastest(forms: dict[str, Form], example: torch.Tensor, rounds: int) -> Form:
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
