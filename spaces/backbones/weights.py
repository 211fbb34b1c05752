"""Pretrained backbones: torchvision's and timm's layouts, public SparseMask checkpoints, our own. Files only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.plugins import is_own
from sparsemask.spaces.backbones import builder, create, forms
from sparsemask.spaces.backbones.mobilenet_v2_keys import timm_keys, torchvision_keys
from sparsemask.spaces.backbones.timm_features import TimmLayout, timm_layout
from sparsemask.weights import load_weights


@dataclass(frozen=True)
class Layout:
    """Another project's names: a tensor that gives it away, layer names -> ours."""

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
_INPUT = {"mobilenet_v2": ("conv1.weight",)}
# Tops of classifiers that timm builds otherwise than torchvision's files name them.
_TOPS = ("fc.", "classifier.", "head.", "pre_logits.")


@dataclass(frozen=True)
class ImportedWeights:
    """A backbone's state dict, the form it is for, and a line saying what was loaded and what was not."""

    state: dict[str, Tensor]
    form: dict[str, str]
    """As :func:`sparsemask.spaces.backbones.forms.of_weights` gives it."""
    message: str


def load_backbone_weights(path: str | os.PathLike, name: str, in_channels: int = 3) -> ImportedWeights:
    """Read weights for backbone `name` from any file :func:`sparsemask.load_weights` reads.

    The layout is recognised by its key names, the form by the tensors.
    For other than the file's input channels the first filters are repeated, scaled to keep their response.
    Strict: UseError when a tensor is missing, has a wrong shape or is not known.
    """
    builder(name)
    found = load_weights(path)
    if name in _LAYOUTS or is_own(name):
        inputs, layout = _INPUT.get(name, ()), None
    else:
        layout = timm_layout(name)
        inputs = layout.inputs
    title, state, unused = _translate(found, name, path, layout)
    form = forms.of_weights(state, name)
    lacking = forms.arguments(name, form)
    with torch.device("meta"):
        own = create(name, **lacking).state_dict()
    for key in own:
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=torch.long)  # older files lack the counters
    _check(state, own, inputs, f"{path}: not weights of {name} ({title} layout)")
    state = {key: state[key] for key in own}
    message = f"backbone {name}: {len(state)} tensors from {path} ({title} layout"
    message += "".join(f", no {option.replace('_', ' ')}" for option in lacking)
    others = [key for key in inputs if state[key].shape[1] != in_channels]
    for key in others:
        state[key] = _adapt(state[key], in_channels)
    message += f", first filters adapted to {in_channels} channels" if others else ""
    message += "); not used: " + (", ".join(unused) if unused else "nothing")
    return ImportedWeights(state, form, message)


def _translate(
    found: dict[str, Tensor], name: str, path, timm: TimmLayout | None
) -> tuple[str, dict[str, Tensor], list[str]]:
    """Layout, tensors under our names, and what the backbone has no use for (as words)."""
    for layout in _LAYOUTS.get(name, ()):
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
        return "sparsemask", state, _parts(key for key in found if not key.startswith("backbone."))
    if timm is not None and not any(key.startswith("timm.") for key in found):
        rest = [key for key in found if key in timm.rest or (key not in timm.keys and key.startswith(_TOPS))]
        state = {timm.keys.get(key, key): value for key, value in found.items() if key not in rest}
        return "timm", state, _parts(rest)
    return "sparsemask", dict(found), []


def _parts(keys: Iterable[str]) -> list[str]:
    """What tensors there are, by the first component of their names, in words."""
    return [f"{part} ({count} tensors)" for part, count in Counter(key.partition(".")[0] for key in keys).items()]


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor], inputs: tuple[str, ...], what: str) -> None:
    def misfit(key: str) -> bool:
        found, wanted = list(state[key].shape), list(own[key].shape)
        if key in inputs and len(found) == 4:
            found[1] = wanted[1]  # of another number of channels, adapted later
        return found != wanted

    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and misfit(key)]
    problems = [
        f"{len(keys)} {words} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for keys, words in ((missing, "missing"), (unknown, "not known"), (shapes, "of another shape"))
        if keys
    ]
    if problems:
        raise UseError(f"{what}: {'; '.join(problems)}")


def _adapt(filters: Tensor, in_channels: int) -> Tensor:
    """Repeat the filters over `in_channels` and scale them, so that equal channels give an equal response."""
    given = filters.shape[1]
    repeated = filters.repeat(1, -(-in_channels // given), 1, 1)[:, :in_channels]
    return repeated * (given / in_channels)
