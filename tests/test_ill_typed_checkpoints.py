"""Checkpoints whose entries are of a wrong type, in every family: one line, status 2, whoever reads them."""

from __future__ import annotations

import copy
import io
import math
import re

import numpy as np
import pytest
import torch
import yaml

from sparsemask import checkpoint_schema, spaces
from sparsemask.engine import checkpoint, randomness
from sparsemask.errors import UseError
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.search import run as search_run
from sparsemask.weights import file_space, load_weights, read_checkpoint
from tiny import fails

DEEP: list = []
for _ in range(40):
    DEEP = [DEEP]
HUGE = torch.zeros(1).expand(10**13)  # claims 40 terabytes, has four bytes
SPARSE = torch.eye(3).to_sparse()
META = torch.empty(3, 3, device="meta")
RANDOM = {
    "python": [torch.zeros(3, dtype=torch.int64), torch.zeros(625), None, "x"],
    "python_version": [2, "3"],
    "python_gauss": ["x", []],
    "numpy": [torch.zeros(623, dtype=torch.int64), [1] * 624],
    "numpy_position": [-1, 625, 1.5, None],
    "numpy_has_gauss": ["x", 7],
    "numpy_gauss": [None, "0"],
    "torch": [torch.zeros(8), "x", None],
    "cuda": [None, torch.zeros(1), [1]],
}
# Entry -> what it cannot be.
WRONG = {
    "format": ["1", None, 1.0, True, 0, -1, [1], torch.tensor(1)],
    "space": [3, None, ["connectivity"], {}],
    "verb": [3, None, b"search"],
    "step": ["3", None, -1, 2.0, True, math.nan, 10**30, torch.tensor(3)],
    "seconds": ["3", None, -1.0, math.nan, math.inf, [], True],
    "best": [None, [], 3, {"value": "high"}, {"step": "x"}, {"latest": 3}, {"latest": {"a": []}}],
    "config": [None, "config.yaml", 5, [], {3: 4}, {"lr": torch.zeros(1)}, {"lr": DEEP}],
    "model": [None, [], {"a": 3}, {3: torch.zeros(1)}, {"a": HUGE}, {"a": SPARSE}, {"a": META}, torch.zeros(3)],
    "optimizer": [None, 3, {}, [3], [{}], [{"state": 3, "param_groups": []}], [{"state": {}, "param_groups": 3}],
                  [{"state": {0: {"a": HUGE}}, "param_groups": []}]],
    "average": [None, 3, {}, {"updates": 1}, {"updates": "x", "trained": {}}, {"updates": 1, "trained": {"a": 3}},
                {"updates": -1, "trained": {}}],
    "scheduler": [None, 3, [], {"name": torch.zeros(1)}],
    "scaler": [None, 3, [1]],
    "method": [3, [], "x", {"a": HUGE}, {3: 4}],
    "data": [3, {}, {"step": "x", "tables": {}}, {"step": 1, "tables": []}, {"step": 1, "tables": {"0": HUGE}}],
    "mask": [3, [], {}, torch.zeros(3), torch.zeros(3, 3, 2), {"channels": {}, "threshold": "x"},
             {"channels": {"a": torch.zeros(3)}, "threshold": 0.5}, {"channels": 3, "threshold": 0.5}],
    "network": [3, None, [], {"arch": torch.zeros(1)}],
    "teacher": [3, None, {}, {"kind": "plain", "what": 3, "sha256": ""}],
    "random": [None, 3, {}],
}  # fmt: skip
CASES = [(entry, n) for entry, values in WRONG.items() for n in range(len(values))]
RANDOM_CASES = [(entry, n) for entry, values in RANDOM.items() for n in range(len(values))]


def right() -> dict:
    """A checkpoint as a run writes it, of the smallest network."""
    groups = [{"lr": 0.1, "params": [0]}]
    return {
        "format": 1,
        "space": "connectivity",
        "verb": "search",
        "step": 3,
        "seconds": 1.5,
        "config": {"depth": 8},
        "best": {"value": 0.5, "step": 2, "latest": {"miou": 0.5, "of": "x"}},
        "model": {"a": torch.zeros(2)},
        "optimizer": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": groups}],
        "scheduler": {"name": "poly", "step": 3, "max_iter": 9},
        "scaler": {},
        "method": {},
        "random": randomness.states(),
    }


def written(state: dict, tmp_path):
    """The checkpoint's file; tensors that claim more than they have are written as they are."""
    file = io.BytesIO()
    torch.save(state, file)
    path = tmp_path / "c.pt"
    path.write_bytes(file.getvalue())
    return path


