"""What connectivity networks cost on the machine at hand, in milliseconds and in multiply-adds.

A table is measured once for a backbone, picture size, number of classes, device and number of threads, in the form in
which networks run (:func:`sparsemask.inference.optimize_for_inference`, not compiled), and kept in the cache. It holds
times of the encoder down to every end point and of a grid of the decoder's steps; between these it interpolates. Whole
random networks, timed too, calibrate the sums.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask import costs, locks
from sparsemask.datasets import cache
from sparsemask.devices import processor
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_json
from sparsemask.inference import Form, optimize_for_inference
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import MULTIPLE, DecoderMask, as_decoder, decoder_mask
from sparsemask.spaces.backbones import Undrawn, strides
from sparsemask.spaces.connectivity.cost_measure import (
    Lazy,
    Workbench,
    steps_to_measure,
)
from sparsemask.spaces.connectivity.decoder_steps import Geometry, Step, decoder_steps
from sparsemask.spaces.connectivity.expected_cost import ExpectedCost
from sparsemask.spaces.connectivity.named_masks import named_mask, random_decoder
from sparsemask.spaces.connectivity.pruned_network import PrunedNetwork
from sparsemask.timing import BUSY, Timer, thread_count, timer

_VERSION = 2
CURRENCIES = ("ms", "multiply-adds")
_ROUNDS = 7
_UNTIMED = "multiply-adds alone were counted; milliseconds need a cost table"
_CALIBRATION = 14  # networks of each space
_NOISE = 0.03  # relative error of a network's time that is expected
_BLOCK = 16  # widths that are multiples of it take another, faster way through the convolutions
# Kinds of steps whose times share a factor.
_GROUPS = ("encoder", "conv", "resize", "elementwise", "full", "depthwise")
_GROUP_OF = {"encoder": "encoder", "conv": "conv", "head": "conv", "resize": "resize", "resize_part": "resize"}
_GROUP_OF |= dict.fromkeys(("mean", "relu6", "add", "add_part", "finish"), "elementwise")
_GROUP_OF |= {"full": "full", "separable": "depthwise", "context": "depthwise"}


@dataclass(frozen=True)
class Key:
    """What a table holds for; one of another key is not used."""

    backbone: str
    network: dict[str, Any]
    size: tuple[int, int]
    depth: int
    n_class: int
    in_channels: int
    device: str
    threads: int
    processor: str
    torch: str
    version: int = _VERSION


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What networks cost in multiply-adds, on any machine. Made by :func:`count_costs`.

    Attributes:
        geometry: shapes of the encoder's features.
        encoder_multiply_adds: of the encoder down to each end point, deepest first.
    """

    geometry: Geometry
    encoder_multiply_adds: tuple[int, ...]

    def multiply_adds(self, mask: np.ndarray | DecoderMask) -> int:
        """Multiply-adds of the network with a mask of either space, as :mod:`sparsemask.costs` counts them."""
        return sum(self._step_multiply_adds(step) for _, step in self._steps(mask))

    def predict(self, mask: np.ndarray | DecoderMask) -> float:
        """Raises UseError: milliseconds are of a :class:`CostTable`."""
        raise UseError(_UNTIMED)

    def explain(self, mask: np.ndarray | DecoderMask) -> list[tuple[str, float, float]]:
        """Raises UseError, as :meth:`predict`."""
        raise UseError(_UNTIMED)

    def expected(self, v: Sequence[Tensor], currency: str = "ms") -> Tensor:
        """The expected cost of a relaxed mask of the published space.

        Args:
            v: for each stage i, float (i+1, 2) in [0, 1]: the probabilities that its connections are kept.
            currency: "ms" or "multiply-adds".

        Returns:
            A scalar, differentiable; of zeros and ones it is what :meth:`predict` or :meth:`multiply_adds` gives.

        Raises:
            UseError: an unknown currency, one that was not measured, or probabilities of another number of features.
        """
        if currency not in CURRENCIES:
            raise UseError(f"unknown currency '{currency}'; known: {', '.join(CURRENCIES)}")
        if [tuple(row.shape) for row in v] != [(i + 1, 2) for i in range(len(self.geometry))]:
            raise UseError(f"relaxed masks of {len(self.geometry)} stages have shapes (1, 2), (2, 2), ...")
        return (self._expected_ms if currency == "ms" else self._expected_multiply_adds)(v)

    def _steps(self, mask: np.ndarray | DecoderMask) -> list[tuple[str, Step]]:
        return decoder_steps(self.geometry, _decoder(mask, self.geometry.depth))

    def _step_multiply_adds(self, step: Step) -> int:
        return self.encoder_multiply_adds[step.site[0]] if step.kind == "encoder" else step.multiply_adds

    @property
    def _expected_ms(self) -> ExpectedCost:
        raise UseError(_UNTIMED)

    @cached_property
    def _expected_multiply_adds(self) -> ExpectedCost:
        return ExpectedCost(self.geometry, self._step_multiply_adds, self.encoder_multiply_adds)


