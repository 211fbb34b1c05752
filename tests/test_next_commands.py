"""One chain on a data set of one's own: every command as the one before it prints it, and as the reports show it."""

from __future__ import annotations

import html
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from sparsemask import options
from sparsemask.prune import connectivity as prune_connectivity
from sparsemask.retrain import connectivity as retrain_connectivity
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain.specializing.start import newest_start
from sparsemask.runs import Run
from sparsemask.search import run as search_run
from sparsemask.search.connectivity import family as search_connectivity
from sparsemask.sparse import backend
from sparsemask.training_setup import resolve_config
from tiny import MASKS, borrow_kernels, data_flags, make_data

PRESET = {
    "batch_size": 4, "crop_size": 33, "bn_reestimate": 2, "eval_interval": 2, "log_interval": 1, "max_iter": 2,
    "lr": 0.01, "last_layer_lr_mult": 1.0, "n_worker": 0, "eval_limit": 2,
}  # fmt: skip
OWN = ["--backbone_name", "pyramid:Pyramid"]  # small; and code is named on every command line, whatever files say


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with three classes of pictures; the presets for one's own data take seconds."""
    make_data(tmp_path / "my pictures", n=8, n_class=3)
    known = options.presets()
    for name in ("short", "specialized_short"):
        known[name] = tmp_path / f"{name}.yaml"
        known[name].write_text(yaml.safe_dump({**PRESET, "crop_size": 41 if name == "specialized_short" else 33}))
    monkeypatch.setattr(options, "presets", lambda: known)
    for module in (prune_connectivity, search_connectivity, retrain_connectivity):  # most of the time of such networks
        monkeypatch.setattr(module, "draw_architecture", lambda *_, **__: None)
    monkeypatch.setattr("sparsemask.datasets.prepared", lambda: None)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return tmp_path


def typed(line: str, capfd) -> str:
    """Run a command line as it stands; what it printed."""
    words = shlex.split(line)
    assert words[0] == "python"
    verb = importlib.import_module(f"sparsemask.{words[1].removesuffix('.py').replace('/', '.')}")
    with backend("reference"):
        status = verb.main(words[2:])
    said, error = capfd.readouterr()
    assert status == 0, (line, error)
    return said


def following(said: str) -> str:
    """The command that was printed last."""
    return re.findall(r"^next: (.*)$", said, re.MULTILINE)[-1]


def shown(run: Run) -> list[str]:
    """The commands of a run's report."""
    page = (run.folder / "report.html").read_text()
    section = page[page.index('<section id="reproduce"') :]
    return [html.unescape(text) for text in re.findall(r"(python \S+\.py [^<]*)<", section)]


def newest(verb: str, folder: str) -> Run:
    found = [Run(path.parent) for path in Path(folder).glob("*/run.json")]
    return max((run for run in found if run.info()["verb"] == verb), key=lambda run: run.folder.stat().st_mtime_ns)


def test_printed_commands_run_as_they_stand_on_the_same_data(place, capfd):
    data = data_flags(Path("my pictures"), 3)
    argv = ["--search", *data, *MASKS, *OWN, "--depth", "8", "--sparse", "0", "--exp_path", "my runs", "--name", "s"]
    with backend("reference"):
        assert search_run.main(argv) == 0
    said = capfd.readouterr().out
    assert "preset: short" in said
    to_prune = following(said)
    assert to_prune == "python prune/prune.py --thres 0.001 --run 'my runs/s' --trust pyramid:Pyramid"
    said = typed(to_prune, capfd)
    to_retrain = following(said)
    assert to_retrain == f"python retrain/train.py --mask_path mask.npy --exp_path 'my runs' {shlex.join(OWN)}"
    assert shown(Run("my runs/s"))[1:3] == [to_prune, to_retrain]

    said = typed(to_retrain, capfd)
    run = newest("retrain", "my runs")
    config = yaml.safe_load(run.config.read_text())
    for name, value in zip(data[::2], data[1::2], strict=True):
        found = config[name.removeprefix("--")]
        assert found == (3 if name == "--n_class" else str(Path(value).resolve()))
    assert (config["depth"], config["crop_size"], config["sample"]) == (8, 33, False)
    assert "as in my runs/s: " in said and "sample set" not in said
    evaluate = following(said)
    assert evaluate == f"python retrain/eval.py --run '{run.folder}' {shlex.join(OWN)}"
    assert evaluate in shown(run)
    said = typed(evaluate, capfd)
    assert "(2 pictures)" in said
    program = run.folder / "network.pt2"
    assert following(said) == f"python retrain/export.py --run '{run.folder}' --out '{program}' {shlex.join(OWN)}"
    typed(following(said), capfd)
    assert program.stat().st_size

    said = typed(
        f"python retrain/specialize.py --run '{run.folder}' --rounds 0 --exp_path 'my runs' {shlex.join(OWN)}", capfd
    )
    fine = newest("specialize", "my runs")
    config = yaml.safe_load(fine.config.read_text())
    assert (config["n_class"], config["im_path"]) == (3, str(Path("my pictures/img").resolve()))
    assert config["crop_size"] == 41  # of its own preset
    assert "(2 pictures)" in typed(f"{following(said)} --rounds 0", capfd)
    again = next(line for line in shown(fine) if "--config" in line)
    words = shlex.split(again)
    made, given = retrain_specialize.read(words[2:])
    settled, *_ = resolve_config(made, given, default_flags=newest_start)
    assert settled["name"] == "again" and settled["ft_model"] == config["ft_model"]
    assert {**settled.flat(), "name": fine.folder.name} == config
