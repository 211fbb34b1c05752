"""A study's storage that breaks off: waited for, asked again, and nothing lost or done twice by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, PendingRollbackError, ProgrammingError

from sparsemask.search.studies import front
from sparsemask.search.studies.backend import StorageAway, StorageError, reachable
from sparsemask.search.studies.storage import RETRIES, Store, enqueue_again
from studies import made_plan


def opened(folder: Path, kind: str = "sqlite", **more) -> Store:
    storage = f"sqlite:///{folder}/study.db" if kind == "sqlite" else None
    store = Store(made_plan(folder, storage=storage, **{"storage_wait": 60, **more}))
    store.enlist()
    return store


def broken() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("server closed the connection"))


@contextmanager
def away(store: Store, times: int) -> Iterator[None]:
    """Inside, the database fails so many times."""
    left = [times]

    def fail(*_: object) -> None:
        if left[0]:
            left[0] -= 1
            raise broken()

    sqlalchemy.event.listen(store.storage.engine, "before_cursor_execute", fail)
    yield
    sqlalchemy.event.remove(store.storage.engine, "before_cursor_execute", fail)
    assert left == [0] or times > 100


def after(monkeypatch, store: Store, name: str, error: Exception | type[BaseException]) -> list[str]:
    """A step is done and then raises, once, as where a connection or a process is lost; gives its calls."""
    part = {"ask": store.study, "suggest": store.plan}.get(name, store.storage)
    work, calls = getattr(part, name), []

    def fail(*arguments, **more):
        answer = work(*arguments, **more)
        calls.append(name)
        if len(calls) == 1:
            raise error
        return answer

    monkeypatch.setattr(part, name, fail)
    return calls


def states(store: Store) -> list[TrialState]:
    return [trial.state for trial in store.trials()]


def test_a_database_that_comes_back_is_waited_for(tmp_path, capsys):
    store = opened(tmp_path)
    capsys.readouterr()
    with away(store, 2):
        trial, _ = store.claim()
    with away(store, 2):
        assert store.tell(trial, TrialState.COMPLETE, [0.5, 2.0], seconds=1.0)
    with away(store, 1):
        assert store.trials()[0].values == [0.5, 2.0]
    assert states(store) == [TrialState.COMPLETE]
    lines = capsys.readouterr().err.splitlines()
    assert [("waiting for it, 60 s at most" in line, "is back after" in line) for line in lines] == [
        (True, False), (False, True),
    ] * 3  # fmt: skip


def test_a_database_that_stays_away_is_one_line_in_the_end(tmp_path, capsys):
    store = opened(tmp_path, storage_wait=1)
    with away(store, 1000), pytest.raises(StorageError, match=r"cannot be used: .*closed the connection \(waited 1 s"):
        store.claim()
    assert capsys.readouterr().err.count("waiting for it") == 1
    assert states(store) == []


def test_what_waiting_cannot_mend_is_said_at_once():
    def kind(error: Exception) -> type:
        with pytest.raises(StorageError) as caught, reachable("sqlite:///x.db"):
            raise error
        return caught.type

    wrong = ProgrammingError("SELECT 1", {}, Exception("no such table"))
    wrapped = optuna.exceptions.StorageInternalError()
    wrapped.__cause__ = broken()
    within = PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")  # a session's next query
    assert [kind(e) for e in (broken(), wrapped, within, wrong)] == [StorageAway] * 3 + [StorageError]


STEPS = ["ask", "record_heartbeat", "set_trial_user_attr", "suggest"]  # of a claim


def grow_old(store: Store) -> None:
    """All that happened in the storage was an hour ago and more."""
    with store.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"))
        connection.execute(sqlalchemy.text("UPDATE trials SET datetime_start = '2020-01-01 00:00:00.000000'"))


def let_pass(monkeypatch, seconds: float) -> None:
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + seconds)


@pytest.mark.parametrize("step", STEPS)
def test_a_claim_whose_connection_breaks_is_no_second_one(tmp_path, monkeypatch, step):
    store = opened(tmp_path)
    calls = after(monkeypatch, store, step, broken())
    trial, _ = store.claim()
    assert len(calls) == 2 or step == "set_trial_user_attr"
    assert set(trial.params) == {"sparse"}
    owned = [t.number for t in store.trials() if t.user_attrs.get("owner") == store.owner]
    assert owned == [trial.number]
    assert len(store.trials()) == (1 if step in STEPS[2:] else 2)  # before it bore a name, another one was asked for
    another, _ = store.claim()
    assert another.number not in owned


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_anywhere_in_a_claim_leaves_nothing_running(tmp_path, monkeypatch, step):
    killed = opened(tmp_path)
    after(monkeypatch, killed, step, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        killed.claim()
    assert states(killed) == [TrialState.RUNNING]
    grow_old(killed)
    other = opened(tmp_path)
    let_pass(monkeypatch, 3 * other.plan.heartbeat + 1)
    other.claim()
    assert states(other)[0] == TrialState.FAIL


def test_a_result_that_was_stored_before_the_connection_broke_counts(tmp_path, monkeypatch):
    store = opened(tmp_path)
    trial, _ = store.claim()
    after(monkeypatch, store, "set_trial_state_values", broken())
    assert store.tell(trial, TrialState.COMPLETE, [0.5, 2.0])
    assert [t.values for t in store.trials()] == [[0.5, 2.0]]


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_worker_killed_between_failing_and_enqueueing_loses_nothing(tmp_path, kind):
    store = opened(tmp_path, kind)
    trial, _ = store.claim()
    store.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # and it was killed
    again, _ = store.claim()
    assert again.user_attrs["first"] == trial.number and again.params == trial.params
    assert states(store) == [TrialState.FAIL, TrialState.RUNNING]


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_what_was_enqueued_twice_runs_once(tmp_path, kind):
    store = opened(tmp_path, kind)
    trial, _ = store.claim()
    store.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    for _ in range(2):  # the second one by a connection that broke behind the first, or by another machine
        enqueue_again(store.study, store.trials()[trial.number])
    again, _ = store.claim()
    fresh, _ = store.claim()
    assert again.user_attrs["first"] == trial.number and "first" not in fresh.user_attrs
    assert states(store) == [TrialState.FAIL, TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]
    store.tell(again, TrialState.COMPLETE, [0.5, 2.0])
    assert store.claim()[0].user_attrs.get("first") is None  # nor later
    shown = front.report(store.plan, store.trials())
    assert "1 broken off and taken up again" in shown and "left after" not in shown


def test_who_was_away_itself_judges_nobody_dead(tmp_path, monkeypatch):
    living = opened(tmp_path)
    trial, _ = living.claim()
    grow_old(living)  # the database was away for an hour
    other = opened(tmp_path)
    assert "first" not in other.claim()[0].user_attrs
    assert states(other)[trial.number] == TrialState.RUNNING
    let_pass(monkeypatch, 3 * other.plan.heartbeat + 1)
    with away(other, 1):
        assert "first" not in other.claim()[0].user_attrs  # it was away a moment ago
    let_pass(monkeypatch, 3 * other.plan.heartbeat + 1)
    assert other.claim()[0].user_attrs["first"] == trial.number


def test_a_trial_that_nobody_had_begun_has_killed_nobody(tmp_path):
    store = opened(tmp_path)
    trial, _ = store.claim()
    for _ in range(RETRIES + 1):
        store.give_back(trial, died=False)
        store.study.ask()  # by a worker that was killed before it had put its name to it
        orphan = store.trials()[-1]
        store.storage.set_trial_state_values(orphan._trial_id, TrialState.FAIL)
        trial, _ = store.claim()
        assert trial.user_attrs["deaths"] == 0


def test_giving_back_does_not_wait(tmp_path):
    store = opened(tmp_path)
    trial, _ = store.claim()
    begun = time.monotonic()
    with away(store, 1000), pytest.raises(StorageAway):
        store.give_back(trial, died=False)
    assert time.monotonic() - begun < store.plan.storage_wait


def test_trials_that_killed_their_workers_are_counted_as_such(tmp_path):
    store = opened(tmp_path, "journal")
    for _ in range(RETRIES + 1):
        trial, _ = store.claim()
        store.give_back(trial, died=True)
    shown = front.report(store.plan, store.trials())
    assert f"{RETRIES} broken off and taken up again, 1 left after killing its workers" in shown
