"""What is derived from weights follows every way of changing them, is kept otherwise, and stays bounded."""

from __future__ import annotations

import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import literal_sparse as literal
from literal_sparse import Case, difference, one_thread, problem  # noqa: F401
from sparsemask.sparse import Derived, SparseMaskBlock, SparseMaskConv, available_backends, backend, set_backend

NAMES = ("gather", "native")


class Made:
    """A `make` that counts its calls and returns twice the sum of the sources."""

    def __init__(self, *sources):
        self.sources, self.calls = sources, 0

    def __call__(self):
        self.calls += 1
        return 2 * sum(s.detach().sum() for s in self.sources)


def in_place(weight):
    with torch.no_grad():
        weight.add_(1)


def one_number(weight):
    with torch.no_grad():
        weight.view(-1)[-1] += 1e-3


def past_autograd(weight):
    weight.data.mul_(2)  # no version counter moves


def replaced_data(weight):
    weight.data = weight.data + 1


def through_numpy(weight):
    weight.detach().numpy()[...] += 1


def optimizer_step(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], 0.1).step()


def fused_step(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], 0.1, foreach=True).step()


def loaded(weight):
    module = nn.ParameterList([weight])
    module.load_state_dict({"0": torch.randn_like(weight)})


WRITES = [in_place, one_number, past_autograd, replaced_data, through_numpy, optimizer_step, fused_step, loaded]


@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_noticed(write):
    cache, weight = Derived(), nn.Parameter(torch.randn(4, 3))
    make = Made(weight)
    first = cache.get([weight], make)
    assert torch.equal(cache.get([weight], make), first) and make.calls == 1
    write(weight)
    second = cache.get([weight], make)
    assert make.calls == 2 and torch.equal(second, 2 * weight.detach().sum()) and not torch.equal(first, second)
    for _ in range(3):
        assert torch.equal(cache.get([weight], make), second)
    assert make.calls == 2


def test_what_has_not_changed_is_not_made_again():
    cache, weight, bias = Derived(), torch.randn(4, 3), torch.randn(4)
    make = Made(weight, bias)
    for _ in range(5):
        cache.get([weight, bias], make)
        cache.get([weight.view(4, 3), bias.detach()], make)  # the same memory, another tensor
        weight.add_(0)  # a write that changes nothing
    assert make.calls == 1


def test_any_of_the_sources_counts():
    cache, sources = Derived(), [torch.randn(3), torch.randn(2), torch.rand(5) < 0.5]
    make = Made(*sources)
    cache.get(sources, make)
    for number, source in enumerate(sources):
        source.logical_not_() if source.dtype == torch.bool else source.add_(1)
        cache.get(sources, make)
        assert make.calls == 2 + number


def test_keys_and_shapes_tell_apart():
    cache, weight = Derived(), torch.randn(4, 3)
    assert cache.get([weight], lambda: "a", "one") == "a"
    assert cache.get([weight], lambda: "b", "two") == "b"
    assert cache.get([weight.view(3, 4)], lambda: "c", "one") == "c"
    assert cache.get([weight.view(torch.int32)], lambda: "d", "one") == "d"
    assert [cache.get([weight], lambda: "new", key) for key in ("one", "two")] == ["a", "b"]


def test_masks_in_turn_do_not_drive_each_other_out():
    # A few channel masks over the same weights, as when thresholds are compared.
    cache, weight = Derived(), torch.randn(4, 3)
    masks, calls = [torch.arange(4) < n for n in range(3)], []
    for _ in range(4):
        for number, mask in enumerate(masks):
            assert cache.get([weight, mask], lambda n=number: calls.append(n) or n) == number
    assert calls == [0, 1, 2]


def test_it_stays_bounded():
    cache = Derived(entries=10)
    kept = [torch.randn(3) for _ in range(50)]  # all alive: other addresses
    for weight in kept:
        cache.get([weight], lambda: 0)
        assert len(cache) <= 10
    assert cache.get([kept[-1]], lambda: 1) == 0  # the latest is there
    assert cache.get([kept[0]], lambda: 1) == 1  # the first had to go
    cache.clear()
    assert len(cache) == 0 and cache.get([kept[-1]], lambda: 2) == 2


def test_it_is_bounded_in_bytes_too():
    cache = Derived(size=4000)
    kept = [torch.randn(250) for _ in range(20)]
    for weight in kept:
        cache.get([weight], lambda: 0)
    assert len(cache) == 4
    huge = torch.randn(10000)  # one that is larger than all room is still served
    assert cache.get([huge], lambda: 5) == 5 and len(cache) == 1


