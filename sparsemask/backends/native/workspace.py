"""Memory for what lives only inside one call: kept from call to call, since fresh pages cost more than they hold."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from sparsemask.backends.native import library


class _Local(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.pages: list[Tensor] = []


_local = _Local()


class Workspace:
    """One thread's reusable memory; `take` parts it out until the `with` block ends.

    It grows to what one call needed and stays; :func:`release` gives it back.
    """

    def __enter__(self) -> Workspace:
        self._pages = _local.pages
        _local.pages = []  # a call inside this one gets memory of its own
        self._page = self._used = 0
        return self

    def __exit__(self, *_: object) -> None:
        wanted = sum(len(page) for page in self._pages)
        if len(self._pages) > 1:  # next time in one piece
            self._pages = [_page(wanted)]
        _local.pages = self._pages

    def take(self, rows: int, columns: int) -> Tensor:
        """Uninitialised float32 (rows, columns)."""
        size = -(-rows * columns // 16) * 16
        while self._page < len(self._pages) and len(self._pages[self._page]) - self._used < size:
            self._page, self._used = self._page + 1, 0
        if self._page == len(self._pages):
            self._pages.append(_page(max(size, 1 << 16)))
        start = self._used
        self._used += size
        return self._pages[self._page][start : start + rows * columns].view(rows, columns)


def _page(size: int) -> Tensor:
    with torch.inference_mode(False):  # it outlives the call, and the next may be of another mode
        return library.empty(size, 1).view(-1)


def release() -> None:
    """Give this thread's memory back."""
    _local.pages = []
