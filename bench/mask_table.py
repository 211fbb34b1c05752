"""The ground truth of the connectivity search: many masks, each retrained with two seeds at one short budget.

    python bench/mask_table.py --out runs-table-sample --jobs 2
    python bench/mask_table.py --out runs-table-voc --voc_root VOCdevkit --pretrained_model mobilenet_v2.pth --jobs 2

The encoder is frozen and its features are kept in files (float16), so that a training is one of the decoder alone.
On the embedded sample set the encoder is one that was trained with the dense decoder first; on VOC it has ImageNet
weights. The masks are drawn evenly over costs and over shapes (deepest end point, output, number of stages); the named
masks are among them. Every training sees the same crops; seeds differ in initial weights and in the order of the crops.
A mask's score is the mean IoU over the classes that occur in a held-out part of the validation pictures, from one
confusion matrix.

Results are lines of OUT/results.jsonl, one a finished training: the command goes on where it was stopped. When all are
there, it writes OUT/mask_table_SET.json.gz (`--table FOLDER`: elsewhere), which `bench/mask_truth.py` reads. Then

    python bench/mask_table.py --price bench/data/mask_table_sample.json.gz --size 97 --threads 1

adds predicted milliseconds to a table, without training, on the machine at hand, and

    python bench/mask_table.py --out runs-table-sample --check 24

trains some of the masks as a whole, encoder too, for more steps, and prints how their ranks agree with the table's.

On a GPU (`--device cuda`) every training step is one replay of a CUDA graph, several decoders side by side on streams
of their own; results there are not bit for bit the same every time. On a CPU a training depends on its mask and its
seed alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache as once
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.mask_data import (
    N_CLASS,
    Cache,
    Log,
    Pictures,
    add_confusion,
    batch_indices,
    choose_pictures,
    learning_rates,
    load_pool,
    mean_iou,
    pixel_loss,
    prepare_pool,
    spread_evenly,
)
from bench.mask_truth import FORMAT, load_truth, rank_correlation, unpack
from sparsemask.costs import multiply_adds
from sparsemask.datasets import backbone_weights
from sparsemask.errors import UseError, command
from sparsemask.files import atomic_write, read_json, write_json
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import (
    FULL,
    POINTWISE,
    SEPARABLE,
    DecoderMask,
    as_decoder,
    decoder_mask,
)
from sparsemask.spaces.backbones import create, forms
from sparsemask.spaces.backbones.weights import load_backbone_weights
from sparsemask.spaces.connectivity.named_masks import available_masks, named_mask, random_decoder
from sparsemask.spaces.connectivity.pruned_network import PrunedNetwork

BACKBONE, DEPTH, MOMENTUM = "mobilenet_v2", 64, 0.1


# --- masks -----------------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, strides: Sequence[int]) -> DecoderMask:
    """A random mask: half of the wider space; of the published one, half are grown from the output, half thrown.

    Args:
        rng: draws everything.
        strides: of the backbone's end points, deepest first.
    """
    n_features = len(strides)
    if rng.random() < 0.5:
        return random_decoder(rng, n_features, strides)
    most = n_features * (n_features + 1)
    if rng.random() < 0.5:
        count = int(np.exp(rng.uniform(0, np.log(most))))
        return as_decoder(named_mask(f"random-{count}", n_features, int(rng.integers(2**31))), DEPTH)
    stages = rng.random(n_features) < rng.uniform(0.1, 1)
    stages[-1] = True
    deepest = int(rng.integers(n_features))
    probability = np.exp(rng.uniform(np.log(0.02), 0))
    connections = rng.random((n_features, n_features, 2)) < probability
    connections &= np.tri(n_features, dtype=bool)[:, :, None] & stages[:, None, None]
    connections[:, :deepest, DOWN] = False
    connections[:, 0, UP] &= deepest == 0
    for stage in range(n_features):  # what has no inputs gives none
        for source in range(1, stage + 1):
            connections[stage, source, UP] &= connections[source - 1].any()
    if not connections[-1].any():
        connections[-1, -1, DOWN] = True
    return decoder_mask(connections, [POINTWISE] * n_features, [DEPTH] * n_features)


class DecoderCost:
    """Multiply-adds of the pruned network of a mask: the encoder as deep as it is used, the decoder, the head.

    Args:
        side: of the square picture, pixels.
    """

    def __init__(self, side: int):
        backbone = create(BACKBONE).eval()
        self.channels, self.strides = list(backbone.channels), list(backbone.strides)
        with torch.no_grad():
            end_points = backbone(torch.zeros(1, 3, side, side))
        self.areas = [e.shape[-2] * e.shape[-1] for e in end_points]
        parts = [backbone.conv_last, *reversed(backbone.bottlenecks)]
        segments = [multiply_adds(part, tuple(end_points[j + 1].shape)) for j, part in enumerate(parts)]
        segments.append(multiply_adds(backbone.conv1, (1, 3, side, side)))
        # Up to and with the segment of each end point; the first end point of the list is the deepest.
        self.encoder = np.cumsum(segments[::-1])[::-1]

    def __call__(self, mask: DecoderMask) -> float:
        """Multiply-adds of a picture."""
        total = self.encoder[mask.deepest]
        for stage in mask.stages:
            width, area = int(mask.widths[stage]), self.areas[stage]
            for source in np.flatnonzero(mask.connections[stage, :, DOWN]):
                total += self.channels[source] * width * self.areas[source]
            for source in np.flatnonzero(mask.connections[stage, :, UP]):
                inputs = int(mask.widths[source - 1]) * self.areas[source - 1] if source else self.channels[0]
                total += inputs * width
            if mask.operations[stage] == SEPARABLE:
                total += (9 + width) * width * area
            elif mask.operations[stage] == FULL:
                total += 9 * width * width * area
        if mask.context:
            width, area = int(mask.widths[mask.stages[0]]), self.areas[mask.stages[0]]
            total += (27 + 3 * width) * width * area + width * width
        return float(total + mask.widths[mask.output] * N_CLASS * self.areas[mask.output])


decoder_cost = once(DecoderCost)
"""The cost function of a size, made once."""


def shape_of(mask: DecoderMask) -> tuple[int, int, int]:
    """What masks of one cost are spread over: deepest end point, output stage, number of stages."""
    return mask.deepest, mask.output, len(mask.stages)


def spread_masks(
    count: int, draw: Callable[[np.random.Generator], DecoderMask], cost: Callable[[DecoderMask], float], seed: int
) -> list[DecoderMask]:
    """Different random masks, evenly over the logarithm of their costs, and in each part of it over their shapes.

    Args:
        count: how many.
        draw: a random mask from a generator.
        cost: of a mask, positive.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    drawn = list(dict.fromkeys(draw(rng) for _ in range(20 * count + 400)))
    if len(drawn) < count:
        raise UseError(f"only {len(drawn)} different masks were drawn, {count} are wanted")
    costs = np.log([cost(mask) for mask in drawn])
    parts = 12
    edges = np.linspace(costs.min(), costs.max(), parts + 1)[1:-1]
    queues: list[list[DecoderMask]] = []
    for part in range(parts):
        shapes = defaultdict(list)
        for index in np.flatnonzero(np.digitize(costs, edges) == part):
            shapes[shape_of(drawn[index])].append(drawn[index])
        order = sorted(shapes)
        rng.shuffle(order)  # a part may have more shapes than masks to give
        queues.append(_in_turn([shapes[shape] for shape in order]))
    return _in_turn(queues)[:count]