def test_training_does_not_fill_it():
    # Ten thousand steps leave no ten thousand copies.
    cache, weight = Derived(), torch.randn(8)
    for _ in range(100):
        weight += 1
        cache.get([weight], lambda: 0)
    assert len(cache) <= 8


def test_the_least_recently_used_goes_first():
    cache = Derived(entries=2)
    a, b, c = (torch.full((2,), float(i)) for i in range(3))
    for weight in (a, b, a, c):
        cache.get([weight], lambda: 0)
    assert cache.get([a], lambda: 1) == 0 and cache.get([b], lambda: 1) == 1


def test_made_under_inference_mode_it_serves_learning_too():
    cache, weight = Derived(), nn.Parameter(torch.randn(3))
    with torch.inference_mode():
        made = cache.get([weight], lambda: weight * 2)
    assert not made.is_inference() and not made.requires_grad
    x = torch.ones(3, requires_grad=True)
    (x * made).sum().backward()  # saved for backward: inference tensors would be refused
    assert cache.get([weight], lambda: None) is made


def test_threads_share_it():
    cache, weights, wrong = Derived(entries=6), [torch.full((64,), float(i)) for i in range(8)], []

    def work(seed: int):
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()
        for i in order * 25:
            found = cache.get([weights[i]], lambda i=i: weights[i].sum().item())
            if found != 64.0 * i:
                wrong.append((i, found))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert not wrong and len(cache) <= 6


def test_a_slow_make_does_not_hold_others_up():
    cache, a, b = Derived(), torch.zeros(2), torch.ones(2)
    begun, go = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go.wait(10)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.get, [a], slow)
        assert begun.wait(10)
        assert cache.get([b], lambda: "quick") == "quick"
        go.set()
        assert waiting.result(10) == "slow"


def test_a_make_that_fails_leaves_nothing():
    cache, weight = Derived(), torch.zeros(2)
    with pytest.raises(ZeroDivisionError):
        cache.get([weight], lambda: 1 / 0)
    assert len(cache) == 0 and cache.get([weight], lambda: 3) == 3


@pytest.fixture(params=NAMES)
def name(request) -> str:
    if available_backends()[request.param] is not None:
        pytest.skip(f"{request.param}: {available_backends()[request.param]}")
    return request.param


def differs(layer, given, name: str) -> float:
    """How far a backend is from the formula with the layer's weights of now."""
    x, mask, ins, outs = given
    form = literal.Form.of(2, 3)
    with torch.no_grad(), backend(name):
        return difference(layer(*given), literal.layer(x, layer.weight, layer.bias, mask, ins, outs, form, "relu"))


@pytest.mark.parametrize("write", WRITES)
def test_layers_follow_their_weights(name, write):
    torch.manual_seed(0)
    layer = SparseMaskConv(5, 6, 3, bias=True).eval()
    given = problem(Case())
    given = (given.x, given.mask, given.in_dense, given.out_dense)
    assert differs(layer, given, name) < 1e-5
    for parameter in layer.parameters():
        write(parameter)
        assert differs(layer, given, name) < 1e-5


def test_layers_follow_their_channel_masks(name):
    torch.manual_seed(0)
    layer, given = SparseMaskConv(5, 6, 3, bias=True).eval(), problem(Case())
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        ins, outs = torch.rand(5, generator=g) < 0.5, torch.rand(6, generator=g) < 0.5
        assert differs(layer, (given.x, given.mask, ins, outs), name) < 1e-5
    assert differs(layer, (given.x, ~given.mask, ins.logical_not_(), outs.logical_not_()), name) < 1e-5  # in place


def test_blocks_follow_weights_and_logits(name):
    torch.manual_seed(0)
    block = set_backend(SparseMaskBlock(6, 2).eval(), name)
    x, mask = torch.randn(1, 6, 5, 4), torch.rand(1, 1, 5, 4) < 0.4

    def check():
        with torch.no_grad():
            y, _ = block(x, mask)
        weights = [layer.weight for layer in block.body]
        expected = literal.block(x, mask, weights, block.channels(), block.collect.weight, block.collect.bias)
        assert difference(y, expected) < 1e-5

    check()
    for parameter in block.parameters():
        parameter.data.copy_(torch.rand_like(parameter) - 0.5)
        check()
    block.load_state_dict(SparseMaskBlock(6, 2).state_dict())
    check()
    block.body[1] = SparseMaskConv(6, 6, 3)  # another module in its place
    check()


