"""Importances: what channels are worth, from weights, gradients or activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.spaces.group_sparsity import groups
from sparsemask.spaces.group_sparsity.groups import Member, axis
from sparsemask.spaces.group_sparsity.inputs import Inputs, device_of_network
from sparsemask.spaces.group_sparsity.shrinking import statistics
from sparsemask.spaces.group_sparsity.shrinking.channels import Channels, group_index

Scores = Mapping[str, Tensor]
"""By name of the set of channels: what each group is worth, (count,)."""


@dataclass(frozen=True)
class Subject:
    """What an importance may look at.

    Attributes:
        network: not to be changed.
        channels: those that may be removed.
        data: batches (inputs, target) as the user gave them; None: none.
        loss: `loss(outputs, target)`, a scalar; None: none.
        seed: of anything random.
    """

    network: nn.Module
    channels: tuple[Channels, ...]
    data: Iterable[Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    seed: int = 0

    def weight(self, member: Member) -> Tensor:
        """A member's weight with its channels along the first dimension, without a gradient."""
        weight = self.network.get_parameter(f"{member.module}.weight").detach()
        return weight.transpose(0, axis(self.network.get_submodule(member.module), member.dim))


class Importance(Protocol):
    """Says what channels are worth; those worth least are removed first."""

    def __call__(self, subject: Subject) -> Scores:
        """Score all channels.

        Args:
            subject: the network and its channels, and data if the user gave some.

        Returns:
            For every set of channels by name: finite numbers (count,), one for each group. They are compared within a
            set, and under the policies "global" and "isomorphic" between sets too.
        """


def l1(subject: Subject) -> Scores:
    """Sum of the absolute weights of the layers that make and read a channel (Li et al., arXiv 1608.08710).

    As for all magnitudes, each layer's values are divided by their mean, so that layers of small weights count as much
    as others, and the mean over the layers is taken (group-normalised, Fang et al., DepGraph, arXiv 2301.12900).
    """
    return {c.name: _mean_over_layers(subject, c, (*c.makers, *c.readers), 1) for c in subject.channels}


def l2(subject: Subject) -> Scores:
    """Euclidean norm of a channel's weights in the layers that make and read it, group-normalised as for "l1"."""
    return {c.name: _mean_over_layers(subject, c, (*c.makers, *c.readers), 2) for c in subject.channels}


def batch_norm(subject: Subject) -> Scores:
    """Absolute scale of the batch norms (Liu et al., network slimming, arXiv 1708.06519); "l2" where there are none."""
    return {c.name: _mean_over_layers(subject, c, c.norms or (*c.makers, *c.readers), 2) for c in subject.channels}


def fpgm(subject: Subject) -> Scores:
    """Distance of a channel's weights to those of all others (He et al., FPGM, arXiv 1811.00250).

    The paper's are those of the layer that makes it; here also those of the layers that read it, group-normalised as
    for "l1": what several layers share is not redundant because it is for one of them.
    """

    def distances(c: Channels, member: Member) -> Tensor:
        filters = subject.weight(member).flatten(1).float()
        index = torch.from_numpy(group_index(c.groups, member, len(filters)))
        order, counts = index.argsort(stable=True), index.bincount(minlength=c.count + 1)[: c.count]
        if int(counts.min()) != int(counts.max()) or not int(counts.max()):
            return c.per_group(member, torch.cdist(filters, filters).sum(1))
        vectors = filters[order[: int(counts.sum())]].reshape(c.count, -1)  # all weights of a group in one
        return torch.cdist(vectors, vectors).sum(1)

    return {
        c.name: _mean([_relative(distances(c, member)) for member in (*c.makers, *c.readers)]) for c in subject.channels
    }


def random(subject: Subject) -> Scores:
    """Uniform numbers, the same for the same seed; what other importances are to be compared with."""
    generator = torch.Generator().manual_seed(subject.seed)
    return {c.name: torch.rand(c.count, generator=generator) for c in subject.channels}


def hinge(subject: Subject) -> Scores:
    """Norms of the weights that make a channel, as the search of `--space hinge` shrinks them (arXiv 2003.08935)."""
    return {c.name: groups.norms(subject.network, c.groups).detach() for c in subject.channels}


def taylor(subject: Subject) -> Scores:
    """Squared first-order change of the loss without a channel (Molchanov et al., arXiv 1906.10771, equation 8).

    That is (Σ gradient · weight)² over the weights that make it, averaged over the batches.
    """
    network = copy.deepcopy(subject.network).eval().requires_grad_(True)
    members = {member.module: member for c in subject.channels for member in c.makers}
    weights = {name: network.get_parameter(f"{name}.weight") for name in members}
    totals = {c.name: torch.zeros(c.count) for c in subject.channels}
    batches = 0
    for inputs, target in _labelled(subject, "taylor"):
        loss = _loss(subject, inputs.run(network), target)
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        changes = {}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            products = (gradient * weight).detach().transpose(0, axis(network.get_submodule(name), 0))
            changes[name] = products.flatten(1).sum(1).float().cpu()
        for c in subject.channels:
            totals[c.name] += torch.stack([c.per_group(m, changes[m.module]) for m in c.makers]).sum(0).square()
        batches += 1
    return {name: total / max(batches, 1) for name, total in totals.items()}


