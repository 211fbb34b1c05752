"""The parts of a study: ranges, the front, giving up, who works on what."""

from __future__ import annotations

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

from sparsemask.pictures import style
from sparsemask.search.studies.front import draw_front, pareto
from sparsemask.search.studies.plan import Plan, default_ranges, verb_parser
from sparsemask.search.studies.storage import RETRIES, Store
from sparsemask.search.studies.worker import EARLIER, hopeless
from sparsemask.search.study import main, settle
from studies import flags, made_plan
from tiny import ROOT, make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


# The front


numbers = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(numbers, numbers), max_size=30))
def test_the_front_is_what_comparing_all_pairs_gives(points):
    def beaten(a):
        return any(b[0] >= a[0] and b[1] <= a[1] and b != a for b in points)

    assert sorted(pareto(points)) == [i for i, point in enumerate(points) if not beaten(point)]


@pytest.mark.parametrize(("count", "labelled"), [(7, 7), (300, 10)])
def test_labels_of_a_long_front_have_room(tmp_path, monkeypatch, count, labelled):
    trials = [
        SimpleNamespace(number=i, values=[0.3 + 0.4 * (i / count) ** 0.5, 1e6 * (1 + i)], user_attrs={"connections": i})
        for i in range(count)
    ]
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
    draw_front(tmp_path / "front.png", made_plan(tmp_path), trials, trials)
    (axes,) = figures[0].axes
    texts = [text for text in axes.texts if "(" in text.get_text() and "orange" not in text.get_text()]
    assert len(texts) == labelled
    boxes = [text.get_window_extent() for text in texts]
    frame = axes.get_window_extent()
    assert all(box.y0 >= frame.y0 and box.y1 <= frame.y1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# Giving up


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
    preset = verb_parser("search", "connectivity").from_file("short")  # the preset of one's own pictures
    for name in ("sparse", "mask_lr_mult"):
        span = plan.ranges[name]
        assert span["low"] < preset[name] < span["high"] and span["log"]
    assert plan.flags["retrain"]["max_iter"] == 2 and plan.flags["search"]["max_iter"] == 3
    assert "sparse" not in plan.flags["retrain"]


@pytest.mark.parametrize(
    ("budget", "choices"),
    [("35%", ["17.5%", "35%", "70%"]), ("80%", ["40%", "80%", "100%"]), (4e7, ["2e+07", "4e+07", "8e+07"])],
)
def test_a_budget_is_varied_by_halves_and_doubles(budget, choices):
    parser = verb_parser("search", "connectivity")
    ranges = default_ranges(parser.resolve({"budget_macs": budget}), {})
    assert ranges["budget_macs"] == {"choices": choices}
    for choice in choices:  # as a trial's command line reads them
        assert parser.resolve(parser.given(["--budget_macs", choice])).family.budget is not None
    assert "budget_macs" not in default_ranges(parser.resolve({}), {})
    assert "budget_macs" not in default_ranges(parser.resolve({"budget_macs": budget}), {"budget_macs": budget})


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
from sparsemask.search.studies.plan import Plan, verb_parser
from sparsemask.search.studies.storage import Store
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


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
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
