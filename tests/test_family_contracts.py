"""Every family keeps the contracts of sparsemask.families, a user's own included, which the driver trains whole."""

from __future__ import annotations

import argparse
import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

import pyramid  # noqa: F401  (a backbone of a user's own)
from small_classes import write_npz
from small_pictures import make_folder
from sparsemask import families, runs, spaces, training_setup
from sparsemask.config import Section, flag
from sparsemask.engine import Method, checkpoint, fit
from sparsemask.flags import NetworkSection
from sparsemask.prune import connectivity as prune_connectivity
from sparsemask.prune import group_sparsity as prune_group_sparsity
from sparsemask.prune import prune as prune_prune
from sparsemask.prune import sparse_conv as prune_sparse_conv
from sparsemask.retrain import connectivity as retrain_connectivity
from sparsemask.retrain import group_sparsity as retrain_group_sparsity
from sparsemask.retrain import sparse_conv as retrain_sparse_conv
from sparsemask.retrain.specializing.family import FAMILY as SPECIALIZATION
from sparsemask.search import group_sparsity as search_group_sparsity
from sparsemask.search import run as search_run
from sparsemask.search import sparse_conv as search_sparse_conv
from sparsemask.search.connectivity import family as search_connectivity
from sparsemask.testing.families import PruningFamilyContract, RetrainingFamilyContract, TrainingFamilyContract
from sparsemask.weights import save_safetensors
from tiny import ROOT, data_flags, make_data

SMALL = ("--depth", "8", "--crop_size", "33", "--batch_size", "4", "--bn_reestimate", "0", "--lr", "0.01",
         "--last_layer_lr_mult", "1", "--backbone_name", "pyramid:Pyramid", "--bn_momentum", "0.1")  # fmt: skip
RESOLUTION = ("--hr_path", "data", "--patch_size", "8", "--batch_size", "2", "--test_every", "4", "--lr", "0.01")
MODULES = ("--n_feats", "8", "--n_modules", "2")
CLASSES = ("--data_root", "data", "--batch_size", "10", "--lr", "0.05", "--bn_reestimate", "0")


def pictures(folder: Path) -> list[str]:
    """Labelled pictures in the working directory, and the flags of small networks on them."""
    make_data(folder / "data", n=8)
    return [*data_flags(Path("data")), *SMALL]


def searched(space: str, argv: list[str], *pruning: str) -> str:
    """The mask of a search of one step, without its pictures and times."""
    family, parser = families.find("search", spaces.get(space)), search_run.parser(space)
    context = training_setup.open_training(parser, [*argv, "--name", "s", "--max_iter", "1", "--gpu", "-1"])
    built = family.build(context)
    context = context.with_config(context.config.replace(**built.changes))
    config = context.config
    extra = {"verb": "search", "space": space, "config": config.flat(), **built.extra}
    method = family.method(context, built)
    fit(built.model, method, context.task, config, context.run, context.arithmetic, extra)
    assert prune_prune.main(["--run", "runs/s", "--gpu", "-1", *pruning]) == 0
    return "mask.npz"


class TestConnectivitySearch(TrainingFamilyContract):
    family, space = search_connectivity.FAMILY, "connectivity"

    def arguments(self, folder):
        return pictures(folder)


class TestSparseConvSearch(TrainingFamilyContract):
    family, space = search_sparse_conv.FAMILY, "smsr"

    def arguments(self, folder):
        make_folder(folder / "data", 4, (24, 32))
        return [*RESOLUTION, *MODULES]


class TestGroupSearch(TrainingFamilyContract):
    family, space = search_group_sparsity.FAMILY, "hinge"

    def arguments(self, folder):
        write_npz(folder / "data")
        return [*CLASSES, "--arch", "resnet8"]


class TestConnectivityRetraining(RetrainingFamilyContract):
    family, space = retrain_connectivity.FAMILY, "connectivity"

    def arguments(self, folder):
        return [*pictures(folder), "--mask_path", "unet"]


