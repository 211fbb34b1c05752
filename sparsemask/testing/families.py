"""Contract tests of families: subclass the class of the verb, say which family and how a small run is begun.

    class TestMine(TrainingFamilyContract):
        family, space = MyFamily(), "myspace"
        argv = ("--sample", "--batch_size", "4")

Each takes a second or two: flags, build, one step of training, build again from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsemask import families, options, spaces, training_setup
from sparsemask.engine import Method, checkpoint, fit
from sparsemask.errors import UseError
from sparsemask.options import Parser
from sparsemask.sparse import backend

# What checkpoints of the engine carry themselves.
_ENGINE = {"model", "optimizer", "scheduler", "scaler", "method", "step", "best", "seconds", "random", "format", "data"}
_DRIVER = {"verb", "space", "config"}
# Flags of every small run of a contract test.
_RUN = (
    "--name",
    "run",
    "--gpu",
    "-1",
    "--n_worker",
    "0",
    "--max_iter",
    "1",
    "--eval_limit",
    "1",
    "--log_interval",
    "1",
)


def check_flags(make_parser: Callable[[], Parser]) -> None:
    """Flags of a command: explained, the same each time, their defaults such as a configuration file may say."""
    parser = make_parser()
    unexplained = [name for name, action in parser.actions().items() if not action.help]
    assert not unexplained, f"flags without help: {unexplained}"
    assert parser.format_help()
    defaults = parser.resolve().flat()
    assert parser.checked(defaults, "the defaults") == defaults
    again = make_parser().resolve().flat()
    assert again == defaults, "add_options depends on what was asked before"


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


class TrainingFamilyContract:
    """What every :class:`sparsemask.families.TrainingFamily` promises.

    Attributes:
        family: the object under test.
        space: name of a space of it.
        argv: flags of a small run, data included; override :meth:`arguments` where they need files.
    """

    family: families.TrainingFamily
    space: str
    argv: Sequence[str] = ("--sample",)

    def arguments(self, folder: Path) -> Sequence[str]:
        """The flags of a small run; `folder`, the working directory, may be written into."""
        return self.argv

    def make_parser(self) -> Parser:
        """The parser that the command of this verb would make."""
        return families.training_parser(self.family, spaces.get(self.space), "contract", None)

    @pytest.fixture(scope="class")
    @classmethod
    def context(cls, tmp_path_factory) -> Iterator[training_setup.Context]:
        """A new run's, in a working directory of its own."""
        contract = cls()
        folder = tmp_path_factory.mktemp("family")
        with pytest.MonkeyPatch.context() as patch, backend("reference"):
            patch.chdir(folder)
            patch.delenv("SPARSEMASK_WEIGHTS", raising=False)
            argv = [*contract.arguments(folder), *_RUN]
            family, parser = contract.family, contract.make_parser()
            yield training_setup.open_training(parser, argv, family.resolve, family.default_flags)

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls, context) -> families.Built:
        """What the family builds for it."""
        return cls.family.build(context)

    @pytest.fixture(scope="class")
    @classmethod
    def settled(cls, context, built) -> training_setup.Context:
        """The run's context with what building has settled, as the driver makes it."""
        context = context.with_config(context.config.replace(**built.changes))
        context.note_start(**built.notes)
        return context

    @pytest.fixture(scope="class")
    @classmethod
    def frozen(cls, built) -> set[str]:
        """Names of the parameters that do not learn, before a method moves any."""
        return _frozen(built.model)

    def test_is_of_the_contract(self):
        assert isinstance(self.family, families.TrainingFamily)
        assert self.family.verb in options.SECTIONS

    def test_flags(self):
        check_flags(self.make_parser)

    def test_build(self, settled, built):
        assert isinstance(built, families.Built) and isinstance(built.model, nn.Module)
        assert not built.extra.keys() & (_ENGINE | _DRIVER), "entries that every checkpoint has already"
        foreign = [n for n, v in vars(built.model).items() if isinstance(v, (Method, training_setup.Context))]
        assert not foreign, f"hung on the model: {foreign}"
        buffer = io.BytesIO()
        torch.save(dict(built.extra), buffer)
        buffer.seek(0)
        assert torch.load(buffer, weights_only=True).keys() == built.extra.keys()
        written = self.make_parser().from_file(settled.run.config)
        assert settled.config.flat() == written, "what was settled is not what the run's configuration says"

    def test_every_parameter_that_learns_is_in_one_group(self, settled, built, frozen):
        method = self.family.method(settled, built)
        assert isinstance(method, Method)
        method.steps = 1
        optimizers = method.optimizers(built.model, settled.config)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        listed = [id(p) for group in groups for p in group["params"]]
        assert len(listed) == len(set(listed)), "a parameter in two groups"
        names = {id(p): name for name, p in built.model.named_parameters()}
        assert set(listed) <= set(names), "parameters that are not the model's"
        missing = {name for identity, name in names.items() if identity not in set(listed)} - frozen
        assert not missing, f"in no group: {missing}"

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, settled, built, frozen) -> dict[str, Any]:
        """Metrics after one step of training."""
        family = cls.family
        extra = {"verb": family.verb, "space": settled.config.network.space, "config": settled.config.flat()}
        method = family.method(settled, built)
        return fit(built.model, method, settled.task, settled.config, settled.run, settled.arithmetic,
                   {**extra, **built.extra})  # fmt: skip

    def test_a_step_is_trained(self, settled, trained):
        assert settled.task.primary in trained
        assert checkpoint.load(settled.run.last, settled.config.network.space)["step"] == 1

    def test_the_same_is_built_from_a_checkpoint(self, settled, built, frozen, trained):
        state = checkpoint.load(settled.run.last)
        resumed = dataclasses.replace(settled, state=state)
        again = self.family.build(resumed)
        assert again.extra.keys() == built.extra.keys()
        again.model.load_state_dict(state["model"])
        assert _frozen(again.model) == frozen
        method = self.family.method(resumed, again)
        method.steps = 1
        method.optimizers(again.model, settled.config)
        method.restore(state.get("method") or {})
        assert method.state().keys() == (state.get("method") or {}).keys()


