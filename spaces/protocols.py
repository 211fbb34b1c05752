"""The contract between search spaces and commands, and optional capabilities of spaces.

:class:`Space` is the base class of every space. The protocols after it are capabilities: commands test for them by
``isinstance``, never by the name of a space or of a method. A space has a capability if it has its methods; nothing is
declared.

:class:`sparsemask.testing.spaces.SpaceContract` tests a space against all of it, a user's own too.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from torch import Tensor, nn

from sparsemask import flags
from sparsemask.config import Section
from sparsemask.weights import load_strictly

if TYPE_CHECKING:
    from sparsemask import exporting
    from sparsemask.costs import Cost
    from sparsemask.timing import Inputs

Config = Mapping[str, Any]
"""Options of a network by name: a file's entries, or a command's configuration."""


@dataclass(frozen=True)
class Loaded:
    """Content of a file: a network with its weights, in evaluation mode on the CPU, and the mask it was built from.

    Attributes:
        network: the network.
        mask: as the space's :meth:`Space.network` takes it; None for a network without one.
    """

    network: nn.Module
    mask: Any = None


class Space(ABC):
    """A family of networks among which a search chooses by a mask.

    The three verbs use it in this order: `supernet` is trained with relaxed masks, pruning makes a mask of it,
    `network` builds what the mask describes, `transfer` gives it its first weights. Spaces hold no state: one object,
    made by :func:`spaces.register`, serves all commands, and its methods may be called in any order.
    """

    family: ClassVar[str]
    """How its masks are learnt: the name of the modules in `search`, `prune` and `retrain` that do it."""
    name: str
    """As registered."""
    task: str = "segmentation"
    """The task whose data flags the commands have; --task may name a sibling of it."""
    published: ClassVar[Mapping[str, float]] = {}
    """Numbers of the published run that differ from the family's, by their names there."""

    section: ClassVar[type[flags.NetworkSection]] = flags.EncoderSection
    """The flags of its networks, those that a network's `config` holds; default: of an encoder and its decoder."""
    views: ClassVar[type[Section] | None] = None
    """Flags of evaluation and export that say how networks are run; default: none."""

    @property
    def trained_as(self) -> str:
        """Name of the space that its small networks are trained, evaluated and exported as; default: its own."""
        return self.name

    @abstractmethod
    def supernet(self, config: Config) -> nn.Module:
        """Build the network with relaxed masks, its weights drawn from torch's global generator.

        Args:
            config: options by name; foreign ones and those that are None are passed over.

        Raises:
            UseError: an option that no network of the space has.
        """

    @abstractmethod
    def network(self, mask: Any, config: Config) -> nn.Module:
        """Build the small network that a mask describes, with weights that :meth:`transfer` or a file replaces.

        Args:
            mask: as the space's files hold it, and as :attr:`Loaded.mask` gives it.
            config: options by name; where the mask's file says them too, the mask counts.

        Raises:
            UseError: a mask of another network, or an option that no network of the space has.
        """

    @abstractmethod
    def transfer(self, checkpoint: Mapping[str, Tensor], mask: Any, config: Config) -> dict[str, Tensor]:
        """Compute the weights that a small network starts from, out of its supernet's.

        Args:
            checkpoint: state dict of the supernet (bare names).
            mask: as for :meth:`network`.
            config: as for :meth:`network`.

        Returns:
            A state dict that fits ``network(mask, config)`` strictly.

        Raises:
            UseError: a checkpoint of another network.
        """

    @abstractmethod
    def load(self, path: str | os.PathLike[str]) -> Loaded:
        """Read a network from a file that says what to build.

        Args:
            path: a file to share (safetensors), and whatever else the space reads: checkpoints, public weights.

        Raises:
            UseError: a file that is missing, torn, or of no network of the space. No code of the file is run.
        """

    def cost(self, net: nn.Module, input_shape: Inputs) -> Cost:
        """Measure parameters, executed multiply-adds and milliseconds.

        Args:
            net: a network of the space, on the device to be measured.
            input_shape: (N, C, H, W); inputs that are more than a tensor are given themselves, in a list.
        """
        from sparsemask.costs import measure

        return measure(net, input_shape)

    def for_task(self, task: str) -> Self:
        """The space as commands for another task's data see it; default: itself, serving its own task alone."""
        return self

    def load_weights_into(self, network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
        """Start a network from weights; default: its own, strictly.

        Args:
            network: changed in place.
            state: tensors by name, perhaps of a relative whose names or parts differ.
            source: where they come from, for errors.

        Raises:
            UseError: weights that do not fit; the network is then as it was.
        """
        load_strictly(network, state, source)


@runtime_checkable
class MakesMasks(Protocol):
    """Networks contain their masks, so that no rule is needed to make them hard."""

    def masks_of(self, network: nn.Module) -> Any:
        """The hard masks of a network, of a supernet too, as :meth:`Space.network` takes them."""


@runtime_checkable
class Shareable(Protocol):
    """Networks can be written as files that describe how they are built, without a command's options."""

    def save(self, path: str | os.PathLike[str], network: nn.Module, mask: Any) -> None:
        """Write a network as safetensors, atomically.

        Args:
            path: the file; :meth:`Space.load` reads it.
            network: of the space.
            mask: that it was built from.
        """


@runtime_checkable
class Distilled(Protocol):
    """Dense weights say which network is given masks, and the dense network can teach it."""

    def flags_of(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Flags of the configuration, by name, that a dense network's file decides."""

    def start_masks(
        self, network: nn.Module, inputs: Tensor, keep: float, measure: Callable[..., Tensor] | None = None
    ) -> None:
        """Start the masks of a network with dense weights, without targets, so that a budget is met on inputs.

        Args:
            network: changed in place.
            inputs: a batch.
            keep: share of all multiply-adds that is executed on it.
            measure: what `keep` is a share of instead, (network, hard=True) after a forward pass.

        Raises:
            UseError: a budget that the network cannot have.
        """

    def teacher(self, path: str | os.PathLike[str]) -> nn.Module:
        """The dense network of a file, frozen, in evaluation mode on the CPU."""

    def anchor(self, network: nn.Module) -> Any:
        """What holds masks where they were started while features are trained.

        Args:
            network: with dense weights and masks as started; it is copied.

        Returns:
            A :class:`sparsemask.spaces.sparsified.anchor.MaskAnchor`.
        """


@runtime_checkable
class HasFastForm(Protocol):
    """Networks whose masks multiply have a form that skips what they drop."""

    def fast_form(self, network: nn.Module) -> nn.Module:
        """A copy for evaluation alone that computes the same and less, batch norms folded; it shares nothing."""


@runtime_checkable
class HasDenseForm(Protocol):
    """Networks with masks have a form without them, which they are timed against."""

    def dense_form(self, network: nn.Module) -> nn.Module:
        """The same weights, everything kept, in evaluation, as fast as plain operators make it."""


@runtime_checkable
class HasKernelForm(Protocol):
    """The kernels that skip can be timed with everything kept, to separate their gain from the masks'."""

    def kernel_form(self, network: nn.Module) -> nn.Module:
        """A copy that computes what the dense form computes, by the operators of the fast form."""


@runtime_checkable
class HasUnmaskedForm(Protocol):
    """Masks can be taken off a network, for compilers and further training."""

    def unmasked(self, network: nn.Module) -> nn.Module:
        """A copy without masks under the same weight names, in evaluation mode; nothing is folded."""


@runtime_checkable
class HasLayerwiseForm(Protocol):
    """Networks that run as few fused operators can be run layer by layer, so that hooks see every layer's features."""

    def layerwise_form(self, network: nn.Module, masked: bool) -> nn.Module:
        """The same weights as plain layers; masked: masks multiply, else everything is kept."""


@runtime_checkable
class HasViews(Protocol):
    """Networks of images can be run in tiles, and as the mean over flips and transpositions."""

    def run(self, network: nn.Module, images: Tensor, tile: int = 0, ensemble: bool = False) -> Tensor:
        """The network on images (N, C, H, W); tile: pixels of a tile's side, 0: whole images."""

    def run_dense(self, network: nn.Module, images: Tensor, ensemble: bool = False) -> Tensor:
        """The same of the dense form, on whole images."""


@runtime_checkable
class PreparesImages(Protocol):
    """Networks that take images otherwise than normalised by ImageNet's mean and deviation."""

    def prepare(self, colour: np.ndarray) -> Tensor:
        """Colours (H, W, 3) of 0 to 255 as an input (1, C, H, W)."""


@runtime_checkable
class Exportable(Protocol):
    """Networks can be written for other programs."""

    def exportable(
        self, network: nn.Module, batch: object, config: Config, mask: object = None
    ) -> exporting.Exportable:
        """Describe how a network is called with tensors only, with and without sparse operators.

        Args:
            network: in evaluation mode, on the CPU, without gradients.
            batch: an input as the task makes it.
            config: options of the network by name.
            mask: :attr:`Loaded.mask`, where the network itself does not know it.
        """