def test_what_runs_write_is_right(tmp_path):
    path = written(right(), tmp_path)
    assert checkpoint.load(path, "connectivity")["step"] == 3 and file_space(path) == "connectivity"
    for mask in (None, "unet", torch.ones(2, 2, 2, dtype=torch.bool), torch.ones(2, 7, dtype=torch.int32),
                 {"channels": {"a": torch.ones(2, dtype=torch.bool)}, "threshold": 0.5},
                 {"config": {"arch": "x"}, "kept": {"a": [1, 0]}, "merged": []}):  # fmt: skip
        checkpoint_schema.check({**right(), "mask": mask, "data": None, "teacher": dict.fromkeys(
            ("kind", "what", "sha256"), "")}, "c.pt")  # fmt: skip


@pytest.mark.parametrize(("entry", "n"), CASES)
def test_one_schema_refuses_every_entry_of_a_wrong_type(tmp_path, entry, n):
    path = written({**right(), entry: WRONG[entry][n]}, tmp_path)
    for read in (read_checkpoint, checkpoint.load, load_weights, spaces.get("smsr").load, spaces.get("hinge").load):
        with pytest.raises(UseError) as error:
            read(path)
        assert "c.pt" in str(error.value) and f"'{entry}'" in str(error.value) and "\n" not in str(error.value)
    assert file_space(path) is None  # what it says of itself is not believed


@pytest.mark.parametrize(("entry", "n"), RANDOM_CASES)
def test_random_states_are_looked_at(tmp_path, entry, n):
    path = written({**right(), "random": {**randomness.states(), entry: RANDOM[entry][n]}}, tmp_path)
    with pytest.raises(UseError, match="'random' must be random states"):
        checkpoint.load(path)


def test_public_checkpoints_may_have_entries_of_any_kind(tmp_path):
    state = {"state_dict": {"a": torch.zeros(1)}, "step": "last", "config": "model.yaml", "optimizer": 3, "best": None}
    assert list(load_weights(written(state, tmp_path))) == ["a"]


@pytest.fixture(scope="module")
def state(made):
    return torch.load(made / "runs/s/checkpoints/last.pt", weights_only=True)


def spoil(state: dict, entry: str, value: object) -> dict:
    """A copy with another value; entry: names with dots between."""
    state = copy.deepcopy(state)
    *above, last = entry.split(".")
    inner = state
    for name in above:
        inner = inner[int(name) if name.isdigit() else name]
    inner[int(last) if last.isdigit() else last] = value
    return state


# Of a real run: (entry, value, what the line says); all would fail while the run is gone on with, or much later.
RESUMED = [
    ("step", "three", "'step'"),
    ("config.depth", "wide", "'depth' cannot be"),
    ("config.lr", [0.1], "'lr' takes one value"),
    ("config.crop_size", None, "crop_size"),
    ("config.backbone_name", {}, "'backbone_name' cannot be"),
    ("config.freeze_bn", "yes", "'freeze_bn'"),
    ("optimizer.0.param_groups.0.lr", "fast", "the optimizer's lr cannot be 'fast'"),
    ("optimizer.0.param_groups.0.params", [], "fit"),
    ("optimizer.0.state.0.exp_avg", torch.zeros(3), "exp_avg is (3,)"),
    ("model", {}, "fit"),
    ("random.torch", torch.zeros(7, dtype=torch.uint8), "fit"),
    ("verb", "retrain", "without mask"),
]


@pytest.mark.parametrize(("entry", "value", "words"), RESUMED, ids=[one[0] for one in RESUMED])
def test_resuming_refuses_them_and_keeps_the_file(place, state, capfd, entry, value, words):
    path = place / "runs/s/checkpoints/last.pt"
    torch.save(spoil(state, entry, value), path)
    before = path.read_bytes()
    fails(capfd, search_run.main, ["--resume", "runs/s"], [words])
    assert path.read_bytes() == before


@pytest.mark.parametrize(("entry", "value"), [("format", "2"), ("config", 5)])
def test_other_verbs_refuse_them_too(place, state, capfd, entry, value):
    torch.save(spoil(state, entry, value), place / "runs/s/checkpoints/last.pt")
    fails(capfd, prune_prune.main, ["--run", "runs/s", "--out", "new.npy"], [f"'{entry}'"])
    fails(capfd, prune_prune.main, ["--checkpoint", "runs/s/checkpoints/last.pt", "--out", "new.npy"], [f"'{entry}'"])
    fails(capfd, retrain_eval.main, ["--run", "runs/s"], [f"'{entry}'"])
    assert not (place / "new.npy").exists()


