"""Backbones whose layers lost channels: all widths as one word, and back.

The word lists the layers in the backbone's order, "OUTxIN" for a convolution, "OUTxRANKxIN" for one that became a pair
(:class:`sparsemask.spaces.group_sparsity.matrices.Pair`), "N" for a norm; so that a configuration, a file's metadata
and a command line can hold it. What removing groups of weights leaves of a backbone is described by it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sparsemask.errors import UseError

_SIZE = 64  # of the picture that end points are counted with
_ENTRY = re.compile(r"\d{1,5}(x\d{1,5}){0,2}")


def _layers(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, _NormBase)
    return [(name, module) for name, module in backbone.named_modules() if isinstance(module, kinds)]


def widths_of(backbone: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The widths of the backbone in `state`, a whole network's weights, that is `backbone` but for them; None if alike.

    Raises UseError for weights with parts that no widths describe.
    """
    words, alike = [], True
    for place, module in _layers(backbone):
        name = f"backbone.{place}"
        if f"{name}.border" in state or f"{name}.0.border" in state:
            raise UseError(f"{name} has a border: prune with --fold interior, or --fold none")
        first, second = state.get(f"{name}.0.weight"), state.get(f"{name}.1.weight")
        if isinstance(module, nn.Conv2d) and first is not None and second is not None:
            words.append(f"{second.shape[0]}x{first.shape[0]}x{first.shape[1] * module.groups}")
            alike = False
            continue
        weight = state.get(f"{name}.weight", module.weight)
        grouped = module.groups if isinstance(module, nn.Conv2d) else 1
        inputs = [weight.shape[0] if grouped > 1 else weight.shape[1]] if weight.dim() == 4 else []
        words.append("x".join(map(str, [weight.shape[0], *inputs])))
        alike = alike and weight.shape == module.weight.shape
    return None if alike else ",".join(words)


def narrow_(backbone: nn.Module, widths: str, in_channels: int = 3) -> None:
    """Give a fresh backbone, in place, the widths of a word: of every layer the first channels stay.

    Raises UseError where the word is none, of another backbone, or its layers do not fit together.
    """
    from sparsemask.spaces.group_sparsity.matrices import Pair
    from sparsemask.spaces.group_sparsity.slicing import reshape_

    layers, words = _layers(backbone), widths.split(",")
    if len(words) != len(layers) or not all(map(_ENTRY.fullmatch, words)):
        raise UseError(f"--widths {widths[:40]}: not the widths of this backbone, which has {len(layers)} layers")
    values = {}
    for (name, module), word in zip(layers, words, strict=True):
        sizes = [int(part) for part in word.split("x")]
        conv = isinstance(module, nn.Conv2d)
        own = (module.out_channels, module.in_channels) if conv else (module.num_features,)
        wrong = len(sizes) not in ((2, 3) if conv else (1,)) or min(sizes) < 1
        if wrong or sizes[0] > own[0] or (conv and sizes[-1] > own[1]):
            raise UseError(f"--widths: {name} cannot be {word}: it has {'x'.join(map(str, own))}")
        if len(sizes) == 3:
            backbone.set_submodule(name, Pair.shaped(module, sizes[1], sizes[2], sizes[0]))
            continue
        rows = slice(sizes[0])
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for key, value in tensors.items():
            if value.dim() == 1:
                values[f"{name}.{key}"] = value[rows]
            elif value.dim() == 4:
                values[f"{name}.{key}"] = value[rows] if module.groups > 1 else value[rows, : sizes[1]]
    own = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    reshape_(backbone, {name: value for name, value in values.items() if value.shape != own[name].shape})
    backbone.channels = _end_points(backbone, in_channels)


def _end_points(backbone: nn.Module, in_channels: int) -> list[int]:
    """Channels of a backbone's end points, by a run that computes nothing."""
    twin = copy.deepcopy(backbone).to("meta").eval()
    try:
        with torch.no_grad():
            points = twin(torch.empty(1, in_channels, _SIZE, _SIZE, device="meta"))
    except RuntimeError as error:
        raise UseError(f"--widths: layers do not fit together ({str(error)[:100]})") from None
    return [point.shape[1] for point in points]
