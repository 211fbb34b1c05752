"""What is derived from weights (split, packed, folded), kept until the weights' content changes."""

from __future__ import annotations

import ctypes
import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

_ALIKE = 4  # values kept for one address, as for a few channel masks in turn
_SEARCHED = 64  # values looked through for weights that were moved


class _Entry(NamedTuple):
    address: int
    saved: tuple[Tensor, ...]
    value: Any
    size: int


def last(tensor: Tensor) -> Tensor:
    """Mark a tensor that was derived and that nobody writes to: it is known again by being the same object."""
    tensor._sparsemask_lasts = tensor._version
    return tensor


def lasting(tensor: Tensor) -> bool:
    """Whether it was marked, and not written to since."""
    marked = getattr(tensor, "_sparsemask_lasts", None)  # few tensors have the mark
    return marked is not None and marked == tensor._version


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit; compared as memory, which is several times faster than torch.equal."""
    if a is b and lasting(a):
        return True
    if a.device.type != "cpu" or a.stride() != b.stride() or not any(_dense(a, form) for form in _FORMATS):
        return torch.equal(a, b)
    return _compare(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size()) == 0


def _dense(a: Tensor, form: torch.memory_format) -> bool:
    return a.ndim == _FORMATS[form] and a.is_contiguous(memory_format=form) or a.is_contiguous()


_FORMATS = {torch.channels_last: 4, torch.channels_last_3d: 5}
_compare = ctypes.CDLL(None).memcmp
_compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


Value = TypeVar("Value")


class Lasting(Generic[Value]):
    """What is made of tensors that do not change, kept as long as these live; they are known by being the same ones.

    Writing to them in place is seen by their version counters. Nothing else is looked at: for operators of exported
    programs, whose weights are constants.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[tuple[weakref.ref[Tensor], ...], tuple[int, ...], Value]] = {}
        self._lock = threading.Lock()

    def get(self, sources: Sequence[Tensor], key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` returned for these tensors and this key, made now if need be.

        Args:
            sources: all tensors that `make` reads.
            key: whatever else the value depends on.
            make: called without gradients and outside inference mode.
        """
        whole = (key, tuple(map(id, sources)))
        versions = tuple(0 if one.is_inference() else one._version for one in sources)
        known = self._kept.get(whole)
        if known is not None and known[1] == versions:
            return known[2]
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        # The number of an object that is gone may be another's soon.
        forget = lambda _: self._kept.pop(whole, None)
        with self._lock:
            self._kept[whole] = tuple(weakref.ref(one, forget) for one in sources), versions, value
        return value


class Derived:
    """A bounded cache of what is made from tensors; nothing has to invalidate it.

    Every look-up compares the tensors' contents with copies saved when the value was made: tens of microseconds for a
    layer's weights, and no way of changing them (an optimizer, `load_state_dict`, writing to `.data`, another tensor at
    the same address) goes unnoticed, as it would with version counters. Values of tensors of the same address are
    compared first, so that layers of one shape do not search each other's.
    """

    def __init__(self, entries: int = 1024, size: int = 1 << 28):
        """At most `entries` values whose tensors together hold `size` bytes; the least recently used go first."""
        self._entries, self._size, self._held = entries, size, 0
        self._kept: OrderedDict[int, tuple[Hashable, _Entry]] = OrderedDict()
        self._by_form: dict[Hashable, list[int]] = {}
        self._next = 0
        self._lock = threading.Lock()

    def get(self, sources: Sequence[Tensor], make: Callable[[], Any], key: Hashable = ()) -> Any:
        """What `make` returned for `sources` (at least one) as they are now, and `key`; made now if need be.

        Args:
            sources: all tensors that `make` reads.
            make: called without gradients and outside inference mode, so that its tensors serve everywhere. What it
                returns must not share memory with `sources`: the same contents elsewhere get it too.
            key: whatever else the value depends on.
        """
        form = (key, tuple((one.shape, one.dtype, one.device) for one in sources))
        address = sources[0].data_ptr()
        with self._lock:
            known = [(number, self._kept[number][1]) for number in reversed(self._by_form.get(form, []))]
        known = [one for one in known if one[1].address == address] + [
            one for one in known[:_SEARCHED] if one[1].address != address
        ]
        for number, entry in known:
            if all(_same(a, b) for a, b in zip(entry.saved, sources, strict=True)):
                with self._lock:
                    if number in self._kept:
                        self._kept.move_to_end(number)
                return entry.value
        with torch.inference_mode(False), torch.no_grad():
            saved = tuple(one if lasting(one) else one.detach().clone() for one in sources)
            entry = _Entry(address, saved, make(), sum(one.numel() * one.element_size() for one in saved))
        with self._lock:
            self._add(form, entry)
        return entry.value

    def _add(self, form: Hashable, entry: _Entry) -> None:
        numbers = self._by_form.setdefault(form, [])
        alike = [number for number in numbers if self._kept[number][1].address == entry.address]
        for number in alike[: max(0, len(alike) - _ALIKE + 1)]:  # the weights have changed since
            self._drop(number)
        numbers = self._by_form.setdefault(form, [])
        numbers.append(self._next)
        self._kept[self._next] = (form, entry)
        self._next += 1
        self._held += entry.size
        while len(self._kept) > 1 and (len(self._kept) > self._entries or self._held > self._size):
            self._drop(next(iter(self._kept)))

    def _drop(self, number: int) -> None:
        form, entry = self._kept.pop(number)
        self._held -= entry.size
        self._by_form[form].remove(number)
        if not self._by_form[form]:
            del self._by_form[form]

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._by_form.clear()
            self._held = 0


class Snapshot:
    """The weights of a whole module as they were when this was made.

    Contents are compared, as :class:`Derived` compares them, at some hundred nanoseconds a tensor and a pass over the
    weights.

    Args:
        module: its parameters and floating-point buffers count.
    """

    def __init__(self, module: nn.Module):
        self._stores = [
            (store, name)
            for part in module.modules()
            for store in (part._parameters, part._buffers)
            for name, tensor in store.items()
            if tensor is not None and tensor.is_floating_point()
        ]
        self._tensors: list[Tensor | None] = self._now()
        tensors = [one for one in self._tensors if one is not None]
        self._addresses = [one.data_ptr() for one in tensors]
        with torch.inference_mode(False), torch.no_grad():
            self._copies = [one.detach().clone(memory_format=torch.preserve_format) for one in tensors]
        self._saved = [one.data_ptr() for one in self._copies]
        self._sizes = [one.numel() * one.element_size() for one in self._copies]
        # A copy of a tensor with gaps has none.
        self.usable = all(
            a.device.type == "cpu" and a.stride() == b.stride() for a, b in zip(tensors, self._copies, strict=True)
        )

    def holds(self) -> bool:
        """Whether they are the same now, in the same places."""
        now = self._now()
        if not self.usable or not all(map(operator.is_, now, self._tensors)):
            return False
        addresses = [one.data_ptr() for one in now if one is not None]
        return addresses == self._addresses and not any(map(_compare, addresses, self._saved, self._sizes))

    def _now(self) -> list[Tensor | None]:
        return [store.get(name) for store, name in self._stores]
