"""Pretrained backbones: torchvision's and timm's layouts, public SparseMask checkpoints, our own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spaces.backbones import create
from spaces.backbones.mobilenet_v2_keys import timm_keys, torchvision_keys
from sparsemask.errors import UseError, choose
from sparsemask.weights import load_weights


@dataclass(frozen=True)
class Layout:
    """Another project's names: a tensor that gives it away, its input convolution, layer names -> ours."""

    title: str
    mark: str
    keys: Callable[[], dict[str, str]]
    classifier: str  # prefix of what a backbone has no use for


_LAYOUTS = {
    "mobilenet_v2": (
        Layout("torchvision", "features.0.0.weight", torchvision_keys, "classifier."),
        Layout("timm", "conv_stem.weight", timm_keys, "classifier."),
    )
}
_INPUT = {"mobilenet_v2": "conv1.weight"}
_FIRST_EXPANSION = {"mobilenet_v2": "bottlenecks.Bottlenecks_0.LinearBottleneck0_0.conv1.weight"}


@dataclass(frozen=True)
class ImportedWeights:
    """A backbone's state dict, the form it is for, and one line saying what was loaded and what was not."""

    state: dict[str, Tensor]
    first_expansion: bool
    message: str


def load_backbone_weights(path: str | os.PathLike, name: str, in_channels: int = 3) -> ImportedWeights:
    """Read weights for backbone `name` from any file :func:`sparsemask.load_weights` reads.

    The layout is recognised by its key names, the form (with or without the first expansion) by the tensors.
    For other than the file's input channels the first filters are repeated, scaled to keep their response.
    Strict: UseError when a tensor is missing, has a wrong shape or is not known.
    """
    choose(name, _LAYOUTS, "backbone with known weight layouts")
    found = load_weights(path)
    title, state, unused = _translate(found, name, path)
    first_expansion = has_first_expansion(state, name)
    own = create(name, first_expansion=first_expansion).state_dict()
    for key in own:
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=torch.long)  # older files lack the counters
    _check(state, own, title, name, path)
    state = {key: state[key] for key in own}
    message = f"backbone {name}: {len(state)} tensors from {path} ({title} layout"
    message += "" if first_expansion else ", no first expansion"
    if in_channels != state[_INPUT[name]].shape[1]:
        state[_INPUT[name]] = _adapt(state[_INPUT[name]], in_channels)
        message += f", first filters adapted to {in_channels} channels"
    message += "); not used: " + (", ".join(unused) if unused else "nothing")
    return ImportedWeights(state, first_expansion, message)


def has_first_expansion(state: Mapping[str, Tensor], name: str) -> bool:
    """Whether weights of backbone `name`, bare or of a whole network, have the first expansion."""
    key = _FIRST_EXPANSION.get(name)
    return key is None or key in state or f"backbone.{key}" in state


def _translate(found: dict[str, Tensor], name: str, path) -> tuple[str, dict[str, Tensor], list[str]]:
    """Layout, tensors under our names, and what the backbone has no use for (as words)."""
    for layout in _LAYOUTS[name]:
        if layout.mark in found:
            keys = layout.keys()
            rest = [key for key in found if key.rpartition(".")[0] not in keys]
            unknown = [key for key in rest if not key.startswith(layout.classifier)]
            if unknown:
                raise UseError(
                    f"{path}: {layout.title} layout, but {len(unknown)} tensors are not of {name} "
                    f"({', '.join(unknown[:3])})"
                )
            state = {}
            for key, value in found.items():
                layer, _, leaf = key.rpartition(".")
                if layer in keys:
                    state[f"{keys[layer]}.{leaf}"] = value
            return layout.title, state, [f"classifier ({len(rest)} tensors)"] if rest else []
    if any(key.startswith("backbone.") for key in found):
        state = {key.removeprefix("backbone."): v for key, v in found.items() if key.startswith("backbone.")}
        parts: dict[str, int] = {}
        for key in found:
            if not key.startswith("backbone."):
                part = key.partition(".")[0]
                parts[part] = parts.get(part, 0) + 1
        return "sparsemask", state, [f"{part} ({count} tensors)" for part, count in parts.items()]
    return "sparsemask", dict(found), []


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor], title: str, name: str, path) -> None:
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and state[key].shape != own[key].shape and key != _INPUT[name]]
    if missing or unknown or shapes or state[_INPUT[name]].dim() != 4:
        problems = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for keys, what in ((missing, "missing"), (unknown, "not known"), (shapes, "of another shape"))
            if keys
        ]
        raise UseError(f"{path}: not weights of {name} ({title} layout): {'; '.join(problems)}")


def _adapt(filters: Tensor, in_channels: int) -> Tensor:
    """Repeat the filters over `in_channels` and scale them, so that equal channels give an equal response."""
    given = filters.shape[1]
    repeated = filters.repeat(1, -(-in_channels // given), 1, 1)[:, :in_channels]
    return repeated * (given / in_channels)