class TestSparseConvRetraining(RetrainingFamilyContract):
    family, space = retrain_sparse_conv.FAMILY, "smsr"

    def arguments(self, folder):
        make_folder(folder / "data", 4, (24, 32))
        return [*RESOLUTION, "--masks", "all", "--mask_path", searched("smsr", [*RESOLUTION, *MODULES])]


class TestGroupRetraining(RetrainingFamilyContract):
    family, space = retrain_group_sparsity.FAMILY, "hinge"

    def arguments(self, folder):
        write_npz(folder / "data")
        mask = searched("hinge", [*CLASSES, "--arch", "resnet8"], "--target", "0.5", "--bn_reestimate", "0")
        return [*CLASSES, "--mask_path", mask]


class TestSpecialization(TrainingFamilyContract):
    family, space = SPECIALIZATION, "specialized"

    def arguments(self, folder):
        flags = pictures(folder)
        options = {"backbone_name": "pyramid:Pyramid", "depth": 8, "n_class": 4, "bn_momentum": 0.1}
        network = spaces.get("connectivity").network("unet", options)
        save_safetensors(folder / "dense.safetensors", network.state_dict(), {})
        return [*flags, "--mask_path", "unet", "--ft_model", "dense.safetensors"]


class TestConnectivityPruning(PruningFamilyContract):
    family, space, suffix = prune_connectivity.FAMILY, "connectivity", ".npy"


class TestSparseConvPruning(PruningFamilyContract):
    family, space = prune_sparse_conv.FAMILY, "smsr"


class TestGroupPruning(PruningFamilyContract):
    family, space = prune_group_sparsity.FAMILY, "hinge"


