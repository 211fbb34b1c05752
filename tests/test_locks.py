"""Locks between processes: who is kept out, and that nothing outlives a killed holder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from recorded_run import make_search
from sparsemask import locks
from sparsemask.errors import UseError
from sparsemask.report.run_data import read_run
from sparsemask.runs import Run
from tiny import ROOT

HOLDER = """
import sys, time
from sparsemask import locks
from sparsemask.runs import Run
lock = Run(sys.argv[2]).hold() if sys.argv[1] == "run" else locks.acquire(sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder():
    """Starts processes that hold a run or a file until the test ends or kills them."""
    started = []

    def start(kind: str, path: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, kind, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def forked(work) -> int:
    """What `work()` returns in a forked process, as its exit status."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = int(work())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_another_process_is_kept_out_until_it_is_killed(tmp_path, holder):
    path = tmp_path / "new" / "lock"
    other = holder("file", path)
    assert locks.is_held(path)
    assert locks.try_acquire(path) is None
    other.kill()
    other.wait()
    assert path.exists() and not locks.is_held(path)  # what is left of it blocks nobody
    with locks.try_acquire(path):
        assert locks.is_held(path)
    assert not locks.is_held(path)


def test_who_waits_gets_the_lock_when_it_is_released(tmp_path):
    path, order = tmp_path / "lock", []
    first = locks.acquire(path)

    def second() -> None:
        with locks.acquire(path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.1)
    order.append("first")
    first.release()
    thread.join(10)
    assert order == ["first", "second"]
    first.release()  # again does nothing
    assert not locks.is_held(path)


def test_the_time_to_wait_is_kept(tmp_path):
    with locks.acquire(tmp_path / "lock"):
        begun = time.monotonic()
        assert locks.try_acquire(tmp_path / "lock", 0.1) is None
        assert 0.1 <= time.monotonic() - begun < 5


def test_forked_processes_do_not_keep_it(tmp_path):
    path = tmp_path / "lock"
    lock = locks.acquire(path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # lives on until it is told to end
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        assert forked(lambda: locks.is_held(path)) == 1
        lock.release()
        assert not locks.is_held(path)
    finally:
        os.close(writing)
        assert os.waitpid(child, 0)[1] == 0


def test_a_forked_process_leaves_descriptors_of_others_alone(tmp_path):
    lock = locks.acquire(tmp_path / "lock")

    def work() -> bool:
        other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)  # takes the number that has become free
        lock.release()
        return os.write(other, b"whole") == 5

    assert forked(work) == 1
    assert locks.is_held(tmp_path / "lock")
    lock.release()


def test_a_file_that_was_replaced_meanwhile_is_locked_anew(tmp_path):
    path, taken = tmp_path / "lock", []
    first = locks.acquire(path)
    thread = threading.Thread(target=lambda: taken.append(locks.acquire(path)))
    thread.start()
    time.sleep(0.1)
    path.unlink()
    first.release()
    thread.join(10)
    assert locks.is_held(path)  # the file that others find, not the one that is gone
    taken[0].release()


def test_without_create_nothing_is_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        locks.acquire(tmp_path / "absent", create=False)
    assert not locks.is_held(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_held_by_a_process_as_a_whole(tmp_path, holder):
    folder = tmp_path / "run"
    first = Run(folder).hold()
    second = Run(folder).hold()  # the study holds the run of the search that it calls
    assert forked(lambda: Run(folder).is_held()) == 1
    del first
    assert second.is_held()
    del second
    assert not Run(folder).is_held()

    other = holder("run", folder)
    with pytest.raises(UseError, match="another process is at work in this run"):
        Run(folder).hold()
    other.send_signal(signal.SIGKILL)
    other.wait()
    Run(folder).hold()


def test_a_run_that_was_removed_and_made_again_is_locked_anew(tmp_path):
    run = Run(tmp_path / "run").hold()
    run.discard()
    assert not run.folder.exists()
    again = Run(tmp_path / "run").hold()
    assert again.is_held()


def test_a_report_tells_a_run_at_work_from_a_killed_one(tmp_path, holder):
    run = make_search(tmp_path / "r")
    run.note(state="running")
    other = holder("run", run.folder)
    assert read_run(run).state == "running"
    assert read_run(run).state == "running"  # to look does not release it
    other.kill()
    other.wait()
    assert read_run(run).state == "stopped before its end"


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def refused(descriptor, blocking):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock, "lock_descriptor", refused)
    with open(tmp_path / "part", "wb") as file:
        assert not locks.try_lock_open(file)  # nothing is taken for a leftover there
    with pytest.raises(OSError):
        locks.is_held(tmp_path / "part")
    with pytest.raises(UseError, match="cannot be locked for this run: No locks available"):
        Run(tmp_path / "run").hold()
