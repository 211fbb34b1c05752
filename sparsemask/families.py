"""Families of methods: what search/, prune/ and retrain/ implement for one, how it is found, and how it is trained.

A family is a way of learning masks (connectivity, sparse_conv, group_sparsity). Each of the folders `search/`, `prune/`
and `retrain/` holds a module named after it whose `FAMILY` is an object of the contract below. The commands know
nothing else of a family: :func:`train` trains every :class:`TrainingFamily`, from the command line to the exit status.
"""

from __future__ import annotations

import importlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, overload

from torch import nn

from sparsemask import flags, training_setup
from sparsemask.config import RunConfig, Section
from sparsemask.devices import Arithmetic
from sparsemask.engine import Method, distributed, fit
from sparsemask.engine.callbacks import Callback
from sparsemask.engine.rehearsal import rehearse
from sparsemask.options import Parser
from sparsemask.runs import Run
from sparsemask.tracking.trackers import Trackers
from sparsemask.training_setup import Context

if TYPE_CHECKING:
    from sparsemask.engine.distillation import Teacher
    from sparsemask.tasks.protocol import Task


@dataclass(frozen=True)
class Built:
    """What :meth:`TrainingFamily.build` makes. A family subclasses it for what goes beside the network.

    Attributes:
        model: the network to be trained, not yet on its device. Nothing is hung on it from outside.
        extra: what its checkpoints carry beside state and configuration, by name: tensors, numbers, words, and lists
            and dictionaries of these (checkpoints are read with ``weights_only=True``).
        changes: flags whose values only weights or masks tell, by name; :func:`train` puts them into the
            configuration, which is written again.
        notes: entries of run.json, by name.
        task: the task as it is trained on, where the family keeps a part of the training samples back; None: the
            context's.
        teacher: what the network learns from beside the labels; no submodule of it, neither trained nor saved.
    """

    model: nn.Module
    extra: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    task: Task | None = None
    teacher: Teacher | None = None


@dataclass(frozen=True)
class Restored:
    """A trained network, ready for evaluation. A family subclasses it for what goes beside the network.

    Attributes:
        config: the command's configuration, the run's own where it is of a run.
        model: the network with its weights, in evaluation mode, on its device.
        arithmetic: the device and the type that it computes in.
        run: the run it is of; None for a file of weights.
        mask: what says how the network is built, where the network itself does not hold it.
    """

    config: RunConfig
    model: nn.Module
    arithmetic: Arithmetic
    run: Run | None = None
    mask: Any = None


B = TypeVar("B", bound=Built)
R = TypeVar("R", bound=Restored)


