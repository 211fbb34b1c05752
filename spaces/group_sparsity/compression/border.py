"""Convolutions that account for removed constant channels at the zero padding.

A removed channel that held a constant c adds the convolution of a map of c's: the same everywhere but near the border,
where part of the kernel lies on the padding. One more input channel, of ones, whose weights are the sum of c times the
removed weights, gives exactly that, at any size, stride and dilation, and once for a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import _get_current_dispatch_mode

from sparsemask.spaces.group_sparsity.inputs import AnyInputs, Inputs
from sparsemask.timing import evaluating

_SIZES = 8  # input sizes whose maps a convolution keeps


@dataclass(frozen=True, slots=True)
class _KeptMap:
    """The contribution of the ones at one size of input, in one type, and the border that it was computed from."""

    size: torch.Size
    dtype: torch.dtype
    border: Tensor
    map: Tensor


class Bordered:
    """Mixin of a convolution class: adds the convolution of an input of ones by `border` to the output.

    What is added depends on the size of the input alone. In evaluation on a CPU it is computed once a size and kept;
    kept maps are compared with the border that they were made of, so that other weights, however they got there, make
    new ones. They are no part of the state: copies and files are without them.
    """

    _kept: tuple[_KeptMap, ...] = ()
    """The last one made comes first."""

    def forward(self, x: Tensor, *args) -> Tensor:
        """The convolution of x, (B, C, ...), and the contribution of the ones."""
        y = super().forward(x, *args)
        # Read where they lie: a module's attribute access takes as long as adding a small map, and all of this as long
        # as a small convolution.
        border, fixed = self._parameters.get("border"), self._buffers["border_map"]
        if self.training:
            return y + self.border_of(x)
        if fixed is not None and fixed.shape[2:] == y.shape[2:]:
            return y + fixed
        if not _may_keep(border):
            return y + self.border_of(x)
        for known in self._kept:
            if known.size == x.shape[2:] and known.dtype is y.dtype:
                if known.border.dtype is border.dtype and torch.equal(known.border, border):
                    # Nothing else reads y, and a sum in place takes no memory of its own.
                    return y.add_(known.map)
                break
        return y.add_(self._keep_map(x, y))

    def _keep_map(self, x: Tensor, y: Tensor) -> Tensor:
        """The contribution of the ones for an input of x's size, of y's type, computed and kept."""
        size, dtype = x.shape[2:], y.dtype
        others = [known for known in self._kept if (known.size, known.dtype) != (size, dtype)]
        with torch.inference_mode(False), torch.no_grad():
            made = _KeptMap(size, dtype, self.border.detach().clone(), self.border_of(x).to(dtype))
        self._kept = (made, *others[: _SIZES - 1])
        return made.map

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def border_of(self, x: Tensor) -> Tensor:
        """(1, out channels, ...): the contribution of the ones for an input of x's size."""
        ones = self.border.new_ones(1, 1, *x.shape[2:])
        transposed = isinstance(self, _ConvTransposeNd)
        ahead = self.output_padding if transposed else (0,) * len(self.stride)
        return torch.convolution(
            ones, self.border, None, self.stride, self.padding, self.dilation, transposed, ahead, 1
        )

    def scale_border(self, scale: Tensor) -> None:
        """Multiply the border's contribution by a factor for every output channel, (out channels,), in place."""
        out = int(isinstance(self, _ConvTransposeNd))  # dimension of the output channels
        self.border.transpose(0, out).mul_(scale.view(-1, *[1] * (self.border.dim() - 1)))
        if self.border_map is not None:
            self.border_map *= scale.view(1, -1, *[1] * (self.border_map.dim() - 2))

    def train(self, mode: bool = True):
        """Set the mode; training drops precomputed maps."""
        if mode:
            self.border_map, self._kept = None, ()
        return super().train(mode)

    def _load_from_state_dict(self, *args) -> None:
        """Load weights; maps of the former ones are dropped."""
        self.border_map, self._kept = None, ()
        super()._load_from_state_dict(*args)