@dataclass(frozen=True, kw_only=True)
class CostTable(Counts):
    """Predicts what networks cost. Made by :meth:`measure`, :meth:`load` or :func:`cost_table`.

    Attributes:
        key: what it holds for.
        channels_last: the memory format in which networks are faster here.
        encoder_ms: the encoder down to each end point, deepest first.
        times: (step, milliseconds) of what was measured.
        factors: of each group of steps, from whole networks.
        per_step: milliseconds that each step takes more within a network.
        constant: milliseconds of every network.
        busy: how busy the machine was, 1 for not at all.
        residual: median relative error of the whole networks that the table is calibrated with.
    """

    key: Key
    channels_last: bool
    encoder_ms: tuple[float, ...]
    times: tuple[tuple[Step, float], ...]
    factors: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_GROUPS, 1.0))
    per_step: float = 0.0
    constant: float = 0.0
    busy: float = 1.0
    residual: float = 0.0

    @classmethod
    def measure(
        cls,
        backbone: str | nn.Module,
        size: tuple[int, int],
        depth: int = 64,
        n_class: int = 21,
        threads: int | None = None,
        device: torch.device | str = "cpu",
        in_channels: int = 3,
        network: Mapping[str, Any] | None = None,
        progress: Callable[[str], object] = print,
        clock: Timer | None = None,
        rounds: int = _ROUNDS,
    ) -> CostTable:
        """Measure a table: half a minute for pictures of 97x97, two minutes for 512x512, on one core.

        Args:
            backbone: a backbone's name, or one already built, which is not changed.
            size: (height, width) of the pictures.
            depth: channels of a stage of the published space.
            n_class: channels of the output.
            threads: of torch; None: as it is set.
            device: where networks run.
            in_channels: channels of the pictures.
            network: further arguments of :class:`PrunedNetwork`, such as the backbone's form or its widths.
            progress: gets a line where the machine is too busy for figures to be trusted.
            clock: times functions in turn; None: :func:`sparsemask.timing.timer`.
            rounds: measurements of every function.
        """
        device = torch.device(device)
        key = _key(backbone, size, depth, n_class, threads, device, in_channels, network)
        clock = clock or timer(device, key.threads)
        geometry = _geometry(backbone, key)
        length = len(geometry)
        example = torch.rand(1, in_channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
        masks = _calibration_masks(_strides(backbone), depth)

        def network_function(mask: np.ndarray | DecoderMask, last: bool, encoder: bool = False) -> Lazy:
            def make() -> Callable[[], object]:
                with torch.random.fork_rng(devices=[]):
                    built = _network(backbone, key, mask).to(device)
                    form = optimize_for_inference(built, example, compiled=False, channels_last=last)
                form = Form(form.network.backbone, form.form) if encoder else form
                return lambda: form(example)

            return Lazy(make)

        forms = {(mask, last): network_function(mask, last) for mask in masks[:3] for last in (False, True)}
        by_form, _ = clock(forms, rounds)
        channels_last = sum(ms if last else -ms for (_, last), ms in by_form.items()) <= 0
        bench = Workbench(geometry, device, channels_last)
        functions = {step: bench.lazy(step) for step in steps_to_measure(geometry)}
        for j in range(length):
            whole_encoder = network_function(_one_connection(length, j), channels_last, encoder=True)
            functions[Step("encoder", (j,), 0)] = whole_encoder
        functions |= {mask: network_function(mask, channels_last) for mask in masks}
        del forms
        times, busy = clock(functions, rounds)
        whole = [(mask, times.pop(mask)) for mask in masks]
        encoder = [times.pop(Step("encoder", (j,), 0)) for j in range(length)]
        encoder = np.maximum.accumulate(encoder[::-1])[::-1].tolist()  # deeper is never cheaper
        table = cls(
            key=key,
            geometry=geometry,
            channels_last=channels_last,
            encoder_ms=tuple(encoder),
            encoder_multiply_adds=tuple(_encoder_multiply_adds(backbone, key, length, j) for j in range(length)),
            times=tuple(times.items()),
            busy=round(busy, 3),
        )
        table = _calibrated(table, whole)
        if busy > BUSY:
            progress(
                f"cost table: this machine is busy, what was timed took {busy:.2f} times what it takes alone; "
                "do not trust the milliseconds to a few percent"
            )
        return table

    def predict(self, mask: np.ndarray | DecoderMask) -> float:
        """Milliseconds of the network with a mask of either space.

        Args:
            mask: bool (L, L, 2), whose stages have `depth` channels, or a decoder of the wider space.
        """
        return self.constant + sum(self.step_ms(step) for _, step in self._steps(mask))

    def explain(self, mask: np.ndarray | DecoderMask) -> list[tuple[str, float, float]]:
        """What a network's milliseconds are made of.

        Returns:
            (part of the network, milliseconds, share of the whole), the dearest first; they sum to :meth:`predict`.
        """
        parts: dict[str, float] = defaultdict(float)
        for part, step in self._steps(mask):
            parts[part] += self.step_ms(step)
        if self.constant:
            parts["call"] = self.constant
        total = sum(parts.values())
        return [(part, ms, ms / total if total else 0.0) for part, ms in sorted(parts.items(), key=lambda row: -row[1])]

    def cheapest(self, wide: bool = False) -> tuple[np.ndarray | DecoderMask, float]:
        """The mask that costs least, and its milliseconds; :meth:`explain` says what they are made of.

        Args:
            wide: among decoders of the wider space, not among published masks.
        """
        length = len(self.geometry)
        candidates: list[np.ndarray | DecoderMask] = []
        for output in range(length) if wide else [length - 1]:
            for j, kind in [*((j, DOWN) for j in range(output + 1)), (0, UP)]:
                mask = np.zeros((length, length, 2), bool)
                mask[output, j, kind] = True
                narrow = [decoder_mask(mask, [0] * length, [width] * length) for width in (MULTIPLE, _BLOCK)]
                candidates += narrow if wide else [mask]
        return min(((mask, self.predict(mask)) for mask in candidates), key=lambda candidate: candidate[1])

    def step_ms(self, step: Step) -> float:
        """Milliseconds of a step within a network."""
        raw = self.encoder_ms[step.site[0]] if step.kind == "encoder" else self._curves.ms(step)
        return self.factors[_GROUP_OF[step.kind]] * raw + self.per_step

    def save(self, path: str | Path) -> None:
        """Write the table to a json file."""
        rows = [[step.kind, *step.site, step.width, ms] for step, ms in self.times]
        content = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        write_json(path, content | {"key": asdict(self.key), "geometry": asdict(self.geometry), "times": rows})

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Read a table, checked.

        Raises:
            UseError: the file is missing, torn, or holds no table.
        """
        content = read_json(path)
        try:
            return _parsed(content)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError):
            raise UseError(f"{path}: not a cost table of this version") from None

    @cached_property
    def _curves(self) -> Curves:
        return Curves(self.times)

    @cached_property
    def _expected_ms(self) -> ExpectedCost:
        encoder = [self.step_ms(Step("encoder", (j,), 0)) + self.constant for j in range(len(self.geometry))]
        return ExpectedCost(self.geometry, self.step_ms, encoder)


class Curves:
    """Times of steps between those that were measured: piecewise linear in the width, and in a product's inputs."""

    def __init__(self, times: Sequence[tuple[Step, float]]):
        points: dict[tuple[str, tuple[int, ...]], list[tuple[int, float]]] = defaultdict(list)
        for step, ms in times:
            points[step.kind, step.site].append((step.width, ms))
        self._curves = {at: _Curve(sorted(values)) for at, values in points.items()}
        self._inputs: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for kind, site in self._curves:
            if kind == "conv":
                self._inputs[site[:2]].append(site[2])
        for inputs in self._inputs.values():
            inputs.sort()

    def ms(self, step: Step) -> float:
        """Milliseconds of a step by itself.

        Raises:
            UseError: nothing was measured at this size.
        """
        curve = self._curves.get((step.kind, step.site))
        if curve is not None:
            return curve(step.width)
        if step.kind != "conv" or step.site[:2] not in self._inputs:
            raise UseError(f"cost table: no time of {step.kind} at {step.site}")
        inputs, size = self._inputs[step.site[:2]], step.site[:2]
        values = [self._curves["conv", (*size, c)](step.width) for c in inputs]
        return _linear(inputs, values, step.site[2])


class _Curve:
    """Milliseconds over the width; widths that are multiples of 16 and the others have a curve each."""

    def __init__(self, points: Sequence[tuple[int, float]]):
        self._parts = {}
        for blocks in (True, False):
            part = [(width, ms) for width, ms in points if (width % _BLOCK == 0) == blocks]
            # Wider is never cheaper; the later of two points is the likelier one, as noise only adds.
            values = np.minimum.accumulate([ms for _, ms in part][::-1])[::-1]
            self._parts[blocks] = ([width for width, _ in part], values.tolist())

    def __call__(self, width: int) -> float:
        widths, values = self._parts[width % _BLOCK == 0]
        if len(widths) < 2:
            widths, values = max(self._parts.values(), key=lambda part: len(part[0]))
        return _linear(widths, values, width)


def _linear(xs: Sequence[int], ys: Sequence[float], x: float) -> float:
    """Piecewise linear; constant below the first point, continued above the last."""
    if len(xs) > 1 and x > xs[-1]:
        return ys[-1] + max(0.0, (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])) * (x - xs[-1])
    return float(np.interp(x, xs, ys))


