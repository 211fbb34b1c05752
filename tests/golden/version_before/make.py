"""Makes the runs, masks and checkpoints of this folder, by an older version of the toolkit: see README.md.

Run in a checkout of that version; it writes into a new folder, `made/`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch

import pyramid  # noqa: F401  a small backbone that runs may name
import small_hinge  # noqa: F401  a small network that runs may name
from small_classes import write_npz
from small_clouds import CROPS, NETWORK, rooms
from small_pictures import make_folder
from sparsemask.devices import processor
from sparsemask.engine.loop import Fit
from sparsemask.sparse import backend
from tiny import MASKS, SMALL, data_flags, make_data

HERE = Path("made").resolve()
KEPT = ("config.yaml", "run.json", "metrics.jsonl", "history.jsonl", "forms.json", "network.safetensors")
FEW = ["--n_worker", "0", "--log_interval", "1", "--checkpoint_interval", "3", "--eval_interval", "4"]
PYRAMID = [*SMALL[2:], *FEW, "--backbone_name", "pyramid:Pyramid"]
TINY = [*PYRAMID, "--depth", "4"]  # SMALL begins with another depth
DENSE = data_flags(Path("data"))
SMSR = ["--hr_path", "data", "--patch_size", "8", "--batch_size", "2", "--test_every", "4", "--lr", "0.01", *FEW]
POINTS = ["--task", "s3dis", "--data_root", "data", *CROPS, "--batch_size", "2", "--lr", "0.01", *FEW]
GROUPS = ["--data_root", "data", "--batch_size", "10", "--lr", "0.05", "--schedule", "constant", "--warmup", "0", *FEW]
STEPS = ["--max_iter", "4"]


def verb(module: str, argv: list[str]) -> None:
    """Run a command in this process."""
    status = importlib.import_module(module).main([str(word) for word in argv])
    assert status == 0, (module, argv)


def stopped(module: str, argv: list[str]) -> None:
    """Run a command that breaks off in its fourth step, after the checkpoint of the third, as runs/s; finish a copy."""
    plain = Fit.train_step

    def step(self, parts):
        if self.step == 3:
            raise KeyError("stopped")
        return plain(self, parts)

    Fit.train_step = step
    try:
        verb(module, [*argv, "--name", "s"])
    except KeyError:
        pass
    finally:
        Fit.train_step = plain
    relative(Path("runs/s"))
    shutil.copytree("runs/s", "kept")
    verb(module, ["--resume", "runs/s"])
    state = torch.load("runs/s/checkpoints/last.pt", weights_only=True)
    assert state["step"] == 4
    Path("resumed.json").write_text(json.dumps(digest(state["model"])))
    shutil.rmtree("runs/s")
    Path("kept").rename("runs/s")


def digest(state: dict[str, torch.Tensor]) -> dict:
    """Weights in short: one hash of all bits, and of every tensor its sum and the sum of its absolute values."""
    every = hashlib.sha256()
    sums = {}
    for name, value in sorted(state.items()):
        every.update(name.encode() + value.contiguous().numpy().tobytes())
        sums[name] = [float(value.double().sum()), float(value.double().abs().sum())]
    return {"sha256": every.hexdigest(), "sums": sums}


def relative(run: Path, optimizer: bool = True) -> None:
    """Let a run's files name its data as seen from its folder's parent; leave the optimizer's state out if told."""
    here = f"{Path.cwd()}/"
    for path in (run / "config.yaml", run / "run.json"):
        path.write_text(path.read_text().replace(here, ""))
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    state["config"] = {n: v.removeprefix(here) if isinstance(v, str) else v for n, v in state["config"].items()}
    if not optimizer:
        state["optimizer"] = [{**one, "state": {}} for one in state["optimizer"]]
    torch.save(state, run / "checkpoints/last.pt")


def data_of(family: str) -> None:
    """The family's data; the test makes the same."""
    if family in ("connectivity", "specialized", "slim"):
        make_data(Path("data"), n=8)
    elif family == "smsr":
        make_folder(Path("data"), 4, (32, 40))
    elif family == "smpointseg":
        rooms(Path("data"))
    else:
        write_npz(Path("data"))


def connectivity() -> None:
    search = ["--search", *DENSE, *TINY, *MASKS, *STEPS]
    stopped("search.run", search)
    verb("prune.prune", ["--run", "runs/s", "--thres", "0.5"])
    retrain = ["--mask_path", "mask.npy", *DENSE, *TINY, *STEPS]
    verb("retrain.train", [*retrain, "--name", "r"])
    verb("retrain.eval", ["--run", "runs/r"])


