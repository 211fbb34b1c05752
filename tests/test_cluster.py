"""The files of examples/cluster: their command lines, as a shell, Kubernetes or Ray would make them, are ours.

No Slurm, Kubernetes or Ray is needed: what they would start is written down in its place, and read by our parsers.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from torch.distributed.run import get_args_parser

from sparsemask.retrain import train
from sparsemask.search import study
from tiny import ROOT

CLUSTER = ROOT / "examples" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
GIVEN = {"DATA": "/data sets/mine", "RUNS": "/shared/runs", "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_ID": "7",
         "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}  # fmt: skip


def started(script: Path, folder: Path, given: dict[str, str], *more: str) -> tuple[subprocess.CompletedProcess, dict]:
    """Run a script with stand-ins for what it starts; gives how it ended and the argument lists, by name."""
    for name in ("sparsemask", "srun"):
        stand_in = folder / name
        stand_in.write_text(f"#!{shutil.which('bash')}\nprintf '%s\\0' \"$@\" > {folder}/{name}.argv\n")
        stand_in.chmod(0o755)
    (folder / "scontrol").write_text(f"#!{shutil.which('bash')}\necho node1\necho node2\n")
    (folder / "scontrol").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **given}
    done = subprocess.run(
        [shutil.which("bash"), str(script), *more], env=environment, capture_output=True, text=True, timeout=60
    )
    return done, {path.stem: path.read_text().split("\0")[:-1] for path in folder.glob("*.argv")}


def check_study(argv: list[str]) -> dict:
    """The flags of a study's command line, which the study's own parser reads."""
    assert argv[0] == "study"
    return study.parser().given(argv[1:])


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are bash's")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_needs_its_data_and_says_so(script, tmp_path):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    for name in ("DATA", "RUNS"):
        done, calls = started(script, tmp_path, {key: value for key, value in GIVEN.items() if key != name})
        assert done.returncode != 0 and f"{name}:" in done.stderr and not calls


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are bash's")
def test_an_array_task_is_a_worker_of_the_study(tmp_path):
    script = CLUSTER / "slurm_study.sh"
    done, calls = started(script, tmp_path, {**GIVEN, "STORAGE": "postgresql://me@host/db"}, "--depth", "8")
    assert done.returncode == 0, done.stderr
    flags = check_study(calls["sparsemask"])
    assert (flags["workers"], flags["depth"], flags["storage"]) == (1, 8, "postgresql://me@host/db")
    assert flags["im_path"] == "/data sets/mine/img" and flags["exp_path"] == "/shared/runs"
    # The batch shell is replaced by the study, which therefore gets the signal of the batch step.
    assert re.search(r"^#SBATCH --signal=B:TERM@\d+$", script.read_text(), re.MULTILINE)
    assert "\nexec sparsemask" in script.read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are bash's")
def test_two_nodes_start_one_training(tmp_path):
    done, calls = started(CLUSTER / "slurm_torchrun.sh", tmp_path, {**GIVEN, "PER_NODE": "2"}, "--depth", "8")
    assert done.returncode == 0, done.stderr
    argv = calls["srun"][calls["srun"].index("torchrun") + 1 :]
    launch = get_args_parser().parse_args(argv)
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_endpoint) == ("2", "2", "node1:29400")
    assert launch.module and launch.training_script == train.__name__
    _, flags = train.read(launch.training_script_args)
    assert (flags["name"], flags["resume"], flags["depth"], flags["mask_path"]) == ("two_nodes", "auto", 8, "unet")


def test_kubernetes_starts_workers_that_know_the_database():
    text = (CLUSTER / "kubernetes_study.yaml").read_text()
    parts = {part["kind"]: part for part in yaml.safe_load_all(text)}
    assert set(parts) == {"Secret", "Service", "StatefulSet", "Job"}
    pod = parts["Job"]["spec"]["template"]["spec"]
    worker = pod["containers"][0]
    flags = check_study([*worker["command"][1:], *worker["args"]])
    database = parts["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry for entry in database["env"]}
    user, name = variables["POSTGRES_USER"]["value"], variables["POSTGRES_DB"]["value"]
    assert flags["storage"] == f"postgresql://{user}@{parts['Service']['metadata']['name']}/{name}"
    secrets = [
        variables["POSTGRES_PASSWORD"]["valueFrom"]["secretKeyRef"],
        next(e for e in worker["env"] if e["name"] == "PGPASSWORD")["valueFrom"]["secretKeyRef"],
    ]
    secret = parts["Secret"]
    assert all(one == {"name": secret["metadata"]["name"], "key": [*secret["stringData"]][0]} for one in secrets)
    # What is mounted is declared, and folders of the command line are mounted.
    declared = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in worker["volumeMounts"]}
    assert set(mounts.values()) == declared
    assert {"/" + Path(flags[name]).parts[1] for name in ("exp_path", "im_path", "training_list")} <= set(mounts)
    assert parts["Service"]["spec"]["selector"] == parts["StatefulSet"]["spec"]["selector"]["matchLabels"]


def test_what_is_to_be_filled_in_is_named_at_the_top():
    head, _, body = (CLUSTER / "kubernetes_study.yaml").read_text().partition("\napiVersion")
    values = re.findall(r"(?:image|claimName|password): ([A-Z_]+)\b", body)
    assert set(values) == set(re.findall(r"\b(PASSWORD|IMAGE|[A-Z]+_CLAIM)\b", head)) and len(set(values)) == 4


@pytest.fixture
def launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_study", CLUSTER / "ray_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STUDY = ["--study", "first", "--trials", "200", "--storage", "postgresql://me@host/db"]


def test_ray_starts_workers_of_the_study(launcher, monkeypatch):
    begun, wanted = [], []

    def remote(**needs):
        wanted.append(needs)
        return lambda work: SimpleNamespace(remote=lambda *arguments: begun.append(arguments) or len(begun) % 2)

    stand_in = SimpleNamespace(init=lambda **options: wanted.append(options), remote=remote, get=lambda found: found)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setenv("PGPASSWORD", "secret")
    assert launcher.main(["--workers", "3", "--cpus", "4", "--gpus", "0.5", "--", *STUDY]) == 1  # the worst of them
    assert wanted[0] == {"address": "auto"} and (wanted[1]["num_cpus"], wanted[1]["num_gpus"]) == (4, 0.5)
    assert len(begun) == 3
    command, threads, passed_on = begun[0]
    assert command[:3] == [sys.executable, "-m", "sparsemask.cli"] and threads == 4
    flags = check_study(command[3:])
    assert (flags["workers"], flags["trials"]) == (1, 200)
    assert passed_on["PGPASSWORD"] == "secret" and "secret" not in " ".join(command)


def test_a_task_runs_the_command_and_gives_its_status(launcher):
    code = "import os, sys; sys.exit(int(os.environ['OMP_NUM_THREADS']) + len(os.environ['PGPASSWORD']))"
    assert launcher.work([sys.executable, "-c", code], 3, {"PGPASSWORD": "four"}) == 7


@pytest.mark.parametrize(("argv", "said"), [(["--workers", "2"], "behind --"), (["--", *STUDY], "pip install ray")])
def test_ray_absent_or_a_study_missing_is_one_line(launcher, monkeypatch, capsys, argv, said):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert launcher.main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_page_has_every_file():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert [path.name for path in CLUSTER.iterdir() if path.is_file() and path.name not in page] == []
