"""Storages of a study: a journal file that survives kills, or any database that Optuna supports."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from sparsemask import locks
from sparsemask.errors import UseError, one_line

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

_LONGEST_CLAIM = 60  # seconds; a claim takes one or two


class StorageError(UseError):
    """The storage cannot be used; all processes of a study fail with it at once."""


class StorageAway(StorageError):
    """The storage does not answer, and may come back: a server that is started again, a network that fails."""


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
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    check_url(url)
    options = {"pool_pre_ping": True, "connect_args": _patience(url)}
    with reachable(url):
        # Workers that start at once would make the tables of an empty database at once, which fails.
        with alone(create_engine(driver_url(url), poolclass=NullPool, connect_args=_patience(url)), "tables"):
            return optuna.storages.RDBStorage(
                driver_url(url),
                engine_kwargs=options,
                heartbeat_interval=heartbeat,
                grace_period=3 * heartbeat,
                heartbeat_stale_trial_callback=stale,
            )


@contextlib.contextmanager
def reachable(url: str | None) -> Iterator[None]:
    """Context that turns database errors into UseErrors, without the password.

    Args:
        url: the database's; None for a journal.

    Raises:
        StorageAway: the server cannot be reached, or has cut the connection.
        StorageError: any other error of the database.
        UseError: a missing driver, or a storage of another version of Optuna.
    """
    from sqlalchemy import exc

    try:
        yield
    except ImportError as error:
        if url is None:
            raise
        hint = ": pip install 'sparsemask[postgres]'" if url.startswith("postgres") else ""
        raise UseError(
            f"--storage {shown_url(url)}: the driver is missing ({error.__cause__ or error}){hint}"
        ) from None
    except (exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error if isinstance(error, exc.SQLAlchemyError) else error.__cause__ or error
        message = one_line(cause.orig if isinstance(cause, exc.StatementError) and cause.orig else cause)
        lost = exc.OperationalError | exc.InterfaceError | exc.PendingRollbackError | exc.TimeoutError
        away = isinstance(cause, lost) or (isinstance(cause, exc.DBAPIError) and cause.connection_invalidated)
        kind = StorageAway if away else StorageError
        raise kind(f"storage {shown_url(url)} cannot be used: {message[:300]}") from None
    except RuntimeError as error:
        if "optuna version" not in str(error):
            raise
        raise UseError(f"storage {shown_url(url)}: {error}") from None


@contextlib.contextmanager
def alone(engine: Engine | None, name: str) -> Iterator[None]:
    """Context that one process of all machines is in at a time, on PostgreSQL; on others it does nothing.

    A server holds no lock for a client that it has lost: the lock ends with its connection, and that after
    `_LONGEST_CLAIM` seconds in which nothing was asked by it.

    Args:
        engine: of the database; None for a journal.
        name: of what is locked.
    """
    from sqlalchemy import text

    if engine is None or engine.dialect.name != "postgresql":
        yield
        return
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_LONGEST_CLAIM}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
        yield


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
    """The driver's options for the seconds to wait for a server or a locked file.

    A server that vanishes without a word, as by a loss of power, is noticed within a minute and not after hours.
    """
    if url.startswith("sqlite"):
        return {"timeout": 60}
    if url.startswith("postgres"):
        alive = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
        return {"connect_timeout": 10, **alive}
    return {"connect_timeout": 10} if url.startswith("mysql") else {}


def _no_journal(path: Path) -> UseError:
    return UseError(f"--storage {path}: not an Optuna journal")
