"""How a network with masks is computed on a machine: a backend for each part, chosen for the network as a whole.

A plan changes no function: all backends give the same numbers up to rounding. It holds for one machine, one number of
threads, one arithmetic and one input size, and stands in a file beside the weights, which is read with these; of
weights that lie in no run's folder, in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemask import files
from sparsemask.datasets import cache
from sparsemask.devices import processor
from sparsemask.errors import UseError, say
from sparsemask.ops import dispatch
from sparsemask.runs import Run

Device = torch.device
FORMAT = 1
SUFFIX = ".plan.json"
DENSE = ("dense", "reference")
"""The backends that convolve everything and drop what the masks say."""
_NEAR = 2.0  # a plan serves inputs up to so many times smaller or larger
_MOST = 256  # plans in a file


@dataclass(frozen=True)
class Machine:
    """What a plan was measured on; a plan is followed where all of it is the same."""

    device: str
    processor: str
    vector_width: int
    """Floats of the native kernels' vectors; 0 without these kernels."""
    threads: int
    torch: str
    arithmetic: str = "float32"
    """Of the convolutions: that of `torch.autocast`, where it is on, what native kernels compute it by, and int8."""

    @classmethod
    def here(cls, device: Device) -> Machine:
        """This machine, for a device, and as many threads and the arithmetic that torch has now."""
        return _here(str(device), torch.get_num_threads(), _arithmetic(torch.device(device)))


def _arithmetic(device: Device) -> str:
    kind = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
    name = str(kind).removeprefix("torch.")
    if kind == torch.bfloat16 and dispatch.find("native").why_not(device, kind) is None:
        from sparsemask.backends.native import tiles

        name += f" by {tiles.in_use()}"
        if dispatch.in_int8() and tiles.in_use(tiles.INT8) != "none":
            name += f", int8 by {tiles.in_use(tiles.INT8)}"
    return name


@lru_cache(maxsize=8)
def _here(device: str, threads: int, arithmetic: str) -> Machine:
    name = processor() if device == "cpu" else torch.cuda.get_device_name(device)
    width = 0
    if device == "cpu" and dispatch.find("native").why_not(torch.device(device), torch.float32) is None:
        from sparsemask.backends.native import library

        width = library.width()
    return Machine(device, name, width, threads, torch.__version__, arithmetic)


@dataclass(frozen=True)
class Plan:
    """The choice for one machine and input size.

    Attributes:
        machine: that it was measured on.
        shape: of the input: images (N, C, H, W), pairs likewise, crops of points (N, C, points).
        backends: of each part by its name; see :meth:`MaskedNetwork.parts`.
        kept: kept fraction of the input that it was measured with, in [0, 1].
        milliseconds: of the whole network: "plan"; "skip", every part skips; "unmasked", the same weights with
            everything kept, another function; where some part is faster so, "dense", every part computed densely and
            multiplied by its masks, and "mixed".
    """

    machine: Machine
    shape: tuple[int, ...]
    backends: Mapping[str, str]
    kept: float
    milliseconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def dense(self) -> list[str]:
        """Names of the parts that are computed densely."""
        return [name for name, backend in self.backends.items() if backend in DENSE]


class Plans:
    """Plans of one network by machine and input size; those of other machines are kept and not followed."""

    def __init__(self, plans: Iterable[Plan] = ()):
        self._plans: dict[tuple[Machine, tuple[int, ...]], Plan] = {}
        self._found: dict[tuple[tuple[int, ...], str, int, str], Plan | None] = {}
        for plan in plans:
            self.add(plan)

    def __iter__(self) -> Iterator[Plan]:
        return iter(self._plans.values())

    def __len__(self) -> int:
        return len(self._plans)

    def add(self, plan: Plan) -> None:
        """Add a plan; it replaces one of the same machine and size."""
        self._plans[plan.machine, plan.shape] = plan
        self._found = {}

    def find(self, shape: Sequence[int], device: torch.device) -> Plan | None:
        """The plan for an input's shape on this machine; of several sizes the nearest one, up to twice or half.

        Args:
            shape: of the input.
            device: that it is on.
        """
        key = (tuple(shape), str(device), torch.get_num_threads(), _arithmetic(torch.device(device)))
        if key not in self._found:
            self._found[key] = self._nearest(key[0], Machine.here(device))
        return self._found[key]

    def _nearest(self, shape: tuple[int, ...], machine: Machine) -> Plan | None:
        size = lambda one: math.log(max(math.prod(one), 1))
        mine = [plan for plan in self if plan.machine == machine and len(plan.shape) == len(shape)]
        best = min(mine, key=lambda plan: abs(size(plan.shape) - size(shape)), default=None)
        return best if best is not None and abs(size(best.shape) - size(shape)) <= math.log(_NEAR) else None


