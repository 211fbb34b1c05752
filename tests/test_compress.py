"""sparsemask compress: a recipe's chain, killed between and inside steps, its table, and recipes that are none."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

import pyramid  # noqa: F401  (trusts its own name)
from sparsemask import spaces
from sparsemask.cli.compress import command as compress
from sparsemask.cli.compress.plan import Work
from sparsemask.cli.compress.recipe import packaged, read
from sparsemask.engine.loop import Fit
from sparsemask.sparse import backend
from sparsemask.weights import load_weights
from tiny import ROOT, borrow_kernels, fails, make_data
from without_images import without_images

DATA = {"im_path": "data/img", "gt_path": "data/gt", "training_list": "data/train.txt", "eval_list": "data/val.txt"}
SMALL = {
    "backbone_name": "pyramid:Pyramid", "n_class": 4, "depth": 8, "crop_size": 33, "batch_size": 4,
    "bn_reestimate": 1, "checkpoint_interval": 1, "eval_interval": 3,
    "log_interval": 1, "lr": 0.01, "last_layer_lr_mult": 1, "n_worker": 0, "max_iter": 3,
}  # fmt: skip
FEW = {"rounds": 1, "max_stride": 8, "thres": 0.73}  # about where mask branches begin: some places are dropped
RECIPE = {
    "flags": {**DATA, **SMALL},
    "target": {"multiply_adds": "50%"},
    "rounds": 1,
    "steps": [
        {"search": {"max_iter": 2}},
        {"prune": {"thres": 0.001}},
        {"retrain": {"bn_momentum": 0.1}},
        {
            "groups": {
                "target": "auto",
                "search": {"stop_limit": 0.0},
                "prune": {"fold": "interior"},
                "retrain": {"max_iter": 2},
            }
        },
        {"specialize": {"keep": "auto", **FEW}},
    ],
}
UNET = {"retrain": {"mask_path": "unet"}}


def write(path: str, recipe: dict = RECIPE, **more) -> str:
    """A recipe's file."""
    Path(path).write_text(yaml.safe_dump({**recipe, **more}))
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """What is forked must not wait for threads that only its parent has; and runs are compared bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with backend("reference"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def plainly():
    """Without the verbs' pages and images."""
    with without_images():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with data, r.yaml and what it gives, out/; not to be touched."""
    folder = tmp_path_factory.mktemp("compress")
    make_data(folder / "data", n=8)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, backend("reference"):
        patch.chdir(folder)
        patch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
        patch.delenv("SPARSEMASK_WEIGHTS", raising=False)
        assert compress.main([write("r.yaml"), "--out", "out"]) == 0
    return folder


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    """The folder as working directory, to write beside what is there."""
    monkeypatch.chdir(finished)
    monkeypatch.setenv("SPARSEMASK_HOME", str(finished / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return finished


def killed(argv: list[str], where: str, at: int | str) -> None:
    """Run the command in a process of its own that is killed (SIGKILL) where it calls `where` as often or with `at`."""

    def child() -> None:
        owner, name = {"step": (Fit, "train_step"), "end": (Work, "end"), "begin": (Work, "begin")}[where]
        plain, calls = getattr(owner, name), [0]

        def dies(self, what):
            found = plain(self, what)
            calls[0] += 1
            if at in (calls[0], getattr(what, "name", None)):
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(owner, name, dies)
        os._exit(compress.main(argv))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_a_recipe_ends_with_a_table_and_whether_its_target_was_met(place):
    state = json.loads(Path("out/compress.json").read_text())
    rows = {row["step"]: row for row in state["table"]}
    assert list(rows) == ["search", "prune", "dense", "retrain", "groups", "specialize"]
    assert rows["dense"]["faster"] == rows["dense"]["fewer"] == 1
    last = rows["specialize"]
    assert last["fewer"] == pytest.approx(rows["dense"]["multiply_adds"] / last["multiply_adds"])
    for name in ("dense", "retrain", "groups", "specialize"):
        assert {"quality", "multiply_adds", "parameters", "milliseconds", "seconds"} <= rows[name].keys()
    met = state["target"]
    assert met["wanted"] == pytest.approx(0.5 * rows["dense"]["multiply_adds"])
    assert met["met"] == (last["multiply_adds"] <= met["wanted"]) and met["reached"] == last["multiply_adds"]
    # each of the two steps that the target settles takes its part of what is left
    left = [met["wanted"] / rows[name]["multiply_adds"] for name in ("retrain", "groups")]
    assert state["settled"] == {
        "groups": pytest.approx(left[0] ** 0.5, abs=1e-3),
        "specialize": pytest.approx(left[1], abs=1e-3),
    }
    gained = rows["groups"]["multiply_adds"] / rows["retrain"]["multiply_adds"]
    assert gained == pytest.approx(state["settled"]["groups"], abs=0.1)  # really smaller, as near as twelve channels go
    assert rows["groups"]["parameters"] < rows["retrain"]["parameters"]
    report = Path("out/report.md").read_text()
    assert "| specialize" in report and "sparsemask prune --run" in report and "target " in report


def test_the_table_counts_and_scores_the_form_that_is_run(place):
    state = json.loads(Path("out/compress.json").read_text())
    rows = {row["step"]: row for row in state["table"]}
    forms = {row["form"]: row for row in json.loads(Path("out/runs/specialize/forms.json").read_text())}
    assert rows["specialize"]["multiply_adds"] == pytest.approx(forms["sparse"]["multiply_adds"], rel=1e-3)
    assert rows["specialize"]["quality"] == pytest.approx(forms["sparse"]["miou"], abs=1e-3)
    info = json.loads(Path("out/runs/retrain/run.json").read_text())
    assert rows["retrain"]["quality"] == pytest.approx(info["result"]["miou"], abs=1e-3)  # folding changes nothing


def test_killed_between_and_inside_steps_it_ends_like_an_uninterrupted_run(place):
    argv = ["r.yaml", "--out", "parts"]
    killed(argv, "step", 1)  # inside the search, before its first checkpoint
    killed(argv, "end", "search")
    killed(argv, "step", 2)  # inside the retraining of the dense network
    killed(argv, "begin", "retrain")
    killed(argv, "step", 5)  # inside the search for groups: 3 of the retraining are before it
    killed(argv, "end", "groups-search")
    killed(argv, "step", 3)  # inside specialising: 2 of the small network's retraining are before it
    assert compress.main(argv) == 0
    stages = json.loads(Path("parts/compress.json").read_text())["stages"]
    whole = json.loads(Path("out/compress.json").read_text())["stages"]
    assert list(stages) == list(whole) and all(one["state"] == "done" for one in stages.values())
    assert {name: one["resumed"] for name, one in stages.items() if one["resumed"]} == {
        "search": 1, "dense": 1, "retrain": 1, "groups-search": 1, "specialize": 1,
    }  # fmt: skip
    for name in ("search", "dense", "retrain", "groups-search", "groups", "specialize"):
        one, other = (load_weights(f"{folder}/runs/{name}/checkpoints/last.pt") for folder in ("out", "parts"))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    shutil.rmtree("parts")


def test_a_finished_recipe_is_not_run_again(place, monkeypatch, capfd):
    monkeypatch.setattr(compress, "call", lambda *_: pytest.fail("a verb was run again"))
    before = Path("out/compress.json").read_bytes()
    assert compress.main(["r.yaml", "--out", "out"]) == 0
    assert "times faster" in capfd.readouterr().out
    assert Path("out/compress.json").read_bytes() == before


def test_another_recipe_in_a_begun_folder_is_refused(place, capfd):
    steps = [*RECIPE["steps"][:2], {"retrain": {"bn_momentum": 0.2}}, *RECIPE["steps"][3:]]
    words = ["out", "steps.3.retrain.bn_momentum is 0.1 there and 0.2 here"]
    fails(capfd, compress.main, [write("other.yaml", steps=steps), "--out", "out"], words)
    fails(capfd, compress.main, ["other.yaml", "--out", "data"], ["data", "not empty"])


def test_a_step_whose_target_is_met_is_skipped(place, capfd):
    recipe = write("met.yaml", target={"multiply_adds": 1e9}, steps=[UNET, *RECIPE["steps"][3:]])
    assert compress.main([recipe, "--out", "met"]) == 0
    state = json.loads(Path("met/compress.json").read_text())
    assert state["stages"]["specialize"]["state"] == "skipped" and state["target"]["met"]
    assert [row["step"] for row in state["table"]] == ["dense", "retrain"]
    assert "specialize skipped: the target is met without it" in capfd.readouterr().out


def test_the_plan_is_shown_and_nothing_is_written(place, capfd):
    assert compress.main(["r.yaml", "--out", "nowhere", "--plan"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in said[:-1]] == [
        "search", "prune", "retrain", "retrain", "search", "prune", "retrain", "specialize",
    ]  # fmt: skip
    assert "what the target leaves" in said[4] and "--space slim" in said[4]
    assert "runs/groups " in said[7] and "what the target leaves" in said[7]
    assert "50%" in said[-1]
    assert not Path("nowhere").exists()


def test_the_plan_reads_every_command_as_its_verb_will(place, capfd, monkeypatch):
    # What a network starts from is no encoder: the last step died of --pretrained_model beside its --run.
    flags = {**DATA, **SMALL, "pretrained_model": "encoder.pth", "first_expansion": "yes"}
    more = [{"retrain": {"depth": 16}}, *RECIPE["steps"][3:], {"export": {"out": ["net.safetensors"]}}]
    recipe = write("p.yaml", flags=flags, steps=[*RECIPE["steps"][:2], *more])
    assert compress.main([recipe, "--out", "nowhere", "--plan"]) == 0
    lines = {line.split()[1] + str(n): line for n, line in enumerate(capfd.readouterr().out.splitlines()[:-1])}
    assert "--pretrained_model encoder.pth" in lines["retrain3"]
    for last in ("specialize7", "export8"):
        assert "--pretrained_model" not in lines[last] and "--depth 16" in lines[last]
    # A command that its verb would refuse is refused with its step, before anything is run.
    places = Work._places
    wrong = lambda stage: {"pretrained_model": "w"} if stage.verb == "export" else {}
    monkeypatch.setattr(Work, "_places", lambda self, stage: places(self, stage) | wrong(stage))
    for argv in (["--plan"], []):
        fails(capfd, compress.main, [recipe, "--out", "nowhere", *argv], ["step export", "--run", "--pretrained_model"])
    assert not Path("nowhere").exists()


def test_a_step_that_fails_leaves_the_report_of_the_steps_before(place, capfd):
    steps = [*RECIPE["steps"][:3], {"export": {"out": ["net.onnx"]}}]
    recipe = write("f.yaml", steps=steps, target=None)
    shutil.copytree("out", "half")
    state = json.loads(Path("half/compress.json").read_text())
    kept = {name: note for name, note in state["stages"].items() if name in ("search", "prune", "dense", "retrain")}
    content = yaml.safe_load(Path(recipe).read_text())
    Path("half/compress.json").write_text(json.dumps({"format": 1, "recipe": content, "stages": kept, "settled": {}}))
    Path("half/report.md").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "call", lambda *_: 1)
        fails(capfd, compress.main, [recipe, "--out", "half"], ["step export ended with status 1"])
    report = Path("half/report.md").read_text()
    assert "not finished: step export ended with status 1" in report
    assert "| dense" in report and "| retrain" in report and "times faster" in report
    assert "sparsemask retrain --mask_path" in report
    assert "table" not in json.loads(Path("half/compress.json").read_text())  # the same command measures all of it
    shutil.rmtree("half")


def test_the_documented_recipe_and_commands_are_right(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/compress.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    Path("recipe.yaml").write_text(recipe)
    commands = re.findall(r"^    (?:sparsemask|python) (\S+) (.*?)(?:  .*)?$", text, re.MULTILINE)
    assert len(commands) == 7
    for verb, rest in commands:
        if verb == "compress":
            assert compress.main([*shlex.split(rest.replace("--plan", "")), "--plan"]) == 0
        else:  # parsers take these flags; that the verbs do what they should the chain above shows
            module = importlib.import_module(f"sparsemask.{verb.removesuffix('.py').replace('/', '.')}")
            space = "slim" if verb.startswith(("search", "prune")) else "connectivity"
            made = module.parser(spaces.get("specialized") if "specialize" in verb else space)
            made.given(shlex.split(rest))
    assert "--space slim" in capfd.readouterr().out


@pytest.mark.parametrize("name", sorted(packaged()))
def test_packaged_recipes_are_right(name):
    assert read(name).steps


def steps(*given) -> dict:
    return {"steps": list(given)}


@pytest.mark.parametrize(
    "more, words",
    [
        ({"stesp": []}, ["stesp", "steps"]),
        ({"steps": None}, ["steps"]),
        ({"steps": "search"}, ["steps"]),
        ({"rounds": 0}, ["rounds", "0"]),
        ({"compiled": 1}, ["compiled", "true or false", "1"]),
        ({"flags": {**DATA, "crop": 3}}, ["flags", "'crop'"]),
        ({"flags": {**DATA, "n_class": "many"}}, ["n_class", "many"]),
        ({"flags": {**DATA, "name": "mine"}}, ["'name'"]),
        ({"flags": {**DATA, "task": "stereo"}}, ["stereo", "segmentation"]),
        ({"target": {"seconds": 3}}, ["target", "seconds", "milliseconds"]),
        ({"target": {"milliseconds": "0%"}}, ["target.milliseconds", "0%"]),
        ({"target": {"milliseconds": 3, "multiply_adds": 4}}, ["target", "one of"]),
        ({"baseline": {"lr": "fast"}}, ["baseline", "lr", "fast"]),
        ({"target": None}, ["step 4 (groups)", "target", "none"]),
        (steps("search", "prune"), ["steps", "retrain"]),
        (steps("prune"), ["step 1 (prune)", "search"]),
        (steps("retrain"), ["step 1 (retrain)", "prune", "mask_path"]),
        (steps("search", "prune", UNET), ["step 3 (retrain)", "mask_path"]),
        (steps(UNET, UNET), ["step 2 (retrain)", "twice"]),
        (steps(UNET, "specialise"), ["step 2", "specialise", "specialize"]),
        (steps(UNET, {"specialize": {"kepe": 0.5}}), ["step 2 (specialize)", "kepe", "keep"]),
        (steps(UNET, {"specialize": {"keep": -1}}), ["step 2 (specialize)", "keep", "-1"]),
        (steps(UNET, {"specialize": {"task": "edges"}}), ["step 2 (specialize)", "task"]),
        (steps(UNET, {"groups": {"search": {"sparses": 1}}}), ["step 2 (groups): search", "sparses", "sparse"]),
        (steps(UNET, {"groups": {"sparce": 1}}), ["step 2 (groups)", "sparce"]),
        (steps(UNET, "specialize", "groups"), ["step 3 (groups)", "specialize"]),
        (steps(UNET, {"export": {}}), ["step 2 (export)", "out"]),
        (steps(UNET, {"export": {"out": ["../a.onnx"]}}), ["step 2 (export)", "../a.onnx"]),
        (steps(UNET, {"export": {"out": ["a.pt2"]}}, "specialize"), ["step 3 (specialize)", "export"]),
        (steps({"search": 3}), ["step 1 (search)", "mapping"]),
        (steps(3), ["step 1"]),
    ],
)  # fmt: skip
def test_bad_recipes_are_one_line_that_names_the_key(tmp_path, monkeypatch, capfd, more, words):
    monkeypatch.chdir(tmp_path)
    fails(
        capfd,
        compress.main,
        [write("bad.yaml", **more), "--out", "out"],
        ["bad.yaml" if "task" not in str(more) else "", *words],
    )
    assert not Path("out").exists()


def test_a_recipe_that_is_no_recipe(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    fails(capfd, compress.main, ["none.yaml"], ["none.yaml", "voc_sample"])
    Path("list.yaml").write_text("- search\n")
    fails(capfd, compress.main, ["list.yaml"], ["list.yaml", "mapping"])
    Path("torn.yaml").write_text("steps: [\n")
    fails(capfd, compress.main, ["torn.yaml"], ["torn.yaml", "YAML"])