def _in_turn(lists: Sequence[list]) -> list:
    """The first of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]


@dataclass(frozen=True)
class Entry:
    """A mask of the table and its name, if it has one."""

    mask: DecoderMask
    name: str | None = None


def table_masks(count: int, side: int, seed: int = 0) -> list[Entry]:
    """The masks of a table: all named ones, then random ones."""
    cost = decoder_cost(side)
    features = len(cost.channels)
    named = {}
    for name in available_masks():
        if not name.startswith("random"):
            named.setdefault(as_decoder(named_mask(name, features, strides=cost.strides), DEPTH), name)
    random = spread_masks(count, lambda rng: draw(rng, cost.strides), cost, seed)
    return [Entry(m, n) for m, n in named.items()] + [Entry(m) for m in random if m not in named]


def pack(mask: DecoderMask) -> list[int]:
    """A mask as whole numbers, for JSON."""
    return mask.packed().flatten().tolist()


# --- features --------------------------------------------------------------------------------------------------------


class GivenFeatures(nn.Module):
    """Stands for a backbone whose end points are computed already: its input is their list."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.channels, self.strides = list(channels), list(strides)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """The end points that were given."""
        return x


def build(mask: DecoderMask, backbone: nn.Module) -> PrunedNetwork:
    """The network of a mask over a backbone that is built already."""
    widths = mask.widths[mask.stages]
    published = not mask.context and not mask.operations.any() and mask.output == len(mask) - 1
    chosen = mask.connections if published and (widths == widths[0]).all() else mask
    return PrunedNetwork(chosen, backbone, depth=int(widths[0]), num_classes=N_CLASS, bn_momentum=MOMENTUM)


def read_end_points(mask: DecoderMask) -> set[int]:
    """The end points whose values a mask reads."""
    read = {int(j) for j in np.flatnonzero(mask.connections[:, :, DOWN].any(0))}
    return read | {0} if mask.connections[:, 0, UP].any() else read


class FeaturePool:
    """The end points of all views of a part of the pictures, (N, H, W, C), and their labels.

    Channels come last in memory: a step of a decoder takes half of the time on a CPU.
    """

    def __init__(self, cache: Cache, part: str, device: str, n_features: int):
        self.features = [cache.read(f"{part}_feature{j}", device) for j in range(n_features)]
        self.labels = cache.read(f"{part}_labels", device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Tensor, read: set[int]) -> list[Tensor]:
        """End points of some rows, float32; those that are not read have their shape and no values of their own."""
        picked = []
        for j, feature in enumerate(self.features):
            if j in read:
                picked.append(feature.index_select(0, rows).float().permute(0, 3, 1, 2))
            else:
                nothing = feature.new_zeros(1, 1, 1, 1, dtype=torch.float32)
                picked.append(nothing.expand(len(rows), *feature.shape[1:]).permute(0, 3, 1, 2))
        return picked


def prepare(pictures: Pictures, folder: Path, pretrained: str | None, device: str, encoder_steps: int) -> Cache:
    """Draw the views, train or load the encoder, and write its features, where they are not there."""
    cache = Cache(folder / pictures.key)
    began = time.monotonic()
    prepare_pool(pictures, cache)
    backbone = _encoder(pictures, cache, pretrained, device, encoder_steps)
    for part in ("val", "train"):
        images = cache.read(f"{part}_images")
        with torch.no_grad():
            shapes = [tuple(e.permute(0, 2, 3, 1).shape[1:]) for e in backbone(images[:1].float().to(device))]
        if all(cache.has(f"{part}_feature{j}") for j in range(len(shapes))):
            continue
        # All end points in one pass; each becomes a file of its own.
        arrays = [np.empty((len(images), *shape), np.float16) for shape in shapes]
        for first in range(0, len(images), 16):
            with torch.no_grad():
                end_points = backbone(images[first : first + 16].float().to(device))
            for array, end_point in zip(arrays, end_points, strict=True):
                array[first : first + 16] = end_point.permute(0, 2, 3, 1).half().cpu().numpy()
        for j, array in enumerate(arrays):
            cache.write(f"{part}_feature{j}", array.shape, "float16", iter([array]))
    print(f"{pictures.key}: views and features ready, {time.monotonic() - began:.0f} s", flush=True)
    return cache


def _encoder(pictures: Pictures, cache: Cache, pretrained: str | None, device: str, steps: int) -> nn.Module:
    """The frozen encoder: ImageNet weights where there are, else trained with the dense decoder."""
    backbone, path = new_encoder(pretrained if pictures.name == "voc" else None), cache.folder / "encoder.pt"
    if pictures.name != "voc" and path.exists():
        backbone.load_state_dict(torch.load(path, weights_only=True))
    elif pictures.name != "voc":
        torch.manual_seed(0)
        network = build(as_decoder(named_mask("dense", len(backbone.channels)), DEPTH), new_encoder(None)).to(device)
        train_whole(network, cache, device, steps, 8, lr=0.01, encoder_lr=0.01, seed=0)
        backbone = network.backbone
        with atomic_write(path) as file:
            torch.save({key: value.cpu() for key, value in backbone.state_dict().items()}, file)
    return backbone.to(device).eval().requires_grad_(False)


def new_encoder(pretrained: str | None) -> nn.Module:
    """MobileNetV2 with the weights of a file, or with random ones."""
    if pretrained is None:
        return create(BACKBONE, momentum=MOMENTUM)
    imported = load_backbone_weights(pretrained, BACKBONE)
    backbone = create(BACKBONE, momentum=MOMENTUM, **forms.arguments(BACKBONE, imported.form))
    backbone.load_state_dict(imported.state)
    return backbone


# --- training --------------------------------------------------------------------------------------------------------


def train_whole(
    network: nn.Module,
    cache: Cache,
    device: str,
    steps: int,
    batch: int,
    lr: float,
    encoder_lr: float,
    seed: int,
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda network, x: network(x, x.shape[-2:]),
) -> None:
    """Train a network with its encoder on the cached views.

    Args:
        network: on the device; its encoder's parameters are those whose names begin with "backbone." or "encoder.".
        cache: of :func:`bench.mask_data.prepare_pool`.
        device: "cpu" or "cuda".
        steps: of the training.
        batch: views a step.
        lr: of AdamW, outside the encoder.
        encoder_lr: of the encoder.
        seed: of the order of the views.
        forward: (network, images) -> scores of the images' size.
    """
    pool = load_pool(cache, "train", device)
    encoder = [p for n, p in network.named_parameters() if n.startswith(("backbone.", "encoder."))]
    others = [p for n, p in network.named_parameters() if not n.startswith(("backbone.", "encoder."))]
    groups = [{"params": others, "lr": lr}, {"params": encoder, "lr": encoder_lr}]
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rates(steps).tolist().__getitem__)
    network.train()
    indices = batch_indices(len(pool.labels), steps, batch, seed).to(device)
    for step in range(steps):
        images = pool.images.index_select(0, indices[step]).float()
        labels = pool.labels.index_select(0, indices[step]).long()
        optimizer.zero_grad(set_to_none=True)
        pixel_loss(forward(network, images), labels).backward()
        optimizer.step()
        if step + 1 < steps:
            schedule.step()


@torch.no_grad()
def evaluate_whole(
    network: nn.Module,
    cache: Cache,
    device: str,
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda network, x: network(x, x.shape[-2:]),
) -> float:
    """Mean IoU over the classes that occur, of a network on the validation views."""
    pool = load_pool(cache, "val", device)
    network.eval()
    total = torch.zeros(N_CLASS + 1, N_CLASS, dtype=torch.long, device=device)
    for first in range(0, len(pool.labels), 8):
        images = pool.images[first : first + 8].float()
        add_confusion(total, forward(network, images), pool.labels[first : first + 8])
    return mean_iou(total)


@dataclass(frozen=True)
class Budget:
    """What every training of a table has in common."""

    steps: int
    batch: int
    lr: float


def train_decoders(
    masks: Sequence[DecoderMask], seed: int, train: FeaturePool, val: FeaturePool, budget: Budget, device: str
) -> list[float]:
    """Train the decoders of some masks side by side on the same batches; mean IoU of each.

    The result of a mask does not depend on the others beside it.
    """
    features, networks = _features(), []
    for mask in masks:
        torch.manual_seed(seed)
        network = build(mask, GivenFeatures(features.channels, features.strides))
        networks.append(network.to(device, memory_format=torch.channels_last).train())
    indices = batch_indices(len(train), budget.steps, budget.batch, seed)
    if device == "cpu":
        _train_in_turn(networks, masks, train, indices, budget)
    else:
        try:
            _train_graphs(networks, masks, train, indices.to(device), budget)
        except RuntimeError as error:
            print(f"no CUDA graphs ({str(error).splitlines()[0][:120]}): step by step", flush=True)
            torch.cuda.synchronize()
            for network, mask in zip(networks, masks, strict=True):
                torch.manual_seed(seed)
                fresh = build(mask, GivenFeatures(features.channels, features.strides))
                network.load_state_dict(fresh.state_dict())
            _train_in_turn(networks, masks, train, indices.to(device), budget)
    return [_score(network.eval(), mask, val) for network, mask in zip(networks, masks, strict=True)]


@once
def _features() -> GivenFeatures:
    backbone = create(BACKBONE)
    return GivenFeatures(backbone.channels, backbone.strides)


def _optimizer(network: nn.Module, **options) -> torch.optim.AdamW:
    parameters = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, weight_decay=1e-4, fused=True, **options)


def _loss(network: nn.Module, features: list[Tensor], labels: Tensor) -> Tensor:
    """Loss at every second pixel: with aligned corners and odd sides these are the pixels of a map at half size."""
    labels = labels[:, ::2, ::2]
    return pixel_loss(network(features, labels.shape[-2:]), labels)


def _train_in_turn(
    networks: list[PrunedNetwork], masks: Sequence[DecoderMask], pool: FeaturePool, indices: Tensor, budget: Budget
) -> None:
    """On a CPU: the features of a step are picked once, then the decoders take their steps in turn."""
    optimizers = [_optimizer(network, lr=budget.lr) for network in networks]
    reads = [read_end_points(mask) for mask in masks]
    shared = set().union(*reads)
    for rows, rate in zip(indices, learning_rates(budget.steps).tolist(), strict=True):
        features = pool.batch(rows, shared)
        labels = pool.labels.index_select(0, rows).long()
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = budget.lr * rate
            optimizer.zero_grad(set_to_none=True)
            _loss(network, features, labels).backward()
            optimizer.step()


def _train_graphs(
    networks: list[PrunedNetwork], masks: Sequence[DecoderMask], pool: FeaturePool, indices: Tensor, budget: Budget
) -> None:
    """On a GPU: a step is one replay of a CUDA graph, each decoder's on a stream of its own.

    Where no graph can be made, a line says so and the steps are launched operator by operator.
    """
    before = [{key: value.clone() for key, value in network.state_dict().items()} for network in networks]
    rates = learning_rates(budget.steps).to(indices.device) * budget.lr
    try:
        replays = [_capture(n, read_end_points(m), pool, indices, rates) for n, m in zip(networks, masks, strict=True)]
    except RuntimeError as error:
        print(f"no CUDA graphs: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        for network, state in zip(networks, before, strict=True):
            network.load_state_dict(state)
        _train_in_turn(networks, masks, pool, indices, budget)
        return
    for _ in range(budget.steps):
        for replay in replays:
            replay()
    torch.cuda.synchronize()


def _capture(
    network: PrunedNetwork, read: set[int], pool: FeaturePool, indices: Tensor, rates: Tensor
) -> Callable[[], None]:
    """A training step as a graph that counts its steps itself and reads batch and learning rate by that number."""
    lr = torch.zeros((), device=indices.device)
    optimizer = _optimizer(network, lr=lr, capturable=True)
    number = torch.zeros(1, dtype=torch.long, device=indices.device)

    def step() -> None:
        rows = indices.index_select(0, number)[0]
        lr.copy_(rates.index_select(0, number)[0])
        labels = pool.labels.index_select(0, rows).long()
        _loss(network, pool.batch(rows, read), labels).backward()
        optimizer.step()
        number.add_(1)

    before = {key: value.clone() for key, value in network.state_dict().items()}
    current, stream, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries choose their kernels, the optimizer makes its state
            optimizer.zero_grad(set_to_none=True)
            step()
            number.zero_()
        optimizer.zero_grad(set_to_none=True)
    current.wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        step()
    # Capturing runs nothing; what the two steps before it have changed is put back.
    network.load_state_dict(before)
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
    number.zero_()
    stream.wait_stream(current)

    def replay() -> None:
        with torch.cuda.stream(stream):
            graph.replay()

    return replay


@torch.no_grad()
def _score(network: PrunedNetwork, mask: DecoderMask, pool: FeaturePool) -> float:
    """Mean IoU over the classes that occur."""
    device = pool.labels.device
    total = torch.zeros(N_CLASS + 1, N_CLASS, dtype=torch.long, device=device)
    read, at_once = read_end_points(mask), 4 if device.type == "cpu" else 60
    for rows in torch.arange(len(pool), device=device).split(at_once):
        labels = pool.labels.index_select(0, rows)
        add_confusion(total, network(pool.batch(rows, read), labels.shape[-2:]), labels)
    return mean_iou(total)


# --- processes -------------------------------------------------------------------------------------------------------

_worker: dict = {}


def _begin(folder: str, device: str, budget: Budget, pretrained: str | None) -> None:
    """Make a process ready: one thread, the features mapped or on the GPU."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    _worker.update(cache=Cache(Path(folder)), device=device, budget=budget, pretrained=pretrained)


