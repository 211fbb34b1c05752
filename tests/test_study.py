"""Studies: ranges, the front, who works on what, kills, Ctrl-C and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from search.study import main, settle
from search.study_front import pareto
from search.study_plan import Plan
from search.study_storage import RETRIES, Store
from search.study_worker import EARLIER, hopeless
from sparsemask.masks import load_mask, mask_note
from tiny import ROOT, SMALL, data_flags, environment, make_data, verb

FEW = ["--max_iter", "3", "--retrain_iter", "2", "--hopeless", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def flags(data: Path, cwd: Path, name: str = "s", *more: str) -> list[str]:
    return ["--study", name, *data_flags(data), *SMALL, *FEW, "--exp_path", str(cwd / "runs"), *more]


def start(argv: list[str], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "search/study.py"), *argv],
        cwd=cwd, env=environment(cwd / "home"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def children(process: subprocess.Popen) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, found))


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name=folder.name, storage=storage).trials


# The front


numbers = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(numbers, numbers), max_size=30))
def test_the_front_is_what_comparing_all_pairs_gives(points):
    def beaten(a):
        return any(b[0] >= a[0] and b[1] <= a[1] and b != a for b in points)

    assert sorted(pareto(points)) == [i for i, point in enumerate(points) if not beaten(point)]


# Giving up


def made_plan(folder: Path, **more) -> Plan:
    ranges = {"sparse": {"low": 0.001, "high": 0.1, "log": True}}
    values = dict(study="s", folder=str(folder), storage=None, objectives=["miou", "multiply_adds"], ranges=ranges)
    values |= dict(flags={"search": {"space": "connectivity"}}, trials=12, identity={"ranges": ranges})
    return Plan(**{**values, **more})


def past(*pairs) -> list:
    return [
        SimpleNamespace(state=TrialState.COMPLETE, user_attrs={"search_quality": q, "connections": c}) for q, c in pairs
    ]


USUAL = past(*[(0.4, 20)] * EARLIER)


@pytest.mark.parametrize(
    "quality, connections, earlier, bound, given_up",
    [
        (0.1, 20, USUAL, 0, True),
        (0.1, 19, USUAL, 0, False),  # smaller than the usual mask: it may lie on the front
        (0.2, 20, USUAL, 0, False),  # half of the median is the bound itself
        (0.1, 20, USUAL[1:], 0, False),  # too few to compare with
        (0.4, 21, [], 20, True),
        (0.4, 20, [], 20, False),
        (float("nan"), 5, [], 0, True),
        (None, 5, [], 0, True),
    ],
)
def test_hopeless_trials(tmp_path, quality, connections, earlier, bound, given_up):
    plan = made_plan(tmp_path, max_connections=bound)
    assert bool(hopeless(plan, quality, connections, earlier)) == given_up


# Ranges and flags


def test_default_ranges_surround_the_preset_and_leave_out_what_is_fixed(data, tmp_path):
    plan, _ = settle(flags(data, tmp_path))
    assert set(plan.ranges) == {"sparse", "mask_lr_mult", "thres"}  # the tiny flags fix lr and depth
    sparse = plan.ranges["sparse"]
    assert sparse["low"] < 0.03 < sparse["high"] and sparse["log"]  # `short`, the preset of one's own pictures
    assert plan.flags["retrain"]["max_iter"] == 2 and plan.flags["search"]["max_iter"] == 3
    assert "sparse" not in plan.flags["retrain"]


def test_a_grid_names_flags_of_one_verb_or_of_all(data, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text("search.warmup: {low: 1, high: 3}\nthres: [0.001, 0.01]\ndecay: {low: 0.0, high: 0.1}\n")
    plan, _ = settle(flags(data, tmp_path, "s", "--grid", str(grid)))
    assert plan.ranges["search.warmup"] == {"low": 1, "high": 3, "log": False}
    drawn = plan.suggest(optuna.trial.FixedTrial({"search.warmup": 2, "thres": 0.01, "decay": 0.05}))
    called = {name: plan.call(name, drawn) for name in ("search", "prune", "retrain")}
    assert called["search"]["warmup"] == 2 and "warmup" not in called["retrain"]
    assert called["prune"] == {"thres": 0.01, "space": "connectivity"}
    assert called["search"]["decay"] == called["retrain"]["decay"] == 0.05


@pytest.mark.parametrize(
    "content, said",
    [
        ("spars: [1]", "unknown flag"),
        ("prune.lr: [1]", "unknown flag"),
        ("depth: [4, 8]", "fixed by the command line"),
        ("sparse: {low: 0.1, high: 0.01}", "needs {low"),
        ("sparse: {low: 0, high: 1, log: true}", "needs {low"),
        ("sparse: {low: -1, high: 1}", "needs {low"),
        ("sparse: [many]", "needs {low"),
        ("sparse: []", "needs {low"),
        ("- sparse", "expected a mapping"),
        ("a: [", "not readable"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(data, tmp_path, capsys, content, said):
    grid = tmp_path / "grid.yaml"
    grid.write_text(content)
    assert main(flags(data, tmp_path, "s", "--grid", str(grid))) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (["--study", "../s"], "--study '../s'"),
        (["--storage", "://"], "not a database URL"),
        (["--storage", "sqlite://"], "in memory"),
        (["--storage", "redis://localhost"], "heartbeat"),
        (["--storage", "nosuch://localhost/x"], "nosuch"),
        (["--storage", "sqlite:////nonexistent/folder/x.db"], "unable to open"),
        (["--storage", "/nonexistent/folder/x.journal"], "no such folder"),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/x"], "127.0.0.1"),
        (["--objectives", "milliseconds,miou"], "--objectives"),
        (["--objectives", "miou"], "--objectives"),
        (["--space", "nowhere"], "unknown space"),
        (["--trials", "0"], "at least 1"),
        (["--sparse", "0.1", "--mask_lr_mult", "3", "--thres", "0.1"], "nothing is left to vary"),
    ],
)
def test_misuse_ends_in_one_line_and_makes_nothing(data, tmp_path, capsys, more, said):
    assert main(flags(data, tmp_path, "s", *more)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "secret" not in error
    assert not (tmp_path / "runs").exists()


# Who works on what

HOLDER = """
import sys, time
from search.study_plan import Plan
from search.study_storage import Store
store = Store(Plan.from_json(sys.argv[1]))
store.enlist()
trial, _ = store.claim()
print(trial.number, flush=True)
time.sleep(600)
"""


def holder(plan: Plan) -> tuple[subprocess.Popen, int]:
    """A process that has claimed a trial and works on it for ever; and the trial's number."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, plan.to_json()], cwd=ROOT, stdout=subprocess.PIPE)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_killed_workers_trial_is_taken_up_once_and_a_living_ones_never(tmp_path, kind):
    storage = None if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    plan = made_plan(tmp_path, storage=storage, heartbeat=1)
    store, other = Store(plan), Store(plan)
    for one in (store, other):
        one.enlist()
    process, number = holder(plan)
    try:
        first, _ = store.claim()
        assert first.number == number + 1  # the living one keeps its trial
    finally:
        process.kill()
        process.wait()
    if kind == "sqlite":
        time.sleep(4.5)  # three heartbeats of a second
        store.storage.record_heartbeat(first._trial_id)
    retry, _ = store.claim()
    assert retry.user_attrs["first"] == number
    assert retry.params == store.study.trials[number].params
    assert retry.user_attrs["folder"] == f"trial-{number:04d}"
    fresh, _ = other.claim()
    assert "first" not in fresh.user_attrs
    states = [trial.state for trial in store.study.trials]
    assert states.count(TrialState.FAIL) == 1 and states.count(TrialState.RUNNING) == 3
    # What the dead one might still say does not count.
    ghost = optuna.trial.Trial(store.study, store.study.trials[number]._trial_id)
    assert not store.tell(ghost, TrialState.COMPLETE, [1.0, 1.0], seconds=1.0)
    assert store.study.trials[number].state == TrialState.FAIL


