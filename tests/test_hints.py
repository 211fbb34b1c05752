"""What was perhaps meant: names that are nearly right, for flags, verbs, masks, tasks, spaces, presets, recipes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from sparsemask.cli import main as front
from sparsemask.cli.compress import command as compress
from sparsemask.errors import meant
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.search import study as search_study
from sparsemask.VOC12 import check as voc12_check
from sparsemask.VOC12 import sample as voc12_sample
from tiny import ROOT, fails

NEARLY = [
    (front.main, ["serch"], ["unknown verb 'serch'", "did you mean 'search'?"]),
    (search_run.main, ["--backbone", "x"], ["--backbone", "did you mean '--backbone_name'?", "python search/run.py"]),
    (prune_prune.main, ["--threshold", "0.1"], ["did you mean '--thres'?", "python prune/prune.py --help"]),
    (retrain_train.main, ["--mask-pth=m.npy"], ["did you mean '--mask_path'?", "python retrain/train.py --help"]),
    (retrain_eval.main, ["--checkpiont", "best"], ["did you mean '--checkpoint'?"]),
    (retrain_export.main, ["--repeat", "1"], ["did you mean '--repeats'?"]),
    (retrain_specialize.main, ["--maxstride", "8"], ["did you mean '--max_stride'?"]),
    (search_study.main, ["--trails", "8"], ["did you mean '--trials'?"]),
    (voc12_check.main, ["--nclass", "3"], ["did you mean '--n_class'?", "python VOC12/check.py --help"]),
    (voc12_sample.main, ["--trian", "3"], ["did you mean '--train'?"]),
    (search_run.main, ["--optimizer", "adam"], ["--optimizer", "did you mean 'adamw'?"]),
    (search_run.main, ["--space", "smrs"], ["unknown space 'smrs'", "did you mean 'smsr'?", "connectivity"]),
    (search_run.main, ["--task", "segmentaton"], ["unknown task", "did you mean 'segmentation'?"]),
    (search_run.main, ["--config", "publshed"], ["publshed", "did you mean 'published'?"]),
    (search_run.main, ["--space", "smsr", "--config", "Published"], ["did you mean 'published'?"]),
    (retrain_train.main, ["--sample", "--mask_path", "unett"], ["did you mean 'unet'?", "fcn", "sparsemask-voc"]),
    (retrain_train.main, ["--sample", "--mask_path", "fccn"], ["did you mean 'fcn'?"]),
    (compress.main, ["voc_sampel"], ["recipe not found", "voc_sample); did you mean 'voc_sample'?"]),
]


@pytest.mark.parametrize(("main", "argv", "words"), NEARLY, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_nearly_right_name_is_met_by_the_right_one(tmp_path, monkeypatch, capfd, main, argv, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])  # a script of the checkout
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sparsemask.datasets.prepared", lambda: None)
    fails(capfd, main, argv, words)
    assert not (tmp_path / "runs").exists()


def test_nothing_is_guessed_for_a_name_like_no_other():
    assert meant("galaxy", ["smsr", "connectivity"]) == ""
    assert meant("SMSR", ["smsr", "connectivity"]) == "did you mean 'smsr'? "


@pytest.mark.parametrize("verb", ["search", "prune", "retrain", "eval", "specialize", "export", "prepare", "check"])
def test_usage_names_the_verb(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sparsemask", verb])
    with pytest.raises(SystemExit):
        front.main([verb, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: sparsemask {verb} ")


def test_usage_of_a_script_is_what_was_typed(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "search/run.py"), "-h"], capture_output=True, text=True)
    assert done.stdout.startswith("usage: python search/run.py ")


@pytest.mark.parametrize("verb", ["search", "retrain"])
def test_the_examples_of_help_are_in_columns(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sparsemask", verb])
    with pytest.raises(SystemExit):
        front.main([verb, "--help"])
    columns = [len(found) for found in re.findall(rf"^ +sparsemask {verb}.*? {{2,}}", capsys.readouterr().out, re.M)]
    assert len(columns) > 1 and len(set(columns)) == 1


@pytest.mark.parametrize("word", ["--help", "--help-all", "help"])
def test_the_front_lists_its_verbs(word, capsys):
    assert front.main([word]) == 0
    said = capsys.readouterr().out
    assert [verb for verb in front.VERBS if f"sparsemask {verb} " not in said] == []