class TrainingFamily(ABC, Generic[B]):
    """How networks are trained under one verb: search, retrain or specialize.

    Objects hold no state of a run: one object serves every run of a process.

    Attributes:
        verb: the command's name, as run folders and checkpoints say it.
        section: the family's flags; None: it has none of its own.
    """

    verb: str
    section: type[Section] | None = None

    def add_options(self, parser: Parser) -> None:
        """Add the family's section, in role ``family``, to a parser that has run, data, network, device and training.

        Args:
            parser: its default of ``space`` is the space that the command line is about.
        """
        if self.section is not None:
            parser.add_section("family", self.section)

    def default_flags(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Flags that say what is started from where nothing else does; they rank below the command line.

        Args:
            given: the flags of the command line and of ``--config``.

        Returns:
            Flags by name; empty by default.

        Raises:
            UseError: there is nothing to start from.
        """
        return {}

    def resolve(self, config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
        """Settle a new run's configuration from the files that it names, before the run's folder is made.

        Args:
            config: the configuration so far.
            given: the flags that the user named on the command line.

        Returns:
            The configuration, by default as it is.

        Raises:
            UseError: one line that says why the run could not be started, and what to do.
        """
        return config

    @abstractmethod
    def build(self, context: Context) -> B:
        """The network of a run as it begins, or as its checkpoint has it.

        Args:
            context: of the run; with ``context.state`` set, what is built is what that checkpoint was saved from (its
                weights are loaded afterwards).

        Raises:
            UseError: weights or masks do not fit.
        """

    @abstractmethod
    def method(self, context: Context, built: B) -> Method:
        """What the training loop calls at every turn, for the network that :meth:`build` made."""

    @abstractmethod
    def finish(self, context: Context, built: B, result: dict[str, Any]) -> int:
        """Write what a finished run leaves (network, costs, pictures, report) and say what to do next.

        Only the main process calls it.

        Args:
            result: metrics of the last validation.

        Returns:
            The command's exit status: 0, or 1 where what was measured contradicts itself.
        """


class PruningFamily(ABC):
    """How learnt masks are made hard."""

    @abstractmethod
    def add_options(self, parser: Parser) -> None:
        """Add the family's flags, those of data and device included where masks are measured on data."""

    @abstractmethod
    def prune(self, config: RunConfig, given: Mapping[str, Any], run: Run | None) -> None:
        """Write the mask file of a search, with a json beside it, and print what it keeps.

        Args:
            config: the command's configuration.
            given: the flags that the user named on the command line.
            run: the search run; None: ``config.run.checkpoint`` is a file.

        Raises:
            UseError: the checkpoint holds no such masks, or no network could be built from the result; then nothing is
                written.
        """


class TrainedFamily(ABC, Generic[R]):
    """How a family's trained networks are read again and evaluated.

    Attributes:
        eval_section: the family's flags of evaluation and export; None: it has none of its own.
    """

    eval_section: type[Section] | None = None

    def add_eval_options(self, parser: Parser) -> None:
        """Add the family's flags of evaluation and export."""
        if self.eval_section is not None:
            parser.add_section("family", self.eval_section)

    @abstractmethod
    def restore(self, parser: Parser, given: dict[str, Any], run: Run | None) -> R:
        """The network of a run, or of the file ``given["pretrained_model"]``.

        Args:
            parser: of the command that asks.
            given: its flags from the command line and ``--config``; ``space`` is among them.
            run: the retrain run; None: weights of any origin that the space reads.

        Raises:
            UseError: the files are missing, damaged or of another network.
        """

    @abstractmethod
    def evaluate(self, restored: R) -> int:
        """Print the task's report and what the network costs; note both in the run's folder, if it is of a run.

        Every process of a group calls it.

        Returns:
            The command's exit status: 0, or 1 where two forms of the network that must agree do not.
        """

    @abstractmethod
    def load_run(self, run: Run) -> nn.Module:
        """The trained network of a run, in evaluation mode, on the CPU."""


class RetrainingFamily(TrainingFamily[B], TrainedFamily[R]):
    """What a module of `retrain/` implements: training of small networks, and reading them again."""


class OfFamily(Protocol):
    """What is of a family: a space."""

    family: str


Verb = Literal["search", "prune", "retrain"]
_CONTRACTS: dict[str, type] = {"search": TrainingFamily, "prune": PruningFamily, "retrain": RetrainingFamily}
_FAMILIES: dict[tuple[str, str], Any] = {}


@overload
def find(verb: Literal["search"], space: OfFamily) -> TrainingFamily[Any]: ...
@overload
def find(verb: Literal["prune"], space: OfFamily) -> PruningFamily: ...
@overload
def find(verb: Literal["retrain"], space: OfFamily) -> RetrainingFamily[Any, Any]: ...
def find(verb: Verb, space: OfFamily) -> Any:
    """The family object that serves a space under a verb.

    Args:
        verb: the folder that implements it: search, prune or retrain.
        space: its `family` is the module's name. A module is imported when it is first asked for.

    Raises:
        TypeError: the module's `FAMILY` is not of the verb's contract.
    """
    key = (verb, space.family)
    if key not in _FAMILIES:
        register(verb, space.family, importlib.import_module(f"sparsemask.{verb}.{space.family}").FAMILY)
    return _FAMILIES[key]


def register(verb: Verb, name: str, family: TrainingFamily[Any] | PruningFamily) -> None:
    """Make a family of one's own known, so that the commands serve spaces whose `family` is `name`.

    Args:
        verb: search, prune or retrain.
        name: as the spaces say it; a later family of the same name replaces it.
        family: an object of the verb's contract.

    Raises:
        TypeError: it is not of that contract.
    """
    contract = _CONTRACTS[verb]
    if not isinstance(family, contract):
        raise TypeError(f"{verb} of family '{name}': {type(family).__name__} is no {contract.__name__}")
    _FAMILIES[verb, name] = family


def training_parser(
    family: TrainingFamily[Any],
    space: Any,
    prog: str,
    description: str | None,
    ignored: Mapping[str, str] | None = None,
) -> Parser:
    """The flags of a training command for a space, the family's own included.

    Args:
        space: what the flags of data and network depend on.
        prog: the command's file, as `search/run.py`.
        description: the command's help text.
        ignored: texts of --help of switches that change nothing.
    """
    parser = Parser(family.verb, prog=prog, description=description)
    for name, text in (ignored or {}).items():
        parser.add_argument(f"--{name}", dest=f"_{name}", action="store_true", help=text)
    for add in (flags.add_run, flags.add_data, flags.add_network, flags.add_device, flags.add_training):
        add(parser, space)
    family.add_options(parser)
    return parser


def train(
    family: TrainingFamily[Any],
    parser: Parser,
    argv: Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
    opened: Callable[[Context], None] | None = None,
) -> int:
    """Begin or resume a run and train it to its end.

    Args:
        family: whose networks and method are trained.
        parser: of the command, see :func:`training_parser`.
        argv: the command line; None: the process's own.
        callbacks: called after every step, see :mod:`sparsemask.engine.callbacks`.
        opened: told the run before it is trained.

    Returns:
        The command's exit status.

    Raises:
        UseError: nothing can be trained from this configuration. A folder that this call made is then removed.
    """
    if parser.given(argv).get("dry_run"):
        return _rehearse(family, parser, argv)
    context = training_setup.open_training(parser, argv, family.resolve, family.default_flags)
    run = context.run
    if opened is not None:
        opened(context)
    with Trackers(context.config.run.track) as trackers:
        with context.clean():
            built = family.build(context)
            context = context.with_config(context.config.replace(**built.changes))
            context.note_start(**built.notes)
            config = context.config
            extra = {"verb": family.verb, "space": config.network.space, "config": config.flat(), **built.extra}
            method = _method(family, context, built)
            context.track(trackers, family.verb)
            result = fit(
                built.model,
                method,
                built.task or context.task,
                config,
                run,
                context.arithmetic,
                extra,
                context.state,
                callbacks,
                trackers,
            )
        status = 0
        if context.main:
            run.note(state="finished", result=result)
            status = family.finish(context, built, result)
            trackers.pictures(sorted(run.pictures.glob("*.png")))
    distributed.stop()
    return status


def _method(family: TrainingFamily[Any], context: Context, built: Built) -> Method:
    method = family.method(context, built)
    method.teacher = built.teacher
    return method


def _rehearse(family: TrainingFamily[Any], parser: Parser, argv: Sequence[str] | None) -> int:
    """Say what :func:`train` would train, from a few steps in a folder that is taken away again."""
    with tempfile.TemporaryDirectory(prefix="sparsemask-") as folder:
        context = training_setup.open_training(parser, argv, family.resolve, family.default_flags, beside=folder)
        built = family.build(context)
        config = context.config.replace(**built.changes)
        context = context.with_config(config)
        task = built.task or context.task
        method = _method(family, context, built)
        rehearsal = rehearse(built.model, method, task, config, context.run, context.arithmetic, {})
        lines = [
            "dry run, nothing was written",
            f"would     {family.verb}: space {config.network.space}, task {config.data.task}",
            f"on        {len(task.train_data)} training {task.items}, {len(task.eval_data)} {task.measured_on()}",
            *rehearsal.lines(config, context.arithmetic, task.items),
        ]
        context.say("\n".join(lines))
    distributed.stop()
    return 0
