"""Predictions for pictures, by a trained network of any origin."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsemask import exporting, models, spaces, tasks
from sparsemask.devices import Arithmetic, arithmetic
from sparsemask.errors import UseError
from sparsemask.pictures.palette import class_palette
from sparsemask.prediction import Description, Picture, Prediction, Predictor
from sparsemask.runs import Run, find
from sparsemask.tasks.dense.task import DenseTask
from sparsemask.VOC12.label_map import LabelMap
from sparsemask.VOC12.lists import load_class_names
from sparsemask.VOC12.palette import IGNORE
from sparsemask.weights import config_of, file_space, load_strictly, load_weights, metadata, read_checkpoint

PROGRAMS = (".pt2", ".onnx")
_VERBS = ("retrain", "specialize")


def predict(
    network: nn.Module | Predictor | str | os.PathLike[str],
    image: Picture,
    *,
    classes: Sequence[str] | None = None,
    longest: int | None = None,
    flips: bool = False,
    scales: Sequence[float] = (1.0,),
    gpu: int = -1,
) -> Prediction:
    """Labels, colours, an overlay and probabilities of a picture of any size.

    Args:
        network: a run's folder, a network's file (.safetensors, .pt2, .onnx, a run's checkpoint), a module that takes
            normalised images (N, 3, H, W), or what :func:`open_predictor` gave: several pictures need it opened once.
            Or the name of a network that ships (`sparsemask models`).
        image: a file, a Pillow image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W); uint8, or floats
            of 0 to 1.
        classes: names of the classes, where the network does not say them.
        longest: reduce larger pictures to this longer side for the network; the result has the picture's size.
        flips: average over mirrored copies.
        scales: average over copies enlarged by these factors.
        gpu: the CUDA device; negative, or without CUDA: the CPU.

    Returns:
        A :class:`sparsemask.prediction.Prediction`: its `labels` are uint8 (H, W), `colours` and `overlay` uint8
        (H, W, 3), `probabilities` float32 (C, H, W), `shares` fractions of the picture by class.

    Raises:
        UseError: no such file, a network without an output for every pixel, or no readable picture.
    """
    if not isinstance(network, Predictor):
        network = open_predictor(network, classes=classes, gpu=gpu)
    return network(image, longest=longest, flips=flips, scales=scales)


def open_predictor(
    network: nn.Module | str | os.PathLike[str],
    *,
    mask: str | None = None,
    backbone: str = "mobilenet_v2",
    classes: Sequence[str] | None = None,
    gpu: int = -1,
) -> Predictor:
    """Open a trained network, to be called with pictures.

    Args:
        network: as for :func:`predict`, or weights of any origin (.pth) with their `mask`.
        mask: the connectivity mask, a file or a name, of weights that do not say it.
        backbone: the encoder of such weights.
        classes: names of the classes, where the network does not say them.
        gpu: the CUDA device; negative, or without CUDA: the CPU.

    Raises:
        UseError: no such file, or no network with an output for every pixel of a picture.
    """
    where = arithmetic(gpu)
    if isinstance(network, nn.Module):
        return _of_module(network, where, classes)
    path = Path(models.path_of(os.fspath(network), "segmentation"))
    if path.is_dir():
        module, description, what = _of_run(find(path))
    elif path.suffix.lower() in PROGRAMS:
        return _of_program(path, classes)
    elif not path.is_file():
        raise UseError(f"{path}: no such file or run")
    elif mask is not None:
        module, description, what = _of_weights(path, mask, backbone)
    else:
        module, description, what = _of_file(path)
    module = module.to(where.device, where.parameters).eval().requires_grad_(False)
    return Predictor(module, _named(description, classes, what), where, what)


def _named(description: Description, classes: Sequence[str] | None, what: str) -> Description:
    """The description with classes that the user named."""
    if classes is None:
        return description
    if len(classes) != len(description.classes):
        raise UseError(f"{len(classes)} class names for {len(description.classes)} classes of {what}")
    return replace(description, classes=tuple(classes), palette=class_palette(classes))


def _of_module(network: nn.Module, where: Arithmetic, classes: Sequence[str] | None) -> Predictor:
    network = network.eval()
    channels = len(classes) if classes is not None else _channels(network, where)
    return Predictor(network, Description.assumed(channels, classes), where, type(network).__name__)


def _channels(network: Callable[[Tensor], Tensor], where: Arithmetic) -> int:
    """Channels of a network's output, by a trial on a small picture."""
    with torch.no_grad():
        output = where.run(network, torch.zeros(1, 3, 64, 64))
    if not isinstance(output, Tensor) or output.ndim != 4:
        raise UseError("the network has no output for every pixel of a picture (N, C, H, W)")
    return int(output.shape[1])


def _of_program(path: Path, classes: Sequence[str] | None) -> Predictor:
    """Of an exported file, which runs on the CPU."""
    file = exporting.read_exported(path)
    description = Description.from_entries({**file.entries, "input_shape": _listed(file.shape)}, path)
    if description is None:
        _refuse_others(file.entries.get("task"), path)
        if classes is None:
            raise UseError(f"{path}: does not say what its classes are: give --class_names, or export it again")
        description = Description.assumed(len(classes), classes)
    return Predictor(file.run, _named(description, classes, str(path)), None, str(path))


