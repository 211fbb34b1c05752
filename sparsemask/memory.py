"""How the process keeps memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks for the next ones instead of returning them to the system.

    By default glibc maps blocks of 32 MiB and more anew each time, and returns what is free at the end of its heap; a
    network whose features are large then pays for the first touch of every page in every call (a third of the time of
    large decoders at 256x256). The process holds its peak of memory instead. Calling it again does nothing more.

    Returns:
        Whether the C library took it; False for others than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
    return False


def return_freed_memory() -> None:
    """Give the pages of freed blocks back to the system, where the C library can (glibc): for work within a budget."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