def memories(value, seen: set[int]) -> set[int]:
    """Addresses of all memory that an object's tensors hold, however deep they lie."""
    if id(value) in seen:
        return set()
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr()}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    inner = [*inner, *vars(value).values()] if hasattr(value, "__dict__") else inner
    return set().union(*(memories(one, seen) for one in inner))


@pytest.mark.parametrize("kind", ["layer", "1x1 layer", "transposed", "depth-wise", "groups", "norm", "block",
                                  "block of all dense", "attended block"])  # fmt: skip
def test_what_is_kept_shares_no_memory_with_the_weights(name, kind, monkeypatch):
    # Else what was kept for weights of before would change with them, and serve whoever has those weights next.
    kept, own = [], Derived.get

    def get(self, sources, make, *key):
        value = own(self, sources, make, *key)
        kept.append((memories(sources, set()), memories(value, set())))
        return value

    monkeypatch.setattr(Derived, "get", get)
    torch.manual_seed(zlib.crc32(kind.encode()))  # weights that nobody had before
    x, mask = torch.randn(1, 6, 5, 4), torch.rand(1, 1, 5, 4) < 0.5
    form = {"1x1 layer": dict(kernel_size=1), "transposed": dict(transposed=True), "depth-wise": dict(groups=6),
            "groups": dict(groups=2), "norm": dict(norm="batch")}.get(kind, {})  # fmt: skip
    with torch.no_grad(), backend(name):
        if "block" in kind:
            block = SparseMaskBlock(6, 2).eval()
            if "all dense" in kind:
                block.ch_mask[..., 0] = 2
            if "attended" in kind:
                block.attended(x, mask, [torch.randn(2, 6), torch.randn(2), torch.randn(6, 2), torch.randn(6)])
            else:
                block(x, mask)
        else:
            layer = SparseMaskConv(6, 6, **{"kernel_size": 3, "bias": True, **form}).eval()
            layer(x, mask, torch.arange(6) < 2, torch.arange(6) < 3)
    for sources, value in kept:
        assert value and not sources & value
    assert kept or "all dense" in kind


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_weights_are_not_packed_again_while_nothing_changes(name, kind, monkeypatch):
    # What costs the most, counted where it is done: in the cache's own makes.
    makes = []
    own = Derived.get

    def get(self, sources, make, *key):
        return own(self, sources, lambda: makes.append(1) or make(), *key)

    monkeypatch.setattr(Derived, "get", get)
    torch.manual_seed(0)
    mask = torch.rand(1, 1, 6, 7) < 0.5
    if kind == "layer":
        net = SparseMaskConv(5, 6, 3).eval()
        rest, x = (mask, torch.arange(5) < 2, torch.arange(6) < 3), torch.randn(1, 5, 6, 7)
    else:
        net = SparseMaskBlock(5, 2).eval()
        rest, x = (mask,), torch.randn(1, 5, 6, 7)
    with torch.no_grad(), backend(name):
        net(x, *rest)
        first = len(makes)
        for seed in range(4):  # other features and data masks are no reason
            net(torch.randn(1, 5, 6, 7), torch.rand(1, 1, 6, 7) < 0.2 * seed, *rest[1:])
        assert len(makes) == first > 0
        in_place(next(iter(net.body if kind == "block" else [net])).weight)
        net(x, *rest)
    assert len(makes) > first


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_other_picture_sizes_are_no_reason_to_pack_again(name, kind, monkeypatch):
    # Pictures of a test set all differ in size; weights do not.
    makes = []
    own = Derived.get
    monkeypatch.setattr(
        Derived, "get", lambda self, sources, make, *key: own(self, sources, lambda: makes.append(1) or make(), *key)
    )
    torch.manual_seed(0)
    net = SparseMaskConv(5, 6, 3).eval() if kind == "layer" else SparseMaskBlock(5, 2).eval()
    flags = (torch.arange(5) < 2, torch.arange(6) < 3) if kind == "layer" else ()
    counts = []
    with torch.no_grad(), backend(name):
        for size in ((6, 7), (8, 5), (9, 9), (4, 12)):
            net(torch.randn(1, 5, *size), torch.rand(1, 1, *size) < 0.5, *flags)
            counts.append(len(makes))
    assert counts == counts[:1] * 4


def test_a_look_costs_less_than_the_work():
    # Tens of microseconds for the weights of a layer of 64 channels; the layer itself takes milliseconds.
    cache, weight = Derived(), torch.randn(64, 64, 3, 3)
    cache.get([weight], lambda: 0)
    best = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        cache.get([weight], lambda: 0)
        best = min(best, time.perf_counter() - begun)
    assert best < 5e-4