class RetrainingFamilyContract(TrainingFamilyContract):
    """What every :class:`sparsemask.families.RetrainingFamily` promises beside that."""

    family: families.RetrainingFamily

    def make_eval_parser(self) -> Parser:
        """The parser of a command that evaluates."""
        from sparsemask.retrain.eval import parser

        return parser(self.space)

    def test_flags_of_evaluation(self):
        assert isinstance(self.family, families.RetrainingFamily)
        check_flags(self.make_eval_parser)

    def test_a_run_is_loaded(self, context, built, trained):
        network = self.family.load_run(context.run)
        assert not network.training
        loaded, expected = network.state_dict(), built.model.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name].cpu(), expected[name].cpu()) for name in expected)

    def test_a_run_is_restored(self, context, built, trained):
        given = {"space": self.space, "gpu": -1}
        restored = self.family.restore(self.make_eval_parser(), given, context.run)
        assert isinstance(restored, families.Restored) and restored.run is context.run
        assert not restored.model.training
        weights, expected = restored.model.state_dict(), built.model.state_dict()
        assert all(torch.equal(weights[name].cpu(), expected[name].cpu()) for name in expected)

    def test_missing_weights_are_named(self, context):
        given = {"space": self.space, "sample": True, "gpu": -1, "pretrained_model": "gone.safetensors"}
        with pytest.raises(UseError, match="gone.safetensors"):
            self.family.restore(self.make_eval_parser(), given, None)


class PruningFamilyContract:
    """What every :class:`sparsemask.families.PruningFamily` promises.

    Attributes:
        family: the object under test.
        space: name of a space of it.
        suffix: of its mask files.
    """

    family: families.PruningFamily
    space: str
    suffix: str = ".npz"

    def make_parser(self) -> Parser:
        """The parser of prune/prune.py."""
        from sparsemask.prune.prune import parser

        return parser(self.space)

    def test_is_of_the_contract(self):
        assert isinstance(self.family, families.PruningFamily)

    def test_flags(self):
        check_flags(self.make_parser)

    @pytest.mark.parametrize(
        ("checkpoint_file", "out", "named"),
        [("gone.pt", None, "gone.pt"), ("empty.pt", None, "empty.pt"), ("gone.pt", "mask.txt", "--out mask.txt")],
    )
    def test_what_cannot_be_pruned_leaves_nothing(self, tmp_path, monkeypatch, checkpoint_file, out, named):
        monkeypatch.chdir(tmp_path)
        Path("empty.pt").write_bytes(b"")
        parser = self.make_parser()
        flags_by_name = {"checkpoint": checkpoint_file, "out": out, "gpu": -1, "sample": True}
        given = {name: value for name, value in flags_by_name.items() if name in parser.actions()}
        with pytest.raises(UseError, match=named):
            self.family.prune(parser.resolve(given), given, None)
        assert [path.name for path in tmp_path.iterdir()] == ["empty.pt"]
