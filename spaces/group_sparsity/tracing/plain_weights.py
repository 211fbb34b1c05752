"""Weights that are computed from others, replaced by the values that they have.

Where a weight is computed from parameters (weight and spectral norm, parametrisations, weight standardisation), its
statistics cover input channels, so that removing these would change the rest. Its value is a plain weight.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsemask.errors import UseError, one_line
from sparsemask.spaces.group_sparsity.inputs import AnyInputs, Inputs
from sparsemask.timing import evaluating

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Relative to the largest output, what rounding may make of the same weight.
_SAME = {torch.float64: 1e-9}


def plain_weights(network: nn.Module, example: AnyInputs) -> nn.Module:
    """Make a network's computed weights plain ones, in a copy; in evaluation mode it computes the same.

    Weight norm, spectral norm (both forms of each) and parametrisations are taken off; convolutions that compute
    their weights in their forward, as weight-standardised ones do, become plain convolutions (padded as TensorFlow does
    where they pad so) if those give the same outputs and no weight depends on the input. What the weights were computed
    from is no longer trained.

    Args:
        network: not changed.
        example: as for :func:`sparsemask.spaces.group_sparsity.tracing.graph.trace`.

    Returns:
        A copy, of the same classes but for the convolutions that were replaced; `network` itself where no weight is
        computed.

    Raises:
        UseError: the network does not run on the example.
    """
    inputs = Inputs.of(example)
    modules = list(network.modules())
    hooked = any(parametrize.is_parametrized(module) or _norms(module) for module in modules)
    if not hooked and not any(_may_compute(module) for module in modules):
        return network
    try:
        with evaluating(network):
            if hooked:
                inputs.run(network)  # weights that hooks compute have a value that can be copied then
            replaced = _computed(network)
    except Exception as error:
        what = f"{type(network).__name__} does not run on an input of {inputs}"
        raise UseError(f"{what}: {one_line(error)[:200]}") from error
    if not hooked and not replaced:
        return network
    originals = {name: network.get_submodule(name) for name in replaced}
    memo = {id(originals[name]): plain.train(originals[name].training) for name, plain in replaced.items()}
    result = copy.deepcopy(network, memo)  # without the weights that others take the place of
    with evaluating(result):  # where spectral norms stay as they are
        for module in list(result.modules()):
            _take_off(module)
    return result


def _norms(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    """The norms of a module's weights that hooks compute."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm | SpectralNorm)]


def _may_compute(module: nn.Module) -> bool:
    """Whether a module is a convolution of a class of its own, which may compute its weight when it runs."""
    plain = type(module) in _PLAIN or parametrize.is_parametrized(module)
    return isinstance(module, _PLAIN) and not plain


def _take_off(module: nn.Module) -> None:
    """Remove parametrisations and norms of weights from a module, in place."""
    if parametrize.is_parametrized(module):
        # torch's own function would take them off every copy, which have one class.
        parts = dict(module.get_submodule("parametrizations").named_children())
        values = {name: (each(), any(p.requires_grad for p in each.parameters())) for name, each in parts.items()}
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, (value, trained) in values.items():
            module.register_parameter(name, nn.Parameter(value.detach().clone(), trained))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older forms are deprecated, not gone
        for hook in _norms(module):
            remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
            remove(module, hook.name)


class _Convolutions(TorchDispatchMode):
    """Notes the operands and the output of the last convolution that ran, and what is computed from an input."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is ever compiled, and torch would import its compiler (seconds) to say so

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.last: tuple[Any, ...] = ()
        self.output: Tensor | None = None
        self._from_input = {id(x): x}  # kept, so that no other tensor has its number
        self._read = False  # as a number, by which anything may have been computed

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor may have been computed from the input."""
        return self._read or id(tensor) in self._from_input

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(a, Tensor) and id(a) in self._from_input for a in tree_leaves((args, kwargs))):
            made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
            self._read = self._read or not made
            self._from_input.update((id(each), each) for each in made)
        if func.overloadpacket.__name__ == "convolution":
            self.last, self.output = args, result
        return result


def _computed(network: nn.Module) -> dict[str, nn.Module]:
    """Plain convolutions by the name of the one that computes its weight."""
    candidates = {name: module for name, module in network.named_modules() if _may_compute(module)}
    plain = {name: _in_place_of(module) for name, module in candidates.items()}
    return {name: module for name, module in plain.items() if module is not None}


def _in_place_of(module: _ConvNd) -> nn.Module | None:
    """The plain convolution that does what a module does for any input, in evaluation mode; None where there is none.

    The module is called with a small input, and where it pads by itself with one a line larger, too: what pads for
    every size anew does so for odd and even ones.
    """
    plain: nn.Module | None = None
    for more in (0, 1):
        lines = zip(module.dilation, module.kernel_size, module.stride, strict=True)
        size = [gap * (kernel - 1) + 1 + 2 * stride + more for gap, kernel, stride in lines]
        x = torch.randn(1, module.in_channels, *size, generator=torch.Generator().manual_seed(0)).to(module.weight)
        try:
            with _Convolutions(x) as watch:
                output = module(x)
        except Exception:  # it takes something else
            return None
        weight = watch.last[1] if watch.last else None
        if weight is None or weight is module.weight or weight.shape != module.weight.shape or watch.depends(weight):
            return None
        same = watch.last[0].shape != x.shape
        plain = plain or _plain(module, watch.last, same)
        if not same and watch.last[0] is x and watch.output is output:
            return plain
        if plain is None or not _alike(plain(x), output):
            return None
    return plain


def _alike(made: Tensor, output: Tensor) -> bool:
    close = _SAME.get(output.dtype, 1e-5) * float(output.abs().max())
    return made.shape == output.shape and torch.allclose(made, output, rtol=0, atol=close)


class SamePaddedConv2d(nn.Conv2d):
    """A convolution that pads its input so that outputs have its size over the stride, rounded up, as TensorFlow does.

    Of an odd number of lines to pad the larger half comes behind.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x, (B, C, H, W)."""
        pads: list[int] = []
        for size, kernel, stride, gap in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((-(-size // stride) - 1) * stride + gap * (kernel - 1) + 1 - size, 0)
            pads = [total // 2, total - total // 2, *pads]  # the last dimension first
        return super().forward(nn.functional.pad(x, pads))


def _plain(module: _ConvNd, args: tuple[Any, ...], same: bool) -> nn.Module | None:
    """A plain convolution with the weight, bias, stride, padding, dilation and groups of one that ran.

    None where it pads by itself (`same`) and no kind of ours does.
    """
    _, weight, bias, stride, padding, dilation, _, _, groups = args
    kind = next(kind for kind in _PLAIN if isinstance(module, kind))
    if same:
        if kind is not nn.Conv2d:
            return None
        kind = SamePaddedConv2d
    sizes = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
    plain = kind(*sizes, tuple(stride), tuple(padding), tuple(dilation), groups, bias is not None, device="meta")
    kept = {each.untyped_storage().data_ptr() for each in tree_leaves(vars(module)) if isinstance(each, Tensor)}
    own = weight.detach().clone() if weight.untyped_storage().data_ptr() in kept else weight.detach()
    plain.weight = nn.Parameter(own, module.weight.requires_grad)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain
