"""Read exported files again: torch's programs and ONNX models, of any origin, as functions of tensors.

Reading a torch program may unpickle parts of it, and evaluates the formulas of its sizes. Files are therefore looked
through first: what would be unpickled, and formulas that are more than arithmetic, are refused.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsemask.containers import check_zip_file, reading
from sparsemask.errors import UseError
from sparsemask.exporting.exportable import RUNTIME, missing
from sparsemask.exporting.nodes import DOMAIN
from sparsemask.exporting.writing import ABOUT, operators_library
from sparsemask.weights import check_plain

# What formulas of sizes are made of, as torch writes them: "s0", "FloorDiv(Symbol('s54', integer=True), Integer(2))".
# Strings are names of symbols alone: elsewhere sympy would evaluate them in turn.
_FUNCTIONS = frozenset(
    "Add Mul Pow Mod PythonMod FloorDiv CleanDiv CeilDiv CeilToInt FloorToInt IntTrueDiv FloatTrueDiv ModularIndexing "
    "Max Min Abs Where Identity RoundToInt RoundDecimal ToFloat TruncToFloat TruncToInt Symbol Integer Rational Float "
    "Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan And Or Not".split()
)
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,3})?")
_NAME = re.compile(r"[a-z]\w{0,30}|True|False")
_PLAIN = (
    ast.Expression, ast.UnaryOp, ast.BinOp, ast.Compare, ast.keyword, ast.Load, ast.operator, ast.unaryop, ast.cmpop
)  # fmt: skip
_TENSORS = ("weight_", "tensor_")  # payloads that are plain bytes
_TEXT = 1 << 28  # bytes of a program's description


@dataclass(frozen=True)
class ReadFile:
    """An exported file.

    Attributes:
        run: its function, of tensors on the CPU.
        entries: what it says of itself, plain values by name.
        shape: sizes of its first input, None where any is taken.
    """

    run: Callable[..., Tensor]
    entries: Mapping[str, Any]
    shape: tuple[int | None, ...] | None = None


def read_exported(path: str | os.PathLike, trusted: bool = False) -> ReadFile:
    """An exported file, by its suffix: .pt2 or .onnx.

    Args:
        path: the file.
        trusted: whether it was written here: only such ONNX files may have operators of the kernels, which trust what
            they are told.

    Raises:
        UseError: the file is missing, damaged, would run code, or nothing here runs its format.
    """
    return read_onnx(path, trusted) if Path(path).suffix == ".onnx" else read_program(path)


def read_program(path: str | os.PathLike) -> ReadFile:
    """A file that ``torch.export.save`` wrote.

    Raises:
        UseError: it is missing, damaged, or would run code.
    """
    import sparsemask.ops.register_all  # noqa: F401  # the operators that programs call

    path = Path(path)
    if not path.is_file():
        raise UseError(f"{path}: no such file")
    check_zip_file(path, "truncated or not a torch program")
    with reading(path, "truncated or not a torch program"):
        check_program(path)
        extra = {ABOUT: ""}
        module = torch.export.load(path, extra_files=extra).module()
        entries = json.loads(extra[ABOUT] or "{}")
    module.__dict__["eval"] = lambda: module  # a program has one mode; torch's own refuses what evaluations ask of any
    entries = entries if isinstance(entries, dict) else {}
    return ReadFile(module, entries, _shape_of(entries.get("input_shape")))


def check_program(path: str | os.PathLike) -> None:
    """Raise a UseError where reading a torch program would run code that the file holds."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(re.fullmatch(r"(?:.*/)?models/[^/]+\.json", name) for name in names):
            raise UseError(f"{path}: no torch program of a version that is read here; export it again")
        for name in names:
            inner = name.partition("/")[2] if "/" in name else name
            if re.fullmatch(r".*data/(?:weights|constants)/.*\.json", name):
                for key, payload in _entries(archive, name).items():
                    plain = str(payload.get("path_name", "")).startswith(_TENSORS)
                    if payload.get("use_pickle") is not False or not plain:
                        raise UseError(
                            f"{path}: refused, '{key}' in it is a pickle, which may run code; nothing was run"
                        )
            elif re.fullmatch(r".*data/(?:weights|constants)/[^/]*\.(?:pt|pkl)", name) or inner.endswith(".so"):
                raise UseError(f"{path}: refused, '{name}' in it may run code; nothing was run")
            elif re.fullmatch(r".*data/sample_inputs/.*\.pt", name):
                with _refusing(path, name):
                    check_plain(archive.read(name))
            elif re.fullmatch(r".*models/[^/]+\.json", name):
                for formula in _formulas(_json(archive, name)):
                    if not is_arithmetic(formula):
                        raise UseError(f"{path}: refused, a size in it is code: {formula!r:.60}; nothing was run")


