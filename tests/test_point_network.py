"""SMPointSeg in one native call: the numbers of its blocks, for every width, reading, mask and change of weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kernel_sweeps import FORMS
from literal_sparse import one_thread  # noqa: F401
from point_crops import crop
from sparsemask.backends.native import library
from sparsemask.spaces.smpointseg import network as networks
from sparsemask.spaces.smpointseg.space import DensePoints
from sparsemask.spaces.smpointseg.whole import whole
from sparsemask.sparse import backend
from test_smpointseg import settle, small

KINDS = ("mixed", "all dense", "all sparse", "none kept", "all kept")
READINGS = ({}, {"index_rule": "round", "tail_bias_count": 2}, {"s2d": "full"}, {"point_mask": "all"})


@pytest.fixture
def by_blocks(monkeypatch):
    """A function that computes a network block by block."""

    def compute(network, batch):
        with monkeypatch.context() as patch:
            patch.setattr(networks, "whole", lambda *_: None)
            return network(batch)

    return compute


@pytest.fixture(autouse=True)
def needs_kernels():
    try:
        library.lib()
    except OSError as error:
        pytest.skip(str(error))


@torch.no_grad()
def check(network, batch, by_blocks):
    out = network(batch)
    assert whole(network, batch, True) is not None
    kept, masks = [one.clone() for one in network.kept], network.masks
    wanted = by_blocks(network, batch)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept, list(network.kept))
    assert all(torch.equal(a, b) for a, b in zip(masks, network.masks, strict=True))
    torch.testing.assert_close(
        DensePoints(network)(batch), by_blocks(DensePoints(network), batch), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("reading", READINGS, ids=lambda one: ",".join(map(str, one.values())) or "paper")
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_blocks_do(kind, reading, by_blocks):
    network = settle(small(**reading), kind)
    check(network, crop(), by_blocks)
    check(network, crop(count=300, samples=3, seed=5), by_blocks)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_vector_width_gives_the_same_numbers(form, by_blocks):
    network = settle(small(), "mixed")
    with library.using(form):
        check(network, crop(count=333), by_blocks)


@torch.no_grad()
def test_two_threads_give_the_same_bits():
    network, batch = settle(small(), "mixed"), crop(count=2000)
    one = network(batch)
    torch.set_num_threads(2)
    try:
        assert torch.equal(network(batch), one)
    finally:
        torch.set_num_threads(1)


@torch.no_grad()
@pytest.mark.parametrize("way", ["in place", "data", "another tensor", "loaded", "statistics", "threshold"])
def test_weights_that_change_are_noticed(way, by_blocks):
    network, batch = settle(small(), "mixed"), crop()
    before = network(batch)
    conv = network.encoder[1].tail[0].conv_1x1
    if way == "in place":
        conv.weight.mul_(1.5)
    elif way == "data":
        conv.weight.data.mul_(1.5)
    elif way == "another tensor":
        conv.weight = torch.nn.Parameter(conv.weight * 1.5)
    elif way == "loaded":
        network.load_state_dict({name: value * 1.25 for name, value in network.state_dict().items()})
    elif way == "statistics":
        network.encoder[0].tail[1].running_mean.add_(0.5)
    else:
        network.encoder[0].pt_mask.threshold = 0.6
    after = network(batch)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, by_blocks(network, batch), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_copies_have_forms_of_their_own():
    network, batch = settle(small(), "mixed"), crop()
    before = network(batch)
    twin = copy.deepcopy(network)
    twin.encoder[0].tail[0].conv_1x1.weight.mul_(2)
    assert not torch.equal(twin(batch), before)
    assert torch.equal(network(batch), before)


@torch.no_grad()
def test_what_has_to_go_block_by_block_does():
    network, batch = settle(small(), "mixed"), crop()
    seen = []
    handle = network.encoder[1].register_forward_hook(lambda *_: seen.append(1))
    network(batch)
    assert seen == [1]
    handle.remove()
    assert whole(network, batch, True) is not None
    with torch.enable_grad():
        assert whole(network, batch, True) is None
    for name in ("reference", "gather"):
        with backend(name):
            assert whole(network, batch, True) is None
    assert whole(network.double(), batch.to("cpu", torch.float64), True) is None
    assert whole(network.float().train(), batch, True) is None


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_counted_multiply_adds_are_those_of_the_blocks(kind, by_blocks):
    network, batch = settle(small(), kind), crop(samples=2)
    counts = []
    for form in (network, DensePoints(network)):
        for compute in (lambda form, batch: form(batch), by_blocks):
            with FlopCounterMode(display=False) as counter:
                compute(form, batch)
            counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert counts[2] == counts[3] > 0
