"""Whole studies: a worker killed, Ctrl-C, resuming, the front's masks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from sparsemask.masks import load_mask, mask_note
from sparsemask.search.studies.backend import open_journal
from sparsemask.search.studies.front import pareto
from sparsemask.search.study import main
from studies import children, flags, start, trials, wait_for
from tiny import SMALL, data_flags, fails, make_data, verb


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def studied(data, tmp_path_factory) -> SimpleNamespace:
    """A study of three trials by two workers, one of them killed as soon as it has trained a step."""
    cwd = tmp_path_factory.mktemp("studied")
    folder = cwd / "runs" / "s"
    process = start(flags(data, cwd, "s", "--trials", "3", "--workers", "2"), cwd)
    wait_for(lambda: process.poll() is not None or list(folder.glob("trial-*/search/checkpoints/last.pt")))
    begun = [t for t in trials(folder) if (folder / f"trial-{t.number:04d}/search/checkpoints/last.pt").exists()]
    os.kill(int(begun[0].user_attrs["owner"].split("-")[-2]), signal.SIGKILL)
    out, error = process.communicate(timeout=600)
    return SimpleNamespace(cwd=cwd, folder=folder, out=out, error=error, code=process.returncode, killed=begun[0])


@pytest.mark.slow
def test_a_study_completes_although_a_worker_is_killed(studied):
    assert studied.code == 0, studied.error
    assert "killed by signal 9" in studied.error and "Traceback" not in studied.error
    found = trials(studied.folder)
    states = [trial.state for trial in found]
    assert states.count(TrialState.COMPLETE) == 3
    assert [t.number for t in found if t.state == TrialState.FAIL] == [studied.killed.number]
    retried = [t for t in found if t.user_attrs.get("first") == studied.killed.number]
    assert len(retried) == 1 and retried[0].params == studied.killed.params
    # It went on where the dead one had stopped, in its folder.
    assert "resuming" in (studied.folder / retried[0].user_attrs["folder"] / "log.txt").read_text()
    for trial in found:
        if trial.state == TrialState.COMPLETE:
            info = json.loads((studied.folder / trial.user_attrs["folder"] / "retrain" / "run.json").read_text())
            assert trial.values == [info["result"]["miou"], info["multiply_adds"]]
    assert list(studied.folder.glob("study.journal.locks/*.worker")) == []


@pytest.mark.slow
def test_complete_trials_have_artifacts_and_the_study_a_page(studied):
    """What optuna-dashboard shows with --artifact-dir, and report.html in the study's folder."""
    assert "--artifact-dir" in studied.out and f"report: {studied.folder / 'report.html'}" in studied.out
    names = {"mask.npy", "samples.png", "architecture.png", "report.html"}
    storage = open_journal(studied.folder / "study.journal")
    for trial in trials(studied.folder):
        made = get_all_artifact_meta(trial, storage=storage)
        if trial.state == TrialState.COMPLETE:
            assert sorted(one.filename for one in made) == sorted(names)
            page = f"{trial.user_attrs['folder']}/retrain/report.html"
            assert f'href="{page}"' in (studied.folder / "report.html").read_text()
            content = (studied.folder / "artifacts" / made[0].artifact_id).read_bytes()
            assert content in {path.read_bytes() for path in studied.folder.rglob(made[0].filename)}


def test_a_run_of_that_name_is_not_written_into(data, tmp_path, capfd):
    (tmp_path / "runs/s").mkdir(parents=True)
    (tmp_path / "runs/s/config.yaml").write_text("space: connectivity\n")
    fails(capfd, main, flags(data, tmp_path, "s"), ["--study s", "is a run", "another name"])
    assert [path.name for path in (tmp_path / "runs/s").iterdir()] == ["config.yaml"]


