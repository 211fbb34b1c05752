"""Locks between processes, on files.

The operating system holds them on open files, through `filelock`: a lock ends with its process, however that ends, so
that a leftover lock file blocks nobody. Forked processes do not inherit locks.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from pathlib import Path
from typing import IO, Any

_POLL = 0.005  # seconds between two tries
_PROBE = 0.2  # seconds; another process may hold the lock briefly to test it

_descriptors: set[int] = set()  # of the locks of this process
_for_process: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()  # device and inode


class Lock:
    """A lock that is held. It is released by :meth:`release`, at the end of a `with`, or with its last reference."""

    def __init__(self, descriptor: int):
        self._finalizer = weakref.finalize(self, _close, descriptor)
        self._finalizer.atexit = False  # the operating system does it

    def release(self) -> None:
        """Release the lock; calling it again does nothing."""
        self._finalizer()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def acquire(path: str | os.PathLike[str], create: bool = True) -> Lock:
    """Wait for the lock of a file, which excludes other processes and the other threads of this one.

    Args:
        path: the file; its content does not matter and stays.
        create: make the file, and its folder, where it is missing.

    Raises:
        FileNotFoundError: `create` is false and there is no such file.
        OSError: the file cannot be opened, or its file system has no locks.
    """
    while (lock := try_acquire(path, 3600, create)) is None:
        continue
    return lock


def try_acquire(path: str | os.PathLike[str], timeout: float = 0, create: bool = True) -> Lock | None:
    """As :func:`acquire`, for at most `timeout` seconds; None where another holder kept the lock."""
    end = time.monotonic() + timeout
    while True:
        descriptor = _open(Path(path), create)
        try:
            while not (locked := _try(descriptor)) and time.monotonic() < end:
                time.sleep(_POLL)
            current = locked and _is_current(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        if current:
            _descriptors.add(descriptor)
            return Lock(descriptor)
        os.close(descriptor)
        if not locked:
            return None
        # The file was removed while we waited for it: what we locked is not what others will find.


def acquire_for_process(path: str | os.PathLike[str]) -> Lock | None:
    """Lock a file for the whole process: later calls in the same process return the same lock.

    Returns:
        The lock; None when another process has it.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    try:
        held = _for_process.get(_identity(os.stat(path)))
    except FileNotFoundError:
        held = None
    if held is not None:
        return held
    lock = try_acquire(path, _PROBE)
    if lock is not None:
        _for_process[_identity(os.stat(path))] = lock
    return lock


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether any process, this one included, has locked a file; False where there is no such file.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    try:
        descriptor = _open(Path(path), create=False)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor)
    finally:
        os.close(descriptor)


def try_lock_open(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; False where another holds it or its file system has no locks."""
    try:
        return _try(file.fileno())
    except OSError:
        return False


def _try(descriptor: int) -> bool:
    from filelock import lock_descriptor  # 50 ms, for whoever locks something

    return lock_descriptor(descriptor, blocking=False)


def _open(path: Path, create: bool) -> int:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _is_current(descriptor: int, path: str | os.PathLike[str]) -> bool:
    try:
        return _identity(os.stat(path)) == _identity(os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _close(descriptor: int) -> None:
    if descriptor in _descriptors:  # not in a process that was forked
        _descriptors.remove(descriptor)
        os.close(descriptor)


def _forget() -> None:
    """In a process that was forked: a descriptor that it inherits would hold the lock beyond its parent's end."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()
    _for_process.clear()


if sys.platform != "win32":  # where nothing forks
    os.register_at_fork(after_in_child=_forget)
