"""What is worked out once for an input size, and kept for a few of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_MOST = 16  # sizes remembered
Plan = TypeVar("Plan")


class Plans(Generic[Plan]):
    """Plans by key, the oldest of which are forgotten; safe among threads."""

    def __init__(self):
        self._kept: dict[Hashable, Plan] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Plan]) -> Plan:
        """The plan of a key, made now if need be."""
        with self._lock:
            plan = self._kept.get(key)
            if plan is None:
                while len(self._kept) >= _MOST:
                    self._kept.pop(next(iter(self._kept)))
                plan = self._kept[key] = make()
        return plan
