"""Public super-resolution networks: their layouts, what they compute, what is not known, and tiles within a budget."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file

import literal_sr as literal
from sparsemask.costs import count_parameters
from sparsemask.errors import UseError
from sparsemask.spaces import sr_networks
from sparsemask.spaces.described import weightless
from sparsemask.spaces.sr_networks import tiles
from sparsemask.weights import load_strictly

NAMES = list(literal.LITERAL)
SCALES = (1, 2, 3, 4)


def images(size: tuple[int, int] = (37, 46), dtype: torch.dtype = torch.float64, count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) * 255


def network(name: str, scale: int = 2) -> sr_networks.SRNetwork:
    return sr_networks.build(literal.small_state(name, scale)).double()


# The released files: layout, what it is, and the parameters that are published (in thousands; of SPAN: counted).
RELEASED = {
    "realesr-animevideov3": (literal.srvgg_layout(4, 64, 16), "SRVGGNetCompact", 621),
    "realesr-general-x4v3": (literal.srvgg_layout(4, 64, 32), "SRVGGNetCompact", 1213),
    "rlfn_x2": (literal.rlfn_layout(2), "RLFN", 527),
    "rlfn_x4": (literal.rlfn_layout(4), "RLFN", 544),
    "rlfn_s_x2": (literal.rlfn_layout(2, 48), "RLFN", 455),
    "rlfn_ntire_x4": (literal.rlfn_layout(4, 46, 4, 48), "RLFN", 317),
    "spanx4_ch48": (literal.span_layout(4), "SPAN", 426),
    "spanx2_ch48": (literal.span_layout(2), "SPAN", 411),
    "PLKSR_X4": (literal.plksr_layout(4), "PLKSR", 7386),
    "PLKSR_tiny_X2": (literal.plksr_layout(2, 64, 12, 13), "PLKSR", 2793),
    "edsr_baseline_x2": (literal.edsr_layout(2), "EDSR", 1370),
    "edsr_baseline_x3": (literal.edsr_layout(3), "EDSR", 1554),
    "edsr_baseline_x4": (literal.edsr_layout(4), "EDSR", 1518),
}


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta")
@pytest.mark.parametrize("name", RELEASED)
def test_released_layouts_are_recognised_and_load_strictly(name):
    layout, architecture, thousands = RELEASED[name]
    state = {key: torch.zeros(shape, device="meta") for key, shape in layout.items()}
    if architecture == "EDSR":
        state = literal.edsr_state({key: torch.zeros(shape) for key, shape in layout.items()})
    kind, config, renamed = sr_networks.recognise(state)
    with weightless():
        network = kind(**config)
    load_strictly(network, renamed, name)
    assert kind.architecture == architecture
    network.fold()
    assert round(count_parameters(network) / 1000) == thousands
    assert network.scale == (4 if "animevideo" in name else int(re.search(r"[xX](\d)", name)[1]))


def unfolded(state: literal.State) -> sr_networks.SRNetwork:
    """A state dict's network in float64, with its branches, if it has any."""
    kind, config, renamed = sr_networks.recognise(state)
    net = kind(**config).double()
    net.load_state_dict(renamed)
    return net.eval()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_is_published(name, scale):
    state = literal.small_state(name, scale)
    net, x = unfolded(state), images()
    with torch.no_grad():
        wanted = literal.compute(name, state, x, scale)
        assert net.architecture == name
        assert wanted.shape == (1, 3, 37 * scale, 46 * scale)
        torch.testing.assert_close(net(x), wanted, rtol=1e-6, atol=1e-6)
        net.fold()
        torch.testing.assert_close(net(x), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_public_files(name):
    """Strictly: one name less, one more or another shape is refused."""
    state = literal.small_state(name, 2, torch.float32)
    kind, config, _ = sr_networks.recognise(state)
    assert {key: tuple(value.shape) for key, value in kind(**config).state_dict().items()} == literal.LITERAL[name][0](
        2
    )
    last = list(state)[-1]
    for spoilt in (
        {key: value for key, value in state.items() if key != last},
        {**state, "extra": torch.zeros(1)},
        {**state, last: torch.zeros(99)},
    ):
        with pytest.raises(UseError, match="file: "):
            sr_networks.build(spoilt, "file")


def test_edsr_in_the_names_of_basicsr():
    for scale in (2, 3, 4):
        state = literal.small_state("EDSR", scale)
        renamed = literal.basicsr_names(state, 2)
        assert not set(renamed) & set(state)
        with torch.no_grad():
            same = torch.equal(sr_networks.build(renamed)(images(dtype=torch.float32)),
                               sr_networks.build(state)(images(dtype=torch.float32)))  # fmt: skip
        assert same


def test_large_edsr_scales_its_residuals():
    state = literal.edsr_state(literal.fill(literal.edsr_layout(2, 256, 1)))
    x = images((9, 9))
    with torch.no_grad():
        got = sr_networks.build(state).double()(x)
        for key in ("body.0.body.2.weight", "body.0.body.2.bias"):
            state[key] = state[key] * 0.1
        wanted = literal.compute("EDSR", state, x, 2)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", ["params", "params_ema", "state_dict", "module.", "both"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrappers_are_removed(tmp_path, wrap, suffix):
    state = literal.small_state("SPAN", 2, torch.float32)
    if wrap in ("module.", "both"):
        state = {f"module.{key}": value for key, value in state.items()}
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({("params" if wrap == "both" else wrap): state} if wrap != "module." else state, path)
    assert sr_networks.load(path).title == "SPAN x2 (n_feats 8, n_blocks 3)"


def test_a_saved_network_is_the_same(tmp_path):
    for name in NAMES:
        first = sr_networks.build(literal.small_state(name, 3, torch.float32))
        sr_networks.save(tmp_path / "net.safetensors", first)
        second = sr_networks.load(tmp_path / "net.safetensors")
        assert second.config == first.config
        x = images(dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(first(x), second(x))


def test_branches_are_folded_exactly():
    """In float64: the training form, its folded form, and gradients that reach the branches."""
    net, x = unfolded(literal.small_state("SPAN", 2)), images((20, 21))
    before = net(x)
    before.mean().backward()
    assert net.block_1.c1_r.sk.weight.grad.abs().max() > 0
    net.fold()
    with torch.no_grad():
        torch.testing.assert_close(net(x), before.detach(), rtol=1e-12, atol=1e-8)
    assert not [key for key in net.state_dict() if ".sk." in key]
    net.fold()  # again: nothing to do
    folded = sr_networks.build(net.state_dict())
    assert folded.config["folded"]


def test_what_eval_conv_holds_does_not_matter():
    """Public files are saved in training: it may be older than the branches."""
    state = literal.small_state("SPAN", 2)
    stale = {key: value + (".eval_conv." in key) for key, value in state.items()}
    with torch.no_grad():
        assert torch.equal(*(sr_networks.build(s)(images(dtype=torch.float32)) for s in (state, stale)))


def without(state: dict, *parts: str) -> dict:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def swapped(state: dict, old: str, new: str) -> dict:
    return {key.replace(old, new): value for key, value in state.items()}


def grey(state: dict) -> dict:
    return {**state, "body.0.weight": state["body.0.weight"][:, :1]}


def relu(state: dict) -> dict:
    return {key: value for key, value in state.items() if value.ndim != 1 or key.endswith("bias")}


# What is wrong: a state dict and words of the one line.
UNKNOWN = {
    "another network": ({"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)},
                        ["RRDBNet", "2 tensors", "conv_first.weight (64x3x3x3)", "SRVGGNetCompact", "SMSR"]),
    "nothing like it": ({"fc.weight": (10, 5)}, ["no super-resolution network that is known", "fc.weight (10x5)"]),
    "grey": (lambda: grey(literal.small_state("SRVGGNetCompact", 2)), ["SRVGGNetCompact", "1 channel"]),
    "relu": (lambda: relu(literal.small_state("SRVGGNetCompact", 2)), ["SRVGGNetCompact", "LeakyReLU"]),
    "real": (lambda: swapped(literal.small_state("PLKSR", 2), "channe_", "channel_"), ["PLKSR", "RealPLKSR"]),
    "sparse": (lambda: swapped(literal.small_state("PLKSR", 2), "lk.conv", "lk.convs.0"), ["PLKSR", "ablations"]),
    "a block less": (lambda: without(literal.small_state("RLFN", 2), "block_1.c2"), ["do not fit", "block_1.c2_r"]),
    "a gap": (lambda: without(swapped(literal.small_state("RLFN", 2), "block_2", "block_7"), "x"), ["RLFN", "1, 7"]),
    "an odd scale": (lambda: {**literal.small_state("RLFN", 2), "upsampler.0.weight": torch.zeros(7, 10, 3, 3)},
                     ["RLFN", "7 outputs"]),
    "a wrong part": (lambda: {**literal.small_state("RLFN", 2), "block_1.c1_r.weight": torch.zeros(3)},
                     ["RLFN", "block_1.c1_r.weight", "(3,)"]),
    "colours": (lambda: {**literal.small_state("EDSR", 2), "sub_mean.weight": torch.ones(3, 3, 1, 1)},
                ["EDSR", "sub_mean.weight", "standard deviation"]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_said(case):
    state, words = UNKNOWN[case]
    state = state() if callable(state) else {key: torch.zeros(shape) for key, shape in state.items()}
    with pytest.raises(UseError) as error:
        sr_networks.build(state, "net.pth")
    for word in ["net.pth", *words]:
        assert word in str(error.value)


def test_huge_claims_cost_nothing():
    """Shapes that weights only claim are compared before memory is taken."""
    state = literal.small_state("SRVGGNetCompact", 2, torch.float32)
    state["body.2.weight"] = torch.zeros(1).expand(1 << 20, 1 << 20, 3, 3)
    with pytest.raises(UseError):
        sr_networks.build(state)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_equal_the_whole(name, monkeypatch):
    net, x = network(name), images((45, 68))
    with torch.no_grad():
        whole = net(x)
    for tile, columns in ((32, 512), (40, 30)):
        monkeypatch.setattr(tiles, "COLUMNS", columns)
        got = sr_networks.upscale(net, x, tile=tile)
        torch.testing.assert_close(got, whole, rtol=1e-10, atol=1e-9 * float(whole.abs().max()))


@pytest.mark.parametrize("name", ["SRVGGNetCompact", "SPAN", "EDSR"])
def test_an_output_depends_on_no_pixel_beyond_the_radius(name):
    for scale in (2, 4):
        net = network(name, scale)
        x = images((2 * net.radius + 3,) * 2).requires_grad_()
        middle = scale * (net.radius + 1)
        (gradient,) = torch.autograd.grad(net(x)[..., middle : middle + scale, middle : middle + scale].sum(), x)
        seen = gradient.abs().amax((0, 1, 2)) > 0
        assert not seen[0] and not seen[-1]
        assert seen[2:-2].all()  # nor much less


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_images(name):
    net = network(name)
    for size in ((1, 1), (1, 20), (14, 3)):
        with torch.no_grad():
            out = net(images(size))
        assert out.shape == (1, 3, 2 * size[0], 2 * size[1]) and out.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_decides_on_tiles(name, monkeypatch):
    monkeypatch.setattr(tiles, "resident", lambda: 0)
    net, shape = network(name).float(), (1, 3, 600, 800)
    bound = tiles.planned(net, shape, 1e15)
    whole = tiles.planned(net, shape, bound.need - 1)  # counted now
    assert bound.tile == whole.tile == 0 and whole.need <= bound.need
    part = tiles.planned(net, shape, 0.55 * whole.need)
    assert part.tile >= 8 and part.need <= 0.55 * whole.need
    least = shape[2] * shape[3] * 12
    with pytest.raises(UseError, match=r"a memory of .* MB are needed"):
        tiles.planned(net, shape, least)
    monkeypatch.setattr(tiles, "MEMORY", least)
    assert 0 < tiles.planned(net, shape).tile <= 32  # unless a budget is asked for: as little as it takes


def test_the_ensemble_in_tiles():
    net, x = network("SRVGGNetCompact"), images((33, 40))
    plain, small = (sr_networks.upscale(net, x, tile=tile, ensemble=True) for tile in (0, 32))
    torch.testing.assert_close(plain, small)
    assert not torch.allclose(plain, sr_networks.upscale(net, x, tile=0))


def test_tiles_that_are_too_small_are_refused():
    with pytest.raises(UseError, match="32 is the least"):
        sr_networks.upscale(network("EDSR"), images(), tile=7)
