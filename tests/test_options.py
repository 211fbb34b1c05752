"""Flags, configuration files and what overrides what."""

from __future__ import annotations

import pytest
import yaml

from sparsemask import UseError
from sparsemask.options import presets, write_config
from sparsemask.search.run import parser
from sparsemask.training_setup import resolve_config


@pytest.fixture(autouse=True)
def nothing_prepared(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparsemask.datasets.prepared", lambda: None)


def test_command_line_beats_file_beats_preset(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("lr: 0.5\nbatch_size: 4\nsearch:\n  sparse: 0.3\nretrain:\n  inherit: all\n")
    made = parser()
    options, line, _ = resolve_config(made, made.given(["--config", str(file), "--lr", "0.25"]))
    assert (options["lr"], options["batch_size"], options["sparse"]) == (0.25, 4, 0.3)
    assert options["crop_size"] == 97  # from the preset of the sample set
    assert options["momentum"] == 0.9  # a flag's default
    assert "prepare" in line  # the line names the command that would prepare VOC


def test_written_configuration_gives_the_same_options(tmp_path):
    made = parser()
    options, *_ = resolve_config(
        made, made.given(["--search", "--sample", "--scales", "0.5", "1.0", "--freeze_bn", "--sparse", "0.02"])
    )
    write_config(tmp_path / "config.yaml", options)
    again = made.resolve(made.from_file(tmp_path / "config.yaml"))
    assert again.flat() == options.flat()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learning_rate: 1", "unknown flag 'learning_rate'"),
        ("batch_sise: 1", "did you mean 'batch_size'"),
        ("batch_size: many", "'batch_size' cannot be 'many'"),
        ("batch_size: 0", "'batch_size' cannot be 0"),
        ("lr: -1", "'lr' cannot be -1"),
        ("lr: .inf", "'lr' cannot be inf"),
        ("scales: 1.0", "'scales' takes a list"),
        ("lr: [1, 2]", "'lr' takes one value"),
        ("type: int4", "'type' must be one of float32"),
        ("freeze_bn: 3", "'freeze_bn' must be true or false"),
        ("search: 3", "section 'search' must be a mapping"),
        ("- 1\n- 2", "expected a mapping"),
        ("a: [", "not readable as YAML"),
        ("x: !!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_bad_configuration_is_one_clear_error(tmp_path, content, words):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UseError, match="(?s).*" + words.replace("[", r"\[")):
        parser().from_file(file)


def test_missing_configuration_names_the_presets():
    with pytest.raises(UseError, match="published, sample, short"):
        parser().from_file("nowhere.yaml")


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_are_valid_for_both_trainings(name):
    from sparsemask.retrain.train import parser as retrain_parser

    space = name.partition("_")[0] if "_" in name else "connectivity"  # "smsr_short" is space smsr's "short"
    size = {
        "connectivity": "crop_size",
        "smsr": "patch_size",
        "smpointseg": "n_points",
        "smstereo": "crop_height",
        "hinge": "batch_size",
        "slim": "batch_size",
        "specialized": "batch_size",
        "sr": "patch_size",
    }[space]
    shared = space == "specialized"  # one preset for several tasks, and for a verb of its own
    assert parser(space).from_file(name, shared)[size] > 0
    assert retrain_parser(space).from_file(name, shared)["batch_size"] > 1
    short = name.removeprefix(f"{space}_")
    assert parser(space).from_file(short, shared) == parser(space).from_file(name, shared)


def test_published_preset_is_the_published_protocol():
    published = parser().from_file("published")
    expected = {"crop_size": 513, "batch_size": 16, "max_epoch": 50, "lr": 0.005, "last_layer_lr_mult": 10.0}
    assert {k: published[k] for k in expected} == expected
    assert published["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert yaml.safe_load(presets()["published"].read_text())["search"]["sparse"] == 0.01


@pytest.mark.parametrize("argv", [["--config", "published"], ["--config", "published", "--voc_root", "x"]])
def test_published_protocol_is_what_is_settled(argv):
    from sparsemask.engine.loop import steps

    made = parser()
    options, *_ = resolve_config(made, made.given(argv))
    # No other preset may shine through: these are the published figures.
    expected = {"optimizer": "sgd", "lr": 0.005, "decay": 4e-5, "warmup": 0, "mask_warmup": 0, "eval_limit": 0}
    assert {k: options[k] for k in expected} == expected
    assert steps(options.training, 10582) == (33100, 662)


def test_epochs_asked_for_win_over_the_presets_steps():
    made = parser()
    options, *_ = resolve_config(made, made.given(["--sample", "--max_epoch", "3"]))
    assert (options["max_epoch"], options["max_iter"]) == (3, None)
    options, *_ = resolve_config(made, made.given(["--sample", "--max_epoch", "3", "--max_iter", "5"]))
    assert options["max_iter"] == 5


def test_unknown_flag_and_abbreviation_are_refused():
    for argv in (["--learning_rate", "1"], ["--batch", "4"]):
        with pytest.raises(UseError, match="unrecognized arguments"):
            parser().given(argv)
