"""The storages of a study: a journal file that survives kills, or any database that Optuna can use."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna

from sparsemask import locks
from sparsemask.errors import UseError, one_line


class StorageError(UseError):
    """The storage cannot be used: what every process of a study meets at once."""


class JournalLock:
    """The lock of a journal. Optuna's own outlives a killed holder by half a minute; this one goes with it.

    Before anything is written, a last line that a full disk or a crash has torn is cut off.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock: locks.Lock | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock = locks.acquire(self._path, create=False)
        try:
            _cut_torn_line(self._path)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Let the next one in."""
        if self._lock is not None:
            self._lock.release()


def _cut_torn_line(path: Path) -> None:
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        back = min(size, 1 << 20)
        file.seek(size - back)
        tail = file.read(back)
        if tail and not tail.endswith(b"\n"):
            file.truncate(size - back + tail.rfind(b"\n") + 1)


def open_journal(path: Path) -> optuna.storages.JournalStorage:
    """The journal at `path`, made if it is new."""
    from optuna.storages.journal import JournalFileBackend

    if not path.parent.is_dir():
        raise UseError(f"--storage {path}: no such folder: {path.parent}")
    if path.exists() and path.stat().st_size and not _begins_as_journal(path):
        raise _no_journal(path)
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))
    except (ValueError, KeyError, TypeError):
        raise _no_journal(path) from None


def _begins_as_journal(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            first = json.loads(file.readline(1 << 20))
        except (ValueError, RecursionError):
            return False
    return isinstance(first, dict) and "op_code" in first


def open_database(url: str, heartbeat: int, stale: Callable) -> optuna.storages.RDBStorage:
    """A database with heartbeats each `heartbeat` seconds; `stale(study, trial)` follows a trial taken for dead."""
    check_url(url)
    with reachable(url):
        return optuna.storages.RDBStorage(
            driver_url(url),
            engine_kwargs={"pool_pre_ping": True, "connect_args": _patience(url)},
            heartbeat_interval=heartbeat,
            grace_period=3 * heartbeat,
            heartbeat_stale_trial_callback=stale,
        )


@contextlib.contextmanager
def reachable(url: str | None) -> Iterator[None]:
    """Inside, what a database complains of is an error of use, without the password."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        if url is None:
            raise
        hint = ": pip install 'sparsemask[postgres]'" if url.startswith("postgres") else ""
        raise UseError(
            f"--storage {shown_url(url)}: the driver is missing ({error.__cause__ or error}){hint}"
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ or error
        said = one_line(getattr(cause, "orig", None) or cause)
        raise StorageError(f"storage {shown_url(url)} cannot be used: {said[:300]}") from None
    except RuntimeError as error:
        if "optuna version" not in str(error):
            raise
        raise UseError(f"storage {shown_url(url)}: {error}") from None


def is_database(storage: str | None) -> bool:
    """Whether --storage names a database; otherwise it is a journal file, or absent."""
    return storage is not None and "://" in storage


def check_url(url: str) -> None:
    """UseError unless a storage URL can be one."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if url.startswith("redis"):
        raise UseError("--storage redis://: has no heartbeat; give a database's URL or a journal file")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise UseError("--storage: not a database URL (postgresql://user:password@host/database)") from None
    if parsed.drivername.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise UseError(f"--storage {url}: workers cannot share a database in memory; give a file")


def shown_url(url: str | None) -> str:
    """The URL without its password."""
    from sqlalchemy.engine import make_url

    return make_url(url).render_as_string(hide_password=True) if url else "of the study"


def driver_url(url: str) -> str:
    """A PostgreSQL URL that names no driver gets the one that is installed; any other stays."""
    scheme, rest = url.split("://", 1)
    if scheme not in ("postgres", "postgresql"):
        return url
    driver = next((d for d in ("psycopg", "psycopg2") if importlib.util.find_spec(d)), "psycopg")
    return f"postgresql+{driver}://{rest}"


def _patience(url: str) -> dict:
    """Seconds to wait for a server or for a locked file, as the driver calls them."""
    if url.startswith("sqlite"):
        return {"timeout": 60}
    return {"connect_timeout": 10} if url.startswith(("postgres", "mysql")) else {}


def _no_journal(path: Path) -> UseError:
    return UseError(f"--storage {path}: not an Optuna journal")
