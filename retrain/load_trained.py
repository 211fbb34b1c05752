"""Find the trained network of a command: a run's, the newest run's, or that of a weights file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sparsemask import datasets, families, flags, runs, spaces, training_setup
from sparsemask.config import RunConfig, Section, flag
from sparsemask.devices import Arithmetic
from sparsemask.engine import checkpoint
from sparsemask.errors import UseError, say
from sparsemask.families import Restored, RetrainingFamily
from sparsemask.options import Parser, natural
from sparsemask.spaces import Space


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedSection(Section):
    """Which trained network."""

    config: str | None = flag(help="YAML file of flags", transient=True)
    run: str | None = flag(help="the retrain run (default: the newest)")
    exp_path: str = flag("runs", help="folder that holds the runs (default: runs)")
    checkpoint: str = flag("last", help="of the run: last or best (default: last)")
    seed: int = flag(0, natural, help="of a random-k mask (default: 0)")


def family_of(space: str) -> RetrainingFamily:
    """Return the family that retrains and loads the networks of a space."""
    return families.find("retrain", spaces.get(space))


def for_task(space: str, task: str | None) -> Space:
    """Return a space by name, for a task's data if one is named."""
    instance = spaces.get(space)
    return instance.for_task(task) if task else instance


def add_trained(parser: Parser, space: str, task: str | None = None) -> None:
    """Add the flags for network, data and device; the family's own must be added separately."""
    parser.add_section("run", TrainedSection, only=("config", "run", "exp_path"))
    for add in (flags.add_data, flags.add_network, flags.add_device):
        add(parser, for_task(space, task))
    parser.add_section("run", TrainedSection, only=("checkpoint", "seed"))


def read_flags(parser: Parser, argv: Sequence[str] | None, space: str) -> dict:
    """Return the flags of the command line and its --config.

    Args:
        parser: of the command.
        argv: the command line; None: the process's.
        space: name of the space, if no flag names one.

    Raises:
        UseError: they name two networks.
    """
    given = parser.given(argv)
    given = {**(parser.from_file(given["config"], foreign=True) if given.get("config") else {}), **given}
    if given.get("run"):
        for name in ("pretrained_model", "mask_path"):
            if name in given:
                raise UseError(f"--run {given['run']} and --{name} {given[name]}: give the one or the other")
    given.setdefault("space", space)
    return given


def open_trained(parser: Parser, given: dict) -> Restored:
    """Load the network of --pretrained_model, of --run, or of the newest run.

    Args:
        parser: of the command.
        given: as :func:`read_flags` returns it.

    Raises:
        UseError: no such network, or flags that do not fit it.
    """
    space, run = given["space"], None
    if not given.get("pretrained_model"):
        if given.get("run"):
            run = runs.find(given["run"])
        else:
            run = runs.newest(given.get("exp_path", "runs"), "retrain", space)
    restored = family_of(space).restore(parser, given, run)
    training_setup.prepare(restored.config)
    return restored


@dataclass(frozen=True)
class Source:
    """The file of a network's weights, and the configuration to use it with.

    Attributes:
        config: the command's, completed by the run's, if there is one.
        path: of the file.
        state: its checkpoint, if it is a run's; None for a weights file of any origin.
        saved: the run's flags that the command knows; empty without a run.
        given: the flags that the user named.
    """

    config: RunConfig
    path: Path
    state: dict | None
    saved: dict
    given: dict


def read_source(parser: Parser, given: dict, run: runs.Run | None, excluded: Collection[str]) -> Source:
    """Resolve a command's configuration for the network of a run, or of ``--pretrained_model``.

    Args:
        parser: of the command.
        given: the flags that the user named.
        run: the run, or None for ``--pretrained_model``.
        excluded: flags that are not taken from the run.

    Raises:
        UseError: no such checkpoint, or flags that do not fit it.
    """
    if run is None:
        config, line, _ = training_setup.resolve_config(parser, given, training=False)
        if line:
            say(line)
        return Source(config, Path(config["pretrained_model"]), None, {}, given)
    name = given.setdefault("checkpoint", "last")
    if name not in ("last", "best"):
        raise UseError(f"--checkpoint {name}: last or best")
    path = run.checkpoints / f"{name}.pt"
    state = checkpoint.load(path, given["space"])
    saved = checkpoint.saved_flags(state, parser, path, excluded)
    config = parser.resolve(datasets.without_replaced(saved, given), given)
    return Source(config, path, state, saved, given)


def ready(model: nn.Module, where: Arithmetic) -> nn.Module:
    """Move a network to its device and put it into evaluation mode."""
    return model.to(where.device, where.parameters).eval()
