"""Base classes of networks with fine-grained masks, and of the modules that have one data mask each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparsemask.ops.weight_cache import Derived

if TYPE_CHECKING:
    from sparsemask.spaces.sparse_conv.plan import Plans

_constant = Derived()
SURE = 20.0
"""Logits that no Gumbel noise turns."""


@torch.no_grad()
def begin_smoothly(up: nn.ConvTranspose2d) -> None:
    """Start a transposed 3×3 convolution of stride 2 as bilinear upsampling of random channels.

    With independent random weights its four phases differ more than the image's locations do, and short trainings end
    with checkerboard masks.
    """
    line = up.weight.new_tensor([0.5, 1.0, 0.5])
    up.weight.copy_(up.weight[:, :, 1:2, 1:2] * line[:, None] * line)


@runtime_checkable
class LocationMask(Protocol):
    """A mask branch: predicts from features which locations of a module are kept."""

    threshold: float
    """A hard mask keeps a location if P(keep) is above it; 0.5 is the argmax."""

    def logits(self, x: Tensor) -> Tensor:
        """Predict two logits a location; index 1 keeps it."""


class Planned(Protocol):
    """A module that calls an operator by a backend."""

    planned: str | None
    """The backend in place of "auto"; None: none was chosen."""


class Part(NamedTuple):
    """What a plan chooses a backend for."""

    called: nn.Module
    """The module whose call is timed."""
    chosen: Planned
    """The module that follows the choice: itself, or one inside."""


class MaskModule(nn.Module):
    """A module with one data mask, which a branch of its own predicts, and channel masks.

    In evaluation without gradients it computes no mask branch where the data mask does not depend on the input: where
    all channels are dense, so that it selects nothing, where the branch's last layer has no weights but zeros, and
    where no probability is above the threshold, or every one is.
    """

    @abstractmethod
    def channel_parameters(self) -> list[nn.Parameter]:
        """The logits of its channel masks, (..., 2), index 0 dense."""

    @abstractmethod
    def branch(self) -> LocationMask | None:
        """Its mask branch; None: it has channel masks alone, and channels that are not dense are removed."""

    @abstractmethod
    def branch_end(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias (2,), or None, of the mask branch's last layer; asked where there is a branch."""

    @torch.no_grad()
    def open_masks(self) -> None:
        """Make all channels dense, so that the data mask selects nothing; changed in place."""
        for logits in self.channel_parameters():
            logits[..., 0], logits[..., 1] = SURE, -SURE

    def constant_mask(self, selects: bool = False) -> bool | None:
        """What the data mask is everywhere, whatever the input; None where that is not known from the weights.

        Args:
            selects: whether the data mask selects something besides sparse channels.
        """
        channels, branch = self.channel_parameters(), self.branch()
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or channels[0].is_meta:
            return None
        threshold = 0.0 if branch is None else branch.threshold
        weight, bias = (None, None) if branch is None else self.branch_end()

        def make() -> bool | None:
            if not selects and all(bool((logits[..., 0] >= logits[..., 1]).all()) for logits in channels):
                return True
            if weight is None:
                return None
            if threshold < 0 or threshold >= 1:
                return threshold < 0
            if bool(weight.any()):
                return None
            margin = torch.zeros(()) if bias is None else bias[1] - bias[0]
            return bool(margin > 0 if threshold == 0.5 else torch.sigmoid(margin) > threshold)

        sources = [tensor for tensor in (*channels, weight, bias) if tensor is not None]
        known: bool | None = _constant.get(sources, make, (threshold, selects))
        return known


class MaskedNetwork(nn.Module):
    """A network with fine-grained masks, as search, evaluation and visualisation use it.

    In training masks are soft (:func:`sparsemask.sparse.set_mask_mode`); in evaluation they are hard. `kept` and the
    attributes after it describe the last forward pass, of a batch of N.
    """

    tau: float = 1.0
    """Temperature of the soft masks, set by the search before a step."""
    config: Mapping[str, Any]
    """Arguments that build the network again, plain values; stored in its files."""
    kept: Sequence[Tensor]
    """Kept fractions (L,) of the layers of each masked module, in [0, 1]; differentiable in training."""
    hard_kept: Sequence[Tensor]
    """The same for hard masks."""
    masks: Sequence[Tensor]
    """Data mask of each masked module, bool (N, 1, *spatial)."""
    kept_weights: Sequence[Tensor] = ()
    """Fraction of all multiply-adds in each layer, (L,), of each masked module; empty: all layers weigh the same."""
    kept_base: Tensor | float = 0.0
    """Fraction of all multiply-adds in unmasked layers and mask branches; used together with `kept_weights`."""
    mask_names: Sequence[str] | None = None
    """Short name of each masked module, empty for those without a data mask; None: all have one."""
    in_one_call: bool = False
    """Whether all modules are computed in one call, so that none can be timed alone."""
    plans: Plans | None = None
    """How it is computed, by machine and input size; None: backend `auto` decides call by call."""

    def parts(self) -> dict[str, Part]:
        """What a plan chooses backends for, by name; default: nothing, there is one way to compute it."""
        return {}

    def budget_logits(self) -> Sequence[Tensor]:
        """What one number is added to so that a budget is met, larger keeps more; empty: the channel masks' logits."""
        return ()

    def module_calls(self, inputs: Any) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """Of a network in one call, each module by itself on what it reads; default: there is no such thing.

        Args:
            inputs: of the network, which is in evaluation mode.

        Returns:
            By name, (with its masks, without them), as the form that skips computes it.
        """
        return {}

    def mask_modules(self) -> dict[str, MaskModule]:
        """Modules with a data mask of their own, by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MaskModule)}

    def follow(self, inputs: Any) -> None:
        """Set the backends that the plan for an input's size says, if there is one; called by forward passes."""
        if self.plans is None or self.training or torch.compiler.is_compiling():
            return
        plan = self.plans.find(inputs.shape, inputs.device)
        for name, part in self.parts().items():
            part.chosen.planned = None if plan is None else plan.backends.get(name)