@pytest.mark.parametrize("config", [5, {"lr": {}}, {"depth": "x"}, {}])
def test_configurations_beside_checkpoints_are_looked_at(place, capfd, config):
    (place / "runs/s/config.yaml").write_text(yaml.safe_dump(config))
    (place / "runs/s/checkpoints/last.pt").unlink()
    fails(capfd, search_run.main, ["--resume", "runs/s"], ["config.yaml"])


HINGE_STATE = [("balance", "x"), ("balance", ["x"]), ("gradient_ratio", "x"), ("steps_done", 1.5), ("penalties", []),
               ("penalties", {"a": "x"}), ("finished", 1), ("ratio", None), ("shares", {"a": None})]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), HINGE_STATE)
def test_what_a_search_of_groups_remembers_is_looked_at(name, value):
    from sparsemask.search.group_sparsity import GroupSearch

    method = GroupSearch.__new__(GroupSearch)
    vars(method).update(balance=[1.0], gradient_ratio=None, steps_done=0, penalties={}, ratio=math.nan, shares={})
    whole = method.state()
    method.restore(whole)
    with pytest.raises(ValueError, match=f"{name} cannot be"):
        method.restore({**whole, name: value})
    assert not isinstance(value, np.ndarray) and method.state().keys() == whole.keys()


RECIPES = [
    ("arch", 3), ("arch", None), ("arch_options", "shortcut"), ("arch_options", {"widen": 10**6}), ("arch_options", 5),
    ("n_class", "many"), ("n_class", -1), ("n_class", 10**12), ("variant", 3), ("init", "none"), ("init", []),
    ("input_shape", [3, 8]), ("input_shape", [3, 8, "x"]), ("input_shape", 5), ("input_shape", [3, 10**9, 8]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), RECIPES)
def test_recipes_of_networks_are_looked_at(tmp_path, name, value):
    recipe = {"arch": "wrn16_10", "n_class": 4, "arch_options": {}, "variant": "svd", "init": "svd2"}
    recipe["input_shape"] = [3, 8, 8]
    hurt = {**recipe, name: value}
    path = written({**right(), "space": "hinge", "network": hurt}, tmp_path)
    with pytest.raises(UseError):
        spaces.get("hinge").load(path)
    mask = {"config": hurt, "kept": {"a": [2, 1]}, "merged": [], "threshold": None, "figures": {}}
    with pytest.raises(UseError):
        spaces.get("hinge").load(written({**right(), "space": "hinge", "mask": mask}, tmp_path))


SHARED = {"space": "connectivity", "backbone_name": "mobilenet_v2", "depth": 8, "n_class": 3, "features": 9,
          "connections": [[8, 0, 0]], "first_expansion": True}  # fmt: skip
METADATA = [
    ("backbone_name", 3), ("backbone_name", ["a"]), ("backbone_name", "hf-hub:a/b"), ("depth", "8"), ("depth", 10**9),
    ("depth", -1), ("depth", None), ("n_class", 10**12), ("n_class", 10**7), ("features", 10**6), ("features", "9"),
    ("features", 8), ("connections", 5), ("connections", [[99, 0, 0]]), ("connections", [[0]]), ("connections", "abc"),
    ("connections", []), ("widths", 3), ("widths", "1x1"), ("widths", "9" * 9000),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), METADATA)
def test_what_shared_networks_say_of_themselves_is_looked_at(tmp_path, name, value):
    import json

    from safetensors.torch import save_file

    from sparsemask.spaces.connectivity.space import load_network

    path = tmp_path / "n.safetensors"
    save_file({"a": torch.zeros(1)}, path, {k: json.dumps(v) for k, v in {**SHARED, name: value}.items()})
    with pytest.raises(UseError) as error:
        load_network(path)
    assert "\n" not in str(error.value)
    if name == "n_class" and value == 10**12:
        assert re.search(r"from 1 to \d+, found 10+$", str(error.value))
    with pytest.raises(UseError):
        spaces.get("specialized").load(path)


def test_what_is_wrong_is_said_in_words():
    for entry, said in (
        ({"format": [1]}, "a whole number, found a list$"),
        ({"step": {}}, "at least 0, found a mapping$"),
        ({"optimizer": [5]}, "found a list with other entries$"),
        ({"config": {1: 2}}, "found a mapping$|found a mapping with other entries$"),
    ):
        with pytest.raises(UseError, match=said):
            checkpoint_schema.check(entry, "x.pt")
