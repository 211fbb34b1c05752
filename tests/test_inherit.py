"""What a command takes over from the run of its mask or network, for every family; and what wins over it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparsemask import UseError, flags, runs
from sparsemask.masks import save_mask
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.retrain.specializing.start import newest_start
from sparsemask.retrain.trained import shortfall
from sparsemask.search import run as search_run
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.training_setup import Context, resolve_config
from tiny import data_flags, make_data


@pytest.fixture(autouse=True)
def nothing_prepared(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    monkeypatch.setattr("sparsemask.datasets.prepared", lambda: None)


def begun(space: str, argv: list[str], name: str = "s", verb: str = "search") -> runs.Run:
    """A run as a verb begins it, without the training."""
    made = search_run.parser(space) if verb == "search" else retrain_train.parser(space)
    options, _, preset = resolve_config(made, made.given([*argv, "--name", name]))
    run = runs.create(options, verb)
    run.note(preset=preset)
    run.checkpoints.mkdir()
    run.last.write_bytes(b"")
    return run


def pruned(run: runs.Run, suffix: str = ".npy") -> str:
    """A mask file in the working directory, with what `prune` notes beside it."""
    mask = Path(f"mask{suffix}")
    if suffix == ".npy":
        save_mask(mask, named_mask("unet", 9), {"run": str(run.folder.resolve()), "connections": 17})
    else:
        np.savez(mask, space=np.array("x"))
        mask.with_suffix(".json").write_text(json.dumps({"run": str(run.folder.resolve())}))
    return str(mask)


def resolved(space: str, argv: list[str]):
    """(configuration, line, preset) of a retraining."""
    made = retrain_train.parser(space, flags.task_of(argv))
    return resolve_config(made, made.given(argv))


def folder(name: str) -> str:
    Path(name).mkdir(parents=True, exist_ok=True)
    return str(Path(name).resolve())


# space, suffix of its masks, flags of a search that name its data, and what must come back.
FAMILIES = [
    ("smsr", ".npz", ["--hr_path", "hr", "--data_test", "Set5", "--scale", "3"]),
    ("smpointseg", ".npz", ["--task", "semantickitti", "--data_root", "kitti", "--eval_scans", "00/000001"]),
    ("smpointseg", ".npz", ["--task", "s3dis", "--data_root", "rooms", "--test_area", "2"]),
    ("smstereo", ".npz", ["--data_root", "pairs", "--crop_height", "64"]),
    ("smstereo", ".npz", ["--training_list", "a.txt", "--eval_list", "b.txt"]),
    ("hinge", ".npz", ["--data_root", "classes", "--pad", "2"]),
]


@pytest.mark.parametrize(
    ("space", "suffix", "named"), FAMILIES, ids=lambda v: " ".join(v) if isinstance(v, list) else v
)
def test_retraining_is_on_the_data_of_the_search(space, suffix, named):
    for value in ("hr", "kitti", "rooms", "pairs", "classes"):
        folder(value)
    for value in ("a.txt", "b.txt"):
        Path(value).write_text("")
    run = begun(space, ["--search", *named])
    options, line, _ = resolved(space, ["--mask_path", pruned(run, suffix)])
    made = search_run.parser(space)
    wanted = made.given(named)
    for name, value in wanted.items():
        found = options[name]
        assert found == (str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value), name
    assert options["sample"] is False
    assert "as in runs/s: " in line
    assert "preset: short" in line


def test_connectivity_takes_data_classes_network_and_weights():
    make_data(Path("data"))
    Path("encoder.pth").write_bytes(b"weights")
    own = [*data_flags(Path("data"), 3), "--crop_size", "33", "--depth", "8", "--pretrained_model", "encoder.pth"]
    run = begun("connectivity", ["--search", *own])
    options, line, _ = resolved("connectivity", ["--mask_path", pruned(run)])
    assert options["im_path"] == str(Path("data/img").resolve())
    assert options["eval_list"] == str(Path("data/val.txt").resolve())
    assert (options["n_class"], options["crop_size"], options["depth"], options["sample"]) == (3, 33, 8, False)
    assert options["pretrained_model"] == str(Path("encoder.pth").resolve())
    assert "--n_class 3" in line and f"--pretrained_model {options['pretrained_model']}" in line
    # Not where the weights come from elsewhere.
    for other in (["--inherit", "all"], ["--ft_model", "network.pt"]):
        options, *_ = resolved("connectivity", ["--mask_path", "mask.npy", *other])
        assert options["pretrained_model"] is None
        assert options["n_class"] == 3


def test_flags_on_the_command_line_win():
    make_data(Path("data"))
    make_data(Path("other"))
    run = begun("connectivity", ["--search", *data_flags(Path("data"), 3), "--depth", "8"])
    mask = pruned(run)
    options, *_ = resolved("connectivity", ["--mask_path", mask, "--eval_list", "other/val.txt", "--depth", "16"])
    assert options["eval_list"] == str(Path("other/val.txt").resolve())
    assert options["training_list"] == str(Path("data/train.txt").resolve())
    assert (options["n_class"], options["depth"]) == (3, 16)
    options, *_ = resolved("connectivity", ["--mask_path", mask, *data_flags(Path("other"), 5)[:-2]])
    assert options["im_path"] == str(Path("other/img").resolve())
    assert options["n_class"] == 21  # other data, whose classes nothing was said of
    options, _, preset = resolved("connectivity", ["--mask_path", mask, "--sample"])
    assert options["sample"] is True and options["im_path"] is None
    assert preset == "sample"
    Path("my.yaml").write_text("n_class: 7\nlr: 0.5\n")
    options, *_ = resolved("connectivity", ["--mask_path", mask, "--config", "my.yaml"])
    assert (options["n_class"], options["lr"], options["im_path"]) == (7, 0.5, str(Path("data/img").resolve()))


def test_other_task_takes_no_data_but_the_network():
    make_data(Path("data"))
    run = begun("connectivity", ["--search", *data_flags(Path("data"), 3), "--depth", "8"])
    options, line, _ = resolved("connectivity", ["--mask_path", pruned(run), "--task", "saliency"])
    assert options["sample"] is True and options["im_path"] is None and options["depth"] == 8
    assert "no data named for --task saliency" in line


def test_preset_of_the_search_is_the_retrainings():
    make_data(Path("data"))
    run = begun("connectivity", ["--search", "--config", "published", *data_flags(Path("data"))])
    assert run.info()["preset"] == "published"
    options, line, _ = resolved("connectivity", ["--mask_path", pruned(run)])
    assert (options["crop_size"], options["max_epoch"], options["max_iter"]) == (513, 50, None)
    assert "preset: published" in line
    options, *_ = resolved("connectivity", ["--mask_path", "mask.npy", "--config", "short"])
    assert (options["crop_size"], options["max_iter"]) == (225, 400)


def test_what_a_run_had_from_its_preset_gives_way_to_that_of_the_next_verb():
    make_data(Path("data"))
    run = begun("connectivity", data_flags(Path("data"), 3), "r", "retrain")
    made = retrain_specialize.parser(retrain_specialize.space_of([]))
    options, _, preset = resolve_config(made, made.given(["--run", str(run.folder)]))
    assert (options["im_path"], options["n_class"]) == (str(Path("data/img").resolve()), 3)
    assert options["crop_size"] == 257  # specialized_short; the run had 225
    assert preset == "short"


def test_sample_set_of_a_search_is_the_retrainings_too():
    run = begun("connectivity", ["--search"])
    options, line, preset = resolved("connectivity", ["--mask_path", pruned(run)])
    assert options["sample"] is True and preset == "sample" and options["crop_size"] == 97
    assert "as in runs/s: --sample" in line


def test_named_mask_says_nothing_of_data():
    make_data(Path("data"))
    begun("connectivity", ["--search", *data_flags(Path("data"))])
    options, line, _ = resolved("connectivity", ["--mask_path", "unet"])
    assert options["sample"] is True
    assert "going on with the embedded sample set" in line


def test_run_that_is_gone_is_refused_unless_data_are_named():
    make_data(Path("data"))
    run = begun("connectivity", ["--search", *data_flags(Path("data"))])
    mask = pruned(run)
    shutil.rmtree(run.folder)
    with pytest.raises(UseError, match=r"mask.npy: comes from the run runs/s, which is gone.*--im_path.*--sample"):
        resolved("connectivity", ["--mask_path", mask])
    options, *_ = resolved("connectivity", ["--mask_path", mask, "--sample"])
    assert options["sample"] is True
    options, *_ = resolved("connectivity", ["--mask_path", mask, *data_flags(Path("data"))])
    assert options["n_class"] == 4


def test_data_that_moved_are_named_in_one_line():
    make_data(Path("data"))
    run = begun("connectivity", ["--search", *data_flags(Path("data"), 3)])
    mask = pruned(run)
    Path("data/img").rename("pictures")
    with pytest.raises(UseError, match=r"--im_path .*/data/img: gone since runs/s was made"):
        resolved("connectivity", ["--mask_path", mask])
    options, *_ = resolved("connectivity", ["--mask_path", mask, "--im_path", "pictures"])
    assert options["im_path"] == str(Path("pictures").resolve())
    assert (options["gt_path"], options["n_class"]) == (str(Path("data/gt").resolve()), 3)


def test_encoder_weights_that_are_gone_are_not_passed_over():
    make_data(Path("data"))
    Path("encoder.pth").write_bytes(b"weights")
    run = begun("connectivity", ["--search", *data_flags(Path("data")), "--pretrained_model", "encoder.pth"])
    mask = pruned(run)
    Path("encoder.pth").unlink()
    with pytest.raises(UseError, match=r"encoder.pth: gone since .*--pretrained_model"):
        resolved("connectivity", ["--mask_path", mask])


@pytest.mark.parametrize(
    ("space", "suffix", "named", "primary"),
    [("connectivity", ".npy", [], "miou"), ("smsr", ".npz", ["--hr_path", "hr"], "psnr"),
     ("smstereo", ".npz", ["--data_root", "pairs"], "d1_ok"), ("hinge", ".npz", ["--data_root", "classes"], "top1")],
)  # fmt: skip
def test_network_that_ends_below_its_search_gets_a_line(space, suffix, named, primary):
    make_data(Path("data"))
    for value in ("hr", "pairs", "classes"):
        folder(value)
    search = begun(space, ["--search", *(named or data_flags(Path("data"), 3))])
    search.note(result={primary: 0.39})
    mask = pruned(search, suffix)
    options, *_ = resolved(space, ["--mask_path", mask, "--name", "r", "--max_iter", "60"])
    context = Context(options, runs.create(options, "retrain"), None, task=SimpleNamespace(primary=primary))
    said = shortfall(context, {primary: 0.356})
    assert f"{primary} 0.3560 is below its search's 0.3900 (runs/s)" in said and "--max_iter 120" in said
    assert ("--inherit all" in said) == (space == "connectivity")
    for value in (0.39, 0.41, float("nan")):
        assert shortfall(context, {primary: value}) is None
    if space == "connectivity":  # other pictures: nothing can be said
        other = context.with_config(options.replace(eval_list="other.txt"))
        assert shortfall(other, {primary: 0.356}) is None


def test_mask_in_a_runs_folder_needs_no_note():
    make_data(Path("data"))
    run = begun("connectivity", ["--search", *data_flags(Path("data"), 3)])
    save_mask(run.folder / "mask_thres_0.001.npy", named_mask("unet", 9))
    options, *_ = resolved("connectivity", ["--mask_path", "runs/s/mask_thres_0.001.npy"])
    assert options["n_class"] == 3


def test_specialising_the_newest_network_is_on_its_data():
    make_data(Path("data"))
    begun("connectivity", data_flags(Path("data"), 3), "r", "retrain")
    made = retrain_specialize.parser(retrain_specialize.space_of([]))
    options, line, _ = resolve_config(made, made.given([]), default_flags=newest_start)
    assert (options["run"], options["n_class"], options["sample"]) == ("runs/r", 3, False)
    assert "--im_path" in line


@pytest.mark.parametrize("space", ["slim", "smsr"])
def test_search_from_a_runs_weights_is_on_its_data(space):
    if space == "slim":
        make_data(Path("data"))
        run = begun("connectivity", [*data_flags(Path("data"), 3), "--crop_size", "33"], "r", "retrain")
        wanted = {"im_path": str(Path("data/img").resolve()), "n_class": 3, "crop_size": 33}
    else:
        run = begun("smsr", ["--hr_path", folder("hr"), "--scale", "4"], "r", "retrain")
        wanted = {"hr_path": str(Path("hr").resolve()), "scale": 4}
    weights = run.folder / "network.safetensors"
    weights.write_bytes(b"")
    made = search_run.parser(space)
    options, *_ = resolve_config(made, made.given(["--pretrained_model", str(weights)]))
    assert {name: options[name] for name in wanted} == wanted


def test_ill_typed_configuration_of_a_run_is_one_line():
    make_data(Path("data"))
    run = begun("connectivity", ["--search", *data_flags(Path("data"))])
    mask = pruned(run)
    for content, words in (("n_class: many\n", "'n_class' cannot be 'many'"), ("- 1\n", "expected a mapping")):
        run.config.write_text(content)
        with pytest.raises(UseError, match=words):
            resolved("connectivity", ["--mask_path", mask])


@pytest.mark.parametrize(
    ("argv", "interval"),
    [
        ([], 20),  # of 400 steps
        (["--max_iter", "100"], 5),
        (["--max_iter", "7"], 1),
        (["--max_iter", "100", "--log_interval", "30"], 30),
        (["--max_epoch", "3"], 20),  # how many steps that is only the data say
    ],
)
def test_short_runs_have_rows_enough_for_a_curve(place, argv, interval):
    config, *_ = resolved("connectivity", ["--mask_path", "unet", "--config", "short", *argv])
    assert config.training.log_interval == interval
