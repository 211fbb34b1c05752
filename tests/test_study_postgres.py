"""A study on a real PostgreSQL server, started for the test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from sparsemask.errors import UseError
from sparsemask.search.studies.backend import driver_url
from sparsemask.search.studies.storage import Store
from sparsemask.search.study import main
from studies import flags, made_plan, start, wait_for
from tiny import make_data

pytest.importorskip("psycopg", reason="the PostgreSQL driver is absent: pip install 'sparsemask[postgres]'")


def _programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps them off the path."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return Path(found).resolve().parent if found else debian[-1].parent if debian else None


class Server:
    """A server with one user and password, on a free loopback port."""

    def __init__(self, programs: Path, folder: Path):
        self.folder, self.programs, self.process = folder, programs, None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.who = {}
        if os.getuid() == 0:  # it refuses to be root
            nobody = pwd.getpwnam("nobody")
            self.who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        secret = folder / "password"
        secret.write_text("hush-hush\n")
        secret.chmod(0o644)
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "db", "-U", "me", "-A", "scram-sha-256", "--pwfile", secret],
            cwd=folder, capture_output=True, text=True, **self.who,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    def url(self, password: str = "hush-hush") -> str:
        return f"postgresql://me:{password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.folder / "db", "-h", "127.0.0.1", "-p", str(self.port),
             "-k", self.folder, "-c", "fsync=off"],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.who,
        )  # fmt: skip
        wait_for(self.answers, 60)

    def answers(self) -> bool:
        import psycopg

        assert self.process.poll() is None, "the server ended"
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # fast shutdown: connections are cut
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server here (initdb is neither on the path nor in /usr/lib/postgresql)")
    # Not in tmp_path: the server's user may not enter root's folders.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)
    made = Server(programs, folder)
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
    store = Store(made_plan(tmp_path, storage=server.url(), study="away", heartbeat=1))
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
    process = start(argv, tmp_path)
    folder = tmp_path / "runs" / "gone"
    wait_for(lambda: process.poll() is not None or len(list(folder.glob("trial-*/search/config.yaml"))) == 2)
    server.stop()
    try:
        _, error = process.communicate(timeout=600)
    finally:
        server.start()
    assert process.returncode == 2 and "Traceback" not in error and "hush" not in error, error
    lines = [line for line in error.splitlines() if "cannot be used" in line]
    assert len(lines) == 1 and lines[0].startswith("error: storage postgresql"), error
