"""Storages of a study: a journal file that survives kills, or any database that Optuna supports."""

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
    """The storage cannot be used; all processes of a study fail with it at once."""


class JournalLock:
    """The lock of a journal, released when its holder is killed (Optuna's own only after half a minute).

    On acquisition an incomplete last line, left by a full disk or a crash, is removed.
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
        """Release the lock."""
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
    """Open the journal at `path`; it is created if missing.

    Raises:
        UseError: no such folder, or a file that is no Optuna journal.
    """
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
    """Open a database.

    Args:
        url: its URL.
        heartbeat: seconds between a running trial's heartbeats; after three missed ones the trial counts as dead.
        stale: (study, trial), called for a dead trial.

    Raises:
        UseError: an invalid URL, or a missing driver.
        StorageError: the database cannot be used.
    """
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
    """Context that turns database errors into UseErrors, without the password."""
    from sqlalchemy.exc import SQLAlchemyError, StatementError

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
        message = one_line(cause.orig if isinstance(cause, StatementError) and cause.orig else cause)
        raise StorageError(f"storage {shown_url(url)} cannot be used: {message[:300]}") from None
    except RuntimeError as error:
        if "optuna version" not in str(error):
            raise
        raise UseError(f"storage {shown_url(url)}: {error}") from None


def is_database(storage: str | None) -> bool:
    """Whether --storage names a database; otherwise it is a journal file, or absent."""
    return storage is not None and "://" in storage


def check_url(url: str) -> None:
    """Check a storage URL.

    Raises:
        UseError: not a database URL, or a database that several processes cannot share.
    """
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
    """Add the installed driver to a PostgreSQL URL without one; other URLs are returned as they are."""
    scheme, location = url.split("://", 1)
    if scheme not in ("postgres", "postgresql"):
        return url
    driver = next((d for d in ("psycopg", "psycopg2") if importlib.util.find_spec(d)), "psycopg")
    return f"postgresql+{driver}://{location}"


def _patience(url: str) -> dict:
    """The driver's options for the seconds to wait for a server or a locked file."""
    if url.startswith("sqlite"):
        return {"timeout": 60}
    return {"connect_timeout": 10} if url.startswith(("postgres", "mysql")) else {}


def _no_journal(path: Path) -> UseError:
    return UseError(f"--storage {path}: not an Optuna journal")
