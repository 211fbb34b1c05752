"""A study on a real PostgreSQL server, started for the test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from postgres import Server, programs
from sparsemask.errors import UseError
from sparsemask.search.studies.backend import driver_url
from sparsemask.search.studies.storage import Store
from sparsemask.search.study import main
from studies import flags, made_plan, start, wait_for
from tiny import ROOT, environment, make_data

pytest.importorskip("psycopg", reason="the PostgreSQL driver is absent: pip install 'sparsemask[postgres]'")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server here (initdb is neither on the path nor in /usr/lib/postgresql)")
    # Not in tmp_path: the server's user may not enter root's folders.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)
    made = Server(found, folder)
    made.start()
    yield made
    if made.process.poll() is None:
        made.stop()
    shutil.rmtree(folder, ignore_errors=True)


def trials(server: Server, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=driver_url(server.url())).trials


@pytest.mark.slow
def test_two_workers_one_killed_on_a_real_server(server, tmp_path):
    data = make_data(tmp_path / "data")
    argv = flags(data, tmp_path, "p", "--storage", server.url(), "--heartbeat", "1", "--trials", "2", "--workers", "2")
    process = start(argv, tmp_path)
    folder = tmp_path / "runs" / "p"
    wait_for(lambda: process.poll() is not None or list(folder.glob("trial-*/search/checkpoints/last.pt")))
    begun = [t for t in trials(server, "p") if (folder / f"trial-{t.number:04d}/search/checkpoints/last.pt").exists()]
    os.kill(int(begun[0].user_attrs["owner"].split("-")[-2]), signal.SIGKILL)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    found = trials(server, "p")
    assert [t.state for t in found].count(TrialState.COMPLETE) == 2
    assert [t.number for t in found if t.state == TrialState.FAIL] == [begun[0].number]
    retried = [t for t in found if t.user_attrs.get("first") == begun[0].number]
    assert len(retried) == 1 and retried[0].params == begun[0].params
    assert "hush" not in out + error
    # Another machine has no trial folders, and gets the front's masks out of the storage.
    assert main([*argv, "--exp_path", str(tmp_path / "elsewhere")]) == 0
    masks = {p.name: p.read_bytes() for p in (folder / "masks").glob("*.npy")}
    assert masks and masks == {p.name: p.read_bytes() for p in (tmp_path / "elsewhere/p/masks").glob("*.npy")}


def test_a_wrong_password_is_one_line_that_does_not_show_it(server, tmp_path):
    with pytest.raises(UseError, match="authentication failed") as caught:
        Store(made_plan(tmp_path, storage=server.url("swordfish")))
    assert "swordfish" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_goes_away_is_one_line_and_comes_back(server, tmp_path):
    store = Store(made_plan(tmp_path, storage=server.url(), study="away", heartbeat=1, storage_wait=0))
    store.enlist()
    trial, _ = store.claim()
    server.stop()
    with pytest.raises(UseError, match="cannot be used") as caught:
        store.claim()
    assert "hush" not in str(caught.value)
    server.start()
    time.sleep(4.5)  # three heartbeats of a second were missed
    again, _ = store.claim()  # on a new connection
    assert again.user_attrs["first"] == trial.number


@pytest.mark.slow
def test_a_server_that_goes_away_while_workers_train_is_said_once(server, tmp_path):
    data = make_data(tmp_path / "data")
    argv = flags(data, tmp_path, "gone", "--storage", server.url(), "--trials", "2", "--workers", "2")
    argv += ["--storage_wait", "2"]
    process = start(argv, tmp_path)
    folder = tmp_path / "runs" / "gone"
    wait_for(lambda: process.poll() is not None or len(list(folder.glob("trial-*/search/config.yaml"))) == 2)
    server.stop()
    try:
        _, error = process.communicate(timeout=600)
    finally:
        server.start()
    assert process.returncode == 2 and "Traceback" not in error and "hush" not in error, error
    lines = [line for line in error.splitlines() if "cannot be used" in line and "waiting for it" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: storage postgresql"), error


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_is_waited_for(server, tmp_path):
    data = make_data(tmp_path / "data")
    argv = flags(data, tmp_path, "back", "--storage", server.url(), "--trials", "2", "--workers", "2")
    process = start([*argv, "--heartbeat", "1"], tmp_path)
    folder = tmp_path / "runs" / "back"
    wait_for(lambda: process.poll() is not None or len(list(folder.glob("trial-*/search/config.yaml"))) == 2)
    server.kill()
    time.sleep(4)  # more than three heartbeats: the workers live all the same
    server.start()
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0 and "Traceback" not in error, error
    assert [trial.state for trial in trials(server, "back")] == [TrialState.COMPLETE] * 2


def test_workers_that_come_first_at_the_same_time_share_an_empty_database(server, tmp_path):
    import psycopg

    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    url = f"{server.url().rpartition('/')[0]}/empty"
    plans = [made_plan(tmp_path / f"machine-{i}", storage=url, identity={"ranges": {}}) for i in range(4)]
    together = threading.Barrier(len(plans))

    def join(plan) -> str:
        together.wait(60)
        return Store(plan).id

    with ThreadPoolExecutor(len(plans)) as pool:
        assert len(set(pool.map(join, plans))) == 1


@pytest.mark.slow
def test_a_study_under_load_loses_nothing(tmp_path):
    if programs() is None:
        pytest.skip("no PostgreSQL server here (initdb is neither on the path nor in /usr/lib/postgresql)")
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/study_load.py"), "--trials", "40", "--workers", "3", "--kills", "4",
         "--outages", "1"],
        cwd=tmp_path, env=environment(tmp_path / "home"), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