class Toy(nn.Module):
    """Scores of every pixel from its neighbourhood."""

    def __init__(self, n_class: int):
        super().__init__()
        self.conv = nn.Conv2d(3, n_class, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


class ToySpace(spaces.Space):
    """A space of a family that is not the toolkit's."""

    family, section = "toy", NetworkSection

    def supernet(self, config) -> Toy:
        """The one network."""
        return Toy(config["n_class"])

    def network(self, mask, config) -> Toy:
        """The same."""
        return self.supernet(config)

    def transfer(self, checkpoint, mask, config) -> dict:
        """Its weights."""
        return dict(checkpoint)

    def load(self, path) -> spaces.Loaded:
        """From a run's checkpoint."""
        state = checkpoint.load(path)
        model = self.supernet(state["config"])
        model.load_state_dict(state["model"])
        return spaces.Loaded(model.eval())


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyTraining(Section):
    """How it is trained."""

    title = "toy"
    pull: float = flag(0.1, float, help="towards zero")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyEvaluation(Section):
    """What is evaluated."""

    title = "toy"
    pretrained_model: str | None = flag(help="its weights")

    def network(self, mask, config) -> Toy:
        """The same: there are no masks."""
        return self.supernet(config)

    def transfer(self, checkpoint, mask, config) -> dict:
        """All of it."""
        return dict(checkpoint)

    def load(self, path) -> spaces.Loaded:
        """The network of a run's checkpoint."""
        state = checkpoint.load(path)
        model = Toy(state["config"]["n_class"])
        model.load_state_dict(state["model"])
        return spaces.Loaded(model.eval())


class ToyFamily(families.RetrainingFamily):
    """A plain training that says how it went."""

    verb = "retrain"

    def add_options(self, parser) -> None:
        parser.add_section("family", ToyTraining)

    def build(self, context) -> families.Built:
        model = spaces.get(context.config.network.space).supernet(context.config)
        return families.Built(model, {"pull": context.config.family.pull}, notes={"family": "toy"})

    def method(self, context, built) -> Method:
        return ToyMethod(context.config.family.pull)

    def finish(self, context, built, result) -> int:
        context.announce([f"trained: {context.metric_text(result)}"])
        return 3

    def add_eval_options(self, parser) -> None:
        parser.add_section("family", ToyEvaluation)

    def restore(self, parser, given, run):
        from sparsemask.retrain.trained import read_source, ready

        source = read_source(parser, given, run, ("eval_limit",))
        where = training_setup.device(source.config)
        state = source.state or checkpoint.load(source.path)
        model = Toy(source.config.data.n_class)
        model.load_state_dict(state["model"])
        return families.Restored(source.config, ready(model, where), where, run)

    def evaluate(self, restored) -> int:
        return 0

    def load_run(self, run):
        return spaces.get("toy").load(run.last).network


class ToyMethod(Method):
    """The weights' sizes are a part of the loss."""

    def __init__(self, pull: float):
        self.pull = pull

    def penalty(self, model, step):
        loss = self.pull * model.conv.weight.abs().mean()
        return loss, {"pull": float(loss.detach())}


@pytest.fixture(autouse=True, scope="module")
def toy():
    """The toy's space and family, known to the commands."""
    spaces.register("toy", ToySpace())
    families.register("retrain", "toy", ToyFamily())


def toy_flags(folder: Path) -> list[str]:
    make_data(folder / "data", n=8)
    return [*data_flags(Path("data")), "--crop_size", "33", "--batch_size", "4", "--lr", "0.01", "--bn_reestimate", "0",
            "--last_layer_lr_mult", "1"]  # fmt: skip


class TestToy(RetrainingFamilyContract):
    family, space = ToyFamily(), "toy"

    def arguments(self, folder):
        return toy_flags(folder)


def test_a_users_family_is_driven_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    family, more = families.find("retrain", spaces.get("toy")), ["--gpu", "-1", "--n_worker", "0"]
    parser = lambda: families.training_parser(family, spaces.get("toy"), "retrain/train.py", None)
    argv = [*toy_flags(tmp_path), *more, "--max_iter", "2", "--eval_limit", "1", "--pull", "0.5", "--name", "t"]
    assert families.train(family, parser(), argv) == 3
    run = runs.find("runs/t")
    state = checkpoint.load(run.last)
    assert (state["verb"], state["space"], state["pull"], state["step"]) == ("retrain", "toy", 0.5, 2)
    assert run.info()["state"] == "finished" and "trained: miou" in capsys.readouterr().out
    assert families.train(family, parser(), ["--resume", "runs/t"]) == 3  # its last words again
    assert checkpoint.load(run.last)["step"] == 2


def test_a_failing_build_takes_its_folder_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Failing(ToyFamily):
        def build(self, context):
            assert context.run.folder.exists()
            raise ValueError("no network")

    parser = families.training_parser(Failing(), spaces.get("toy"), "retrain/train.py", None)
    with pytest.raises(ValueError, match="no network"):
        families.train(Failing(), parser, [*toy_flags(tmp_path), "--gpu", "-1", "--max_iter", "1", "--name", "t"])
    assert not Path("runs/t").exists()


def test_what_is_no_family_is_refused():
    with pytest.raises(TypeError, match="no PruningFamily"):
        families.register("prune", "toy", ToyFamily())
    with pytest.raises(TypeError, match="abstract"):
        families.TrainingFamily()
    with pytest.raises(ModuleNotFoundError):
        families.find("search", argparse.Namespace(family="galaxy"))


@pytest.mark.parametrize("folder", ["search", "prune", "retrain"])
def test_the_verbs_folders_do_not_import_each_other(folder):
    others = {"search", "prune", "retrain"} - {folder}
    files = [path for path in (ROOT / folder).glob("*.py") if not path.name.startswith("study")]
    assert len(files) > 3
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not others & {name.partition(".")[0] for name in names}, path


def test_loaded_families_are_those_of_the_modules():
    assert families.find("search", spaces.get("slim")) is search_group_sparsity.FAMILY
    assert families.find("prune", spaces.get("smstereo")) is prune_sparse_conv.FAMILY
    assert families.find("retrain", spaces.get("connectivity")) is retrain_connectivity.FAMILY