def _listed(shape: tuple[int | None, ...] | None) -> list[int | None] | None:
    return None if shape is None or len(shape) != 4 else list(shape)


def _of_run(run: Run) -> tuple[nn.Module, Description, str]:
    verb = run.info().get("verb")
    if verb not in _VERBS:
        raise UseError(f"{run.folder}: is a run of {verb}; predictions are made by a retrained or specialised network")
    if not run.last.is_file():
        raise UseError(f"{run.folder}: has no checkpoint yet")
    module, description, _ = _of_file(run.last)
    return module, description, str(run.folder)


def _of_file(path: Path) -> tuple[nn.Module, Description, str]:
    """Of a safetensors file that describes its network, or of a run's checkpoint."""
    space = file_space(path)
    if space is None:
        load_weights(path)  # says what is wrong with files that are none
        raise UseError(f"{path}: weights that do not say of what network they are: add --mask_path M")
    if path.suffix == ".safetensors":
        entries = metadata(path)
        description = Description.from_entries(entries, path)
        if description is None:
            _refuse_others(entries.get("task"), path)
        return _loaded(space, path, description)
    checkpoint = read_checkpoint(path)
    description = _of_config(config_of(checkpoint), path)
    return _loaded(space, path, description)


def _loaded(space: str, path: Path, description: Description | None) -> tuple[nn.Module, Description, str]:
    module = spaces.get(space).load(path).network
    if description is None:  # a file of an older version
        description = Description.assumed(_channels(module, arithmetic(-1)), input_size=1)
    return module, description, str(path)


def _refuse_others(task: object, path: Path) -> None:
    """Raise a UseError for networks of a known task that has no output for every pixel."""
    commands = {"super_resolution": "sparsemask upscale", "stereo": "sparsemask disparity"}
    commands |= dict.fromkeys(("s3dis", "semantickitti", "sample"), "sparsemask segment-points")
    if isinstance(task, str) and task in tasks.available() and not issubclass(tasks.find(task), DenseTask):
        advice = f": {commands[task]}" if task in commands else ""
        raise UseError(f"{path}: a network of task '{task}', which gives no label for every pixel{advice}")


def _of_config(config: Mapping[str, Any], path: Path) -> Description | None:
    """The description of a run's network, as its task says it, or as far as its flags do where its data are gone."""
    name = config.get("task")
    _refuse_others(name, path)
    if (described := _noted(path)) is not None:
        return described
    kind = tasks.find(name) if isinstance(name, str) and name in tasks.available() else None
    size, count, listed = config.get("crop_size"), config.get("n_class"), config.get("class_names")
    size = size if isinstance(size, int) and size > 0 else 1
    if kind is not None and issubclass(kind, DenseTask) and kind.output == "probability":
        return Description(tuple(kind.classes), "probability", input_size=size, task=str(name))
    if not isinstance(count, int) or not 1 <= count <= 255:
        return None
    if config.get("sample") and name == "segmentation":
        from sparsemask.datasets import sample_folder

        listed = str(sample_folder() / "class_names.txt")
    listed = listed if isinstance(listed, str) and Path(listed).is_file() else None
    ignored, mapping = config.get("ignore_index"), config.get("label_map")
    entries = {"output": "classes", "input_size": size, "ignore_index": IGNORE if ignored is None else ignored}
    if mapping is not None:
        entries["label_map"] = mapping
    named = listed is None and isinstance(mapping, str) and len(mapping) > 0
    names = list(LabelMap.of_text(str(mapping)).names) if named else load_class_names(listed, count)
    return Description.from_entries({**entries, "classes": names}, path)


def _noted(path: Path) -> Description | None:
    """What the network to share says, which a finished run has beside its checkpoints."""
    shared = path.parent.parent / "network.safetensors"
    if not (shared.is_file() and (path.parent.parent / "run.json").is_file()):
        return None
    return Description.from_entries(metadata(shared), shared)


def _of_weights(path: Path, mask: str, backbone: str) -> tuple[nn.Module, Description, str]:
    """Of weights of any origin and their connectivity mask."""
    from sparsemask.spaces.connectivity.mask_source import resolve_mask

    state = load_weights(path)
    head = state.get("fc_conv.weight")
    if head is None or head.ndim != 4:
        raise UseError(f"{path}: no weights of a connectivity network (fc_conv.weight is missing)")
    classes, depth = int(head.shape[0]), int(head.shape[1])
    decoder = resolve_mask(mask, backbone, depth=depth).argument
    options = {"backbone_name": backbone, "depth": depth, "n_class": classes}
    from sparsemask.spaces.backbones import forms

    form = forms.of_weights(state, backbone)
    module = spaces.get("connectivity").network(decoder, {**options, **form})
    load_strictly(module, state, path)
    return module, Description.assumed(classes), str(path)
