"""Recognise the architecture of a state dict by its names and shapes, and rename its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity import networks


@dataclass(frozen=True)
class Layout:
    """A recognised state dict."""

    arch: str
    """Name for `networks.create`."""
    n_class: int
    state: dict[str, Tensor]
    """The weights under this toolkit's names."""
    options: dict = field(default_factory=dict)
    """Arguments of `networks.create` that differ from the named network's."""
    strided: bool = False
    """Whether the layout implies shortcuts that take every second pixel."""


def read(state: Mapping[str, Tensor], what: object) -> Layout:
    """Recognise which named network a state dict belongs to: plain, hinged, compressed or merged.

    Supports the published layout of group sparsity's networks, which is this toolkit's except for hinged DenseNets, and
    the CIFAR ResNets whose shortcuts take every second pixel and pad channels with zeros (`layer1.0.conv1`, ...).

    Args:
        state: tensors by name.
        what: the file's name in errors.

    Raises:
        UseError: the weights are damaged or of another network.
    """
    state = {key: value for key, value in state.items() if not key.endswith("running_grad_ratio")}
    for fits, understand in _KNOWN:
        if fits(state):
            try:
                return understand(state)
            except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
                raise UseError(f"{what}: torn or of another network ({type(error).__name__}: {error})") from None
    raise UseError(
        f"{what}: of none of the networks {', '.join(networks.available())} (it begins with "
        f"{', '.join(list(state)[:3])}); for weights of your own network name it: --arch package.module:callable"
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """1 + the largest number matched by the pattern's group."""
    return 1 + max(int(match[1]) for match in map(re.compile(pattern).match, state) if match)


def _named(family: str, n_class: int, state: dict[str, Tensor], settings: dict, strided: bool = False) -> Layout:
    """The layout named after the network with these settings; remaining differences become options."""
    candidates = [arch for arch in networks.available() if networks.architecture(arch).family == family]
    if family in networks.ANY_DEPTH:
        candidates.append(f"{family}{settings['depth']}")
    for fixed in (("depth", "block"), ("depth",)):  # another block is an option of the depth's network
        for arch in candidates:
            defaults = networks.defaults(arch)
            if all(defaults.get(key) == settings.get(key, defaults.get(key)) for key in fixed):
                options = {key: value for key, value in settings.items() if defaults.get(key) != value}
                return Layout(arch, n_class, state, options, strided)
    raise ValueError(f"a {family} of {settings}")


def _classes(state: Mapping[str, Tensor], name: str) -> int:
    return state[f"{name}.weight"].shape[0]


def _resnet(state: dict[str, Tensor]) -> Layout:
    bottleneck = "features.1.0.body.6.weight" in state
    settings = {
        "depth": 2 + (9 if bottleneck else 6) * _count(state, r"features\.1\.(\d+)\."),
        "block": "bottleneck" if bottleneck else "basic",
        "bias": "features.0.0.bias" in state,
        "shortcut": "C" if any(".downsample." in key for key in state) else "A",
    }
    return _named("resnet", _classes(state, "classifier"), state, settings)


def _strided_resnet(state: dict[str, Tensor]) -> Layout:
    body_layers = {"conv1": "body.0", "bn1": "body.1", "conv2": "body.3", "bn2": "body.4", "shortcut": "downsample"}
    other_layers = {"conv1": "features.0.0", "bn1": "features.0.1", "linear": "classifier"}
    renamed = {}
    for key, value in state.items():
        match = re.match(r"layer([123])\.(\d+)\.(\w+?)\.(.+)$", key)
        if match:
            stage, block, part, leaf = match.groups()
            renamed[f"features.{stage}.{block}.{body_layers[part]}.{leaf}"] = value
        else:
            part, _, leaf = key.partition(".")
            renamed[f"{other_layers[part]}.{leaf}"] = value
    convolved = any(".downsample." in key for key in renamed)
    settings = {
        "depth": 2 + 6 * _count(state, r"layer1\.(\d+)\."),
        "block": "basic",
        "bias": "conv1.bias" in state,
        "shortcut": "C" if convolved else "strided",
    }
    return _named("resnet", _classes(state, "linear"), renamed, settings, not convolved)


def _resnext(state: dict[str, Tensor]) -> Layout:
    width = state["layer1.0.conv2.weight"].shape[1]
    settings = {
        "depth": 2 + 9 * _count(state, r"layer1\.(\d+)\."),
        "width": width,
        "cardinality": state["layer1.0.conv3.weight"].shape[0] // (2 * width),  # outputs are never removed
    }
    return _named("resnext", _classes(state, "linear"), state, settings)


def _wide_resnet(state: dict[str, Tensor]) -> Layout:
    depth = 4 + 6 * _count(state, r"layer1\.(\d+)\.")
    settings = {"depth": depth, "widen": state["linear.weight"].shape[1] // 64}
    return _named("wide_resnet", _classes(state, "linear"), state, settings)


def _vgg(state: dict[str, Tensor]) -> Layout:
    return _named("vgg", _classes(state, "classifier.2"), state, {})


def _densenet(state: dict[str, Tensor]) -> Layout:
    renamed = {}
    for key, value in state.items():  # the matrix stands after its convolution there, in it here
        match = re.match(r"(features\.(?:[135]\.\d+\.body|[24]))\.([23])\.(weight|bias)$", key)
        if match and f"{match[1]}.3.weight" in state:
            key = f"{match[1]}.2.{int(match[2]) - 2}.{match[3]}"
        renamed[key] = value
    depth = 4 + 3 * _count(state, r"features\.1\.(\d+)\.")
    settings = {"depth": depth, "growth": state["features.0.weight"].shape[0] // 2}
    return _named("densenet", _classes(state, "classifier"), renamed, settings)


def _has(*names: str, lacks: tuple[str, ...] = ()) -> Callable[[Mapping], bool]:
    return lambda state: all(name in state for name in names) and not any(name in state for name in lacks)


_KNOWN: tuple[tuple[Callable[[Mapping], bool], Callable[[dict], Layout]], ...] = (
    (_has("features.0.0.weight", "features.1.0.body.1.weight"), _resnet),
    (_has("layer1.0.conv1.weight", "layer1.0.bn3.weight", "layer1.0.conv2.weight"), _resnext),
    (_has("conv1.weight", "conv1.bias", "layer1.0.bn1.weight", "linear.weight"), _wide_resnet),
    (_has("layer1.0.conv1.weight", "bn1.weight", "linear.weight", lacks=("conv1.bias",)), _strided_resnet),
    (_has("features.0.0.weight", "classifier.2.weight"), _vgg),
    (_has("features.0.weight", "features.1.0.body.0.weight"), _densenet),
)