def test_a_trial_that_kills_every_worker_is_left_in_the_end(tmp_path):
    plan = made_plan(tmp_path)
    store = Store(plan)
    store.enlist()
    for deaths in range(RETRIES + 1):
        trial, _ = store.claim()
        assert trial.user_attrs.get("deaths", 0) == deaths
        store.give_back(trial, died=True)
    fresh, _ = store.claim()
    assert "deaths" not in fresh.user_attrs
    store.give_back(fresh, died=False)  # interrupted, which may happen any number of times
    again, _ = store.claim()
    assert again.user_attrs["deaths"] == 0 and again.params == fresh.params


def test_no_more_trials_are_dealt_out_than_wanted(tmp_path):
    store = Store(made_plan(tmp_path, trials=2))
    store.enlist()
    one, two = store.claim()[0], store.claim()[0]
    assert store.claim() == (None, False)  # wait: a worker may die yet
    store.tell(one, TrialState.COMPLETE, [0.5, 10.0])
    store.tell(two, TrialState.PRUNED, pruned="why")
    assert store.claim() == (None, True)


def test_a_torn_last_line_of_the_journal_is_cut_off(tmp_path):
    Store(made_plan(tmp_path))
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"x","stu')
    store = Store(made_plan(tmp_path))
    store.enlist()
    store.claim()
    assert journal.read_bytes().startswith(whole)
    assert len(Store(made_plan(tmp_path)).study.trials) == 1


@pytest.mark.parametrize("content", [b"a", b"a\n", b"{}\n", b"[1]\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(Exception, match="not an Optuna journal"):
        Store(made_plan(tmp_path, storage=str(file)))
    assert file.read_bytes() == content


# Whole studies


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
def test_ctrl_c_saves_ends_the_workers_and_the_same_command_goes_on(data, tmp_path):
    argv = flags(data, tmp_path, "s", "--trials", "1", "--workers", "2")
    argv[argv.index("--max_iter") + 1] = "400"
    process = start(argv, tmp_path)
    metrics = tmp_path / "runs/s/trial-0000/search/metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 2))
    workers = children(process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
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
