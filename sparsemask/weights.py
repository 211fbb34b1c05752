"""Reading and writing weights: checkpoints of this toolkit, public ones, bare state dicts, safetensors.

Pickles are read with ``weights_only=True``, so that no file runs code.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from sparsemask import checkpoint_schema, containers
from sparsemask.errors import UseError, one_line, say
from sparsemask.files import write_bytes
from sparsemask.weight_files import ENTRIES, check_finite, shard, unwrapped, what_it_is


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read all entries of a checkpoint, tensors on the CPU.

    Args:
        path: a torch file (zip or legacy) or a `.safetensors` file.

    Raises:
        UseError: it is missing, a folder, truncated, no checkpoint, or asks for code to be run; or an entry of a run's
            checkpoint has the wrong type (:mod:`sparsemask.checkpoint_schema`).
    """
    path = Path(path)
    if path.is_dir():
        raise UseError(f"{path}: is a folder, expected a checkpoint file")
    if not path.exists():
        raise UseError(f"checkpoint not found: {path}")
    if part := shard(path):
        raise UseError(f"{path}: {part}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            really = what_it_is(path) or f"truncated or not a safetensors file ({_brief(error)})"
            raise UseError(f"{path}: {really}") from None
    containers.check_zip_file(path, "truncated or not a checkpoint")
    try:
        with warnings.catch_warnings():  # about pickles that it then refuses
            warnings.simplefilter("ignore", UserWarning)
            if zipfile.is_zipfile(path):
                value = torch.load(path, map_location="cpu", weights_only=True)
            else:  # torch's older formats say how much is to be read
                with open(path, "rb") as file:
                    value = torch.load(cast(IO[bytes], containers.Bounded(file)), map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno is not None:  # the system's refusal (permission, disk), worded by errors.command
            raise
        raise UseError(f"{path}: truncated or not a checkpoint ({_brief(error)})") from None
    except Exception as error:  # the unpickler raises whatever a damaged byte leads it to
        raise UseError(_unreadable(path, error)) from None
    if not isinstance(value, Mapping):
        raise UseError(f"{path}: expected a checkpoint (a dictionary), found {type(value).__name__}")
    if checkpoint_schema.is_ours(value):
        checkpoint_schema.check(value, path)
    return dict(value)


def check_plain(data: bytes) -> None:
    """Raise one of torch's errors where the bytes of a torch file ask for more than tensors and plain values."""
    torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def config_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The run's configuration in a checkpoint; empty where it has none."""
    config = checkpoint.get("config")
    return config if isinstance(config, Mapping) else {}


def _unreadable(path: Path, error: Exception) -> str:
    if really := what_it_is(path):
        return f"{path}: {really}"
    text = str(error)
    match = re.search(r"GLOBAL\s+([\w.]+\.[\w.]+)", text)
    if match or _calls(path):
        detail = f" ({match.group(1)})" if match else ""
        return (
            f"{path}: refused, it is a pickle that asks for code to be run{detail}; nothing was run. "
            "Save the bare state dict or a safetensors file instead"
        )
    if "TorchScript" in text:
        return f"{path}: is a TorchScript archive, not a checkpoint; save the model's state dict instead"
    return f"{path}: truncated or not a checkpoint ({_brief(error)})"


def _calls(path: Path) -> bool:
    """Whether a bare pickle calls anything: disassembled, not run (torch reads old protocols only)."""
    with open(path, "rb") as file:
        head = file.read(1 << 20)
    calls = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
    with contextlib.suppress(Exception):  # what ends the disassembly is no pickle
        return head.startswith(b"\x80") and any(op.name in calls for op, _, _ in pickletools.genops(head))
    return False


def _brief(error: Exception) -> str:
    text = one_line(error).rpartition("WeightsUnpickler error: ")[2].partition(" Check the doc")[0]
    text = text or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def file_space(path: str | os.PathLike[str]) -> str | None:
    """The space named in a run's checkpoint or in a network's safetensors file; None where none is named."""
    path = Path(path)
    if not path.is_file():
        return None
    with contextlib.suppress(UseError, OSError, SafetensorError):
        entries = metadata(path) if path.suffix == ".safetensors" else read_checkpoint(path)
        space = entries.get("space")
        return space if isinstance(space, str) else None
    return None


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata of a network's safetensors file: JSON values by name; other entries are ignored."""
    with containers.reading(path, "truncated or not a safetensors file"), safe_open(path, framework="pt") as file:
        texts = file.metadata() or {}
    values = {}
    for key, text in texts.items():
        with contextlib.suppress(ValueError, RecursionError):
            values[key] = json.loads(text)
    return values


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The bare state dict of any checkpoint file, without the prefixes of DataParallel and torch.compile.

    Args:
        path: a checkpoint of this toolkit (entry `model`), a public one (`state_dict`, `params_ema`, `net`, ...), a
            bare state dict, or a safetensors file.

    Returns:
        Finite tensors by name.

    Raises:
        UseError: the file is missing or unreadable, or weights are not finite.
    """
    return bare_state(read_checkpoint(path), path)


def bare_state(checkpoint: Mapping[str, Any], what: object = "checkpoint") -> dict[str, Tensor]:
    """The bare state dict inside a checkpoint that has been read.

    Args:
        checkpoint: its entries.
        what: how error messages begin, mostly the file.

    Returns:
        Finite tensors by name.

    Raises:
        UseError: it holds no weights, or some that are not finite.
    """
    state = unwrapped(checkpoint, what)
    strange = [key for key, value in state.items() if not checkpoint_schema.is_tensor(value)]
    if not state or strange:
        reason = f"found {', '.join(strange[:4])}" if strange else "it is empty"
        raise UseError(f"{what}: no weights in it, neither bare nor under {' or '.join(ENTRIES)} ({reason})")
    check_finite(state, what)
    return cast(dict[str, Tensor], state)


@runtime_checkable
class PartlyBuilt(Protocol):
    """A module without some of its parts: weights of these are left out when others are loaded."""

    unbuilt: Sequence[str]
    """Names of the parts, within the module."""


def under(name: str, parts: Collection[str]) -> bool:
    """Whether a tensor or module is one of the named parts, or lies in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def unbuilt_parts(module: nn.Module) -> list[str]:
    """The names, within a network, of all parts that are not built (:class:`PartlyBuilt`)."""
    return [
        f"{name}.{part}" if name else part
        for name, child in module.named_modules()
        if isinstance(child, PartlyBuilt)
        for part in child.unbuilt
    ]


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: object) -> None:
    """Load a state dict whose names and shapes must all agree.

    Weights of parts that are not built (:class:`PartlyBuilt`) are left out, and a line says so.

    Args:
        module: changed in place.
        state: tensors by name.
        what: how error messages begin, mostly the file.

    Raises:
        UseError: names or shapes differ, or values are not finite; nothing is loaded then.
    """
    expected = module.state_dict()
    parts = unbuilt_parts(module)
    left_out = [key for key in state if under(key, parts)]
    state = {key: value for key, value in state.items() if key not in set(left_out)} if left_out else state
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    plain = _in_plain_words(expected, state, shapes)
    problems = [plain] if plain else [_shape_line(key, state, expected) for key in shapes[:3]]
    if missing:
        problems.append(f"{len(missing)} tensors are missing ({_some(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} do not belong here ({_some(unexpected)})")
    if problems:
        raise UseError(f"{what}: these weights do not fit the network: {'; '.join(problems)}")
    check_finite(state, what)
    module.load_state_dict(state)
    on_meta = any(value.is_meta for value in expected.values())  # a trial, before the network is built
    if left_out and not on_meta and not (dist.is_initialized() and dist.get_rank()):
        say(f"{what}: {len(left_out)} tensors left out, of blocks that nothing reads ({_some(parts)})")


def _in_plain_words(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], shapes: list[str]) -> str:
    """The usual causes of a wrong shape: another number of classes, another decoder depth."""
    causes = []
    key = "fc_conv.weight"
    if key in shapes:
        file_shape, network_shape = state[key].shape, expected[key].shape
        for axis, name in ((0, "classes"), (1, "decoder depth")):
            if len(file_shape) == len(network_shape) and file_shape[axis] != network_shape[axis]:
                causes.append(f"{name}: the file has {file_shape[axis]}, the network {network_shape[axis]}")
    return ", ".join(causes)


def _shape_line(key: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    return f"{key} is {tuple(state[key].shape)} in the file, {tuple(expected[key].shape)} in the network"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def save_safetensors(path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict as a safetensors file, atomically.

    Args:
        path: the file to write.
        state: tensors by name.
        metadata: strings by name that say where the weights come from.
    """
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    write_bytes(path, to_safetensors(tensors, metadata=metadata))


def describe_safetensors(path: str | os.PathLike[str], entries: Mapping[str, Any]) -> None:
    """Add entries to the metadata of a safetensors file, atomically; those that it has already stay.

    Args:
        path: the file.
        entries: plain values by name, written as JSON.
    """
    with containers.reading(path, "truncated or not a safetensors file"), safe_open(path, framework="pt") as file:
        texts = dict(file.metadata() or {})
    added = {key: json.dumps(value) for key, value in entries.items()}
    save_safetensors(path, read_checkpoint(path), {**added, **texts})
