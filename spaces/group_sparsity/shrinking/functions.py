"""Make any network smaller: the two functions that users call first."""

from __future__ import annotations

from typing import Unpack

from torch import nn

from sparsemask.errors import UseError, choose
from sparsemask.spaces.group_sparsity.compression.compress import FOLDS
from sparsemask.spaces.group_sparsity.inputs import AnyInputs, Inputs, device_of_network
from sparsemask.spaces.group_sparsity.shrinking.channels import Patterns, selected
from sparsemask.spaces.group_sparsity.shrinking.planning import ShrinkPlan, planned
from sparsemask.spaces.group_sparsity.shrinking.report import former_report
from sparsemask.spaces.group_sparsity.shrinking.settings import Options, Settings
from sparsemask.spaces.group_sparsity.tracing.plain_weights import plain_weights

PLAIN = "weights that were computed from others (norms of weights, parametrisations) are plain ones now"


def plan(
    network: nn.Module, example: AnyInputs, *, only: Patterns = (), skip: Patterns = (), fold: str = "exact"
) -> ShrinkPlan:
    """Find what can be removed from a network, and what cannot and why.

    Args:
        network: any network of convolutions, in any mode, on any device; not changed, and copied only where weights are
            computed from others (weight norm, spectral norm, parametrisations): in the copy they are plain ones.
        example: an input: a tensor, a tuple of arguments, or a dict of named ones. Its sizes are those for which costs
            are counted and measured. Tensors are moved to the network's device.
        only: layers whose channels may be removed, names or patterns (``"layer4.*"``); empty: all. Of channels that
            several layers make together, all must match.
        skip: layers whose channels stay.
        fold: as for :func:`shrink`. With "none" channels can go, too, over which a layer norm, a mean or a softmax is
            taken, although that changes what becomes of the others.

    Returns:
        The plan: ``print`` shows it, :meth:`ShrinkPlan.shrink` makes networks.

    Raises:
        UseError: a network that cannot be traced, or a pattern that matches nothing.

    Example:
        ``print(sparsemask.plan(net, torch.zeros(1, 3, 224, 224)))``
    """
    inputs = Inputs.of(example, device_of_network(network))
    if former_report(network) is None and "report" in dir(network):
        raise UseError(
            f"{type(network).__name__} has an attribute `report` of its own, where the result has its report"
        )
    choose(fold, FOLDS, "fold")
    plain = plain_weights(network, inputs.given)
    notes = () if plain is network else (PLAIN,)
    return planned(plain, inputs, lambda channels: selected(channels, only, skip), fold, notes=notes)


def shrink(
    network: nn.Module,
    example: AnyInputs,
    target: float | str | None = None,
    by: str = "multiply-adds",
    *,
    only: Patterns = (),
    skip: Patterns = (),
    **options: Unpack[Options],
) -> nn.Module:
    """Make a smaller network from any network by removing channels.

    The result is an ordinary module of the same class, to be fine-tuned like any other. Channels that must be removed
    together are found in one run of the network (:func:`plan`).

    Args:
        network: any network of convolutions; not changed.
        example: an input, as for :func:`plan`.
        target: what is to be left: a share (0.5 or "50%"), or milliseconds ("8 ms") as measured on this machine, with
            this input and this number of threads. None: with shares by layer as `policy`, exactly these.
        by: of what the target is a share: "multiply-adds", "parameters" or "milliseconds".
        only: layers whose channels may be removed, names or patterns; empty: all.
        skip: layers whose channels stay.
        options: named, all with a default:

            - `importance`: what channels are worth: "l1", "l2" (magnitude), "batch_norm" (its scale), "fpgm", "random",
              "hinge" (norms as the search of groups shrinks them); with `data` and `loss` "taylor", "fisher"; with
              `data` "activation"; or a function of one's own, see
              :class:`sparsemask.spaces.group_sparsity.shrinking.Importance`.
            - `policy`: how channels are shared out: "time" (more of the layers that take longer for their
              multiply-adds, as :mod:`sparsemask.spaces.group_sparsity.shrinking.roofline` says), "uniform" (the same
              share of every layer), "global" (the least important of all), "isomorphic" (the least important of layers
              of the same structure); or shares of channels that stay, by name or pattern of layers:
              ``{"layer4.*": 0.25, "*": 0.6}``.
            - `minimum`: of each layer's channels what always stays: a share below 1, or a number.
            - `multiple`: layers keep multiples of so many channels. None: of 16, in layers of less than 64 channels of
              less, as long as the target is met within 1 %; that is faster than any number for which processors have
              no whole blocks.
            - `fold`: what activations make of zero, where removed channels had it: "exact": folded into other layers,
              so that the result equals the network in which those channels' weights, and the scales and shifts of norms
              along them, are zero; "interior": the same but for places near zero padding; "none": dropped, and channels
              over which statistics are taken, as of layer norms, can go, too (the report names them): for networks that
              are trained further anyway.
            - `data`: batches for an importance, pairs (inputs, target); inputs as `example`.
            - `loss`: `loss(outputs, target)`, a scalar.
            - `seed`: of the importance "random".
            - `timed`: whether milliseconds before and after are measured for the report (a second or two).

    Returns:
        The small network, in the mode and on the device of the whole one. Its `report` says what went, what stayed and
        why, and what was gained.

    Raises:
        UseError: a network that cannot be traced or has nothing to remove, an argument out of range. A target that is
            out of reach is none: the nearest network is returned, and its report says why.

    Example:
        ``small = sparsemask.shrink(net, torch.zeros(1, 3, 224, 224), target=0.5)``
    """
    fold = options.get("fold", Settings.fold)
    return plan(network, example, only=only, skip=skip, fold=fold).shrink(target, by, **options)
