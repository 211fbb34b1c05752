"""Reading pickles of plain NumPy arrays without running anything that is in them.

Public code stores projections as pickles, and CIFAR its images. A pickle is a program; this reader accepts lists,
tuples, numbers, strings, and type, shape and bytes of arrays, which are built by `numpy.frombuffer`. Everything else is
refused.
"""

from __future__ import annotations

import codecs
import os
import pickle
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparsemask.errors import UseError


class _Type:
    """Stands for numpy.dtype: a type of fixed size, such as i4."""

    def __init__(self, name: str, *_: object):
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple) -> None:
        # (version, byte order, subtype, names, fields, ...): neither parts nor fields are plain numbers.
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of records")
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def real(self) -> np.dtype:
        dtype = np.dtype(self.name)
        if dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of type {dtype}")
        return dtype.newbyteorder(self.order)


class _Array:
    """Stands for numpy.ndarray while its state is read."""

    def __init__(self, *_: object):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.value = _array(data, kind, shape, "F" if fortran else "C")


def _array(data: object, kind: object, shape: object, order: str) -> np.ndarray:
    if isinstance(data, str):  # Python 2's bytes, when they are read as latin1
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or not isinstance(kind, _Type) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("an array that is no block of numbers")
    array = np.frombuffer(data, kind.real()).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Protocol 2 writes bytes as text and this call.
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return codecs.encode(text, "latin1")


_WORDS = {("numpy", "dtype"): _Type, ("numpy", "ndarray"): _Array, ("_codecs", "encode"): _encode} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (("multiarray", "_reconstruct", _Array), ("numeric", "_frombuffer", _array))
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _WORDS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not let in") from None

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("a reference to something outside")


def read_arrays(path: str | os.PathLike) -> list[np.ndarray]:
    """The arrays of a pickled list or tuple of arrays (or of one array), in order.

    Raises:
        UseError: absent, truncated, or it holds anything but arrays of numbers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _Restricted(file).load()
    except FileNotFoundError:
        raise UseError(f"{path}: no such file") from None
    except Exception as error:  # a truncated or hostile pickle may fail in any way
        raise UseError(f"{path}: not readable as a pickled list of arrays ({error})") from None
    parts = content if isinstance(content, (list, tuple)) else [content]
    arrays = [part.value if isinstance(part, _Array) else part for part in parts]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise UseError(f"{path}: expected a pickled list of arrays")
    return arrays


def read_mapping(file: BinaryIO, name: str) -> dict[str, object]:
    """A pickled dictionary by Python 2 or 3, whose values are arrays of numbers, lists, numbers and text.

    Args:
        file: opened in binary.
        name: the file's, for messages.

    Raises:
        UseError: truncated, no dictionary, or it holds anything else.
    """
    try:
        content = _Restricted(file, encoding="latin1").load()
    except Exception as error:  # a truncated or hostile pickle may fail in any way
        raise UseError(f"{name}: not readable as a pickled dictionary ({error})") from None
    if not isinstance(content, dict):
        raise UseError(f"{name}: expected a pickled dictionary, found {type(content).__name__}")
    text = lambda value: value.decode("latin1") if isinstance(value, bytes) else value
    plain = {str(text(key)): value.value if isinstance(value, _Array) else value for key, value in content.items()}
    return {key: [text(v) for v in value] if isinstance(value, list) else value for key, value in plain.items()}
