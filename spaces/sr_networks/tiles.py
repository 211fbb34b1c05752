"""Super-resolution of large images within a budget of memory, with the output of the whole image.

Networks that see few pixels around (:attr:`SRNetwork.radius`) are computed in tiles that overlap by that much. Others,
whose blocks add up to hundreds of pixels or depend on the whole image, are computed stage by stage
(:class:`Staged`): each stage a band of rows at a time, in place of the features that it reads. Both give the
whole image's output to rounding.

How much memory a pixel needs is counted, not assumed: the network runs once on the meta device, where tensors have
sizes and no contents, and the most that is alive at one time is its need.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsemask.errors import UseError
from sparsemask.memory import return_freed_memory
from sparsemask.ops.layout import to_channels_last
from sparsemask.spaces.smsr.tiles import self_ensemble
from sparsemask.spaces.sr_networks.network import Span, Stage

SMALLEST = 32
"""Least side of a tile in pixels."""
COLUMNS = 512
"""Pixels of a band that a stage computes at a time."""
MEMORY = 1e9
"""Default budget in bytes, of the whole process."""
_PROBE = 64  # side of the image that memory is counted on
_WORKSPACE = 1.5  # what convolutions need beside inputs and outputs: copies in layouts of their own
_MANY = 4 * 24  # bytes that no network needs for a location and channel of its widest layer
_RESIDENT = 400 << 20  # of a process with torch, where the system does not say it
_PAGE = 4096


class Tileable(Protocol):
    """What can be computed in tiles: a :class:`SRNetwork`, or one with masks (:mod:`.masked`)."""

    scale: int
    smallest: int
    multiple: int
    """Tiles begin at multiples of so many pixels."""

    @property
    def radius(self) -> int | None:
        """Pixels around that an output pixel depends on; None: all."""

    @property
    def title(self) -> str:
        """Its name, for messages."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) of 0 to 255 to (N, 3, s·H, s·W)."""


@runtime_checkable
class Staged(Tileable, Protocol):
    """What is computed stage by stage: a :class:`StagedNetwork`, or one with masks (:mod:`.masked`)."""

    value_range: float
    end_radius: int

    def normalised(self, images: Tensor) -> Tensor:
        """Images of 0 to 255 as :meth:`begin` takes them."""

    def begin(self, x: Tensor) -> Tensor:
        """See :meth:`StagedNetwork.begin`."""

    def stages(self) -> Iterable[Stage]:
        """See :meth:`StagedNetwork.stages`."""

    def end(self, features: Tensor, x: Tensor) -> Tensor:
        """See :meth:`StagedNetwork.end`."""


@runtime_checkable
class Assembled(Protocol):
    """A network that describes what it computed, of tiles too."""

    def begin(self, shape: torch.Size) -> None:
        """Images of this shape are about to be computed in tiles."""

    def place(self, rows: Span, columns: Span) -> None:
        """A tile was computed."""

    def end(self) -> None:
        """All were."""


Network = TypeVar("Network", bound=nn.Module)


class Plan(NamedTuple):
    """How an image is computed."""

    tile: int
    """Side of the tiles, or rows of a band, in input pixels; 0: the whole image at once."""
    need: int
    """Bytes that this takes beside what the process holds already, as counted."""


@torch.no_grad()
def upscale(
    network: Tileable, images: Tensor, memory: float | None = None, tile: int | None = None, ensemble: bool = False
) -> Tensor:
    """Magnify images within a budget of memory.

    Args:
        network: in evaluation mode.
        images: (N, 3, H, W) of 0 to 255, any size.
        memory: bytes that the process may take, what it holds already included; None: 1 GB, or what the smallest tiles
            take where that is more.
        tile: side of the tiles (rows of the bands of a :class:`Staged`) in input pixels, 0: the whole image at
            once; None: as large as `memory` has room for.
        ensemble: the mean over the eight flips and transpositions of the image (EDSR, arXiv 1707.02921).

    Returns:
        (N, 3, s·H, s·W), not clamped: that of the whole image, to rounding.

    Raises:
        UseError: a tile that is too small, or a budget that is.
    """
    if tile and tile < SMALLEST:
        raise UseError(f"tiles of {tile} pixels: {SMALLEST} is the least (0: no tiles)")
    images = to_channels_last(images)  # a fifth to a half faster on CPUs
    if tile is None:
        tile = planned(network, tuple(images.shape), memory, ensemble).tile
    run = partial(_tiled, network, tile=tile) if tile and min(images.shape[-2:]) >= network.smallest else network
    return self_ensemble(run, images) if ensemble else run(images)


