"""What a study is about, in a few words: its data, its classes, the weights it starts from.

Paths say nothing: other machines have the same pictures elsewhere, and another data set may lie in the same place.
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

_READ = 128  # samples of a part that are read whole, evenly spaced; of all others the names count
_LOSSY = (".jpg", ".jpeg")
_SHOWN = 16  # hexadecimal digits


def fingerprint(task: Task, config: RunConfig) -> dict[str, str]:
    """Part -> what tells it from another one, equal wherever the same data are.

    config: the search's.
    """
    found = {"training": describe(task.train_data, True), "validation": describe(task.eval_data, False)}
    if task.classes:
        found["classes"] = f"{len(task.classes)}, {_short('/'.join(task.classes).encode())}"
    weights = datasets.backbone_weights(config.network.backbone_name, config.network.pretrained_model)
    found["weights"] = sha256(weights)[:_SHOWN] if weights else "none"
    return found


def describe(source: DataSource | EvaluationSource, training: bool) -> str:
    """How many samples a source has, and a digest of their names and of what is in an evenly spaced part of them."""
    digest = hashlib.sha256()
    if isinstance(source, NamedSource):
        for index in range(len(source)):
            digest.update(f"{source.name(index)}\n".encode())
    for index in np.unique(np.linspace(0, len(source) - 1, min(_READ, len(source))).astype(int)).tolist():
        for part in _content(source, index, training):
            digest.update(part)
    return f"{len(source)} samples, {digest.hexdigest()[:_SHOWN]}"


def _content(source: DataSource | EvaluationSource, index: int, training: bool):
    """A sample as bytes. Decoded, since lossless files may be written differently; lossy ones are read differently."""
    if isinstance(source, FileSource):
        picture, label = source.load(index)
        path = Path(source.pairs[index][0])
        yield path.read_bytes() if path.suffix.lower() in _LOSSY else _bytes(picture)
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
