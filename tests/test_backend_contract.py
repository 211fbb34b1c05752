"""Every backend, and one of a user's, by the contract that ships with the toolkit; an operator of one's own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from literal_sparse import Case, one_thread, problem  # noqa: F401
from sparsemask.backends.native import tiles
from sparsemask.backends.reference import BACKEND as REFERENCE
from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.ops.registration import register
from sparsemask.sparse import Backend, ConvCall, SparseMaskBlock, backend, register_backend
from sparsemask.testing.backends import BackendContract


class Slow(Backend):
    """A user's: one sample at a time, by the dense form."""

    name = "slow"

    def why_not(self, device, dtype):
        return None if dtype == torch.float32 else "only float32"

    def conv(self, call: ConvCall) -> torch.Tensor:
        return torch.cat([REFERENCE.conv(_sample(call, i)) for i in range(len(call.x))])


def _sample(call: ConvCall, i: int) -> ConvCall:
    rest = call.in_dense, call.out_dense, call.geometry, call.activation
    return ConvCall(call.x[i : i + 1], call.weight, call.bias, call.mask[i : i + 1], *rest)


class TestSlow(BackendContract):
    backend = Slow()


class TestReference(BackendContract):
    backend = REFERENCE


class TestDense(BackendContract):
    backend = dispatch.find("dense")


class TestGather(BackendContract):
    backend = dispatch.find("gather")


class TestNative(BackendContract):
    backend = dispatch.find("native")


@pytest.fixture(params=["emulated", "emulated dot"])
def emulated(request):
    with tiles.using(request.param):
        yield


@pytest.mark.usefixtures("emulated")
class TestNativeInBfloat16(BackendContract):
    # Both round every layer's output, at a 256th of it; what they sum in float32 in between differs in the last step.
    backend, dtype, tolerance = dispatch.find("native"), torch.bfloat16, 0.13

    @pytest.fixture(autouse=True)
    def _only_where_it_computes(self, emulated):
        torch.manual_seed(0)
        if dispatch.find("native").why_not(torch.device("cpu"), torch.float32) is not None:
            pytest.skip("no C++ compiler here")


@pytest.mark.usefixtures("emulated")
class TestDenseInBfloat16(TestNativeInBfloat16):
    backend = dispatch.find("dense")


class TestAuto(BackendContract):
    backend = dispatch.find("auto")


class TestGatherInFloat64(BackendContract):
    backend, dtype, tolerance = dispatch.find("gather"), torch.float64, 1e-10


@pytest.mark.parametrize("wrong, said", [
    (object(), "an object of object"), (Slow, "the class Slow"), (lambda *_: None, "an object of function"),
])  # fmt: skip
def test_what_is_no_backend_is_refused(wrong, said):
    with pytest.raises(UseError, match=f"'mine' must be .*sparsemask.sparse.Backend, got {said}"):
        register_backend("mine", wrong)
    with pytest.raises(UseError, match="unknown backend 'mine'"):
        dispatch.find("mine")


def test_a_backend_without_its_convolution_cannot_be_made():
    class Empty(Backend):
        name = "empty"

        def why_not(self, device, dtype):
            return None

    with pytest.raises(TypeError, match="conv"):
        Empty()


def test_a_registered_one_serves_every_operator(monkeypatch):
    monkeypatch.setattr(dispatch, "loaded", dict(dispatch.loaded))
    register_backend("slow", TestSlow.backend)
    given = problem(Case())
    assert torch.allclose(given.run("slow"), given.run("reference"), atol=1e-6)
    block = SparseMaskBlock(4, 2).eval()
    x, mask = torch.randn(2, 4, 5, 5), torch.rand(2, 1, 5, 5) < 0.5
    with torch.no_grad(), backend("slow"):
        y, _ = block(x, mask)
    with torch.no_grad(), backend("reference"):
        assert torch.allclose(y, block(x, mask)[0], atol=1e-6)


def test_an_operator_of_ones_own():
    # Schema, fake, FLOPs and what computes, as docs/architecture.md says.
    def scaled(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return x * by

    def fake(x, by):
        return torch.empty_like(x)

    def flops(x, by, *, out_val=None):
        return x.numel()

    register("toy_scaled", scaled, fake=fake, flops=flops)
    run = lambda x, by: torch.ops.sparsemask.toy_scaled(x, by)
    x, by = torch.randn(3, 4), torch.randn(4)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, by), x * by)
    with FlopCounterMode(display=False) as counter:
        run(x, by)
    assert counter.get_total_flops() == 12