def planned(network: Tileable, shape: tuple[int, ...], memory: float | None = None, ensemble: bool = False) -> Plan:
    """Choose the largest tiles that a budget has room for.

    Args:
        network: any.
        shape: of the images, (N, 3, H, W).
        memory: bytes, what the process holds already included; None: as for :func:`upscale`.
        ensemble: whether eight outputs are summed.

    Raises:
        UseError: even the smallest tiles need more; the message says how much.
    """
    count, _, height, width = shape
    room = (MEMORY if memory is None else memory) - resident()
    outputs = count * 3 * 4 * height * width * (1 + network.scale**2 * (3 if ensemble else 1))
    widest = max(parameter.shape[0] for parameter in network.parameters() if parameter.ndim == 4)
    bound = outputs + count * height * width * widest * _MANY
    if bound <= room:  # counting would take longer than a small picture
        return Plan(0, bound)
    whole = outputs + int(count * height * width * _per_pixel(network))
    if whole <= room:
        return Plan(0, whole)
    need: Callable[[int], int]
    if isinstance(network, Staged):
        need = partial(_need_of_bands, network, count, height, width)
        sizes = [rows for rows in (256, 128, 64, 32, 16, 8) if rows < height] or [height]
    else:
        halo = 2 * (network.radius or 0)
        cost = _per_pixel(network)
        need = partial(_need_of_tiles, count * cost, halo)
        sizes = [side for side in range(1024, SMALLEST - 1, -32) if side < max(height, width)] or [SMALLEST]
    fitting = next((size for size in sizes if outputs + need(size) <= room), None)
    if fitting is None and memory is None:
        fitting = sizes[-1]
    if fitting is None:
        assert memory is not None
        least = memory - room + outputs + need(sizes[-1])
        raise UseError(
            f"a memory of {memory / 1e6:.0f} MB is too small for {width}x{height} pixels with {network.title}: "
            f"about {least / 1e6:.0f} MB are needed"
        )
    return Plan(fitting, outputs + need(fitting))


