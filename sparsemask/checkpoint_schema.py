"""What the entries of a run's checkpoint are: names, types, sizes. Checked once, where checkpoints are read.

Checkpoints may come from untrusted sources. The rest of the toolkit relies on these checks: a step is an integer, a
configuration holds plain values, weights are tensors whose storage has the size that their shape claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsemask.errors import UseError

_MOST = 1 << 53  # steps
_DEEP = 8  # levels of lists and mappings among plain values
_STRIDED_SLACK = 1 << 20  # bytes that a tensor may claim beyond its memory: repeated values

Check = Callable[[object], bool]


def _whole(value: object, low: int = 0, high: int = _MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(value: object) -> bool:
    return _number(value) and math.isfinite(value) and value >= 0


def _text(value: object) -> bool:
    return isinstance(value, str)


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list | tuple) and all(map(check, value))


def _mapping(check: Check, key: Check = _text) -> Check:
    return lambda value: isinstance(value, Mapping) and all(map(key, value)) and all(map(check, value.values()))


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value is None, a boolean, a number, a string, or lists and mappings of these."""
    if isinstance(value, list | tuple):
        return depth < _DEEP and all(is_plain(part, depth + 1) for part in value)
    if isinstance(value, Mapping):
        return depth < _DEEP and all(map(_text, value)) and all(is_plain(v, depth + 1) for v in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def is_tensor(value: object) -> bool:
    """Whether a value is an ordinary tensor, with all the memory that its shape claims."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    if value.is_quantized or value.is_complex():
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes() + _STRIDED_SLACK


def _tensor_of(dtype: torch.dtype, shape: tuple[int | None, ...]) -> Check:
    def check(value: object) -> bool:
        right = is_tensor(value) and value.dtype == dtype and value.dim() == len(shape)
        return right and all(n in (m, None) or m is None for n, m in zip(value.shape, shape, strict=True))

    return check


def _fields(**checks: Check) -> Check:
    """A mapping that has all of these entries."""
    return lambda value: (
        isinstance(value, Mapping) and all(name in value and check(value[name]) for name, check in checks.items())
    )


def _state(value: object, depth: int = 0) -> bool:
    """What methods and optimizers keep: plain values and tensors; optimizers number theirs."""
    if isinstance(value, list | tuple):
        return depth < _DEEP and all(_state(part, depth + 1) for part in value)
    if isinstance(value, Mapping):
        keys = all(isinstance(key, str | int) for key in value)
        return depth < _DEEP and keys and all(_state(part, depth + 1) for part in value.values())
    return is_tensor(value) or is_plain(value)


def _best(value: object) -> bool:
    kinds = {"value": _number, "step": _whole, "latest": _mapping(lambda v: _number(v) or isinstance(v, str | bool))}
    return isinstance(value, Mapping) and all(kinds.get(key, is_plain)(part) for key, part in value.items())


def _mask(value: object) -> bool:
    """Of connections, by name or (L, L, 2); a decoder of the wider space; of channels in modules; of groups."""
    if value is None or isinstance(value, str):
        return True
    if isinstance(value, Tensor):
        return _tensor_of(torch.bool, (None, None, 2))(value) or _tensor_of(torch.int32, (None, None))(value)
    channels = _fields(
        channels=_mapping(lambda v: is_tensor(v) and v.dtype == torch.bool),
        threshold=lambda v: _number(v) and 0 <= v < 1,
    )
    return channels(value) or _fields(config=_mapping(is_plain), kept=_mapping(is_plain))(value)


_RANDOM = _fields(
    python=_tensor_of(torch.int64, (625,)),
    python_version=lambda v: v == 3,
    python_gauss=_maybe(_number),
    numpy=_tensor_of(torch.int64, (624,)),
    numpy_position=lambda v: _whole(v, 0, 624),
    numpy_has_gauss=lambda v: _whole(v, 0, 1),
    numpy_gauss=_number,
    torch=_tensor_of(torch.uint8, (None,)),
    cuda=_list(_tensor_of(torch.uint8, (None,))),
)

# Entry -> what it must be, and that in words.
ENTRIES: dict[str, tuple[Check, str]] = {
    "format": (lambda v: _whole(v, 1), "a version, a whole number"),
    "space": (_text, "the name of a space"),
    "verb": (_text, "the name of a verb"),
    "step": (_whole, "a whole number of at least 0"),
    "seconds": (_seconds, "a number of at least 0"),
    "best": (_best, "the best figures by name"),
    "config": (_mapping(is_plain), "flags with plain values"),
    "model": (_mapping(is_tensor), "tensors by name"),
    "optimizer": (
        _list(_fields(state=lambda v: isinstance(v, Mapping) and _state(v), param_groups=_list(_mapping(_state)))),
        "a list of optimizers' states",
    ),
    "average": (_fields(updates=_whole, trained=_mapping(is_tensor)), "a number of updates and tensors by name"),
    "scheduler": (_mapping(is_plain), "plain values by name"),
    "scaler": (_mapping(is_plain), "plain values by name"),
    "method": (_maybe(_mapping(_state)), "plain values and tensors by name"),
    "data": (_maybe(_fields(step=_whole, tables=_mapping(is_tensor))), "a step, and tables of tensors"),
    "random": (_RANDOM, "random states"),
    "mask": (_mask, "a mask"),
    "network": (_mapping(is_plain), "a network's recipe"),
    "teacher": (_fields(kind=_text, what=_text, sha256=_text), "a teacher's kind, file and hash"),
}


def is_ours(state: Mapping) -> bool:
    """Whether a checkpoint says that it is a run's; public ones have entries of their own, whatever their names."""
    return "format" in state or "space" in state


def check(state: Mapping, what: object) -> None:
    """Check the types of all known entries of a checkpoint.

    Args:
        state: the checkpoint.
        what: how the error message begins, mostly the file.

    Raises:
        UseError: an entry has the wrong type; the message names it.
    """
    for name, (is_valid, expected) in ENTRIES.items():
        if name in state and not is_valid(state[name]):
            shown = _shown(state[name], expected)
            raise UseError(f"{what}: damaged or not of this toolkit: '{name}' must be {expected}, found {shown}")


def _shown(value: object, words: str) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return "a mapping" if words.startswith("a ") else "a mapping with other entries"
    if isinstance(value, list | tuple):
        return "a list with other entries" if words.startswith("a list") else "a list"
    return "another type"


__all__ = ["ENTRIES", "check", "is_ours", "is_plain", "is_tensor"]
