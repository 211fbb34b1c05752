"""Compressed networks saved whole: pickled, copied, saved by torch, with the same outputs after."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from literal_sparse import one_thread  # noqa: F401
from small_hinge import hinged
from sparsemask import spaces
from sparsemask.masks.groups import GroupMask
from sparsemask.spaces.group_sparsity.compression import border

KINDS = [
    (kind, dims, more)
    for dims in (1, 2, 3)
    for kind, more in (
        (getattr(nn, f"Conv{dims}d"), {"padding": 1, "dilation": 2}),
        (getattr(nn, f"ConvTranspose{dims}d"), {"padding": 1, "stride": 2, "output_padding": 1}),
    )
]


def again(network: nn.Module) -> list[nn.Module]:
    """The network after each way of saving it whole."""
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    pickled = [pickle.loads(pickle.dumps(network, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)]
    return [*pickled, copy.deepcopy(network), copy.copy(network), torch.load(file, weights_only=False)]


@pytest.mark.parametrize(("kind", "dims", "more"), KINDS, ids=lambda v: getattr(v, "__name__", ""))
def test_every_bordered_convolution_is_saved_whole(kind, dims, more):
    torch.manual_seed(0)
    conv, x = kind(2, 3, 3, **more), torch.randn(2, 2, *[6] * dims)
    plain = conv(x)
    transposed = "Transpose" in kind.__name__
    border.add_border(conv, torch.randn(*((1, 3) if transposed else (3, 1)), *[3] * dims))
    wanted = conv(x)
    assert not torch.equal(wanted, plain)
    for fixed in (False, True):  # the border's map of one size is part of the module too
        if fixed:
            border.fix_borders(conv.eval(), x)
            assert conv.border_map is not None
        for found in again(conv):
            assert type(found) is type(conv) and torch.equal(found(x), wanted)
            assert found.state_dict().keys() == conv.state_dict().keys()
            small = torch.randn(1, 2, *[5] * dims)  # of another size than the map's
            assert torch.equal(found(small), conv(small))
            assert (found.border_map is None) == (not fixed)
    found = copy.deepcopy(conv).train()
    found(x).sum().backward()
    assert found.border.grad is not None and conv.border.grad is None  # nothing is shared


def test_bordered_classes_are_importable_by_their_names():
    for plain, bordered in border._CLASSES.items():
        assert getattr(border, bordered.__name__) is bordered and issubclass(bordered, plain)
        assert bordered.__name__ == bordered.__qualname__ == f"Bordered{plain.__name__}"
        assert bordered.__module__ == border.__name__


@pytest.mark.parametrize(("arch", "variant"), [("resnet8", "graph"), ("small_hinge:OwnCNN", "channels")])
def test_networks_are_saved_whole(arch, variant):
    space, made = spaces.get("hinge"), hinged(arch, variant=variant)
    network, found, rng = made.network, made.reduction, np.random.default_rng(0)
    kept = {s.name: rng.random(s.count) < 0.6 for s in found.sets}
    for one in kept.values():
        one[0] = True
    config = space.config({"arch": arch, "variant": variant, "input_shape": (3, 8, 8)})
    mask = GroupMask(config, kept, found.merged(found.removal.gone(kept), "auto"))
    small = space.compressed(made, mask).network.eval()
    assert any(isinstance(module, border.Bordered) for module in small.modules())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for one in (small, network):  # as it is while groups are searched, too
            wanted = one(x)
            assert all(torch.equal(each(x), wanted) for each in again(one))
