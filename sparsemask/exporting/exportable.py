"""What is exported of a network, and which formats there are."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError

FORMATS = {
    ".safetensors": "weights and how the network is built, for this toolkit",
    ".pt2": "torch.export's program, sparse operators kept",
    ".onnx": "ONNX, data masks as multiplications; --form skip: as nodes that skip",
}
ONNX = ("onnx", "onnxscript")
_NEEDS = {".onnx": ONNX}
RUNTIME = "onnxruntime"


@dataclass
class Exportable:
    """A trained network as a function of tensors, in evaluation mode, batch norms folded where possible.

    Sizes are open where `dynamic` leaves them open: for every input a mapping from dimension to torch.export's word for
    it, or None for an input of one size; None altogether where nothing is open.
    """

    network: Callable[[object], Tensor]
    """As it is, on what its space's networks take: the outputs that are expected."""
    fast: Callable[[object], Tensor]
    """Its own fast form, likewise: what a file is timed against."""
    save: Callable[[Path], None]
    """Write it to share, as safetensors."""
    program: nn.Module
    """A function of the inputs, see :func:`pure`, with the sparse operators in it, where the network has any."""
    plain: nn.Module
    """The same numbers by operators that every framework has: masks multiply, nothing is skipped."""
    inputs: dict[str, Tensor]
    """An example of every input by name, in order."""
    outputs: tuple[str, ...]
    dynamic: tuple[Mapping[int, object] | None, ...] | None = None
    tensors: Callable[[object], tuple[Tensor, ...]] = lambda batch: (batch,)
    """What the space's networks take as the inputs."""
    refused: dict[str, str] = field(default_factory=dict)
    """Formats (suffixes) in which the network cannot be written, and why."""
    multiple: int = 1
    """What the sizes of pictures must be multiples of."""
    least: int = 1
    """Shortest side of pictures that programs take."""
    whole: nn.Module | None = None
    """The program of other operators, for files whose operators are nodes; None: the program."""
    dense: nn.Module | None = None
    """The same weights without masks, of standard operators: another function, in less time where masks do not pay.
    None: there are no masks."""

    @property
    def input_shape(self) -> list[int | None] | None:
        """Sizes of its one input, None where any is taken; None altogether for networks of several inputs."""
        if len(self.inputs) != 1:
            return None
        [example] = self.inputs.values()
        opened = (self.dynamic[0] if self.dynamic else None) or {}
        return [None if k in opened else side for k, side in enumerate(example.shape)]

    def fitted(self, batch: object) -> object:
        """A batch cut to sizes that files take."""
        if self.multiple == 1:
            return batch
        height, width = (n - n % self.multiple for n in batch.shape[-2:])
        return batch[..., :height, :width].contiguous()

    def fixed(self, batch: object) -> Exportable:
        """The same for the sizes of one batch alone."""
        return replace(self, dynamic=None, inputs=dict(zip(self.inputs, self.tensors(batch), strict=True)))


class _Pure(nn.Module):
    """A function of tensors as a module that holds the network it calls."""

    def __init__(self, network: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.network = network
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(self.network, *inputs)


def pure(network: nn.Module, function: Callable[..., Tensor]) -> nn.Module:
    """`function(network, *inputs)` as a module in evaluation mode: without what a forward pass leaves behind in it."""
    return _Pure(network, function).eval()


def laid_out(module: nn.Module, last: bool) -> nn.Module:
    """What :func:`pure` made of a function of images, as a copy that puts their channels last, where `last` says so.

    Programs compute in the memory format that their inputs and weights have.
    """
    if not last:
        return module
    copied = copy.deepcopy(module).to(memory_format=torch.channels_last)
    function = copied._function
    copied._function = lambda net, *inputs: function(net, *map(channels_last, inputs))
    return copied


def channels_last(x: Tensor) -> Tensor:
    """Images (N, C, H, W) or volumes (N, C, D, H, W) with their channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def known_suffix(path: Path) -> str:
    """The suffix of a file's name; UseError for one of no format."""
    if path.suffix not in FORMATS:
        formats = "; ".join(f"{suffix}: {description}" for suffix, description in FORMATS.items())
        raise UseError(f"--out {path}: no format is called '{path.suffix}' ({formats})")
    return path.suffix


def format_of(path: str | Path) -> str:
    """The suffix of a file that is to be written; UseError for one of no format, or where the folder is absent."""
    path = Path(path)
    known_suffix(path)
    if path.is_dir():
        raise UseError(f"--out {path}: is a folder, expected a file")
    if not path.absolute().parent.is_dir():
        raise UseError(f"--out {path}: there is no folder {path.parent}; make it first")
    return path.suffix


def why_not(suffix: str, exportable: Exportable | None = None) -> str | None:
    """Why a format cannot be written here, in one line; None where it can."""
    absent = missing(_NEEDS.get(suffix, ()))
    if absent:
        return f"{suffix} needs {' and '.join(absent)}: pip install 'sparsemask[onnx]'"
    if exportable is not None and suffix in exportable.refused:
        return f"{suffix}: {exportable.refused[suffix]}"
    return None


def missing(packages: Sequence[str]) -> list[str]:
    """Those of some packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]
