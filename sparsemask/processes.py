"""Helper processes: they ignore signals, never outlive the main process, and can always be ended.

Ctrl-C reaches every process of a terminal, and `timeout`, SLURM and containers send SIGTERM to all processes of a
group. Only the main process may decide what follows; helpers therefore ignore both. They end when they are told to, by
SIGKILL where that does not help (:func:`helper_context`), and when the main process is gone (:func:`follow_parent`).
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import time

_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 0.5  # seconds between two looks at the parent


def usable_cores() -> int:
    """Cores that this process may use; all of them where the system does not say."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def begin_helper() -> None:
    """Initialise a helper process: ignore Ctrl-C and SIGTERM, and end when the main process ends."""
    for number in _LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_MAIN)
    follow_parent()


def follow_parent() -> None:
    """Watch the parent in a thread, and end this process soon after it, since a killed parent stops no helpers.

    Does nothing in a process that multiprocessing did not start.
    """
    parent, begun_under = multiprocessing.parent_process(), os.getppid()
    if parent is None:
        return

    def follow() -> None:
        # The sentinel alone is not enough: it is a pipe, which processes that were forked later hold open.
        while os.getppid() == begun_under and parent.is_alive():
            time.sleep(_PATIENCE)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _Helper:
    """Mixed into a start method's process class."""

    def start(self) -> None:
        if sys.platform == "win32":
            super().start()
            return
        # No signal may reach the child before it has said that it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_MAIN)
        try:
            super().start()
            # Python ends its daemons by `terminate` and then waits for them without a limit.
            self._popen.terminate = self._popen.kill
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _SpawnHelper(_Helper, multiprocessing.context.SpawnProcess):
    pass


class _SpawnContext(multiprocessing.context.SpawnContext):
    Process = _SpawnHelper


_CONTEXTS: dict[str, type[multiprocessing.context.BaseContext]] = {"spawn": _SpawnContext}

if sys.platform != "win32":  # where nothing forks

    class _ForkHelper(_Helper, multiprocessing.context.ForkProcess):
        pass

    class _ForkServerHelper(_Helper, multiprocessing.context.ForkServerProcess):
        pass

    class _ForkContext(multiprocessing.context.ForkContext):
        Process = _ForkHelper

    class _ForkServerContext(multiprocessing.context.ForkServerContext):
        Process = _ForkServerHelper

    _CONTEXTS |= {"fork": _ForkContext, "forkserver": _ForkServerContext}


def helper_context(method: str | None = None) -> multiprocessing.context.BaseContext:
    """A multiprocessing context whose processes `terminate` by SIGKILL, since they ignore SIGTERM.

    Args:
        method: start method; the interpreter's default if None. What is started must call :func:`begin_helper`.
    """
    return _CONTEXTS[method or multiprocessing.get_start_method()]()


def kill_helpers() -> None:
    """End every helper of this process at once."""
    for process in multiprocessing.active_children():
        if isinstance(process, _Helper):
            process.kill()