def resident() -> int:
    """Bytes of memory that the process holds; an assumption where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * _PAGE
    return _RESIDENT


def _need_of_tiles(cost: float, halo: int, side: int) -> int:
    return int(cost * (side + halo) ** 2)


def _need_of_bands(network: Staged, count: int, height: int, width: int, rows: int) -> int:
    on_meta, image = _on_meta(cast(Any, network))
    features = on_meta.begin(image)
    stages = list(on_meta.stages())
    pixel = features.shape[1] * features.element_size()
    costs = []
    for stage in stages:
        band, across = min(height, rows + 2 * stage.radius), min(width, COLUMNS + 2 * stage.radius)
        costs.append(band * (width * 2 * pixel + _WORKSPACE * across * _peak(stage.run, features) / _PROBE**2))
        if stage.finish is not None:  # a band of features at a time, times their weights
            costs.append(rows * width * 3 * pixel)
    end = _peak(lambda x: on_meta.end(features, x), image) / _PROBE**2
    costs.append(min(height, rows + 2 * network.end_radius) * width * _WORKSPACE * end)
    return int(count * (height * width * pixel + max(costs)))


def _per_pixel(network: Tileable) -> float:
    """Bytes that a network needs for each pixel of its input, computed at once."""
    return _WORKSPACE * _peak(*_on_meta(cast(nn.Module, network))) / _PROBE**2


def _on_meta(network: Network) -> tuple[Network, Tensor]:
    """The network without contents, and such an image for it."""
    kind = next(network.parameters()).dtype
    return copy.deepcopy(network).to("meta"), torch.empty(1, 3, _PROBE, _PROBE, device="meta", dtype=kind)


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak: int = 0
        self.known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.known.setdefault(reference.cdata, (reference, storage.nbytes()))
        self.known = {key: entry for key, entry in self.known.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.known.values()))
        return result


@torch.no_grad()
def _peak(run: Callable[[Tensor], object], x: Tensor) -> int:
    with _Alive() as alive:
        run(x)
    return int(alive.peak)


def _tiled(network: Tileable, images: Tensor, tile: int) -> Tensor:
    return _in_bands(network, images, tile) if isinstance(network, Staged) else _in_tiles(network, images, tile)


def _in_tiles(network: Tileable, images: Tensor, side: int) -> Tensor:
    """The output of a network that sees few pixels, from tiles that overlap by them."""
    height, width = images.shape[-2:]
    s, radius = network.scale, network.radius or 0
    side -= side % network.multiple
    if isinstance(network, Assembled):
        network.begin(images.shape)
    output = images.new_empty(len(images), 3, s * height, s * width)
    for rows in _spans(height, side, radius, network.multiple):
        for columns in _spans(width, side, radius, network.multiple):
            part = network(images[..., rows.outer, columns.outer])
            inner = [slice(s * span.inner.start, s * span.inner.stop) for span in (rows, columns)]
            place = [slice(s * span.kept.start, s * span.kept.stop) for span in (rows, columns)]
            output[..., place[0], place[1]] = part[..., inner[0], inner[1]]
            del part
            return_freed_memory()
            if isinstance(network, Assembled):
                network.place(rows, columns)
    if isinstance(network, Assembled):
        network.end()
    return output


def _spans(length: int, side: int, radius: int, multiple: int = 1) -> Iterator[Span]:
    """Stretches of at most `side`, and what is read for them: windows of one size, so that memory is used again.

    Args:
        length: that they cover.
        side: a multiple of `multiple`.
        radius: what is read before and behind a stretch.
        multiple: stretches and windows begin at multiples of it.
    """
    count = -(-length // side)
    side = -(-length // (count * multiple)) * multiple
    latest = max(0, length - side - 2 * radius) // multiple * multiple
    for start in range(0, length, side):
        stop = min(start + side, length)
        first = min(max(0, start - radius), latest)
        last = min(length, max(stop + radius, first + side + 2 * radius))
        yield Span(slice(start, stop), slice(first, last), slice(start - first, stop - first))


def _in_bands(network: Staged, images: Tensor, rows: int) -> Tensor:
    """The output of a network of stages, each computed band by band and in place."""
    rows -= rows % network.multiple
    x = network.normalised(images)
    height, width = x.shape[-2:]
    features = None
    for span in _spans(height, rows, 1, network.multiple):
        part = network.begin(x[..., span.outer, :])
        if features is None:
            shape = (len(x), part.shape[1], height, width)
            features = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        features[..., span.kept, :] = part[..., span.inner, :]
        del part
    assert features is not None
    for stage in network.stages():
        _run_in_place(stage, features, rows, network.multiple)
        if stage.finish is not None:
            stage.finish(features, rows)
    s = network.scale
    output = x.new_empty(len(x), 3, s * height, s * width)
    for span in _spans(height, rows, network.end_radius, network.multiple):
        part = network.end(features[..., span.outer, :], x[..., span.outer, :])
        inner, kept = (slice(s * part.start, s * part.stop) for part in (span.inner, span.kept))
        output[..., kept, :] = part[..., inner, :]
        del part
        return_freed_memory()
    return output if network.value_range == 255 else output.mul_(255 / network.value_range)


def _run_in_place(stage: Stage, features: Tensor, rows: int, multiple: int) -> None:
    """Replace features by a stage's output; the rows that the next band still reads are kept aside."""
    height = features.shape[-2]
    above = features[..., :0, :]
    for span in _spans(height, rows, stage.radius, multiple):
        outer = torch.cat([above, features[..., span.kept.start : span.outer.stop, :]], 2)
        first = span.kept.start - above.shape[-2]
        above = outer[..., max(0, span.kept.stop - stage.radius - first) : span.kept.stop - first, :].clone()
        inner = slice(span.kept.start - first, span.kept.stop - first)
        for across in _spans(features.shape[-1], COLUMNS, stage.radius, multiple):
            part = stage.run(outer[..., across.outer])
            features[..., span.kept, across.kept] = part[..., inner, across.inner]
            del part
            if stage.place is not None:
                stage.place(Span(span.kept, slice(first, span.outer.stop), inner), across, features.shape)
        return_freed_memory()