def smsr() -> None:
    search = ["--search", "--space", "smsr", "--n_feats", "4", "--n_modules", "1", "--keep", "0.5", *SMSR, *STEPS]
    stopped("search.run", search)
    verb("prune.prune", ["--run", "runs/s"])
    verb("retrain.train", ["--mask_path", "mask.npz", *SMSR, *STEPS, "--name", "r"])
    verb("retrain.eval", ["--run", "runs/r", "--rounds", "0"])


def smpointseg() -> None:
    search = ["--search", "--space", "smpointseg", *NETWORK, "--keep", "0.5", *POINTS, *STEPS]
    stopped("search.run", search)
    verb("prune.prune", ["--run", "runs/s", "--task", "s3dis", "--data_root", "data", *CROPS])
    verb("retrain.train", ["--mask_path", "mask.npz", *POINTS, *STEPS, "--name", "r"])
    verb("retrain.eval", ["--run", "runs/r", "--rounds", "0"])


def hinge() -> None:
    own = ["--lr_ratio", "1", "--prox_start", "0", "--sparse", "0.5", "--thres", "0.01", "--layer_balancing"]
    own += ["--stop_limit", "0", "--target", "0.3"]
    search = ["--search", "--space", "hinge", "--arch", "small_hinge:OwnCNN", *GROUPS, *own, *STEPS]
    stopped("search.run", search)
    verb("prune.prune", ["--run", "runs/s", "--target", "0.5"])
    verb("retrain.train", ["--mask_path", "mask.npz", *GROUPS, *STEPS, "--name", "r"])
    verb("retrain.eval", ["--run", "runs/r", "--rounds", "0"])


def specialized() -> None:
    verb("retrain.train", ["--mask_path", "unet", *DENSE, *TINY, "--max_iter", "2", "--name", "d"])
    argv = ["--run", "runs/d", *DENSE, *PYRAMID, *STEPS, "--rounds", "0", "--max_stride", "8", "--thres", "0.73"]
    verb("retrain.specialize", [*argv, "--name", "r"])
    verb("retrain.eval", ["--run", "runs/r", "--rounds", "0"])
    stopped("retrain.specialize", argv)


def slim() -> None:
    verb("retrain.train", ["--mask_path", "unet", *DENSE, *TINY, "--max_iter", "2", "--name", "d"])
    own = ["--lr_ratio", "1", "--prox_start", "0", "--sparse", "0.5", "--thres", "0.01", "--stop_limit", "0"]
    search = ["--search", "--space", "slim", "--pretrained_model", "runs/d/network.safetensors", *DENSE, *PYRAMID]
    search += [*own, "--target", "0.3", *STEPS]
    stopped("search.run", search)
    verb("prune.prune", ["--run", "runs/s", "--target", "0.5"])


def keep(family: str) -> None:
    """Copy what the tests read."""
    target = HERE / family
    for run in sorted(Path("runs").iterdir()):
        (target / run / "checkpoints").mkdir(parents=True)
        if run.name != "s":  # only the stopped run is resumed: of others the weights are read
            relative(run, optimizer=False)
        shutil.copy(run / "checkpoints/last.pt", target / run / "checkpoints")
        for name in KEPT:
            if (run / name).exists():
                shutil.copy(run / name, target / run)
        for path in (*run.glob("mask.*"), *run.glob("searched.*")):
            shutil.copy(path, target / run)
        if family == "slim" and run.name == "d":  # what others began with; its weights stand in a file of their own
            shutil.rmtree(target / run / "checkpoints")
    for path in Path().glob("mask.*"):
        shutil.copy(path, target)
    expected = {"resumed": json.loads(Path("resumed.json").read_text())}
    if Path("runs/r").exists():
        expected["eval"] = json.loads(Path("runs/r/run.json").read_text())["eval"]
    (target / "expected.json").write_text(json.dumps(expected) + "\n")


def main() -> None:
    """Every family in a folder of its own."""
    torch.set_num_threads(1)
    os.environ.pop("SPARSEMASK_WEIGHTS", None)
    families = sys.argv[1:] or ["connectivity", "smsr", "smpointseg", "hinge", "specialized", "slim"]
    for family in families:
        work = Path("/tmp/version_before") / family
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(HERE / family, ignore_errors=True)
        work.mkdir(parents=True)
        os.chdir(work)
        data_of(family)
        with backend("reference"):
            globals()[family]()
        keep(family)
    versions = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "processor": processor()}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