def _may_keep(border: Tensor | None) -> bool:
    """Whether a kept map may stand for the convolution of ones: nobody differentiates, records or compiles it.

    Elsewhere than on a CPU comparing a map's border would wait for the device.

    Args:
        border: as it stands in the module; anything but a parameter is batched or differentiated by functions.
    """
    return (
        type(border) is nn.Parameter
        and border.is_cpu
        and not (torch.is_grad_enabled() and border.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
    )


# Named here, so that networks that hold them can be pickled, copied and saved whole.


class BorderedConv1d(Bordered, nn.Conv1d):
    """A convolution with a border."""


class BorderedConv2d(Bordered, nn.Conv2d):
    """A convolution with a border."""


class BorderedConv3d(Bordered, nn.Conv3d):
    """A convolution with a border."""


class BorderedConvTranspose1d(Bordered, nn.ConvTranspose1d):
    """A transposed convolution with a border."""


class BorderedConvTranspose2d(Bordered, nn.ConvTranspose2d):
    """A transposed convolution with a border."""


class BorderedConvTranspose3d(Bordered, nn.ConvTranspose3d):
    """A transposed convolution with a border."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: BorderedConv1d,
    nn.Conv2d: BorderedConv2d,
    nn.Conv3d: BorderedConv3d,
    nn.ConvTranspose1d: BorderedConvTranspose1d,
    nn.ConvTranspose2d: BorderedConvTranspose2d,
    nn.ConvTranspose3d: BorderedConvTranspose3d,
}


def can_be_bordered(module: nn.Module) -> bool:
    """Whether :func:`add_border` supports this module."""
    return type(module) in _CLASSES or isinstance(module, Bordered)


def add_border(module: nn.Module, border: Tensor) -> None:
    """Add an input channel of ones to a convolution, in place; repeated borders are summed.

    Args:
        module: a convolution that :func:`can_be_bordered` accepts.
        border: weights of the channel, (out channels, 1, k, ...), or (1, out channels, k, ...) of a transposed
            convolution. They become the trainable parameter `border`.
    """
    if isinstance(module, Bordered):
        module.border = nn.Parameter(module.border.detach() + border)
        return
    if isinstance(module.padding, str):  # "same": the numbers it stands for
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        module.padding = tuple(t // 2 for t in total) if module.padding == "same" else (0,) * len(total)
    module.__class__ = _CLASSES[type(module)]
    module.border = nn.Parameter(border.clone())
    module.register_buffer("border_map", None, persistent=False)


def remove_border(module: nn.Module) -> None:
    """Make a convolution with a border one without, in place."""
    plain = next(kind for kind, bordered in _CLASSES.items() if isinstance(module, bordered))
    del module.border, module.border_map
    module.__dict__.pop("_kept", None)
    module.__class__ = plain


def add_bias(module: nn.Module, bias: Tensor) -> None:
    """Add to the bias of a convolution or linear layer, in place; a missing bias is created."""
    if module.bias is None:
        module.bias = nn.Parameter(bias.clone())
    else:
        module.bias.data += bias


def fix_borders(network: nn.Module, example: AnyInputs) -> nn.Module:
    """Precompute every border's map for inputs of one size, in place, so that evaluation only adds it.

    For forms that are exported or compiled, where a map is a constant; elsewhere convolutions keep maps themselves. The
    maps are dropped when training begins and when weights are loaded.

    Args:
        network: changed in place.
        example: an input (B, C, ...), or what :class:`sparsemask.spaces.group_sparsity.inputs.Inputs` takes.

    Returns:
        The network.
    """

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        module.border_map = module.border_of(args[0])

    hooks = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, Bordered)]
    try:
        if hooks:
            with evaluating(network):
                Inputs.of(example).run(network)
    finally:
        for hook in hooks:
            hook.remove()
    return network


def fit_additions(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Create the biases and borders that a compressed network's state dict has and `network` lacks, in place.

    Call it after pairs and channel numbers are set and before loading.

    Args:
        network: changed in place.
        state: the state dict.

    Returns:
        The network.
    """
    for name, module in list(network.named_modules()):
        if not isinstance(module, _ConvNd | nn.Linear):
            continue
        bias, border = (state.get(f"{name}.{key}") for key in ("bias", "border"))
        if bias is not None and module.bias is None:
            add_bias(module, bias.to(module.weight))
        if border is not None and isinstance(module, Bordered):
            module.border.data = border.to(module.weight).clone()
        elif border is not None and can_be_bordered(module):
            add_border(module, border.to(module.weight))
    return network