def is_arithmetic(formula: str) -> bool:
    """Whether a formula of sizes is made of numbers, symbols and known functions alone."""
    try:
        tree = ast.parse(formula.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names: set[ast.AST] = set()  # strings and functions that were looked at where they stand
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
                return False
            names.add(node.func)
            if node.func.id == "Symbol" and node.args and isinstance(node.args[0], ast.Constant):
                if not isinstance(node.args[0].value, str) or not _NAME.fullmatch(node.args[0].value):
                    return False
                names.add(node.args[0])
            if node.func.id == "Float" and node.args and isinstance(node.args[0], ast.Constant):
                if not isinstance(node.args[0].value, str) or not _NUMBER.fullmatch(node.args[0].value):
                    return False
                names.add(node.args[0])
        elif isinstance(node, ast.Name):
            if node not in names and not _NAME.fullmatch(node.id):
                return False
        elif isinstance(node, ast.Constant):
            if node not in names and not isinstance(node.value, bool | int | float):
                return False
        elif not isinstance(node, _PLAIN):
            return False
    return True


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > _TEXT:
        raise ValueError(f"'{name}' is larger than {_TEXT >> 20} MiB")
    return json.loads(archive.read(name))


def _entries(archive: zipfile.ZipFile, name: str) -> Mapping[str, Mapping[str, Any]]:
    config = _json(archive, name).get("config")
    if not isinstance(config, dict) or not all(isinstance(payload, dict) for payload in config.values()):
        raise ValueError(f"'{name}' lists no tensors")
    return config


def _formulas(value: Any) -> Iterator[str]:
    """Every `expr_str` in a program's description, and the names of its symbols."""
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            if isinstance(part.get("expr_str"), str):
                yield part["expr_str"]
            if isinstance(part.get("range_constraints"), dict):
                yield from part["range_constraints"]
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)


@contextlib.contextmanager
def _refusing(path: object, name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():  # about pickles that are then refused
            warnings.simplefilter("ignore", UserWarning)
            yield
    except Exception:
        raise UseError(f"{path}: refused, '{name}' in it asks for code to be run; nothing was run") from None


def read_onnx(path: str | os.PathLike, trusted: bool = False) -> ReadFile:
    """An ONNX model, run by onnxruntime on the CPU.

    Args:
        path: the file.
        trusted: see :func:`read_exported`.

    Raises:
        UseError: it is missing or damaged, it may not have its operators, or onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UseError(f"{path}: no such file")
    if missing([RUNTIME]):
        raise UseError(f"{path}: running ONNX needs {RUNTIME}: pip install 'sparsemask[onnx]'")
    with reading(path, "truncated or not an ONNX model"):
        session = _session(path, trusted)
        names = [value.name for value in session.get_inputs()]
        shape = session.get_inputs()[0].shape if names else None
    entries: dict[str, Any] = {}
    for key, text in session.get_modelmeta().custom_metadata_map.items():
        with contextlib.suppress(ValueError, RecursionError):
            entries[key] = json.loads(text)

    def run(*tensors: Tensor) -> Tensor:
        arrays = (np.ascontiguousarray(tensor.numpy()) for tensor in tensors)
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return ReadFile(run, entries, _shape_of(shape))


def _session(path: Path, trusted: bool) -> Any:
    """A session of onnxruntime, with the library of our operators that is built here where the model has some."""
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = torch.get_num_threads()
    session_options.log_severity_level = 3

    def begin() -> Any:
        return onnxruntime.InferenceSession(os.fspath(path), session_options, providers=["CPUExecutionProvider"])

    try:
        return begin()
    except Exception as error:
        if f"{DOMAIN}:" not in str(error):
            raise
    if not trusted:
        raise UseError(
            f"{path}: refused, its operators trust what a file tells them; open the .safetensors or .pt2 file, or this "
            "one in your own program"
        )
    library = operators_library()
    session_options.register_custom_ops_library(os.fspath(library))
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the operators' threads compute
    ctypes.CDLL(os.fspath(library)).sparsemask_threads(ctypes.c_int64(torch.get_num_threads()))
    return begin()


def _shape_of(shape: Any) -> tuple[int | None, ...] | None:
    """Sizes as a file has them: names and None where any is taken."""
    if not isinstance(shape, list | tuple):
        return None
    return tuple(n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else None for n in shape)