def count_costs(
    backbone: str,
    size: tuple[int, int],
    depth: int = 64,
    n_class: int = 21,
    in_channels: int = 3,
    network: Mapping[str, Any] | None = None,
) -> Counts:
    """Multiply-adds alone: nothing is measured. Arguments as of :meth:`CostTable.measure`."""
    key = _key(backbone, size, depth, n_class, 1, torch.device("cpu"), in_channels, network)
    geometry = _geometry(backbone, key)
    encoder = tuple(_encoder_multiply_adds(backbone, key, len(geometry), j) for j in range(len(geometry)))
    return Counts(geometry=geometry, encoder_multiply_adds=encoder)


def cost_table(
    backbone: str,
    size: tuple[int, int],
    depth: int = 64,
    n_class: int = 21,
    threads: int | None = None,
    progress: Callable[[str], object] = print,
    device: torch.device | str = "cpu",
    in_channels: int = 3,
    network: Mapping[str, Any] | None = None,
    clock: Timer | None = None,
) -> CostTable:
    """The table of the cache, or one measured now, which is then kept there; a line says so.

    One that was measured on a busy machine is measured again, and the better one of the two kept.
    Several processes that ask for one table wait for the first. Arguments as of :meth:`CostTable.measure`.
    """
    key = _key(backbone, size, depth, n_class, threads, torch.device(device), in_channels, network)
    path = table_path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.acquire(path.with_suffix(".lock")):
        kept, why = _cached(path, key)
        if kept is not None and kept.busy <= BUSY:
            return kept
        what = f"{backbone}, {size[0]}x{size[1]}, {key.threads} thread{'s' * (key.threads > 1)}"
        progress(f"cost table ({what}): {why}; measuring, which takes up to three minutes")
        options = {"in_channels": in_channels, "network": network, "progress": progress, "clock": clock}
        table = CostTable.measure(backbone, size, depth, n_class, key.threads, device, **options)
        if kept is not None and kept.busy <= table.busy:
            return kept
        table.save(path)
    return table


