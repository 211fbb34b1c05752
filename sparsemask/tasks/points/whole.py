"""Segmentation of any cloud: grid subsampling, labels in one pass or by votes, carried back to all points."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sparsemask import tasks
from sparsemask.coordinates import near_origin
from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.cloud import Cloud, CloudFile
from sparsemask.tasks.points.clouds.graph import make_tree, nearest, shell_order
from sparsemask.tasks.points.clouds.grid import grid_subsample
from sparsemask.tasks.points.data import Clouds, CropSettings, EvaluationCrops, batch_of
from sparsemask.tasks.points.task import RECIPE, PointsTask
from sparsemask.tasks.points.voting import vote

_KINDS = {(6, 13): "s3dis", (3, 19): "semantickitti"}  # by channels of a point and classes


@dataclass(frozen=True)
class Recipe:
    """How clouds are prepared as in the network's training.

    Attributes:
        names: of the classes.
        task: its class.
        settings: of crops.
        grid: side of the voxels, in metres.
        smooth: of votes.
    """

    names: tuple[str, ...]
    task: type[PointsTask]
    settings: CropSettings
    grid: float
    smooth: float


def recipe(network, run_config: Mapping, what: object = "the weights", **overrides) -> Recipe:
    """The recipe of a network: from its run's configuration, else as published; `overrides` win where not None.

    Args:
        network: SMPointSeg.
        run_config: the run's flags by name, or the entries of the network's file; values that cannot be are passed
            over.
        what: how error messages begin.
        **overrides: by the names of :data:`sparsemask.tasks.points.task.RECIPE`.

    Raises:
        UseError: a network of neither data set's channels and classes.
    """
    default_task = _KINDS.get((network.d_in, network.n_class))
    name = run_config.get("task") if run_config.get("task") in tasks.siblings("sample") else default_task
    if name is None or (network.d_in, network.n_class) not in _KINDS:
        raise UseError(
            f"{what}: {network.d_in} channels a point and {network.n_class} classes are neither S3DIS's (6, 13) nor "
            "SemanticKITTI's (3, 19)"
        )
    kind = tasks.find(name)
    numbers = {name: value for name in RECIPE if _possible(value := run_config.get(name))}
    chosen = {**kind.defaults, **numbers, **{k: v for k, v in overrides.items() if v is not None}}
    settings = CropSettings(
        int(chosen["n_points"]), network.n_neighbors, network.ratio, len(network.channels), kind.d_in == 6, kind.centred
    )
    return Recipe(tuple(kind.classes), kind, settings, float(chosen["grid"]), float(chosen["vote_smooth"]))


def _possible(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


@dataclass
class Segmented:
    """A labelled cloud.

    Attributes:
        classes: int64 (N,), of the original points.
        thin: the subsampled cloud.
        kept: the network's kept fraction.
        seconds: what each step took.
        crop: xyz (n, 3) of the last points that the network took, in its order.
        masks: its point masks on them, bool (N_l,), level by level.
    """

    classes: np.ndarray
    thin: Cloud
    kept: float = float("nan")
    seconds: dict[str, float] = field(default_factory=dict)
    crop: np.ndarray | None = None
    masks: list[np.ndarray] = field(default_factory=list)


def segment(
    cloud: Cloud, network, recipe: Recipe, arithmetic, by_votes: bool | None = None,
    share: Callable[[object], float] | None = None,
) -> Segmented:  # fmt: skip
    """Classify every point of a cloud.

    Args:
        cloud: the original points.
        network: its masks are read after each call.
        recipe: how the cloud is prepared, see :func:`recipe`.
        arithmetic: device and precision.
        by_votes: by votes over overlapping crops, as published, or the whole cloud in one pass; None: votes where the
            network takes coordinates relative to a crop's centre, so that a whole cloud differs from its training data.
        share: returns the kept fraction of the network after a call; None: NaN is noted.

    Returns:
        Classes of the original points, and what is drawn of the run.

    Raises:
        UseError: the network takes colours and the cloud has none, or it has too few points.
    """
    if recipe.settings.colours and cloud.colours is None:
        raise UseError(f"{cloud.name}: it has no colours, which this network takes")
    seconds: dict[str, float] = {}
    with _timed(seconds, "thinned out"):
        local_xyz, moved = near_origin(cloud.xyz)
        xyz, colours, _ = grid_subsample(local_xyz, recipe.grid, cloud.colours)
        thin = Cloud(cloud.name, xyz, colours, offset=cloud.offset + moved)
    result = Segmented(np.empty(0, np.int64), thin, seconds=seconds)
    shares: list[float] = []

    def watch(module, inputs, _) -> None:
        shares.append(float("nan") if share is None else share(module))
        result.crop = inputs[0].features[0, :3].t().float().cpu().numpy()
        result.masks = [mask[0, 0].cpu().numpy() for mask in module.masks]

    hook = network.register_forward_hook(watch)
    try:
        if recipe.settings.centred if by_votes is None else by_votes:
            labels = _voted(thin, network, recipe, arithmetic, seconds)
        else:
            labels = _whole(thin, network, recipe, arithmetic, seconds)
    finally:
        hook.remove()
    result.kept = float(np.mean(shares))
    with _timed(seconds, "carried back"):
        threads = torch.get_num_threads()
        result.classes = labels[nearest(thin.xyz, local_xyz, threads=threads, tree=make_tree(thin.xyz))]
    return result


def _whole(thin: Cloud, network, recipe: Recipe, arithmetic, seconds: dict) -> np.ndarray:
    settings = recipe.settings
    with _timed(seconds, "neighbours"):
        order = np.random.default_rng(0).permutation(len(thin))
        order = order[shell_order(thin.xyz[order], settings.ratio, settings.levels)]
        xyz = thin.xyz[order]
        features = xyz - xyz.mean(0) if settings.centred else xyz
        if settings.colours:
            features = np.concatenate([features, thin.colours[order]], axis=1)
        batch = batch_of(features, settings)
    with _timed(seconds, "network"), torch.inference_mode():
        logits = arithmetic.run(network, batch)
        labels = np.empty(len(thin), np.int64)
        labels[order] = logits[0].argmax(0).cpu().numpy()
    return labels


def _voted(thin: Cloud, network, recipe: Recipe, arithmetic, seconds: dict) -> np.ndarray:
    with _timed(seconds, "votes"):
        clouds = Clouds([CloudFile(thin.name, Path(thin.name), lambda _: thin)])
        source = EvaluationCrops(clouds, recipe.settings, 1, recipe.task.noise)
        [(_, _, labels)] = vote(network, source, [0], arithmetic, network.n_class, recipe.smooth)
    return labels


@contextmanager
def _timed(seconds: dict[str, float], name: str):
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
