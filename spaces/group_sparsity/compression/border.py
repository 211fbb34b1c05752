"""Convolutions that account for removed constant channels at the zero padding.

A removed channel that held a constant c adds the convolution of a map of c's: the same everywhere but near the border,
where part of the kernel lies on the padding. One more input channel, of ones, whose weights are the sum of c times the
removed weights, gives exactly that, at any size, stride and dilation, and once for a whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparsemask.timing import evaluating


class Bordered:
    """Mixin of a convolution class: adds the convolution of an input of ones by `border` to the output."""

    def forward(self, x: Tensor, *args) -> Tensor:
        """The convolution of x, (B, C, ...), and the contribution of the ones."""
        y = super().forward(x, *args)
        if self.border_map is not None and not self.training and self.border_map.shape[2:] == y.shape[2:]:
            return y + self.border_map
        return y + self.border_of(x)

    def border_of(self, x: Tensor) -> Tensor:
        """(1, out channels, ...): the contribution of the ones for an input of x's size."""
        ones = x.new_ones(1, 1, *x.shape[2:])
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
        """Set the mode; training drops a precomputed map."""
        if mode:
            self.border_map = None
        return super().train(mode)


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


def add_bias(module: nn.Module, bias: Tensor) -> None:
    """Add to the bias of a convolution or linear layer, in place; a missing bias is created."""
    if module.bias is None:
        module.bias = nn.Parameter(bias.clone())
    else:
        module.bias.data += bias


def fix_borders(network: nn.Module, example: Tensor) -> nn.Module:
    """Precompute every border's map for inputs of one size, in place, so that evaluation only adds it.

    The maps are dropped when training begins; call it again after loading other weights.

    Args:
        network: changed in place.
        example: an input (B, C, ...).

    Returns:
        The network.
    """

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        module.border_map = module.border_of(args[0])

    hooks = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, Bordered)]
    try:
        if hooks:
            with evaluating(network):
                network(example)
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
