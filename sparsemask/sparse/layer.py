"""One sparse mask convolution as a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.ops import activation as act
from sparsemask.ops import conv, dispatch  # noqa: F401  registers the operator
from sparsemask.ops.checks import check_flags
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.weight_cache import Derived, last
from sparsemask.sparse.training_form import masked_conv

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = {"batch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}
_folded = Derived()


class SparseMaskConv(nn.Module):
    """A convolution that computes dense channels everywhere and sparse ones at kept locations only.

    Wang et al., CVPR 2021 (arXiv 2006.09603), section 3.2. `weight` and `bias` lie as in torch's convolutions.

    Args:
        in_channels: channels of the input, a multiple of `groups`.
        out_channels: channels of the output, a multiple of `groups`.
        kernel_size: a number, or one entry a dimension, as `stride`, `padding`, `dilation` and `output_padding` are.
        dims: 1 (points with kernel 1, or sequences), 2 or 3.
        stride: at least 1.
        padding: None: dilation·(kernel − 1)/2, which keeps the size at stride 1; for odd kernels only.
        dilation: at least 1.
        transposed: a transposed convolution.
        output_padding: of transposed convolutions, less than the stride or the dilation.
        groups: at least 1.
        bias: whether a bias is added.
        activation: "none", "relu" or "leaky_relu:SLOPE".
        norm: None, or "batch": batch normalisation (attribute `norm`) before the activation, folded in evaluation.

    Raises:
        UseError: for what is none of these.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        dims: int = 2,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        transposed: bool = False,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = False,
        activation: str = "relu",
        norm: str | None = None,
    ):
        super().__init__()
        g = Geometry.of(dims, kernel_size, stride, padding, dilation, output_padding, transposed, groups)
        for channels in (in_channels, out_channels):
            if channels < 1 or channels % groups:
                raise UseError(f"{channels} channels do not fall into {groups} groups")
        act.parse(activation)
        self.geometry, self.activation = g, activation
        self.in_channels, self.out_channels = in_channels, out_channels
        options = dict(stride=g.stride, padding=g.padding, dilation=g.dilation, groups=groups, bias=bias)
        if transposed:
            plain = _TRANSPOSED[dims - 1](
                in_channels, out_channels, g.kernel, output_padding=g.output_padding, **options
            )
        else:
            plain = _CONV[dims - 1](in_channels, out_channels, g.kernel, **options)
        self.weight = plain.weight  # initialised as torch does
        self.register_parameter("bias", plain.bias)
        if norm is not None and norm not in _NORMS:
            raise UseError(f"unknown norm '{norm}'; known: {', '.join(_NORMS)}, or None")
        self.norm = _NORMS[norm][dims - 1](out_channels) if norm else None

    def forward(
        self, x: Tensor, mask: Tensor, in_dense: Tensor | None = None, out_dense: Tensor | None = None
    ) -> Tensor:
        """The masked convolution of x.

        Args:
            x: (N, C_in, *spatial).
            mask: data mask (N, 1, *out spatial) on the output grid, soft in [0, 1] or bool.
            in_dense: (C_in,), the channel mask of whatever made x, soft or bool; None: all dense.
            out_dense: (C_out,), this layer's own channel mask, likewise.

        Returns:
            (N, C_out, *out spatial). In evaluation with bool masks locations are skipped (the operator
            `sparsemask::conv`); in training or with a soft mask everything is computed, differentiable in the masks.

        Raises:
            UseError: for shapes that do not fit.
        """
        soft = any(flags is not None and flags.is_floating_point() for flags in (mask, in_dense, out_dense))
        if self.training or soft:
            self._check(x, mask, in_dense, out_dense)
            return masked_conv(
                x, self.weight, self.bias, mask, in_dense, out_dense, self.geometry, self.activation, self.norm
            )
        weight, bias = self.folded()
        in_dense = _all(self.in_channels, x) if in_dense is None else in_dense
        out_dense = _all(self.out_channels, x) if out_dense is None else out_dense
        g = self.geometry
        return torch.ops.sparsemask.conv(
            x, weight, bias, mask, in_dense, out_dense, g.stride, g.padding, g.dilation, g.output_padding, g.transposed,
            g.groups, self.activation, dispatch.current(self.backend),
        )  # fmt: skip

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the batch norm in evaluation mode folded in."""
        norm = self.norm
        if norm is None:
            return self.weight, self.bias
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._fold()
        sources = [self.weight, self.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var]
        make = lambda: tuple(map(last, self._fold()))
        return _folded.get([tensor for tensor in sources if tensor is not None], make, (self.geometry, norm.eps))

    def _fold(self) -> tuple[Tensor, Tensor]:
        norm, g = self.norm, self.geometry
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.running_mean.new_zeros(()) if self.bias is None else self.bias
        if g.transposed:  # (in, out / groups, ...): the inputs of a group stand together
            per_channel = scale.view(g.groups, 1, -1).expand(-1, self.in_channels // g.groups, -1).flatten(0, 1)
        else:
            per_channel = scale.view(-1, 1)
        weight = self.weight * per_channel.reshape(*per_channel.shape, *[1] * (self.weight.ndim - 2))
        return weight, (bias - norm.running_mean) * scale + norm.bias

    def _check(self, x: Tensor, mask: Tensor, in_dense: Tensor | None, out_dense: Tensor | None) -> None:
        if x.ndim != self.geometry.dims + 2 or x.shape[1] != self.in_channels:
            raise UseError(
                f"features {tuple(x.shape)} given to a layer of {self.in_channels} channels, {self.geometry}"
            )
        expected = (x.shape[0], 1, *self.geometry.output_size(x.shape[2:]))
        if tuple(mask.shape) != expected:
            raise UseError(f"the mask must have the output's shape {expected}, got {tuple(mask.shape)}")
        for flags, channels, side in ((in_dense, self.in_channels, "input"), (out_dense, self.out_channels, "output")):
            if flags is not None:
                check_flags(flags, channels, side, soft=True)

    def extra_repr(self) -> str:
        g = self.geometry
        return (
            f"{self.in_channels}, {self.out_channels}, kernel={g.kernel}, stride={g.stride}, padding={g.padding}"
            + (f", transposed, output_padding={g.output_padding}" if g.transposed else "")
            + (f", groups={g.groups}" if g.groups > 1 else "")
            + f", activation={self.activation}"
        )


def _all(channels: int, like: Tensor) -> Tensor:
    return torch.ones(channels, dtype=torch.bool, device=like.device)
