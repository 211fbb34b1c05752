"""Channel numbers of a pruned backbone as one string, which configurations, metadata and command lines can hold.

The string lists the layers in the backbone's order: "OUTxIN" for a convolution, "OUTxRANKxIN" for a factorised one
(:class:`sparsemask.spaces.group_sparsity.pairs.Pair`), "N" for a norm.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sparsemask.errors import UseError

_SIZE = 64  # height and width of the image by which the end points' channels are counted
_ENTRY = re.compile(r"\d{1,5}(x\d{1,5}){0,2}")


def _layers(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, _NormBase)
    return [(name, module) for name, module in backbone.named_modules() if isinstance(module, kinds)]


def widths_of(backbone: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Read the widths of a pruned backbone from a network's weights.

    Args:
        backbone: the unpruned backbone.
        state: state dict of the whole network.

    Returns:
        The string; None if the widths are those of `backbone`.

    Raises:
        UseError: weights that widths cannot describe (borders).
    """
    entries, alike = [], True
    for layer, module in _layers(backbone):
        name = f"backbone.{layer}"
        if f"{name}.border" in state or f"{name}.0.border" in state:
            raise UseError(f"{name} has a border: prune with --fold interior, or --fold none")
        first, second = state.get(f"{name}.0.weight"), state.get(f"{name}.1.weight")
        if isinstance(module, nn.Conv2d) and first is not None and second is not None:
            entries.append(f"{second.shape[0]}x{first.shape[0]}x{first.shape[1] * module.groups}")
            alike = False
            continue
        weight = state.get(f"{name}.weight", module.weight)
        grouped = module.groups if isinstance(module, nn.Conv2d) else 1
        inputs = [weight.shape[0] if grouped > 1 else weight.shape[1]] if weight.dim() == 4 else []
        entries.append("x".join(map(str, [weight.shape[0], *inputs])))
        alike = alike and weight.shape == module.weight.shape
    return None if alike else ",".join(entries)


def layer_names(backbone: nn.Module) -> list[str]:
    """The layers that a string of widths lists, in its order."""
    return [name for name, _ in _layers(backbone)]


def narrow_(backbone: nn.Module, widths: str, in_channels: int = 3, layers: Sequence[str] | None = None) -> None:
    """Shrink a new backbone in place to the widths of a string; every layer keeps its first channels.

    Args:
        backbone: as built by its builder.
        widths: as :func:`widths_of` returns it.
        in_channels: channels of the input image.
        layers: what the string lists, of a backbone that was truncated since: :func:`layer_names` of the whole one;
            entries of layers that are not built are not looked at.

    Raises:
        UseError: not a string of widths, one of another backbone, or layers that do not fit together.
    """
    from sparsemask.spaces.group_sparsity.pairs import Pair
    from sparsemask.spaces.group_sparsity.tracing.slicing import reshape_

    built, entries = dict(_layers(backbone)), widths.split(",")
    names = list(built) if layers is None else layers
    if len(entries) != len(names) or not all(map(_ENTRY.fullmatch, entries)):
        raise UseError(f"--widths {widths[:40]}: not the widths of this backbone, which has {len(names)} layers")
    values = {}
    for name, entry in zip(names, entries, strict=True):
        if name not in built:
            continue
        module = built[name]
        sizes = [int(part) for part in entry.split("x")]
        conv = isinstance(module, nn.Conv2d)
        current = (module.out_channels, module.in_channels) if conv else (module.num_features,)
        wrong = len(sizes) not in ((2, 3) if conv else (1,)) or min(sizes) < 1
        if wrong or sizes[0] > current[0] or (conv and sizes[-1] > current[1]):
            raise UseError(f"--widths: {name} cannot be {entry}: it has {'x'.join(map(str, current))}")
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
    current = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    reshape_(backbone, {name: value for name, value in values.items() if value.shape != current[name].shape})
    backbone.channels = _end_points(backbone, in_channels)


def _end_points(backbone: nn.Module, in_channels: int) -> list[int]:
    """Channels of a backbone's end points, by a run on the meta device."""
    twin = copy.deepcopy(backbone).to("meta").eval()
    try:
        with torch.no_grad():
            points = twin(torch.empty(1, in_channels, _SIZE, _SIZE, device="meta"))
    except RuntimeError as error:
        raise UseError(f"--widths: layers do not fit together ({str(error)[:100]})") from None
    return [whole if point is None else point.shape[1] for point, whole in zip(points, backbone.channels, strict=True)]
