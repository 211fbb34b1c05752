"""Dense super-resolution networks from files: names and shapes of the weights say which network they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsemask import weights
from sparsemask.errors import UseError
from sparsemask.spaces.described import build_described
from sparsemask.spaces.sr_networks.edsr import EDSR
from sparsemask.spaces.sr_networks.network import SRNetwork, State
from sparsemask.spaces.sr_networks.plksr import PLKSR
from sparsemask.spaces.sr_networks.rlfn import RLFN
from sparsemask.spaces.sr_networks.span import SPAN
from sparsemask.spaces.sr_networks.srvgg import SRVGGNetCompact

ARCHITECTURES: dict[str, type[SRNetwork]] = {c.architecture: c for c in (EDSR, PLKSR, RLFN, SPAN, SRVGGNetCompact)}
"""The architectures by name."""

# Parts of names by which layouts that are not built here are told apart, for the message.
_RELATIVES = {
    "RRDBNet (ESRGAN, Real-ESRGAN)": (".rdb1.", ".RDB1."),
    "SAFMN": (".safm.",),
    "RCAN or a relative with residual groups": (".conv_du.",),
    "SMSR": (".ch_mask",),
    "a transformer (SwinIR, HAT, DAT, ...)": (".relative_position_bias_table", ".attn.qkv.", ".qkv."),
    "RFDN or IMDN": (".c1_d.", ".esa.conv_max."),
    "an encoder of a classifier": ("layer1.0.conv1.", "features.0.0."),
}


def recognise(state: State, what: object = "checkpoint") -> tuple[type[SRNetwork], dict[str, Any], State] | None:
    """Determine the architecture of a state dict.

    Args:
        state: bare names and tensors.
        what: the file's name in errors.

    Returns:
        (class, its arguments, the state dict under the class's names); None where no known architecture has these
        names.

    Raises:
        UseError: a variant of a known architecture that is not known.
    """
    for kind in ARCHITECTURES.values():
        try:
            renamed = kind.rename(state)
            config = kind.describe(renamed)
        except UseError as error:
            raise UseError(f"{what}: looks like {kind.architecture}, but {error}") from None
        if config is not None:
            return kind, config, renamed
    return None


def build(state: Mapping[str, Tensor], what: object = "checkpoint") -> SRNetwork:
    """Build the network of a state dict, strictly loaded, folded, in evaluation mode on the CPU.

    Args:
        state: bare names and tensors of any public layout.
        what: the file's name in errors.

    Raises:
        UseError: no architecture that is known; the message says what the weights look like.
    """
    found = recognise(state, what)
    if found is None:
        raise UseError(
            f"{what}: no super-resolution network that is known: {looks_like(state)}; known are "
            f"{', '.join([*ARCHITECTURES, 'SMSR'])}"
        )
    kind, config, renamed = found
    network = build_described(lambda: kind(**config), renamed, what)
    assert isinstance(network, SRNetwork)
    network.fold()
    return network.eval()


def load(path: str | os.PathLike[str]) -> SRNetwork:
    """Load a dense super-resolution network from a public checkpoint or a safetensors file.

    Wrappers (`params_ema`, `state_dict`, `module.`) are removed; no code of the file is run.

    Args:
        path: .pth, .pt or .safetensors.

    Returns:
        The network in evaluation mode on the CPU, its training-time branches folded.

    Raises:
        UseError: the file is missing, damaged, or of no known architecture.
    """
    return build(weights.load_weights(path), path)


def save(path: str | os.PathLike[str], network: SRNetwork, notes: Mapping[str, str] | None = None) -> None:
    """Write a network as a safetensors file, atomically, with its architecture and arguments as metadata.

    Args:
        path: the file.
        network: its names are the public ones.
        notes: further metadata, such as where the weights come from.
    """
    described = {"architecture": network.architecture, **network.config}
    entries = {key: json.dumps(value) for key, value in described.items()}
    weights.save_safetensors(Path(path), network.state_dict(), {**entries, **(notes or {})})


def looks_like(state: State) -> str:
    """What a state dict is, as far as its names tell: a relative, its number of tensors, its first one."""
    name = next((n for n, parts in _RELATIVES.items() if any(part in key for key in state for part in parts)), None)
    first, tensor = next(iter(state.items()))
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    text = f"{len(state)} tensors from {first[:80]} ({shape}) on"
    return f"it looks like {name}, {text}" if name else text
