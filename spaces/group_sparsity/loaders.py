"""Load networks from files: plain, hinged, merged and compressed ones."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError, one_line
from sparsemask.spaces.group_sparsity import networks
from sparsemask.spaces.group_sparsity.compression.border import fit_additions
from sparsemask.spaces.group_sparsity.layouts import read
from sparsemask.spaces.group_sparsity.networks.resnet import ResNet
from sparsemask.spaces.group_sparsity.pairs import DoubleReLU, Pair
from sparsemask.spaces.group_sparsity.tracing.slicing import reshape_, tensors
from sparsemask.weights import load_strictly, load_weights

_COUNTER = "num_batches_tracked"


def load(path: str | os.PathLike, **options) -> nn.Module:
    """Load the network of a file; as :func:`build`."""
    return build(load_weights(path), path, **options)


def build(state: Mapping[str, Tensor], what: object, **options) -> nn.Module:
    """Build the network of a state dict and load its weights.

    Args:
        state: tensors by name; names and shapes determine the network.
        what: the file's name in errors.
        options: of `networks.create`, for properties that names and shapes do not determine, such as
            `shortcut="strided"`.

    Returns:
        The network in evaluation mode.

    Raises:
        UseError: not a named network, damaged, or layers that do not fit together.
    """
    layout = read(state, what)
    network = networks.create(layout.arch, layout.n_class, **{**layout.options, **options})
    fit_shapes(network, layout.state)
    _load(network, layout.state, what)
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *networks.INPUT_SHAPE))
    except RuntimeError as error:
        raise UseError(f"{what}: its layers do not fit each other ({one_line(error)})") from None
    return network


def load_into(network: nn.Module, state: Mapping[str, Tensor], what: object) -> None:
    """Load weights of the same shapes into a network.

    Args:
        network: changed in place.
        state: tensors under the network's names or in any layout that :func:`read` recognises.
        what: the file's name in errors.

    Raises:
        UseError: the weights do not fit, or the file's shortcuts are of another kind (which names and shapes do not
            show); nothing is loaded then.
    """
    if any(key not in state for key in network.state_dict() if not key.endswith(_COUNTER)):
        try:
            layout = read(state, what)
        except UseError:
            layout = None  # a network of the user's own: what is missing is said below
        if layout is not None:
            if isinstance(network, ResNet) and layout.strided and network.shortcut != "strided":
                raise UseError(
                    f"{what}: its shortcuts take every second pixel, this network's do not; create it with "
                    f"shortcut 'strided' (it has '{network.shortcut}')"
                )
            state = layout.state
    _load(network, state, what)


def _load(network: nn.Module, state: Mapping[str, Tensor], what: object) -> None:
    expected = network.state_dict()
    state = dict(state)
    for key, value in expected.items():
        if key.endswith(_COUNTER):  # older files lack it
            state.setdefault(key, torch.zeros_like(value))
        elif key in state and value.dim() == 0 and state[key].numel() == 1:
            state[key] = state[key].reshape(())
    load_strictly(network, state, what)


def fit_shapes(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the shapes of a state dict, in place, before it is loaded.

    A convolution that is a pair in the file becomes a pair, a pair that is one convolution becomes one, a ReLU with
    slopes becomes a double one; channels, groups and features are set; biases and borders from compression are added.
    Tensors that the file lacks are left as they are; loading then reports them.

    Args:
        network: changed in place.
        state: tensors under the network's names.
    """
    for name, module in list(network.named_modules()):
        parent = network.get_submodule(name.rpartition(".")[0]) if name else None
        if isinstance(module, nn.ReLU) and f"{name}.slope_p" in state:
            network.set_submodule(name, DoubleReLU())
        elif isinstance(module, Pair) and f"{name}.weight" in state:
            network.set_submodule(name, module.single_layer())
        elif isinstance(module, nn.Conv2d) and not isinstance(parent, Pair) and _is_pair(state, name):
            network.set_submodule(name, Pair.shaped(module, len(state[f"{name}.0.weight"])))
    resized = {}
    for name, tensor in tensors(network).items():
        target = state.get(name)
        if target is not None and target.dim() == tensor.dim() and target.shape != tensor.shape:
            resized[name] = tensor.new_zeros(target.shape)
    reshape_(network, resized)
    fit_additions(network, state)


def _is_pair(state: Mapping[str, Tensor], name: str) -> bool:
    return f"{name}.0.weight" in state and f"{name}.1.weight" in state