def decoder_job(masks: list[list[int]], seed: int) -> tuple[list[float], float]:
    """Mean IoU of some masks with a seed, and seconds."""
    began, cache, device = time.monotonic(), _worker["cache"], _worker["device"]
    if "train" not in _worker:
        for part in ("train", "val"):
            _worker[part] = FeaturePool(cache, part, device, len(_features().channels))
    decoders = [unpack(mask) for mask in masks]
    scores = train_decoders(decoders, seed, _worker["train"], _worker["val"], _worker["budget"], device)
    return scores, time.monotonic() - began


def _whole_job(mask: list[int], seed: int, steps: int, encoder_lr: float) -> tuple[list[float], float]:
    """Mean IoU of a mask whose network was trained as a whole, and seconds."""
    began, cache, device, budget = time.monotonic(), _worker["cache"], _worker["device"], _worker["budget"]
    backbone = new_encoder(_worker["pretrained"])
    if _worker["pretrained"] is None:
        backbone.load_state_dict(torch.load(cache.folder / "encoder.pt", weights_only=True))
    torch.manual_seed(seed)
    network = build(unpack(mask), backbone).to(device)
    train_whole(network, cache, device, steps, budget.batch, budget.lr, encoder_lr, seed)
    return [evaluate_whole(network, cache, device)], time.monotonic() - began


