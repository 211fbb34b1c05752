"""The flags the verbs share, in groups; each command adds the groups it needs. Names follow the public scripts.

Each group's function takes the parser and the space it is for (``spaces.Space``), whose network and whose task's data
have flags of their own; without a space the flags are those of the default one.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemask import datasets, runs, tasks
from sparsemask.config import RunConfig, Section, flag
from sparsemask.containers import read_yaml
from sparsemask.errors import UseError
from sparsemask.masks import npz
from sparsemask.options import Parser, fraction, natural, positive, rate
from sparsemask.plugins import is_own
from sparsemask.tasks import LabelledData
from sparsemask.tracking.names import track_names
from sparsemask.weights import file_space

if TYPE_CHECKING:
    from sparsemask.spaces import Space

DEFAULT_SPACE = "connectivity"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSection(Section):
    """Where a run lives and how it repeats."""

    title = "run"
    config: str | None = flag(help="YAML file of flags, or a preset: published, short, sample", transient=True)
    exp_path: str = flag("runs", help="folder that holds the runs (default: runs)")
    name: str | None = flag(help="the run's folder in it (default: verb and time)")
    seed: int = flag(0, natural, help="seed of everything random (default: 0)")
    resume: str | None = flag(
        nargs="?",
        const="auto",
        metavar="RUN",
        transient=True,
        help="go on with a run, from its own configuration; without RUN: the run --name if it exists, else a new one",
    )
    track: str = flag(
        "tensorboard",
        track_names,
        help="who is told metrics, images and weights: tensorboard, mlflow, wandb, trackio or package.module:Tracker, "
        "with commas between them, or none (default: tensorboard)",
    )
    track_samples: int = flag(
        0,
        natural,
        metavar="N",
        help="send them sample predictions every N validations; 0: at the end (default: 0)",
    )
    dry_run: bool = flag(
        False, transient=True, help="say what would be trained, how long and in how much memory; write nothing"
    )


def add_run(parser: Parser, space: Space | None = None) -> None:
    """Where a run lives and how it repeats."""
    parser.add_section("run", RunSection)


def add_data(parser: Parser, space: Space | None = None) -> None:
    """Which pictures; without any of these: VOC where it was prepared, else the embedded sample set."""
    task = tasks.DEFAULT if space is None else space.task
    section = tasks.find(task).section if tasks.own_flags(task) else LabelledData
    words = f"{', '.join(tasks.siblings(task))}, or package.module:Class (default: {task})"
    parser.add_section("data", section, defaults={"task": task}, helps={"task": words})


def check_task(config: RunConfig, default: str) -> None:
    """Raise a UseError for a task whose data this command line's flags, those of task `default`, cannot name."""
    known = is_own(config.data.task) or config.data.task in tasks.available()
    if tasks.own_flags(default) and known and not tasks.fits(config.data.task, default):
        fitting = " or ".join(tasks.siblings(default))
        raise UseError(f"--task {config.data.task}: space '{config.network.space}' is for --task {fitting}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceSection(Section):
    """Which space alone: a file says the rest of the network."""

    space: str = flag(DEFAULT_SPACE, help=f"the search space (default: {DEFAULT_SPACE}, or a file's own)")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSection(SpaceSection):
    """Which network. A space's own section derives from it."""

    title = "network"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSection(NetworkSection):
    """An encoder and the decoder on it."""

    backbone_name: str = flag(
        "mobilenet_v2",
        help="the encoder: mobilenet_v2 (the default), with the extra timm any of its models (resnet50, vgg16, ...), "
        "or package.module:callable for your own",
    )
    depth: int = flag(64, positive, help="decoder channels (default: 64)")
    pretrained_model: str | None = flag(
        help="ImageNet weights of the encoder (default: $SPARSEMASK_WEIGHTS/<backbone>.*, then the cache)"
    )
    first_expansion: str = flag(
        "auto",
        choices=("auto", "yes", "no"),
        help="MobileNetV2 with the public 1x1 expansion in its first stage; auto: as the weights have it (else no)",
    )
    widths: str | None = flag(help=None)  # of its layers, as weights have them
    bn_momentum: float | None = flag(None, rate, help="batch-norm momentum (published: 0.0003)")


def add_network(parser: Parser, space: Space | None = None) -> None:
    """Which network."""
    section = EncoderSection if space is None else space.section
    name = DEFAULT_SPACE if space is None else space.name
    parser.add_section("network", section, defaults={"space": name})


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSection(Section):
    """Where it is computed."""

    title = "device"
    gpu: int = flag(0, int, help="CUDA device; -1, or no CUDA: the CPU (default: 0)")
    type: str = flag(
        "float32",
        choices=("float32", "float64", "bfloat16", "float16", "int8"),
        help="arithmetic; bfloat16 and float16 mean mixed precision; int8: what skips in integers, the rest in "
        "bfloat16, not for training (default: float32)",
    )


def add_device(parser: Parser, space: Space | None = None) -> None:
    """Where it is computed."""
    parser.add_section("device", DeviceSection)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSection(Section):
    """The optimisation. What is None here comes from a preset."""

    title = "training"
    batch_size: int | None = flag(None, positive, help="pictures a step, over all processes")
    accumulate: int = flag(1, positive, help="parts a batch is computed in (default: 1)")
    max_epoch: int | None = flag(None, positive, help="passes over the training list")
    max_iter: int | None = flag(None, positive, help="steps; wins over --max_epoch")
    lr: float | None = flag(None, rate, help="learning rate of the encoder")
    last_layer_lr_mult: float | None = flag(None, rate, help="factor on it for all else")
    optimizer: str = flag("sgd", choices=("sgd", "adamw"), help="(default: sgd, as published)")
    momentum: float = flag(0.9, fraction, help="SGD momentum (default: 0.9)")
    nesterov: bool = flag(False, help="SGD's momentum after Nesterov")
    decay: float = flag(4e-5, rate, help="weight decay (default: 4e-5)")
    schedule: str = flag("poly", choices=("poly", "step", "exponential", "cosine", "constant"), help="(default: poly)")
    gamma: float = flag(0.9, rate, help="poly: exponent; step: factor; exponential: an epoch's (default: 0.9)")
    milestones: Sequence[float] | None = flag(None, rate, nargs="+", help="step: fractions of the run to drop at")
    warmup: int = flag(0, natural, help="steps of linear warm-up (default: 0)")
    clip: float = flag(0.0, rate, help="largest gradient norm, 0: no bound (default: 0)")
    ema: float = flag(
        0.0,
        fraction,
        metavar="DECAY",
        help="evaluate and save an exponential moving average of the weights, such as 0.999 (default: 0, none)",
    )
    repeat_augment: int = flag(
        1, positive, help="augmented copies of a sample in a batch, instead of other samples (default: 1)"
    )
    freeze_bn: bool = flag(False, help="batch norms keep their running statistics")
    bn_reestimate: int | None = flag(None, natural, help="batches to re-estimate BN statistics from before evaluating")
    eval_interval: int | None = flag(None, natural, help="steps between evaluations, 0: an epoch")
    eval_limit: int = flag(0, natural, help="validation pictures while training, 0: all")
    patience: int = flag(0, natural, help="end after so many validations without a better one, 0: never (default: 0)")
    checkpoint_interval: int = flag(100, positive, help="steps between checkpoints")
    log_interval: int | None = flag(None, positive, help="steps between lines of metrics")


def add_training(parser: Parser, space: Space | None = None) -> None:
    """The optimisation."""
    parser.add_section("training", TrainingSection)


def typed(argv: Sequence[str] | None) -> dict[str, str]:
    """The words that follow the flags of a command line, by flag: the last one of a repeated flag, "" for none.

    Nothing is checked: this is for what must be known before there is a parser, which refuses what is wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    found = {}
    for word, after in itertools.zip_longest(words, words[1:], fillvalue="--"):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            found[name[2:].replace("-", "_")] = value if equals else "" if after.startswith("--") else after
    return found


def space_of(argv: Sequence[str] | None, newest: str | None = None) -> str:
    """The space a command line is about, which decides what its other flags are.

    --space says it; else a run (--resume, --run), a file of flags, a mask file, a checkpoint; else, with `newest`, the
    newest run of that verb. A file that cannot be read is passed over here: the verb reports it when it reads it.
    """
    seen = typed(argv)
    if seen.get("space"):
        return seen["space"]
    found = next(filter(None, (_in_config(file, "space") for file in _configurations(seen))), None)
    mask, weights = seen.get("mask_path"), [seen[name] for name in ("checkpoint", "pretrained_model") if seen.get(name)]
    found = found or (npz.file_space(mask) if mask else None)
    found = found or next(filter(None, map(file_space, weights)), None)
    named = any(seen.get(name) for name in ("resume", "run", "mask_path", "checkpoint", "pretrained_model"))
    if found is None and newest and not named:
        found = runs.newest_space(seen.get("exp_path") or "runs", newest)
    return found or DEFAULT_SPACE


def task_of(argv: Sequence[str] | None) -> str | None:
    """The task a command line names, itself or by a run or a file of flags; None where it names none."""
    seen = typed(argv)
    if seen.get("task"):
        return seen["task"]
    files = _configurations(seen)
    if not seen.get("resume"):
        with contextlib.suppress(UseError, OSError):  # the verb reports it when it reads it
            origin = datasets.origin_of(seen)
            files += [origin.run.config] if origin else []
    return next(filter(None, (_in_config(file, "task") for file in files)), None)


def _configurations(seen: Mapping[str, str]) -> list[Path]:
    """The files of flags that a command line names: its run's, and that of --config."""
    folders = [Path(seen[name]) / "config.yaml" for name in ("resume", "run") if seen.get(name)]
    return [*folders, Path(seen.get("config", ""))]


def _in_config(file: Path, name: str) -> str | None:
    content = None
    if file.is_file():
        with contextlib.suppress(UseError, OSError):
            content = read_yaml(file)
    found = content.get(name) if isinstance(content, dict) else None
    return found if isinstance(found, str) else None
