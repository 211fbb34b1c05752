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
    """Tensor names of another project: a tensor that identifies it, and its layer names -> ours."""

    title: str
    mark: str
    keys: Callable[[], dict[str, str]]
    classifier: str  # prefix of the classifier's tensors, which a backbone does not need


_LAYOUTS = {
    "mobilenet_v2": (
        Layout("torchvision", "features.0.0.weight", torchvision_keys, "classifier."),
        Layout("timm", "conv_stem.weight", timm_keys, "classifier."),
    )
}
_INPUT = {"mobilenet_v2": ("conv1.weight",)}
# Classifier heads that timm names differently from torchvision's files.
_TOPS = ("fc.", "classifier.", "head.", "pre_logits.")


@dataclass(frozen=True)
class ImportedWeights:
    """A backbone's state dict, the form it is for, and a line saying what was loaded and what was not."""

    state: dict[str, Tensor]
    form: dict[str, str]
    """As :func:`sparsemask.spaces.backbones.forms.of_weights` gives it."""
    message: str


def load_backbone_weights(path: str | os.PathLike, name: str, in_channels: int = 3) -> ImportedWeights:
    """Read weights of a backbone from any file that :func:`sparsemask.load_weights` reads.

    The layout is recognised by its tensor names, the form by its tensors. If the file's number of input channels
    differs, the first filters are repeated and scaled, so that equal channels keep their response.

    Args:
        path: the weights file.
        name: the backbone's name.
        in_channels: channels of the input image.

    Returns:
        The state dict under our names, its form and a line that says what was loaded.

    Raises:
        UseError: a tensor is missing, unknown or of a wrong shape.
    """
    builder(name)
    loaded = load_weights(path)
    if name in _LAYOUTS or is_own(name):
        inputs, layout = _INPUT.get(name, ()), None
    else:
        layout = timm_layout(name)
        inputs = layout.inputs
    title, state, unused = _translate(loaded, name, path, layout)
    form = forms.of_weights(state, name)
    lacking = forms.arguments(name, form)
    with torch.device("meta"):
        expected = create(name, **lacking).state_dict()
    for key in expected:
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=torch.long)  # older files lack the counters
    _check(state, expected, inputs, f"{path}: not weights of {name} ({title} layout)")
    state = {key: state[key] for key in expected}
    message = f"backbone {name}: {len(state)} tensors from {path} ({title} layout"
    message += "".join(f", no {option.replace('_', ' ')}" for option in lacking)
    adapted = [key for key in inputs if state[key].shape[1] != in_channels]
    for key in adapted:
        state[key] = _adapt(state[key], in_channels)
    message += f", first filters adapted to {in_channels} channels" if adapted else ""
    message += "); not used: " + (", ".join(unused) if unused else "nothing")
    return ImportedWeights(state, form, message)


def _translate(
    loaded: dict[str, Tensor], name: str, path, timm: TimmLayout | None
) -> tuple[str, dict[str, Tensor], list[str]]:
    """Title of the layout, tensors under our names, and a description of the tensors that are not used."""
    for layout in _LAYOUTS.get(name, ()):
        if layout.mark in loaded:
            keys = layout.keys()
            unused = [key for key in loaded if key.rpartition(".")[0] not in keys]
            unknown = [key for key in unused if not key.startswith(layout.classifier)]
            if unknown:
                raise UseError(
                    f"{path}: {layout.title} layout, but {len(unknown)} tensors are not of {name} "
                    f"({', '.join(unknown[:3])})"
                )
            state = {}
            for key, value in loaded.items():
                layer, _, leaf = key.rpartition(".")
                if layer in keys:
                    state[f"{keys[layer]}.{leaf}"] = value
            return layout.title, state, [f"classifier ({len(unused)} tensors)"] if unused else []
    if any(key.startswith("backbone.") for key in loaded):
        state = {key.removeprefix("backbone."): v for key, v in loaded.items() if key.startswith("backbone.")}
        return "sparsemask", state, _parts(key for key in loaded if not key.startswith("backbone."))
    if timm is not None and not any(key.startswith("timm.") for key in loaded):
        unused = [key for key in loaded if key in timm.unused or (key not in timm.keys and key.startswith(_TOPS))]
        state = {timm.keys.get(key, key): value for key, value in loaded.items() if key not in unused}
        return "timm", state, _parts(unused)
    return "sparsemask", dict(loaded), []


def _parts(keys: Iterable[str]) -> list[str]:
    """Number of tensors by the first component of their names, as text."""
    return [f"{part} ({count} tensors)" for part, count in Counter(key.partition(".")[0] for key in keys).items()]


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], inputs: tuple[str, ...], what: str) -> None:
    def misfit(key: str) -> bool:
        shape, expected_shape = list(state[key].shape), list(expected[key].shape)
        if key in inputs and len(shape) == 4:
            shape[1] = expected_shape[1]  # of another number of channels, adapted later
        return shape != expected_shape

    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    shapes = [key for key in expected if key in state and misfit(key)]
    problems = [
        f"{len(keys)} {problem} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for keys, problem in ((missing, "missing"), (unknown, "not known"), (shapes, "of another shape"))
        if keys
    ]
    if problems:
        raise UseError(f"{what}: {'; '.join(problems)}")


def _adapt(filters: Tensor, in_channels: int) -> Tensor:
    """Repeat the filters over `in_channels` and scale them, so that equal channels give an equal response."""
    file_channels = filters.shape[1]
    repeated = filters.repeat(1, -(-in_channels // file_channels), 1, 1)[:, :in_channels]
    return repeated * (file_channels / in_channels)