def table_path(key: Key) -> Path:
    """The file in the cache for a key; machine and versions are not in its name but checked when it is read."""
    network = hashlib.sha256(repr(sorted(key.network.items())).encode()).hexdigest()[:8]
    stem = f"{key.backbone}-{key.size[0]}x{key.size[1]}-{key.depth}-{key.n_class}-{key.in_channels}"
    stem += f"-{key.device}-{key.threads}" + (f"-{network}" if key.network else "")
    return cache() / "costs" / f"connectivity-{re.sub(r'[^A-Za-z0-9_.-]', '_', stem)}.json"


def _cached(path: Path, key: Key) -> tuple[CostTable | None, str]:
    """The table of a file, or None and why it is not used."""
    if not path.exists():
        return None, "none measured so far"
    try:
        table = CostTable.load(path)
    except UseError as error:
        return None, str(error)
    other = [name for name, value in vars(key).items() if vars(table.key)[name] != value]
    if other:
        return None, f"the one kept is of another {other[0]} ({vars(table.key)[other[0]]})"
    encoder, last = table.encoder_multiply_adds, len(table.geometry) - 1
    same = len(_strides(key.backbone)) == last + 1 and _geometry(key.backbone, key) == table.geometry
    if not same or any(_encoder_multiply_adds(key.backbone, key, last + 1, j) != encoder[j] for j in {0, last}):
        return None, "the one kept is of another form of the backbone"
    return table, "the one kept was measured on a busy machine"