@pytest.mark.slow
def test_the_front_is_written_and_its_masks_retrain(studied, data):
    front = json.loads((studied.folder / "front.json").read_text())["front"]
    done = [t for t in trials(studied.folder) if t.state == TrialState.COMPLETE]
    assert {row["trial"] for row in front} == {done[i].number for i in pareto([tuple(t.values) for t in done])}
    assert (studied.folder / "front.png").stat().st_size > 5000
    assert "Pareto front" in studied.out and "Pareto front" in (studied.folder / "front.md").read_text()
    masks = sorted((studied.folder / "masks").glob("*.npy"))
    assert [m.name for m in masks] == sorted(f"trial-{row['trial']:04d}.npy" for row in front)
    for row in front:
        mask = studied.folder / row["mask"]
        note = mask_note(mask)
        assert load_mask(mask).sum() == row["connections"] == note["connections"]
        assert note["study"] == "s" and note["trial"] == row["trial"]
    done = verb(
        "retrain/train.py",
        ["--mask_path", str(masks[0]), *data_flags(data), *SMALL, "--max_iter", "1", "--name", "best"],
        studied.cwd,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_study_goes_on_and_only_with_what_it_was_begun_with(studied, data, capsys):
    folder = studied.folder
    before = len(trials(folder))
    assert main(flags(data, studied.cwd, "s", "--trials", "3")) == 0
    assert len(trials(folder)) == before  # all are done: the front is shown again
    assert "3 of 3 trials done" in capsys.readouterr().out
    for more, said in [
        (["--objectives", "miou,milliseconds"], 'objectives is ["miou", "multiply_adds"] there'),
        (["--max_iter", "4"], "max_iter is 3 there and 4 here"),
        (["--sparse", "0.5"], "ranges: sparse"),
    ]:
        assert main(flags(data, studied.cwd, "s", *more)) == 2
        assert said in capsys.readouterr().err
    (folder / "study.journal").rename(folder / "other.journal")
    # A new study of the name would go on with the old one's checkpoints.
    assert main(flags(data, studied.cwd, "s", "--trials", "3")) == 2
    assert "of another study named s" in capsys.readouterr().err
    (folder / "other.journal").replace(folder / "study.journal")
    process = start(flags(data, studied.cwd, "s", "--trials", "4", "--workers", "1"), studied.cwd)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert len(trials(folder)) == before + 1


@pytest.mark.slow
def test_a_trial_whose_mask_is_unusable_is_given_up(data, tmp_path):
    config = tmp_path / "flags.yaml"
    config.write_text("study:\n  trials: 1\n  workers: 1\n")
    grid = tmp_path / "grid.yaml"
    grid.write_text("thres: [0.999999]\n")
    process = start(flags(data, tmp_path, "s", "--config", str(config), "--grid", str(grid)), tmp_path)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    (trial,) = trials(tmp_path / "runs/s")
    assert trial.state == TrialState.PRUNED and "no inputs" in trial.user_attrs["pruned"]
    assert "1 given up as hopeless; nothing to show yet" in out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "SIGTERM"])
def test_a_signal_saves_ends_the_workers_and_the_same_command_goes_on(data, tmp_path, number, status):
    argv = flags(data, tmp_path, "s", "--trials", "1", "--workers", "2")
    argv[argv.index("--max_iter") + 1] = "400"
    process = start(argv, tmp_path)
    metrics = tmp_path / "runs/s/trial-0000/search/metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 2))
    workers = children(process)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == status
    assert "same command" in error and "Traceback" not in error
    assert len(workers) == 1  # no more workers than trials
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert [t.state for t in trials(tmp_path / "runs/s")] == [TrialState.FAIL, TrialState.WAITING]
    reached = json.loads(metrics.read_text().splitlines()[-1])["step"]
    process = start(argv, tmp_path)
    log = tmp_path / "runs/s/trial-0000/log.txt"
    gone_on = f"resuming {log.parent}/search after step {reached}"
    wait_for(lambda: process.poll() is not None or gone_on in log.read_text())
    workers = children(process)
    process.kill()  # the workers notice, save and leave
    process.communicate(timeout=60)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 60)
    assert trials(tmp_path / "runs/s")[-1].state == TrialState.WAITING
