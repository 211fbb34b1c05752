"""Exports: torch's program keeps the sparse operator, ONNX has the same numbers without it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsemask.backends.native import MANY
from sparsemask.exporting.writing import traced
from sparsemask.spaces.smsr.export import export_onnx, export_program, exportable
from sparsemask.spaces.sparse_conv.masking import set_threshold
from sparsemask.sparse import backend
from test_smsr import network, pictures


@pytest.fixture(autouse=True)
def one_backend():
    with backend("reference"):
        yield


def test_program_keeps_the_sparse_operator_and_runs():
    net = network(n_layers=2)
    program = export_program(net, (8, 12))
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("sparsemask.attended_block" in name for name in names) == 2  # one a module
    # Through a file, as a user would, and at another size.
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded, x = torch.export.load(file).module(), pictures(10, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), net(x), atol=1e-3, rtol=1e-5)
        kept = float(net.masks[0].float().mean())
    assert 0 < kept < 1


def test_programs_have_the_convolution_by_squares_and_plain_forms_torch_s_own():
    def joined(program):
        return sum("sparsemask.joined_conv" in str(node.target) for node in program.graph.nodes)

    wide, narrow = (exportable(network(n_feats=n, n_layers=2), size=(8, 12)) for n in (MANY, MANY // 2))
    assert joined(traced(wide)) - joined(traced(narrow)) == 1  # the last one but the tail
    assert not joined(traced(wide, plain=True))
    assert not joined(traced(replace(wide, plain=wide.dense), plain=True))


@pytest.mark.parametrize("threshold", [0.5, pytest.param(0.3, marks=pytest.mark.slow)])
def test_onnx_runtime_agrees(tmp_path, threshold):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    import onnxruntime

    net = network(n_layers=2)
    set_threshold(net, threshold)
    session = onnxruntime.InferenceSession(str(export_onnx(net, tmp_path / "net.onnx", (8, 12))))
    for size in ((8, 12), (10, 18), (4, 4)):
        x = pictures(*size)
        with torch.no_grad():
            wanted = net(x).numpy()
        np.testing.assert_allclose(session.run(None, {"picture": x.numpy()})[0], wanted, atol=2e-3, rtol=1e-5)


@pytest.mark.real
@pytest.mark.slow
def test_public_network_in_onnx_runtime(tmp_path, shared_data):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    import onnxruntime

    from sparsemask.spaces.sparse_conv import load_smsr

    net, x = load_smsr(shared_data / "smsr_x2.pt"), pictures(48, 64)
    session = onnxruntime.InferenceSession(str(export_onnx(net, tmp_path / "smsr.onnx", dynamic=False, size=(48, 64))))
    with torch.no_grad():
        wanted = net(x).numpy()
    np.testing.assert_allclose(session.run(None, {"picture": x.numpy()})[0], wanted, atol=5e-3, rtol=1e-5)
