"""Fingerprints of a study's data, classes and initial weights.

Paths are not compared: machines may have the same images in different folders, and different ones in the same folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from sparsemask import datasets
from sparsemask.config import RunConfig
from sparsemask.engine.data import DataSource, EvaluationSource, FileSource, NamedSource
from sparsemask.engine.randomness import draw_generator
from sparsemask.files import sha256
from sparsemask.tasks import Task

_READ = 128  # samples of a part whose content is read, evenly spaced; of all others only names are used
_LOSSY = (".jpg", ".jpeg")
_SHOWN = 16  # hexadecimal digits


def fingerprint(task: Task, config: RunConfig) -> dict[str, str]:
    """Fingerprint a study's data, independent of the machine.

    Args:
        task: its data.
        config: of the search.

    Returns:
        By part ("training", "validation", "classes", "weights") a short description with a digest.
    """
    parts = {"training": describe(task.train_data, True), "validation": describe(task.eval_data, False)}
    if task.classes:
        parts["classes"] = f"{len(task.classes)}, {_short('/'.join(task.classes).encode())}"
    weights = datasets.backbone_weights(config.network.backbone_name, config.network.pretrained_model)
    parts["weights"] = sha256(weights)[:_SHOWN] if weights else "none"
    return parts


def describe(source: DataSource | EvaluationSource, training: bool) -> str:
    """Number of samples of a source, and a digest of their names and of the content of evenly spaced ones."""
    digest = hashlib.sha256()
    if isinstance(source, NamedSource):
        for index in range(len(source)):
            digest.update(f"{source.name(index)}\n".encode())
    for index in np.unique(np.linspace(0, len(source) - 1, min(_READ, len(source))).astype(int)).tolist():
        for part in _content(source, index, training):
            digest.update(part)
    return f"{len(source)} samples, {digest.hexdigest()[:_SHOWN]}"


def _content(source: DataSource | EvaluationSource, index: int, training: bool):
    """A sample's bytes: decoded for lossless files, whose encoding may vary; raw for lossy ones, whose decoding may."""
    if isinstance(source, FileSource):
        image, label = source.load(index)
        path = Path(source.pairs[index][0])
        yield path.read_bytes() if path.suffix.lower() in _LOSSY else _bytes(image)
        yield _bytes(label)
        return
    sample = source.sample(index, draw_generator(0, 0, index)) if training else source[index]
    for value in sample:
        yield _bytes(value)


def _bytes(value) -> bytes:
    array = np.asarray(value)
    return repr((array.shape, array.dtype.str)).encode() + np.ascontiguousarray(array).tobytes()


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_SHOWN]