def _key(
    backbone: str | nn.Module,
    size: tuple[int, int],
    depth: int,
    n_class: int,
    threads: int | None,
    device: torch.device,
    in_channels: int,
    network: Mapping[str, Any] | None,
) -> Key:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return Key(
        backbone=backbone if isinstance(backbone, str) else type(backbone).__qualname__,
        network=dict(network or {}),
        size=(int(size[0]), int(size[1])),
        depth=int(depth),
        n_class=int(n_class),
        in_channels=int(in_channels),
        device=device.type,
        threads=int(threads or torch.get_num_threads()),
        processor=name,
        torch=torch.__version__,
    )


def _parsed(content: Mapping[str, Any]) -> CostTable:
    """The table of a file's content; any of the errors that wrong types and lengths raise."""
    key, shape = dict(content["key"]), content["geometry"]
    geometry = Geometry(
        channels=tuple(_whole(c) for c in shape["channels"]),
        sizes=tuple((_whole(h), _whole(w)) for h, w in shape["sizes"]),
        depth=_whole(shape["depth"]),
        n_class=_whole(shape["n_class"]),
    )
    rows = [
        (Step(str(kind), tuple(map(_whole, site)), _whole(width)), _ms(ms))
        for kind, *site, width, ms in content["times"]
    ]
    table = CostTable(
        key=Key(**key | {"size": tuple(key["size"]), "network": dict(key["network"])}),
        geometry=geometry,
        channels_last=bool(content["channels_last"]),
        encoder_ms=tuple(map(_ms, content["encoder_ms"])),
        encoder_multiply_adds=tuple(_whole(n) for n in content["encoder_multiply_adds"]),
        times=tuple(rows),
        factors={group: _ms(content["factors"][group]) for group in _GROUPS},
        **{name: _ms(content[name]) for name in ("per_step", "constant", "busy", "residual")},
    )
    lengths = {len(geometry.channels), len(geometry), len(table.encoder_ms), len(table.encoder_multiply_adds)}
    if len(lengths) > 1 or not len(geometry) or {step for step, _ in rows} != set(steps_to_measure(geometry)):
        raise ValueError
    return table


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError
    return value


def _ms(value: object) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError
    return float(value)


def _network(backbone: str | nn.Module, key: Key, mask: np.ndarray | DecoderMask) -> PrunedNetwork:
    """The network of a mask, untrained."""
    encoder = backbone if isinstance(backbone, str) else copy.deepcopy(backbone)
    options = dict(key.network)
    with torch.random.fork_rng(devices=[]):
        return PrunedNetwork(mask, encoder, key.depth, key.in_channels, key.n_class, **options).eval()


def _one_connection(length: int, j: int) -> np.ndarray:
    """The mask whose only connection leads from end point j to the output stage."""
    mask = np.zeros((length, length, 2), bool)
    mask[-1, j, DOWN] = True
    return mask


def _strides(backbone: str | nn.Module) -> list[int]:
    return list(strides(backbone) if isinstance(backbone, str) else backbone.strides)


