"""What is derived from weights (split, packed, folded), kept until the weights' content changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIKE = 4  # values kept for one weight, as for a few channel masks in turn


class _Entry(NamedTuple):
    saved: tuple[Tensor, ...]
    value: Any
    size: int


class Derived:
    """A bounded cache of what is made from tensors; nothing has to invalidate it.

    Every look-up compares the tensors' contents with copies saved when the value was made: tens of microseconds for a
    layer's weights, and no way of changing them (an optimizer, `load_state_dict`, writing to `.data`, another tensor at
    the same address) goes unnoticed, as it would with version counters.
    """

    def __init__(self, entries: int = 1024, size: int = 1 << 28):
        """At most `entries` values whose tensors together hold `size` bytes; the least recently used go first."""
        self._entries, self._size, self._held = entries, size, 0
        self._kept: OrderedDict[Hashable, list[_Entry]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sources: Sequence[Tensor], make: Callable[[], Any], key: Hashable = ()) -> Any:
        """What `make` returned for `sources` (at least one) as they are now, and `key`; made now if need be.

        Args:
            sources: all tensors that `make` reads.
            make: called without gradients and outside inference mode, so that its tensors serve everywhere.
            key: whatever else the value depends on.
        """
        slot = (key, sources[0].data_ptr(), tuple((one.shape, one.dtype, one.device) for one in sources))
        with self._lock:
            found = self._kept.get(slot, [])
            if found:
                self._kept.move_to_end(slot)
            found = list(found)
        for entry in found:
            if all(torch.equal(a, b) for a, b in zip(entry.saved, sources, strict=True)):
                return entry.value
        with torch.inference_mode(False), torch.no_grad():
            saved = tuple(one.detach().clone() for one in sources)
            entry = _Entry(saved, make(), sum(one.numel() * one.element_size() for one in saved))
        with self._lock:
            kept = self._kept.setdefault(slot, [])
            kept.insert(0, entry)
            self._held += entry.size
            while len(kept) > _ALIKE:
                self._held -= kept.pop().size
            self._kept.move_to_end(slot)
            while len(self._kept) > 1 and (len(self._kept) > self._entries or self._held > self._size):
                self._held -= sum(one.size for one in self._kept.popitem(last=False)[1])
        return entry.value

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._kept.values()))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._held = 0
