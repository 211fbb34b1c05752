"""The networks of group sparsity, by name; a user's own as ``package.module:callable``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from sparsemask.errors import UseError, choose, meant
from sparsemask.plugins import imported, is_own
from sparsemask.spaces.group_sparsity.networks.densenet import DenseNet
from sparsemask.spaces.group_sparsity.networks.resnet import ResNet
from sparsemask.spaces.group_sparsity.networks.resnext import ResNeXt
from sparsemask.spaces.group_sparsity.networks.vgg import VGG
from sparsemask.spaces.group_sparsity.networks.wide_resnet import WideResNet

INPUT_SHAPE = (3, 32, 32)
"""Channels, height and width of the images that the named networks are made for."""


_FAMILIES: dict[str, type[nn.Module]] = {
    "densenet": DenseNet,
    "resnet": ResNet,
    "resnext": ResNeXt,
    "vgg": VGG,
    "wide_resnet": WideResNet,
}

ANY_DEPTH = ("resnet", "resnext", "densenet")
"""Families whose networks may be named with another depth, as resnet110."""


@dataclass(frozen=True)
class Architecture:
    """How a named network is built, and which group sparsity rules apply to it."""

    family: str
    """Which class builds it; also the key of its rules."""
    settings: dict = field(default_factory=dict)
    """Its arguments, overridden by those of `create`."""


_NAMED = {
    "resnet20": Architecture("resnet", {"depth": 20}),
    "resnet56": Architecture("resnet", {"depth": 56}),
    "resnet164": Architecture("resnet", {"depth": 164, "block": "bottleneck", "bias": False, "shortcut": "C"}),
    "resnext20": Architecture("resnext", {"depth": 20}),
    "resnext164": Architecture("resnext", {"depth": 164}),
    "vgg16": Architecture("vgg"),
    "densenet40": Architecture("densenet", {"depth": 40}),
    "wrn16_10": Architecture("wide_resnet", {"depth": 16, "widen": 10}),
}


def available() -> list[str]:
    """Names of all named networks."""
    return sorted(_NAMED)


def architecture(arch: str) -> Architecture | None:
    """Return the architecture of a named network; None for ``package.module:callable``.

    Raises:
        UseError: unknown name.
    """
    if is_own(arch):
        return None
    if not isinstance(arch, str):
        raise UseError(f"a network is said by its name, not by {arch!r:.80}")
    if arch not in _NAMED:
        match = re.fullmatch(rf"({'|'.join(ANY_DEPTH)})(\d{{1,4}})", arch)
        if match:
            return Architecture(match[1], {"depth": int(match[2])})
        raise UseError(
            f"unknown network '{arch}'; {meant(arch, _NAMED)}known: {', '.join(available())}; resnet, resnext or "
            "densenet of another depth; your own: package.module:callable"
        )
    return _NAMED[arch]


def create(arch: str | Callable, n_class: int = 10, **options) -> nn.Module:
    """Build a network, its weights drawn from torch's global generator.

    Args:
        arch: one of `available()`, or ``package.module:callable`` for a user's own CNN, which is called without
            arguments, or with `n_class` (or `num_classes`) if it accepts it; it is imported only if the user has
            named it (see :mod:`sparsemask.plugins`). The callable itself is accepted too.
        n_class: number of classes.
        options: arguments of the named network's class, such as `shortcut` or `bias` of a ResNet.

    Raises:
        UseError: unknown name, option or depth, or a callable that cannot be imported, needs other arguments or returns
            no module.
    """
    known = None if callable(arch) else architecture(arch)
    if known is None:
        if options:
            raise UseError(f"network '{arch}': takes no options here ({', '.join(options)}); set them in the callable")
        return _own(arch, n_class)
    settings = defaults(arch)
    for name in options:
        choose(name, [key for key in settings if key != "depth"], f"option of {arch}")
    return _FAMILIES[known.family](n_class=n_class, **{**settings, **options})


def defaults(arch: str) -> dict:
    """Return the default arguments of a named network, without `n_class`."""
    known = architecture(arch)
    parameters = inspect.signature(_FAMILIES[known.family]).parameters.values()
    arguments = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty
    }
    arguments.pop("n_class")
    return {**arguments, **known.settings}


def _own(arch: str | Callable, n_class: int) -> nn.Module:
    builder = arch if callable(arch) else imported(arch, "network")
    signature = _signature(builder)
    names = signature.parameters if signature else ()
    class_argument = next((name for name in ("n_class", "num_classes") if name in names), None)
    arguments = {class_argument: n_class} if class_argument else {}
    try:
        if signature:
            signature.bind(**arguments)
    except TypeError as error:
        raise UseError(
            f"network '{arch}': {error}; it gets a number of classes at most: name a function that sets the rest"
        ) from None
    network = builder(**arguments)
    if not isinstance(network, nn.Module):
        raise UseError(f"network '{arch}': returned {type(network).__name__}, expected a torch.nn.Module")
    return network


def _signature(builder: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(builder)
    except ValueError:  # some built in C
        return None
