"""Tiles and the self-ensemble: the same picture by other ways."""

from __future__ import annotations

import pytest
import torch

from sparsemask.errors import UseError
from sparsemask.spaces.smsr.tiles import self_ensemble
from sparsemask.spaces.sparse_conv import upscale
from test_smsr import network, one_backend, pictures  # noqa: F401


@pytest.mark.parametrize("size", [(70, 101), (33, 64), (32, 32), (5, 90)])
@pytest.mark.parametrize("tile", [32, 33, 48])
def test_tiles_equal_the_whole(size, tile):
    # The attention sees the whole picture in both: no difference but rounding.
    net, x = network(scale=3, n_layers=4), pictures(*size)
    with torch.no_grad():
        whole = net(x)
        kept, masks = net.kept, net.masks
    torch.testing.assert_close(upscale(net, x, tile), whole, atol=2e-3, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(net.masks, masks, strict=True))
    assert all(torch.allclose(a, b) for a, b in zip(net.kept, kept, strict=True))


def test_more_layers_get_a_wider_overlap():
    net, x = network(n_layers=7), pictures(64, 70)
    with torch.no_grad():
        whole = net(x)
    torch.testing.assert_close(upscale(net, x, 32), whole, atol=2e-3, rtol=1e-5)


def test_tiles_that_are_too_small_are_refused():
    with pytest.raises(UseError, match="32 is the least"):
        upscale(network(), pictures(8, 8), 16)


@pytest.mark.parametrize("size", [(6, 9), (8, 8), (1, 3)])
def test_ensemble_of_what_commutes_with_flips_is_itself(size):
    larger = lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    x = pictures(*size)
    torch.testing.assert_close(self_ensemble(larger, x), larger(x))


def test_ensemble_commutes_with_flips_and_leaves_the_plain_masks():
    net, x = network(), pictures(10, 14)
    out = upscale(net, x, ensemble=True)
    masks = net.masks
    torch.testing.assert_close(upscale(net, x.flip(3), ensemble=True), out.flip(3), atol=1e-2, rtol=1e-5)
    turned = x.transpose(2, 3).contiguous()
    torch.testing.assert_close(upscale(net, turned, ensemble=True), out.transpose(2, 3), atol=1e-2, rtol=1e-5)
    with torch.no_grad():
        net(x)
    assert all(torch.equal(a, b) for a, b in zip(net.masks, masks, strict=True))
