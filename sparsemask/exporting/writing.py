"""Write an :class:`Exportable` as a program or as ONNX, atomically."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparsemask.errors import UseError
from sparsemask.exporting.exportable import Exportable, why_not
from sparsemask.exporting.nodes import WithNodes, complete
from sparsemask.files import write_bytes
from sparsemask.ops import dispatch

if TYPE_CHECKING:
    import onnx

    from sparsemask.backends.native.onnx_plan import Plan

ABOUT = "sparsemask.json"  # the entry of a program that says what it is
PLAIN, SKIP, DENSE = "plain", "skip", "dense"
FORMS = {
    PLAIN: "standard operators, masks multiply",
    SKIP: "operators of the domain 'sparsemask' skip, by a library that is written beside the file",
    DENSE: "the same weights without masks, which is another function",
}
"""Forms of an ONNX file."""
LIBRARY = "libsparsemask_onnxruntime.so"
"""The file beside an ONNX file whose operators skip."""


def traced(exportable: Exportable, plain: bool = False) -> torch.export.ExportedProgram:
    """The exported program, with the sparse operators, or `plain` without them."""
    module = exportable.plain if plain else exportable.program
    arguments = tuple(exportable.inputs.values())
    # A function of any number of inputs takes them as one, whose sizes are said together.
    shapes = None if exportable.dynamic is None else (tuple(exportable.dynamic),)
    operators = contextlib.nullcontext() if plain else dispatch.as_program()
    with torch.no_grad(), operators, _quiet():
        return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)


def export_program(exportable: Exportable, path: str | os.PathLike, about: Mapping | None = None) -> Path:
    """Write torch's exported program (`torch.export.load` reads it); return the path.

    Args:
        about: plain values that are kept beside it, as the entry "sparsemask.json".

    Raises:
        UseError: the network cannot be written so.
    """
    _refuse(".pt2", exportable)
    memory = io.BytesIO()
    program = traced(exportable)
    with _quiet():
        torch.export.save(program, memory, extra_files={ABOUT: json.dumps(dict(about or {}))})
    write_bytes(path, memory.getvalue())
    return Path(path)


def export_onnx(
    exportable: Exportable, path: str | os.PathLike, about: Mapping | None = None, form: str = PLAIN
) -> Path:
    """Write the network as ONNX; return the path.

    Inputs and outputs bear the exportable's names, `about` is kept as the model's metadata.

    Args:
        exportable: the network.
        path: the file.
        about: plain values.
        form: one of `FORMS`. What runs one that skips is the library :func:`operators_library`.

    Raises:
        UseError: the packages that torch writes ONNX with are absent, the network cannot be written so, or, to skip,
            there is no compiler or an operator without a node.
    """
    _refuse(".onnx", exportable)
    _raise(why_not_form(form, exportable))
    plans: Sequence[Plan] = ()
    if form == SKIP:
        operators_library()
        network = WithNodes(exportable.whole or exportable.program, tuple(exportable.inputs.values()))
        exportable, plans = replace(exportable, plain=network), network.plans
    elif form == DENSE:
        assert exportable.dense is not None
        exportable = replace(exportable, plain=exportable.dense)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            traced(exportable, plain=True), dynamo=True, verbose=False,
            input_names=list(exportable.inputs), output_names=list(exportable.outputs),
        )  # fmt: skip
    model = program.model_proto
    if plans:
        complete(model, plans)
    _name_sizes(model)
    _spell_out_prelu(model.graph)
    for key, value in (about or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    write_bytes(path, model.SerializeToString())
    return Path(path)


def operators_library() -> Path:
    """The library that runs nodes of the domain "sparsemask" in ONNX Runtime, built on first use.

    Raises:
        UseError: there is no compiler, or it fails.
    """
    from sparsemask.backends.native import build

    try:
        return build.operators()
    except (build.NoCompiler, OSError) as error:
        raise UseError(f"ONNX files that skip need the kernels as a library of ONNX Runtime: {error}") from None


def why_not_form(form: str, exportable: Exportable) -> str | None:
    """Why a network has no such ONNX file, in one line; None where it has."""
    if form == PLAIN or exportable.dense is not None:
        return None
    return f"--form {form}: this network has no masks, so that its only form is {PLAIN}"


def copy_library(path: str | os.PathLike) -> Path:
    """Write the operators' library beside an ONNX file.

    Args:
        path: of the ONNX file.

    Returns:
        The library's path.

    Raises:
        UseError: there is no compiler, or it fails.
    """
    beside = Path(path).parent / LIBRARY
    write_bytes(beside, operators_library().read_bytes())
    return beside


def _refuse(suffix: str, exportable: Exportable) -> None:
    _raise(why_not(suffix, exportable))


def _raise(reason: str | None) -> None:
    if reason is not None:
        raise UseError(reason)


def _name_sizes(model) -> None:
    """Name the dynamic sizes of the inputs (batch, height, width) in place of the tracer's symbols."""
    names = {}
    for graph_input in model.graph.input:
        for k, dim in enumerate(graph_input.type.tensor_type.shape.dim):
            if dim.dim_param:
                rank = len(graph_input.type.tensor_type.shape.dim)
                usual = {0: "batch", rank - 2: "height", rank - 1: "width"}.get(k, f"size{k}") if rank == 4 else ""
                name = usual or f"{graph_input.name}_{k}"
                names.setdefault(dim.dim_param, name)
                dim.dim_param = names[dim.dim_param]
    for value in (*model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
            elif dim.dim_param:
                dim.ClearField("dim_param")  # a formula of symbols that no longer have their names


def _spell_out_prelu(graph: onnx.GraphProto) -> None:
    """Write PReLU with slopes a as x + (a - 1)·min(x, 0): ONNX Runtime's own kernel takes as long as a convolution.

    The form max(x, a·x) would be shorter; ONNX Runtime merges its product into a second convolution.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    slopes = {tensor.name: tensor for tensor in graph.initializer}
    nodes, added = [], {}
    for node in graph.node:
        if node.op_type != "PRelu" or node.input[1] not in slopes:
            nodes.append(node)
            continue
        (x, slope), (y,) = node.input, node.output
        factor = f"{slope}_less_one"
        added["prelu_zero"] = numpy_helper.from_array(np.zeros((), np.float32), "prelu_zero")
        added[factor] = numpy_helper.from_array(numpy_helper.to_array(slopes[slope]) - 1, factor)
        for operator, inputs, output in (
            ("Min", [x, "prelu_zero"], f"{y}_negative"), ("Mul", [f"{y}_negative", factor], f"{y}_change"),
            ("Add", [x, f"{y}_change"], y),
        ):  # fmt: skip
            nodes.append(helper.make_node(operator, inputs, [output], name=f"{node.name}_{operator}"))
    read = {name for node in nodes for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*left, *added.values()])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings about operators that this network does not have."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