def path_of(weights: str | os.PathLike[str]) -> Path:
    """Where the plans of a weights file lie: beside it."""
    return Path(weights).with_suffix(SUFFIX)


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and contents of a state dict's tensors."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_plans(path: str | os.PathLike[str], plans: Plans, weights: str) -> None:
    """Write plans as JSON, atomically.

    Args:
        path: the file.
        plans: of one network.
        weights: :func:`digest` of its state.
    """
    files.write_json(path, {"format": FORMAT, "weights": weights, "plans": [asdict(plan) for plan in plans]})


def keep_plans(weights: str | os.PathLike[str], plans: Plans, state: str) -> Path:
    """Write plans of a weights file that the toolkit need not have written.

    They lie beside it where the folder is a run's or has plans of it already, as those of an exported file. Other
    folders are data of somebody's, which nothing is written into: then, and where that one is not writable, they lie in
    the cache.

    Args:
        weights: the file.
        plans: of its network.
        state: :func:`digest` of that.

    Returns:
        The file written.

    Raises:
        OSError: the cache is not writable either.
    """
    beside = path_of(weights)
    try:
        load_plans(beside, state)
        ours = True
    except UseError:  # plans of other weights stay what they are
        ours = not beside.exists() and Run(beside.parent).config.is_file()
    if ours:
        with contextlib.suppress(OSError):
            save_plans(beside, plans, state)
            return beside
    save_plans(in_cache(state), plans, state)
    return in_cache(state)


def in_cache(state: str) -> Path:
    """Where plans are kept of weights with a :func:`digest` that lie in a folder of somebody's; copies share them."""
    return cache() / "plans" / f"{state[:32]}{SUFFIX}"


def known_plans(weights: str | os.PathLike[str], network: nn.Module) -> Plans | None:
    """Read the plans of a weights file, beside it or in the cache; None without any.

    What cannot be read is said in a line.

    Args:
        weights: the file.
        network: built of it.
    """
    beside = path_of(weights)
    if not beside.exists() and not in_cache("").parent.is_dir():
        return None
    state = digest(network.state_dict())
    for path in filter(Path.exists, (beside, in_cache(state))):
        try:
            return load_plans(path, state)
        except UseError as error:
            say(f"note: not followed: {error}", sys.stderr)
    return None


def load_plans(path: str | os.PathLike[str], weights: str) -> Plans:
    """Read plans.

    Args:
        path: the file.
        weights: :func:`digest` of the state that they are for.

    Raises:
        UseError: no such file, not one of plans, or one of other weights.
    """
    content = files.read_json(path)
    if content.get("format") != FORMAT:
        raise UseError(f"{path}: plans of format {content.get('format')!r}; this version reads {FORMAT}")
    if content.get("weights") != weights:
        raise UseError(f"{path}: plans of other weights")
    entries = content.get("plans")
    if not isinstance(entries, list) or len(entries) > _MOST:
        raise UseError(f"{path}: no plans in it")
    try:
        return Plans(_plan(entry) for entry in entries)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UseError(f"{path}: a plan in it is damaged") from None


def _plan(entry: Mapping[str, Any]) -> Plan:
    machine = entry["machine"]
    known = dispatch.shipped()
    backends = {str(name): choice for name, choice in dict(entry["backends"]).items()}
    if any(choice not in known for choice in backends.values()):
        raise ValueError("a backend that is not shipped")
    return Plan(
        Machine(
            str(machine["device"]), str(machine["processor"]), int(machine["vector_width"]), int(machine["threads"]),
            str(machine["torch"]), str(machine.get("arithmetic", "float32")),
        ),
        tuple(int(size) for size in entry["shape"]),
        backends,
        float(entry["kept"]),
        {str(name): float(value) for name, value in dict(entry["milliseconds"]).items()},
    )  # fmt: skip
