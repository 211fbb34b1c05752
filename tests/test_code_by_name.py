"""Files that name code: nothing is imported unless the command line, or the user's Python, says the same name."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from small_classes import write_npz
from sparsemask import masks, plugins, spaces
from sparsemask.cli.compress import command as compress
from sparsemask.engine import randomness
from sparsemask.errors import UseError
from sparsemask.masks import groups, spatial
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.search import study as search_study
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.connectivity.space import load_network, save_network
from tiny import data_flags, fails, make_data

NAME = "evilmod:Enc"
CODE = "open('imported', 'a').write('x')\n"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with the module that files will name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    Path("evilmod.py").write_text(CODE)
    make_data(tmp_path / "data", n=4)
    importlib.invalidate_caches()
    sys.modules.pop("evilmod", None)
    yield tmp_path
    sys.modules.pop("evilmod", None)


def checkpoint(verb: str, space: str, config: dict, **more) -> dict:
    """A run's checkpoint, but for its weights."""
    return {
        "format": 1, "model": {"fc_conv.weight": torch.zeros(1)}, "optimizer": [], "scaler": {}, "best": {}, "step": 1,
        "random": randomness.states(), "config": config, "space": space, "verb": verb, **more,
    }  # fmt: skip


def run_folder(verb: str, space: str, state: bool = True, more: dict | None = None, **config) -> str:
    """runs/x: a run that a stranger made. more: entries of its checkpoint."""
    folder = Path("runs/x")
    (folder / "checkpoints").mkdir(parents=True)
    flags = data_flags(Path("data").resolve())
    said = dict(zip([f[2:] for f in flags[::2]], flags[1::2], strict=True))
    said |= {"crop_size": 33, "depth": 8, "backbone_name": "mobilenet_v2", "n_class": 4}
    said = {} if space == "hinge" else said
    said |= {"batch_size": 2, "lr": 0.1, "log_interval": 1, "max_iter": 2}
    said = {**said, "space": space, "task": "segmentation", **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    (folder / "run.json").write_text(json.dumps({"verb": verb, "space": space, "state": "finished"}))
    if state:
        torch.save(checkpoint(verb, space, said, **(more or {})), folder / "checkpoints" / "last.pt")
    return str(folder)


def safetensors(**said) -> str:
    save_file({"a": torch.zeros(1)}, "n.safetensors", {k: json.dumps(v) for k, v in said.items()})
    return "n.safetensors"


def hinge_recipe() -> dict:
    return {
        "arch": NAME, "n_class": 4, "arch_options": {}, "variant": "graph", "init": "svd2", "input_shape": [3, 8, 8],
    }  # fmt: skip


def hinge_mask() -> str:
    made = groups.GroupMask(hinge_recipe(), {"a": np.ones(2, bool)}, checkpoint="c.pt", sha256="0" * 64)
    groups.save_mask("m.npz", made)
    return "m.npz"


def fine_mask() -> str:
    config = {"backbone_name": NAME, "connectivity": "1:0e0", "where": "stages", "max_stride": 8}
    channels = {"a": np.ones((1, 2), bool)}
    spatial.save_masks("f.npz", spatial.FineMasks("specialized", "segmentation", channels, "0" * 64, config=config))
    return "f.npz"


def noted_mask() -> str:
    masks.save_mask("m.npy", named_mask("unet", 9), {"backbone_name": NAME})
    return "m.npy"


def supernet() -> str:
    model = {f"decoders.Decoders_{i}._weight_": torch.ones(i + 1, 2) for i in range(9)}
    torch.save({**checkpoint("search", "connectivity", {"backbone_name": NAME}), "model": model}, "c.pt")
    return "c.pt"


def file_of(content: dict) -> str:
    Path("flags.yaml").write_text(yaml.safe_dump(content))
    return "flags.yaml"


DATA = ["--im_path", "data/img", "--gt_path", "data/gt", "--training_list", "data/train.txt", "--eval_list",
        "data/val.txt", "--n_class", "4", "--n_worker", "0", "--gpu", "-1"]  # fmt: skip
SHARED = {"space": "connectivity", "depth": 8, "n_class": 4, "features": 4, "connections": [[3, 0, 0]]}
BACKBONE, TASK = {"backbone_name": NAME}, {"task": NAME}


def searched(state: bool = True, **config) -> str:
    return run_folder("search", "connectivity", state, **config)


def retrained(**config) -> str:
    return run_folder("retrain", "connectivity", more={"mask": torch.from_numpy(named_mask("unet", 4))}, **config)


def specialized() -> str:
    return run_folder("specialize", "specialized", False, connectivity="unet", **BACKBONE)


def hinge_run(verb: str, **config) -> str:
    return run_folder(verb, "hinge", True, {"network": hinge_recipe()}, task="classification", **config)


def recipe() -> str:
    common = dict(zip([f[2:] for f in DATA[:10:2]], DATA[1:10:2], strict=True))
    flags = {**common, "n_class": 4, **BACKBONE}
    return file_of({"flags": flags, "steps": [{"retrain": {"mask_path": "unet"}}]})


# Verb -> what a stranger's files are, and the command line that reads them.
VERBS = {
    "search": search_run.main, "prune": prune_prune.main, "retrain": retrain_train.main, "eval": retrain_eval.main,
    "export": retrain_export.main, "specialize": retrain_specialize.main, "compress": compress.main,
    "study": search_study.main,
}  # fmt: skip
COMMANDS = {
    "search, flags": lambda: ["--search", "--config", file_of(BACKBONE), *DATA],
    "search, flags, task": lambda: ["--search", "--config", file_of(TASK), *DATA],
    "search, resumed": lambda: ["--resume", searched(**BACKBONE)],
    "search, resumed, task": lambda: ["--resume", searched(**TASK)],
    "search, resumed from its config": lambda: ["--resume", searched(False, **BACKBONE)],
    "search, resumed by name": lambda: ["--search", "--resume", "--name", Path(searched(**TASK)).name],
    "search, hinge resumed": lambda: [
        "--resume", hinge_run("search", arch=NAME, data_root=str(write_npz(Path("classes")))),
    ],
    "prune, hinge": lambda: ["--run", hinge_run("search")],
    "search, slim from weights": lambda: [
        "--search", "--space", "slim", "--pretrained_model", safetensors(**SHARED, **BACKBONE), *DATA,
    ],
    "retrain, resumed": lambda: ["--resume", retrained(**BACKBONE)],
    "retrain, the note beside a mask": lambda: ["--mask_path", noted_mask(), *DATA],
    "retrain, flags": lambda: ["--mask_path", "unet", "--config", file_of(BACKBONE), *DATA],
    "eval, run": lambda: ["--run", retrained(**BACKBONE)],
    "eval, task": lambda: ["--run", retrained(**TASK)],
    "eval, the newest run": lambda: ["--exp_path", str(Path(retrained(**BACKBONE)).parent)],
    "export, run": lambda: ["--run", retrained(**BACKBONE), "--out", "o.pt2"],
    "specialize, run": lambda: ["--run", retrained(**BACKBONE)],
    "specialize, resumed": lambda: ["--resume", specialized()],
    "compress, recipe": lambda: [recipe(), "--out", "out"],
    "study, flags": lambda: ["--study", "s", "--config", file_of(TASK), *DATA, "--workers", "1"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_import_nothing_that_only_a_file_names(place, capfd, name):
    main, argv = VERBS[name.partition(",")[0]], COMMANDS[name]()
    before = {p for p in Path(".").rglob("*") if "home" not in p.parts}
    fails(capfd, main, argv, [f"'{NAME}'", "nothing was imported", f"--trust {NAME}"])
    assert not Path("imported").exists() and "evilmod" not in sys.modules
    made = {p for p in Path(".").rglob("*") if "home" not in p.parts} - before
    assert not [p for p in made if p.suffix in (".pt", ".npy", ".npz", ".safetensors")]
    # The case is no empty one: the same command with the name said does ask for the code.
    fails(capfd, main, [*argv, "--trust", NAME], ["Enc"])
    assert Path("imported").exists()


def test_pruning_needs_no_code_and_says_what_is_left_out(place, capfd):
    assert prune_prune.main(["--checkpoint", supernet(), "--out", "m.npy"]) == 0
    said = capfd.readouterr()
    assert f"--trust {NAME}" in said.err
    assert NAME not in said.out  # the next command, typed as it is printed, must not say a stranger's name
    assert not Path("imported").exists()
    assert json.loads(Path("m.json").read_text())["strides"] is None
    assert prune_prune.main(["--checkpoint", "c.pt", "--out", "m.npy", f"--trust={NAME}"]) == 0
    assert f"--backbone_name {NAME}" in capfd.readouterr().out
    assert Path("imported").exists()


LOADERS = {
    "connectivity": lambda: load_network(safetensors(**SHARED, **BACKBONE)),
    "connectivity's baseline": lambda: load_network(safetensors(**{**SHARED, "connections": None}, **BACKBONE)),
    "space connectivity": lambda: spaces.get("connectivity").load(safetensors(**SHARED, **BACKBONE)),
    "specialized": lambda: spaces.get("specialized").load(
        safetensors(space="specialized", connectivity="1:0e0", where="stages", max_stride=8, **BACKBONE)
    ),
    "specialized mask": lambda: spaces.get("specialized").network(spatial.load_masks(fine_mask())),
    "hinge": lambda: spaces.get("hinge").load(
        safetensors(space="hinge", config=hinge_recipe(), kept={"a": [1, 0]}, merged=[], threshold=None, figures={})
    ),
    "hinge checkpoint": lambda: (
        torch.save(checkpoint("search", "hinge", {}, network=hinge_recipe()), "h.pt"),
        spaces.get("hinge").load("h.pt"),
    ),
    "hinge mask": lambda: spaces.get("hinge").network(groups.load_mask(hinge_mask())),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_import_nothing_that_only_a_file_names(place, name):
    with pytest.raises(UseError, match="nothing was imported") as error:
        LOADERS[name]()
    assert f"sparsemask.trust('{NAME}')" in str(error.value)
    assert not Path("imported").exists() and "evilmod" not in sys.modules
    with plugins.trusting([NAME]), pytest.raises(UseError, match="cannot be imported"):
        LOADERS[name]()
    assert Path("imported").exists()


class Small(nn.Module):
    """An encoder of a user's."""

    channels, strides = (6, 4), (4, 2)

    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.one, self.two = nn.Conv2d(in_channels, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x):
        first = self.one(x)
        return [self.two(first.relu()), first]


def test_the_class_itself_serves_instead(place):
    from sparsemask import trust
    from sparsemask.spaces.connectivity.pruned_network import PrunedNetwork

    network = PrunedNetwork(named_mask("dense", 2), Small, depth=4, num_classes=3).eval()
    config = {"backbone_name": "their_file:Small", "depth": 4, "first_expansion": "no"}
    save_network("n.safetensors", network, config, 3)
    with pytest.raises(UseError, match="'their_file:Small' is code that a file names"):
        load_network("n.safetensors")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_network("n.safetensors", Small)(x), network(x))
        with plugins.trusting([]):
            trust("their_file:Small", Small)
            assert torch.equal(load_network("n.safetensors")(x), network(x))
    with pytest.raises(UseError, match="is code that a file names"):  # what a command line trusted is forgotten with it
        load_network("n.safetensors")


def test_only_whole_words_of_the_command_line_are_trusted():
    words = ["--backbone_name=a:B", "c:D", "--out", "x/e:F", "--text", "say g:H", "-i:J", "https://k:L"]
    with plugins.trusting(words):
        assert plugins.trusted() == sorted({"a:B", "c:D"} | set(plugins.trusted()) - {"a:B", "c:D"})
        assert not {"e:F", "g:H", "k:L", "i:J"} & set(plugins.trusted())
    with pytest.raises(UseError, match="not a name of code"):
        plugins.trust("no name")


def test_a_file_cannot_trust(place, capfd):
    argv = ["--search", "--config", file_of({"trust": [NAME], **BACKBONE}), *DATA]
    fails(capfd, search_run.main, argv, ["unknown flag 'trust'"])
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(:\n", ["SyntaxError", "line 1", "evilmod.py"]),
        ("raise RuntimeError('two\\nlines')", ["RuntimeError: two lines"]),
        ("import absent_module_of_mine", ["ModuleNotFoundError", "absent_module_of_mine"]),
        ("x = 1 / 0", ["ZeroDivisionError"]),
        ("Enc = 3", ["is no callable"]),
        ("def f(): return f()\nf()", ["RecursionError"]),
    ],
)
def test_mistakes_in_a_users_module_are_one_line(place, capfd, code, words):
    Path("evilmod.py").write_text(code)
    argv = ["--search", *DATA, "--backbone_name", NAME]
    fails(capfd, search_run.main, argv, [NAME, *words])
    fails(capfd, search_run.main, ["--search", *DATA, "--task", NAME], [NAME, *words])