def fisher(subject: Subject) -> Scores:
    """Fisher information of a channel's mask: the mean over samples of the squared gradient of a factor on it.

    (Theis et al., arXiv 1801.05787; of channels that are tied the gradients are summed, Liu et al., arXiv 2108.00708.)
    """
    network = copy.deepcopy(subject.network).eval().requires_grad_(True)
    totals = {c.name: torch.zeros(c.count) for c in subject.channels}
    samples = 0
    names = {member.module for c in subject.channels for member in c.makers}
    for inputs, target in _labelled(subject, "fisher"):
        size = inputs.tensors[0].shape[0]
        with statistics.output_masks(network, names) as masks:
            loss = _loss(subject, inputs.run(network), target)
        gradients = statistics.mask_gradients(loss, masks, size)
        for c in subject.channels:
            parts = [c.per_group(m, gradients[m.module]) for m in c.makers if m.module in gradients]
            if parts:
                totals[c.name] += torch.stack(parts).sum(0).square().sum(1)
        samples += size
    return {name: total / max(samples, 1) for name, total in totals.items()}


def activation(subject: Subject) -> Scores:
    """Mean absolute value of a channel where layers read it, after norms and activation functions.

    (Molchanov et al., arXiv 1611.06440.) Divided by the mean over the set, since layers have features of other sizes.
    """
    readers = {member.module: member for c in subject.channels for member in c.readers}
    makers = {member.module: member for c in subject.channels for member in c.makers if not c.readers}
    network = copy.deepcopy(subject.network).eval()
    with torch.no_grad(), statistics.absolute_means(network, readers, makers) as means:
        for inputs, _ in _batches(subject, "activation"):
            inputs.run(network)
    scores = {}
    for c in subject.channels:
        parts = [_relative(c.per_group(m, means[m.module])) for m in c.readers or c.makers if m.module in means]
        scores[c.name] = _mean(parts) if parts else torch.ones(c.count)
    return scores


IMPORTANCES: dict[str, Importance] = {
    function.__name__: function
    for function in (l1, l2, batch_norm, taylor, fisher, activation, fpgm, random, hinge)
}  # fmt: skip
"""The importances that have names."""


def scores(importance: str | Importance, subject: Subject) -> dict[str, np.ndarray]:
    """Score all channels.

    Args:
        importance: a name of :data:`IMPORTANCES`, or one's own.
        subject: the network, its channels, and data.

    Returns:
        By name of the set, float64 (count,).

    Raises:
        UseError: an unknown name, missing data or loss, or scores of a wrong shape or that are not finite.
    """
    if isinstance(importance, str):
        choose(importance, list(IMPORTANCES), "importance")
        importance = IMPORTANCES[importance]
    found = importance(subject)
    result = {}
    for c in subject.channels:
        if c.name not in found:
            raise UseError(f"importance: no scores for '{c.name}'")
        values = torch.as_tensor(found[c.name]).detach().double().cpu().numpy()
        if values.shape != (c.count,):
            raise UseError(f"importance: {values.shape} scores for '{c.name}', expected ({c.count},)")
        if not np.isfinite(values).all():
            raise UseError(f"importance: the scores of '{c.name}' are not finite")
        result[c.name] = values
    return result


def _mean_over_layers(subject: Subject, c: Channels, members: tuple[Member, ...], order: int) -> Tensor:
    return _mean([_relative(_norms(subject, c, member, order)) for member in members])


def _norms(subject: Subject, c: Channels, member: Member, order: int) -> Tensor:
    """l1 (`order` 1) or l2 norms (2) of the groups in one layer, (count,)."""
    weight = subject.weight(member).float()
    each = weight.abs() if weight.dim() == 1 else torch.linalg.vector_norm(weight.flatten(1), ord=order, dim=1)
    return c.per_group(member, each) if order == 1 else c.per_group(member, each.square()).sqrt()


def _relative(values: Tensor) -> Tensor:
    """Over their mean, unless that is zero."""
    mean = values.mean()
    return values / mean if mean > 0 else values


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.cpu().float() for part in parts]).mean(0)


def _loss(subject: Subject, outputs: Any, target: Any) -> Tensor:
    loss = subject.loss(outputs, target) if subject.loss is not None else None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise UseError("loss: expected a function of (outputs, target) that returns a scalar tensor")
    return loss


def _labelled(subject: Subject, name: str) -> Iterator[tuple[Inputs, Any]]:
    if subject.loss is None:
        raise UseError(f"importance '{name}' needs loss=, a function of (outputs, target), and data=, such batches")
    yield from _batches(subject, name, labelled=True)


def _batches(subject: Subject, name: str, labelled: bool = False) -> Iterator[tuple[Inputs, Any]]:
    """(inputs, target) of every batch, on the network's device."""
    if subject.data is None:
        raise UseError(f"importance '{name}' needs data=, batches (inputs, target)")
    device, empty = device_of_network(subject.network), True
    for batch in subject.data:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        if labelled and not pair:
            raise UseError(f"data: a batch is {type(batch).__name__}; expected a pair (inputs, target)")
        inputs, target = batch if pair else (batch, None)
        target = target.to(device) if isinstance(target, Tensor) else target
        empty = False
        yield Inputs.of(inputs, device), target
    if empty:
        raise UseError(f"importance '{name}': data has no batch")