def _geometry(backbone: str | nn.Module, key: Key) -> Geometry:
    """Shapes of the encoder's features."""
    net = _network(backbone, key, _one_connection(len(_strides(backbone)), 0))
    with thread_count(1), torch.inference_mode():
        points = net.backbone(torch.zeros(1, key.in_channels, *key.size))
    sizes = [(point.shape[-2], point.shape[-1]) for point in points]
    return Geometry(tuple(point.shape[1] for point in points), tuple(sizes), key.depth, key.n_class)


def _encoder_multiply_adds(backbone: str | nn.Module, key: Key, length: int, j: int) -> int:
    """Multiply-adds of the encoder of networks whose deepest end point is j of so many."""
    with Undrawn():
        net = _network(backbone, key, _one_connection(length, j))
    with thread_count(1):
        return costs.multiply_adds(net.backbone, (1, key.in_channels, *key.size))


def _calibration_masks(strides: Sequence[int], depth: int) -> list[DecoderMask]:
    """Named masks and random ones of all sizes, and random decoders of the wider space."""
    length = len(strides)
    most = length * (length + 1)
    masks = [named_mask(name, length) for name in ("unet", "dense", "sparseacn")]
    counts = np.unique(np.geomspace(1, max(1, most * 2 // 3), _CALIBRATION).round().astype(int))
    masks += [named_mask(f"random-{count}", length, 100 + int(count)) for count in counts]
    masks += [named_mask(f"random-{max(1, most // share)}", length, share) for share in range(2, 9)]
    published = list(dict.fromkeys(_decoder(mask, depth) for mask in masks))[:_CALIBRATION]
    rng = np.random.default_rng(0)
    return list(dict.fromkeys([*published, *(random_decoder(rng, length, strides) for _ in range(_CALIBRATION))]))


def _decoder(mask: np.ndarray | DecoderMask, depth: int) -> DecoderMask:
    """A mask of either space as a decoder; the published space's depth may be any number."""
    if isinstance(mask, DecoderMask):
        return mask
    decoder = as_decoder(mask, MULTIPLE)
    return replace(decoder, widths=decoder.widths // MULTIPLE * depth)


def _calibrated(table: CostTable, measured: Sequence[tuple[DecoderMask, float]]) -> CostTable:
    """A table whose factors make its sums right for whole networks: robust least squares of relative errors.

    Where the networks leave it open, factors are drawn towards the one that suits all steps, and the rest towards 0.
    """
    rows = []
    for mask, _ in measured:
        row = dict.fromkeys(_GROUPS, 0.0)
        steps = table._steps(mask)
        for _, step in steps:
            row[_GROUP_OF[step.kind]] += table.step_ms(step)
        rows.append([*row.values(), len(steps), 1.0])
    ms = np.array([taken for _, taken in measured])
    relative = np.array(rows) / ms[:, None]
    overall = float(np.median(1 / relative[:, : len(_GROUPS)].sum(1)))
    prior = np.array([*[overall] * len(_GROUPS), 0.0, 0.0])
    deviation = np.array([*[0.3 * overall] * len(_GROUPS), 0.003, 0.1 * ms.min()])
    weights = np.ones(len(ms))
    for _ in range(20):
        weighted = relative * (weights / _NOISE**2)[:, None]
        system = relative.T @ weighted + np.diag(deviation**-2)
        solution = _non_negative(system, weighted.sum(0) + prior * deviation**-2)
        weights = np.minimum(1.0, _NOISE / np.maximum(np.abs(relative @ solution - 1), 1e-9))  # Huber's
    *factors, per_step, constant = solution.tolist()
    residual = float(np.median(np.abs(relative @ solution - 1)))
    named = dict(zip(_GROUPS, factors, strict=True))
    return replace(table, factors=named, per_step=per_step, constant=constant, residual=residual)


def _non_negative(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The minimum of x A x / 2 - b x; what would be negative is 0, one after the other."""
    free = np.ones(len(right), bool)
    while True:
        x = np.zeros(len(right))
        x[free] = np.linalg.solve(system[np.ix_(free, free)], right[free])
        if (x >= 0).all():
            return x
        free[x.argmin()] = False
