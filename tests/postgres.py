"""A PostgreSQL server of one's own, on a loopback port, that can be stopped, killed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path


def programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps them off the path."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    return Path(found).resolve().parent if found else debian[-1].parent if debian else None


class Server:
    """A server with one user and password.

    Args:
        folder: the programs'.
        place: an empty folder that any user may enter: the server is nobody where this process is root.
        safe: data are on the disk before an answer, as a server is to be used; else it is faster.
    """

    def __init__(self, folder: Path, place: Path, safe: bool = False):
        self.folder, self.programs, self.process = place, folder, None
        self.options = [] if safe else ["-c", "fsync=off"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.who = {}
        if os.getuid() == 0:  # it refuses to be root
            nobody = pwd.getpwnam("nobody")
            self.who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(place, nobody.pw_uid, nobody.pw_gid)
        secret = place / "password"
        secret.write_text("hush-hush\n")
        secret.chmod(0o644)
        made = subprocess.run(
            [folder / "initdb", "-D", place / "db", "-U", "me", "-A", "scram-sha-256", "--pwfile", secret],
            cwd=place, capture_output=True, text=True, **self.who,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    def url(self, password: str = "hush-hush") -> str:
        return f"postgresql://me:{password}@127.0.0.1:{self.port}/postgres"

    def start(self, seconds: float = 60) -> None:
        """Start it and wait until it answers; after a kill also for what is left of the one before."""
        deadline = time.monotonic() + seconds
        self._launch()
        while not self.answers():
            assert time.monotonic() < deadline, "the server does not start"
            if self.process.poll() is not None:  # processes of a killed one still hold its memory
                self._launch()
            time.sleep(0.05)

    def _launch(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "db", "-h", "127.0.0.1", "-p", str(self.port),
                 "-k", self.folder, *self.options],
                cwd=self.folder, stdout=log, stderr=log, **self.who,
            )  # fmt: skip

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # fast shutdown: connections are cut
        self.process.wait(timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
