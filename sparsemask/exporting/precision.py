"""ONNX files of lower precision: weights of 16 bits, or arithmetic in integers of 8 bits.

What ONNX Runtime 1.31 does with each on a CPU was tried: nodes in float16 are computed in float32 between casts (on
x86-64), nodes in bfloat16 are refused (Conv, MatMul, Relu, Add: not implemented). Files of both types therefore hold
their weights in 16 bits and cast them, once when the file is opened; all is computed in float32. Integers are computed
as such: convolutions between a QuantizeLinear and a DequantizeLinear node each (QDQ, static).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemask.errors import UseError
from sparsemask.exporting.exportable import ONNX, RUNTIME, missing

if TYPE_CHECKING:
    import onnx

FLOAT32 = "float32"
INT8 = "int8"


@dataclass(frozen=True)
class Precision:
    """A precision of ONNX files.

    Attributes:
        description: what it means, in a few words.
        tolerance: largest difference of an output from the network's, over the larger of its largest output and 1,
            beyond which a file is taken for wrong.
        needs: packages it is made with.
    """

    description: str
    tolerance: float
    needs: tuple[str, ...] = ONNX


PRECISIONS = {
    FLOAT32: Precision("as the network has it", 1e-4),
    "float16": Precision("weights in half as many bytes, computed in float32", 1e-2),
    "bfloat16": Precision("weights in half as many bytes, of float32's range, computed in float32", 5e-2),
    INT8: Precision("computed in 8-bit integers, for which --calibrate names pictures", 0.25, (*ONNX, RUNTIME)),
}
"""The precisions by name."""

# Of values within the range of an activation: on pictures of training better than the whole range and than entropy.
_PERCENTILE = 99.999
_FEW = 64  # values of a tensor that stays in float32: biases, slopes and constants
_LAYERS = ("Conv", "MatMul", "Gemm")
# ReLU and clipping become a part of the layer before them, leaky ReLU is a table of 256 entries.
_QUANTISED = (*_LAYERS, "Relu", "Clip", "LeakyRelu")
_DECIDES = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ArgMax", "ArgMin", "Sign")


def why_not_precision(name: str, suffix: str) -> str | None:
    """Why files of a format cannot be written in a precision here, in one line; None where they can."""
    if name == FLOAT32:
        return None
    if suffix != ".onnx":
        return f"--precision {name} is for .onnx files; {suffix} holds the network in float32"
    absent = missing(PRECISIONS[name].needs)
    return f"--precision {name} needs {' and '.join(absent)}: pip install 'sparsemask[onnx]'" if absent else None


def reduced(source: Path, name: str, inputs: Sequence[dict[str, np.ndarray]] = ()) -> bytes:
    """An ONNX file in a lower precision.

    Args:
        source: the file in float32.
        name: one of :data:`PRECISIONS`.
        inputs: real inputs by name, on which the ranges of integers are measured.

    Raises:
        UseError: weights that the precision cannot hold, or a network that has no layer for integers.
    """
    if name == INT8:
        return _in_integers(source, inputs)
    import onnx

    model = onnx.load(source)
    if name != FLOAT32:
        _store(model, name)
    content: bytes = model.SerializeToString()
    return content


def _store(model: onnx.ModelProto, name: str) -> None:
    """Store the weights of a model in 16 bits, with a cast behind each."""
    import ml_dtypes
    from onnx import TensorProto, helper, numpy_helper

    kind = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[name]
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[name]
    stored, casts = [], []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims, dtype=int) < _FEW:
            stored.append(tensor)
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):  # refused below
            short = values.astype(dtype)
        if not np.isfinite(short.astype(np.float32)).all():
            largest = float(np.abs(values).max())
            raise UseError(f"--precision {name}: {tensor.name} holds {largest:.3g}, beyond its range")
        stored.append(helper.make_tensor(f"{tensor.name}_{name}", kind, values.shape, short.tobytes(), raw=True))
        casts.append(helper.make_node("Cast", [stored[-1].name], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(stored)
    model.graph.node.extend(nodes)


def _in_integers(source: Path, inputs: Sequence[dict[str, np.ndarray]]) -> bytes:
    """A file with its layers in integers, but for the first and the last ones and those that decide on masks."""
    import onnx
    from onnxruntime import quantization

    kept = _kept_in_float(onnx.load(source).graph)

    class Inputs(quantization.CalibrationDataReader):
        """Gives the inputs of a range one after the other."""

        def __len__(self) -> int:
            return len(inputs)

        def set_range(self, start_index: int, end_index: int) -> None:
            """Go on with these."""
            self.left = iter(inputs[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next one, None behind the last."""
            return next(self.left, None)

    # Weights of 7 bits: with 8, sums of two products overflow 16 bits on x86-64 processors without VNNI. One input at
    # a time, as all values of all layers are held for it.
    with tempfile.TemporaryDirectory() as folder, _silent():
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            source, target, Inputs(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(_QUANTISED),
            per_channel=True, reduce_range=True, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8, nodes_to_exclude=kept,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1},
        )  # fmt: skip
        return target.read_bytes()


def _kept_in_float(graph: onnx.GraphProto) -> list[str]:
    """Names of the layers that stay in float32.

    The first layers see the picture and the last ones make the output: in integers these cost more quality than time.
    Layers whose output only decides where others compute stay exact, so that masks are the network's.

    Raises:
        UseError: nothing is left for integers.
    """
    layers = [node for node in graph.node if node.op_type in _LAYERS]
    behind: set[str] = set()  # values that a layer has had a part in
    first, last, free = set(), set(), set()
    for node in graph.node:
        is_layer, later = node.op_type in _LAYERS, not behind.isdisjoint(node.input)
        if is_layer and not later:
            first.add(node.name)
        if is_layer or later:
            behind.update(node.output)
    shown = {value.name for value in graph.output}  # values that reach the output other than by a comparison
    before: set[str] = set()  # values that a later layer reads
    for node in reversed(graph.node):
        is_layer, earlier = node.op_type in _LAYERS, not before.isdisjoint(node.output)
        if not shown.isdisjoint(node.output):
            free.add(node.name)
            if node.op_type not in _DECIDES:
                shown.update(node.input)
        if is_layer and not earlier:
            last.add(node.name)
        if is_layer or earlier:
            before.update(node.input)
    kept = [node.name for node in layers if node.name in first | last or node.name not in free]
    if len(kept) == len(layers):
        raise UseError(
            f"--precision {INT8}: none of the network's {len(layers)} layers can be in integers: the first and the "
            "last ones and those of masks stay in float32"
        )
    return kept


@contextlib.contextmanager
def _silent() -> Iterator[Any]:
    """Silence the quantiser, which logs to the root and prints."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
