"""Statistics of a running network: gradients of factors on its channels, mean absolute features."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError

Masks = list[tuple[str, Tensor]]


def _channels_last(module: nn.Module, x: Tensor) -> Tensor:
    """Features with their channels along the last dimension: those of a linear layer are."""
    return x if isinstance(module, nn.Linear) else x.movedim(1, -1)


@contextlib.contextmanager
def output_masks(network: nn.Module, names: Collection[str]) -> Iterator[Masks]:
    """Inside, the outputs of modules are multiplied by masks of ones, one for every sample and channel.

    Args:
        network: whose modules run.
        names: of convolutions and linear layers.

    Returns:
        Name and mask of every call of a module, (batch, 1, ..., channels); they collect while the network runs.
    """
    masks: Masks = []

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def multiply(module: nn.Module, _: object, out: Tensor) -> Tensor:
            features = _channels_last(module, out)
            shape = (len(features), *[1] * (features.dim() - 2), features.shape[-1])
            masks.append((name, torch.ones(shape, device=out.device, dtype=out.dtype, requires_grad=True)))
            product = features * masks[-1][1]
            return product if isinstance(module, nn.Linear) else product.movedim(-1, 1)

        return multiply

    hooks = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield masks
    finally:
        for handle in hooks:
            handle.remove()


def mask_gradients(loss: Tensor, masks: Masks, samples: int) -> dict[str, Tensor]:
    """Gradients of a loss with respect to masks, (channels, samples) by module; several calls are summed.

    Args:
        loss: a scalar.
        masks: of :func:`output_masks`.
        samples: in the batch; features with several rows a sample (windows, say) have them one after the other.

    Raises:
        UseError: features whose rows are not those of samples.
    """
    gradients = torch.autograd.grad(loss, [mask for _, mask in masks], allow_unused=True, materialize_grads=True)
    result: dict[str, Tensor] = {}
    for (name, _), gradient in zip(masks, gradients, strict=True):
        rows = gradient.flatten(0, -2)
        if len(rows) % samples:
            raise UseError(f"importance 'fisher': the features of '{name}' have {len(rows)} rows for {samples} samples")
        each = rows.view(samples, -1, rows.shape[-1]).sum(1).T.float().cpu()
        result[name] = result[name] + each if name in result else each
    return result


@contextlib.contextmanager
def absolute_means(
    network: nn.Module, readers: Collection[str], makers: Collection[str]
) -> Iterator[Mapping[str, Tensor]]:
    """Inside, mean absolute values of features are collected while the network runs.

    Args:
        network: whose modules run.
        readers: modules whose inputs are meant.
        makers: modules whose outputs are meant.

    Returns:
        (channels,) by module; complete when the context is left.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = defaultdict(int)
    means: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, x: Tensor) -> None:
        features = _channels_last(module, x.detach()).abs().flatten(0, -2)
        total = features.double().sum(0).cpu()
        sums[name] = sums[name] + total if name in sums else total
        rows[name] += len(features)

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, given: add(name, module, given[0])

    def after(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, _, out: add(name, module, out)

    hooks = [network.get_submodule(name).register_forward_pre_hook(before(name)) for name in readers]
    hooks += [network.get_submodule(name).register_forward_hook(after(name)) for name in makers]
    try:
        yield means
    finally:
        for handle in hooks:
            handle.remove()
        means.update({name: total / rows[name] for name, total in sums.items()})