def run_jobs(jobs: int, begin: tuple, work: Callable, tasks: Sequence[tuple]) -> Iterator[tuple[tuple, object]]:
    """(task, result) of each task as it ends, worked on by a number of processes; in this one where it is 1."""
    if jobs == 1:
        _begin(*begin)
        for task in tasks:
            yield task, work(*task)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=begin) as pool:
        waiting = {pool.submit(work, *task): task for task in tasks}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# --- the table -------------------------------------------------------------------------------------------------------


def write_table(path: Path, table: dict) -> None:
    """Write a table, the same bytes for the same content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file, gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
        packed.write(json.dumps(table, separators=(",", ":")).encode())


def _read_table(path: Path) -> dict:
    return json.loads(gzip.decompress(path.read_bytes()))


def make_table(settings: dict, entries: Sequence[Entry], results: list[dict], whole: list[dict]) -> dict:
    """The table of a finished run: what bench/mask_truth.py reads."""
    scores = {(row["mask"], row["seed"]): row["miou"] for row in results}
    full = defaultdict(list)
    for row in whole:
        full[row["mask"]].append(row["miou"])
    cost = decoder_cost(settings["pictures"]["crop"])
    rows = []
    for number, entry in enumerate(entries):
        found = [scores.get((number, seed)) for seed in settings["seeds"]]
        if None not in found:
            row = {"mask": pack(entry.mask), "name": entry.name, "miou": found}
            row |= {"multiply_adds": int(cost(entry.mask))} | ({"whole": full[number]} if number in full else {})
            rows.append(row)
    return {"format": FORMAT, "set": settings["pictures"]["name"], "settings": settings, "rows": rows, "ms": {}}


def price(path: Path, side: int, threads: int) -> None:
    """Add predicted milliseconds of every mask, on this machine, to a table."""
    from sparsemask.spaces.connectivity.cost_table import cost_table

    load_truth(path)  # which says what is wrong with a file that is no table
    table = _read_table(path)
    torch.set_num_threads(threads)
    prices = cost_table(BACKBONE, (side, side), depth=DEPTH, n_class=N_CLASS, threads=threads)
    table["ms"][f"{side}/{threads}"] = [round(float(prices.predict(unpack(row["mask"]))), 4) for row in table["rows"]]
    write_table(path, table)
    print(f"{path}: milliseconds at {side}x{side}, {threads} thread(s)")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs-mask-table", help="folder of results and of cached features")
    parser.add_argument("--voc_root", help="a VOC devkit; without it the embedded sample set")
    parser.add_argument("--reduced", action="store_true", help="the devkit is at half of its size (reduced_voc.py)")
    parser.add_argument("--pretrained_model", help="ImageNet weights of MobileNetV2, for a VOC devkit")
    parser.add_argument("--masks", type=int, default=320, help="random masks of the table")
    parser.add_argument("--limit", type=int, default=0, help="train only so many of them, spread over the list")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--encoder_steps", type=int, default=500, help="of the sample set's encoder")
    parser.add_argument("--views", type=int, help="views of each training picture (8; VOC: 4)")
    parser.add_argument("--pictures", type=int, help="training pictures at most")
    parser.add_argument("--held_out", type=int, help="validation pictures (60; VOC: 120)")
    parser.add_argument("--together", type=int, default=4, help="decoders that are trained side by side")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--table", help="folder of the table once all masks are trained; default OUT")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="train N masks as a whole")
    parser.add_argument("--check_steps", type=int, default=500)
    parser.add_argument("--price", metavar="TABLE", help="add milliseconds to a table, train nothing")
    parser.add_argument("--size", type=int, nargs="+", default=[97, 256, 512], help="sides for --price")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads for --price")
    options = parser.parse_args(argv)
    if options.price:
        for side in options.size:
            for threads in options.threads:
                price(Path(options.price), side, threads)
        return
    pretrained = None
    if options.voc_root:
        found = backbone_weights(BACKBONE, options.pretrained_model)
        if found is None:
            raise UseError("a VOC devkit needs an encoder's ImageNet weights: --pretrained_model FILE")
        pretrained = str(found)
    views = {"views": options.views, "limit": options.pictures, "held_out": options.held_out}
    if options.reduced:
        views |= {"scales": (1.0, 1.5, 2.0), "scale": 1.0}
    pictures = choose_pictures(options.voc_root, **views)
    out, budget = Path(options.out), Budget(options.steps, options.batch, options.lr)
    settings = {"pictures": {**asdict(pictures), "root": ""}, "budget": asdict(budget), "masks": options.masks}
    settings |= {"seeds": options.seeds, "encoder_steps": 0 if pretrained else options.encoder_steps}
    log = Log(out, settings)
    entries = kept_masks(out / "masks.json", options.masks, pictures.crop)
    begin = (str(out / pictures.key), options.device, budget, pretrained)
    tasks = _missing(options, entries, log)
    if tasks or options.check:
        prepare(pictures, out, pretrained, options.device, options.encoder_steps)
    _train_table(options.jobs, entries, tasks, log, begin)
    whole = Log(out / "whole", {**settings, "check_steps": options.check_steps}) if options.check else None
    if whole:
        _check(options, entries, log, whole, begin)
    noted = Log(out / "whole", read_json(out / "whole" / "settings.json")) if (out / "whole").exists() else None
    table = make_table(settings, entries, log.rows(), noted.rows() if noted else [])
    complete = len(table["rows"]) == len(entries)
    path = Path(options.table if options.table and complete else out) / f"mask_table_{pictures.name}.json.gz"
    if path.exists():
        former = _read_table(path)
        if [row["mask"] for row in former["rows"]] == [row["mask"] for row in table["rows"]]:
            table["ms"] = former["ms"]
    write_table(path, table)
    print(f"{len(table['rows'])} masks of {len(entries)}: {path}")


def kept_masks(path: Path, count: int, side: int) -> list[Entry]:
    """The masks of a run: drawn once, then read, so that a newer version of the drawing changes nothing."""
    if not path.exists():
        write_json(path, {"masks": [[e.name, pack(e.mask)] for e in table_masks(count, side)]})
    return [Entry(unpack(numbers), name) for name, numbers in read_json(path)["masks"]]


def _missing(options: argparse.Namespace, entries: list[Entry], log: Log) -> list[tuple[list[int], int]]:
    """(numbers of masks, seed) of the trainings that are not done, the longest first."""
    done = {(row["mask"], row["seed"]) for row in log.rows()}
    numbers = list(range(len(entries)))
    if options.limit:
        numbers = spread_evenly(numbers, options.limit)
    cost = decoder_cost(97)
    numbers.sort(key=lambda number: -cost(entries[number].mask))
    groups = []
    for seed in options.seeds:
        missing = [number for number in numbers if (number, seed) not in done]
        groups += [(missing[i : i + options.together], seed) for i in range(0, len(missing), options.together)]
    return sorted(groups, key=lambda group: -cost(entries[group[0][0]].mask))


def _train_table(jobs: int, entries: list[Entry], groups: list[tuple[list[int], int]], log: Log, begin: tuple) -> None:
    """Train what is missing, a line a result."""
    tasks = [([pack(entries[number].mask) for number in group], seed) for group, seed in groups]
    members = {id(task): group for task, (group, _) in zip(tasks, groups, strict=True)}
    began, finished, total = time.monotonic(), 0, sum(len(group) for group, _ in groups)
    for task, (scores, seconds) in run_jobs(jobs, begin, decoder_job, tasks):
        for number, miou in zip(members[id(task)], scores, strict=True):
            log.add({"mask": number, "seed": task[1], "miou": miou, "seconds": round(seconds / len(scores), 2)})
        finished += len(scores)
        spent = time.monotonic() - began
        print(f"{finished}/{total} trainings, {spent:.0f} s, {spent / finished:.2f} s each", flush=True)


def _check(options: argparse.Namespace, entries: list[Entry], log: Log, whole: Log, begin: tuple) -> None:
    """Train some masks as a whole and compare their ranks with those of the short trainings."""
    scores = defaultdict(list)
    for row in log.rows():
        scores[row["mask"]].append(row["miou"])
    cost = decoder_cost(97)
    chosen = spread_evenly(sorted(scores, key=lambda number: cost(entries[number].mask)), options.check)
    done = {(row["mask"], row["seed"]) for row in whole.rows()}
    seed, encoder_lr = options.seeds[0], options.lr / 10
    missing = [number for number in chosen if (number, seed) not in done]
    tasks = [(pack(entries[number].mask), seed, options.check_steps, encoder_lr) for number in missing]
    members = {id(task): number for task, number in zip(tasks, missing, strict=True)}
    for task, ((miou,), seconds) in run_jobs(options.jobs, begin, _whole_job, tasks):
        whole.add({"mask": members[id(task)], "seed": seed, "miou": miou, "seconds": round(seconds, 2)})
        print(f"whole network of mask {members[id(task)]}: {miou:.3f}, {seconds:.0f} s", flush=True)
    full = {row["mask"]: row["miou"] for row in whole.rows() if row["seed"] == seed}
    both = [number for number in chosen if number in full]
    rho, low, high = rank_correlation([np.mean(scores[n]) for n in both], [full[n] for n in both])
    print(f"{len(both)} masks, short against whole: Spearman {rho:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    sys.exit(command(main)())
