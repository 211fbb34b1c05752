"""Programs of specialised networks: one operator for all masked parts, and what it keeps of its weights."""

from __future__ import annotations

import gc
import io

import pytest
import torch
import torch.nn.functional as F

from sparsemask import spaces
from sparsemask.costs import multiply_adds
from sparsemask.exporting.bicubic import enlarge
from sparsemask.ops.masked_network import pack, unpack
from sparsemask.ops.packed import Packed
from sparsemask.ops.weight_cache import Lasting
from sparsemask.spaces.specialized.export import WholeNetwork
from sparsemask.sparse import available_backends, backend
from test_specialize_network import network, one_thread  # noqa: F401

BACKENDS = [name for name, reason in available_backends().items() if reason is None and name in ("native", "reference")]
space = spaces.get("specialized")


@pytest.mark.parametrize("mask", ["unet", "random-12", "sparsemask-voc"])
@pytest.mark.parametrize("more", [{}, {"place_stride": 8}, {"scale": 2}])
def test_one_operator_is_the_network(mask, more):
    torch.manual_seed(0)
    net = network(mask, **more)
    made = space.exportable(net, torch.zeros(1, 3, 40, 40), None)
    assert isinstance(made.program.network, WholeNetwork)
    for size in ((1, 3, 65, 50), (2, 3, 40, 64)):
        x = torch.rand(size) * (255 if "scale" in more else 1)
        with torch.no_grad():
            wanted = net(x)
            for name in BACKENDS:
                with backend(name):
                    found = made.program(x)
                assert torch.allclose(found, wanted, atol=1e-4 * max(1, float(wanted.abs().max()))), name
    # Counted as its parts are, to the masks.
    assert multiply_adds(made.program, x) == multiply_adds(made.whole, x)


def test_a_program_holds_one_operator_and_a_tensor_of_weights():
    made = space.exportable(network(place_stride=8), torch.zeros(1, 3, 40, 40), None)
    x = torch.rand(1, 3, 48, 40)
    from sparsemask.exporting.writing import traced

    file = io.BytesIO()
    torch.export.save(traced(made.fixed(x)), file)
    file.seek(0)
    loaded = torch.export.load(file)
    names = [str(node.target) for node in loaded.graph.nodes if "sparsemask" in str(node.target)]
    assert names == ["sparsemask.masked_network.default"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.module()(x), made.network(x), atol=1e-4, rtol=1e-4)


def test_packed_weights_are_found_again():
    made = space.exportable(network(place_stride=8), torch.zeros(1, 3, 40, 40), None)
    program = made.program.network
    packed = Packed(program.numbers, program.flags, program._layout, program._reals)
    again = pack(unpack(packed))
    assert again.layout == packed.layout and again.reals == packed.reals
    assert torch.equal(again.numbers, packed.numbers) and torch.equal(again.flags, packed.flags)


def test_what_lasts_is_known_by_being_the_same():
    kept: Lasting[int] = Lasting()
    made = []

    def make() -> int:
        made.append(1)
        return len(made)

    a, b = torch.zeros(3), torch.zeros(3)
    assert [kept.get([a], "key", make) for _ in range(2)] == [1, 1]
    assert kept.get([b], "key", make) == 2  # the same numbers, another tensor
    assert kept.get([a], "other", make) == 3
    a.add_(1)
    assert kept.get([a], "key", make) == 4  # written to
    with torch.inference_mode():
        assert kept.get([torch.zeros(2)], "key", make) == 5
    del a, b
    gc.collect()
    assert not kept._kept


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_enlargement_as_files_have_it(monkeypatch, scale):
    x = 255 * torch.rand(2, 3, 5, 9)
    wanted = F.interpolate(x, scale_factor=float(scale), mode="bicubic", align_corners=False)
    torch.testing.assert_close(enlarge(x, scale), wanted, atol=1e-3, rtol=1e-5)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(enlarge(x, scale), wanted, atol=1e-3, rtol=1e-5)
