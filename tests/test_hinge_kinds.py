"""Attention, statistics, inputs of every structure, computed weights: what can go, and that the rest is equal."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hinge import one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting
from sparsemask.spaces.group_sparsity.compression.compress import removable, remove_groups
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.fast import folded
from sparsemask.spaces.group_sparsity.rules import channel_sets
from sparsemask.spaces.group_sparsity.tracing.graph import trace
from sparsemask.spaces.group_sparsity.tracing.plain_weights import plain_weights
from test_hinge_channels import Net, conv
from test_hinge_coverage import EXACT, Block, assert_equal, halved, normed, outputs, picture

pytestmark = pytest.mark.usefixtures("one_thread")


class Attention(nn.Module):
    """Heads whose number is an attribute; the width of a head scales the products or not."""

    def __init__(self, dim, heads, fused):
        super().__init__()
        self.num_heads, self.fused = heads, fused
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))


def transformer(attention, dim=16):
    return Net(
        lambda n, x: n.out((y := n.a(x).flatten(2).transpose(1, 2) + n.place) + n.mlp(n.norm(y + n.attend(y)))),
        a=nn.Conv2d(3, dim, 4, 4),
        place=nn.Parameter(torch.randn(1, 9, dim)),
        attend=attention,
        norm=nn.LayerNorm(dim),
        mlp=nn.Sequential(nn.Linear(dim, 24), nn.GELU(), nn.Linear(24, dim)),
        out=nn.Linear(dim, 2),
    )


def test_whole_heads_go_where_the_scale_follows_their_width():
    small = assert_equal(transformer(Attention(16, 4, fused=True)), picture(), "attend.qkv", "mlp.0")
    assert (small.attend.num_heads, small.attend.head_dim, small.attend.qkv.out_features) == (2, 4, 24)


def test_heads_get_narrower_where_the_scale_is_kept():
    small = assert_equal(transformer(Attention(16, 4, fused=False)), picture(), "attend.qkv", "mlp.0")
    assert (small.attend.num_heads, small.attend.head_dim, small.attend.qkv.out_features) == (4, 2, 24)


class Encoder(nn.Module):
    """torch's own attention, which has a fused path for inference."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 2)

    def forward(self, x):
        y = self.layer(self.a(x).flatten(2).transpose(1, 2))
        return self.out(self.attend(y, y, y, need_weights=False)[0])


def test_torchs_own_transformer_loses_the_width_of_its_layers():
    small = assert_equal(Encoder(), picture(), "layer.linear1")
    assert small.layer.self_attn.num_heads == small.attend.num_heads == 4
    graph = trace(Encoder(), picture().float())
    assert graph.reason(graph.elements("layer.self_attn.out_proj", 1)[0])  # its heads are locked, with a reason


class SeveralAttend(nn.Module):
    """Torch's attention: of one sequence or between two of other widths, with weights or without."""

    def __init__(self, other=None, **call):
        super().__init__()
        self.a, self.call = nn.Conv2d(3, 16, 4, 4), call
        self.b = None if other is None else nn.Conv2d(3, other, 4, 4)
        self.attend = nn.MultiheadAttention(16, 4, kdim=other, vdim=other, batch_first=True)
        self.mlp, self.out = nn.Sequential(nn.Linear(16, 12), nn.ReLU()), nn.Linear(12, 2)

    def forward(self, x):
        y = self.a(x).flatten(2).transpose(1, 2)
        z = y if self.b is None else self.b(x).flatten(2).transpose(1, 2)
        return self.out(self.mlp(self.attend(y, key=z, value=z, **self.call)[0]))


def test_torchs_attention_keeps_its_queries_and_heads_and_other_widths_go():
    for network, *thinner in (
        (SeveralAttend(), "mlp.0"),
        (SeveralAttend(need_weights=False), "mlp.0"),
        (SeveralAttend(8), "mlp.0", "b"),
        (SeveralAttend(8, need_weights=False), "mlp.0", "b"),
    ):
        graph = trace(copy.deepcopy(network), picture().float())
        for name in ("a", *(["attend"] if network.b is None else [])):
            reason = graph.reason(graph.node(name).makes[0])
            assert "takes the width of heads from its queries" in reason, reason
        small = assert_equal(network, picture(), *thinner)
        assert (small.attend.embed_dim, small.attend.num_heads, small.a.out_channels) == (16, 4, 16)
        if network.b is not None:
            assert small.attend.kdim == small.attend.vdim == small.attend.k_proj_weight.shape[1] == 4
    layer = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True)
    decoder = Net(lambda n, x: n.out(n.layer(y := n.a(x).flatten(2).mT, y)), a=nn.Conv2d(3, 16, 4, 4), layer=layer)
    decoder.out = nn.Linear(16, 2)
    assert_equal(decoder, picture(), "layer.linear1")


class Cosine(nn.Module):
    """Attention of normalised queries and keys, scaled, with biases that layers compute from positions (Swin v2)."""

    def __init__(self, dim=16, heads=4):
        super().__init__()
        self.num_heads, self.scale = heads, nn.Parameter(torch.rand(heads, 1, 1))
        self.biases = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, heads, bias=False))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))
        self.register_buffer("k_bias", torch.zeros(dim))
        self.register_buffer("places", torch.randn(25, 2))
        self.register_buffer("index", torch.randint(0, 25, (9, 9), generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        b, n, _ = x.shape
        y = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        q, k, v = y.reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        products = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        bias = self.biases(self.places)[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        weights = (products * self.scale.clamp(max=4.6).exp() + 16 * bias.sigmoid()).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))


class AcrossChannels(Attention):
    """Attention of channels to each other (DaViT), whose sizes are those of the input."""

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((k * self.scale).transpose(-2, -1) @ v).softmax(-1)
        return self.proj((weights @ q.transpose(-2, -1)).permute(0, 3, 1, 2).reshape(b, n, c))


def test_attention_of_other_kinds():
    # queries and values keep biases that are no layer's own, so that heads without weights are no zeros
    assert_equal(transformer(Cosine()), picture(), "attend.biases.0", "mlp.0")
    network = transformer(AcrossChannels(16, 4, fused=False))
    graph = trace(network, picture().float())
    assert "module 'attend'" in graph.reason(graph.elements("attend.qkv", 0)[0])  # sizes are the input's
    small = assert_equal(network, picture(), "mlp.0")
    assert small.attend.qkv.out_features == 48


class Gate(nn.Module):
    """Channel attention by a convolution along the channels (ECA)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        return x * self.conv(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid()


def test_a_convolution_along_channels_keeps_them():
    network = Net(lambda n, x: n.last(n.gate(n.a(n.first(x)))), first=conv(3, 8), a=conv(8, 8), gate=Gate())
    network.last = conv(8, 2)
    graph = trace(network, picture().float())
    assert "convolution over channels as if they were positions" in graph.reason(graph.elements("a", 0)[0])
    assert_equal(network, picture(), "first")


def test_statistics_over_channels_are_locked_or_free():
    kinds = {
        "layer norm": (nn.LayerNorm(16), lambda n, x: n.norm(x.transpose(1, 3)).transpose(1, 3)),
        "one group": (nn.GroupNorm(1, 16), lambda n, x: n.norm(x)),
        "RMS norm": (nn.RMSNorm(16), lambda n, x: n.norm(x.transpose(1, 3)).transpose(1, 3)),
        "not affine": (nn.LayerNorm(16, elementwise_affine=False), lambda n, x: n.norm(x.mT.transpose(1, 3))),
        "mean": (nn.Identity(), lambda n, x: x * x.mean(1, keepdim=True).sigmoid()),
        "maximum": (nn.Identity(), lambda n, x: x * x.amax(1, keepdim=True).sigmoid()),
        "softmax": (nn.Identity(), lambda n, x: x.softmax(1)),
        "by hand": (nn.Identity(), lambda n, x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1).sqrt()),
    }
    for name, (norm, forward) in kinds.items():
        network = Net(lambda n, x, f=forward: n.last(f(n, n.a(x)).mean((2, 3))), a=conv(3, 16), norm=norm)
        network.last = nn.Linear(12 if name == "not affine" else 16, 2)
        if name == "not affine":
            network.body = lambda n, x: n.last(n.norm(n.a(x).transpose(1, 3)).transpose(1, 3).mean((2, 3)))
            network.last = nn.Linear(16, 2)
        graph, small, _, removed = halved(copy.deepcopy(network), picture())
        assert graph.locked(graph.elements("a", 0)).all() and not len(removed), name
        graph, small, _, removed = halved(copy.deepcopy(network), picture(), "free", "none")
        assert small.a.out_channels == 8 and outputs(small, picture())[0].shape == (2, 2), name
        assert "over channels" in graph.approximation(int(graph.elements("a", 0)[0])), name
        # what statistics are taken over stays where the function must stay the same
        graph, small, masked, removed = halved(copy.deepcopy(network), picture(), "free", "exact")
        assert not len(removed) and torch.equal(outputs(small, picture())[0], outputs(masked, picture())[0]), name


class Words(nn.Module):
    """Embeddings, a convolution over words, an LSTM on its channels."""

    def __init__(self):
        super().__init__()
        self.words, self.a = nn.Embedding(20, 6), nn.Conv1d(6, 8, 3, padding=1)
        self.states, self.out = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, text):
        y = F.relu(self.a(self.words(text).transpose(1, 2)))
        return self.out(self.states(y.transpose(1, 2))[0])


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_lose_the_width_of_their_inputs(layer):
    network = Words()
    network.states = layer(8, 5, 2, batch_first=True, bidirectional=True)
    network.out = nn.Linear(10, 2)
    text = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    small = assert_equal(network, text, "a")
    assert small.states.input_size == small.states.weight_ih_l0_reverse.shape[1] == 4


def test_words_convolutions_and_the_width_of_a_recurrent_layer():
    text = torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    small = assert_equal(Words(), text, "a")
    assert small.states.input_size == small.states.weight_ih_l0.shape[1] == 4


class Several(nn.Module):
    """Inputs of several kinds."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.kinds, self.last = conv(3, 8), conv(1, 8), nn.Embedding(4, 8), conv(8, 2)

    def forward(self, image, more, scale=1.0):
        depth, kind = more["depth"], more["kind"]
        return {"y": self.last(torch.relu(self.a(image) + self.b(depth)) * scale), "kind": self.kinds(kind)}


def test_inputs_of_any_structure():
    more = {"depth": picture(2, 1, 12, 12), "kind": torch.tensor([0, 3])}
    for example in ((picture(), more), (picture(), more, 2.0), {"image": picture(), "more": more, "scale": 0.5}):
        assert_equal(Several(), example, "a", "b")
    network = Several()
    for example, words in (
        ((picture().float(), {"depth": picture(2, 1, 12, 12).float()}), "KeyError|kind"),
        ({"picture": picture().float()}, "does not run on an input of 2x3x12x12.*picture"),
        ((), "without a tensor"),
        ("image", "example: str; expected a tensor"),
        ({"image": 3}, "without a tensor"),
    ):
        with pytest.raises(UseError, match=words) as caught:
            trace(network, example)
        assert "\n" not in str(caught.value)


class Bare(nn.Module):
    """Convolutions of parameters that no layer holds."""

    def __init__(self):
        super().__init__()
        self.kernel, self.a = nn.Parameter(torch.randn(8, 3, 3, 3) / 5), conv(3, 8)
        self.second, self.last = nn.Parameter(torch.randn(6, 8, 3, 3) / 8), conv(6, 2)

    def forward(self, x):
        return self.last(F.conv2d(F.relu(self.a(x)), self.second, padding=1))


def test_bare_parameters_lose_what_they_read():
    network = Bare()
    with pytest.raises(AssertionError):  # under padding a constant would need a border, which no layer could hold
        network.a = normed(3, 8)
        network.a[2] = nn.Sigmoid()
        assert_equal(network, picture(), "a.0")
    network = Bare()
    small = assert_equal(network, picture(), "a")
    assert small.second.shape == (6, 4, 3, 3)


def test_layers_of_the_same_kind_decide_alike_and_numbers_follow():
    layers = [Block(lambda n, x: torch.cat([p.relu() for p in x.split(n.width, 1)], 1), {"width": w}) for w in (4, 2)]
    network = Net(
        lambda n, x: n.last(n.second(n.b(n.first(n.a(x))))),
        a=conv(3, 8),
        first=layers[0],
        b=conv(8, 8),
        second=layers[1],
        last=conv(8, 2),
    )
    small = assert_equal(network, picture(), "a", "b")
    assert (small.first.width, small.second.width) == (2, 1)
    assert (network.first.width, type(network.first.width)) == (4, int)  # the traced one is as it was


def test_a_number_that_stands_for_two_different_ones_keeps_its_channels():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.a, self.b, self.last = 4, conv(3, 8), conv(3, 8), conv(8, 2)

        def forward(self, x):
            y, z = self.a(x), self.b(x)
            return self.last(torch.cat([y[:, : self.width], z[:, 4:]], 1))

    network = Twice()
    graph = trace(network, picture().float())
    assert graph.locked(graph.elements("b", 0)).all() and "slice" in graph.reason(graph.elements("b", 0)[0])


class Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1 over the inputs of each filter."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 2 * weight - weight.mean()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", Doubled()) and layer,
        lambda layer: Standardised(layer.in_channels, layer.out_channels, 3, padding=1),
    ],
)
def test_computed_weights_become_plain(compute):
    torch.manual_seed(0)
    network = Net(
        lambda n, x: n.last(F.relu(n.b(F.relu(n.a(x))))),
        a=compute(conv(3, 8)),
        b=compute(conv(8, 8)),
        last=conv(8, 2),
    ).double()
    network.eval()
    plain = plain_weights(network, picture())
    for a, b in zip(outputs(plain, picture()), outputs(network, picture()), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
    assert type(plain.a) is type(plain.b) is nn.Conv2d and isinstance(plain.a.weight, nn.Parameter)
    trained = plain_weights(network.train(), picture())
    assert trained.training and trained.a.training and trained.a.weight.requires_grad
    assert torch.equal(trained.a.weight, plain.a.weight) and plain_weights(plain, picture()) is plain
    assert_equal(plain, picture(), "a", "b")


class SamePadded(Standardised):
    """Pads for every size anew, as NFNets do where they stride."""

    def forward(self, x):
        over = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], self.stride, (3, 3), strict=True)]
        return super().forward(F.pad(x, (over[1] // 2, over[1] - over[1] // 2, over[0] // 2, over[0] - over[0] // 2)))


def test_convolutions_that_pad_for_every_size_anew_become_plain():
    torch.manual_seed(0)
    network = Net(lambda n, x: n.last(F.relu(n.a(x))), a=SamePadded(3, 8, 3, 2, bias=False), last=conv(8, 2)).double()
    plain = plain_weights(network.eval(), picture())
    for size in ((12, 12), (13, 11), (7, 8)):
        x = picture(1, 3, *size)
        assert torch.allclose(plain(x), network(x), rtol=1e-10, atol=1e-10) and type(plain.a) is not SamePadded
    assert_equal(plain, picture(), "a")


def test_a_convolution_that_does_more_than_compute_its_weight_stays():
    class Padded(Standardised):
        def forward(self, x):
            return super().forward(F.pad(x, (2, 1, 1, 2)))

    network = Net(lambda n, x: n.last(n.a(x)), a=Padded(3, 8, 4), last=conv(8, 2)).double()
    assert type(plain_weights(network, picture()).a) is Padded


def test_groups_whose_channels_would_stay_are_told():
    """Padded average pools (Inception) make maps of constants: planned is what is left."""
    network = Net(
        lambda n, x: n.last(torch.cat([n.c(F.avg_pool2d(n.a(x), 3, 1, 1)), n.d(n.b(x))], 1)),
        a=normed(3, 12),
        b=normed(3, 12),
        c=normed(12, 8, 1),
        d=normed(12, 8, 1),
        last=conv(16, 2),
    ).double()
    for norm in (network.a[1], network.b[1]):
        nn.init.constant_(norm.bias, 1)
        nn.init.constant_(norm.bias[:3], -1)  # after the ReLU nothing is left of these
    network.eval()
    graph = trace(network, picture())
    removal = Removal(graph, channel_sets(network, graph))
    can = removable(network, removal)
    assert {name: int(groups.sum()) for name, groups in can.items()} == {
        "a.0.channels": 3,
        "b.0.channels": 12,
        "c.0.channels": 8,
        "d.0.channels": 8,
    }
    assert all(groups.all() for groups in removable(network, removal, "none").values())
    accounting = Accounting(network, graph)
    kept = {name: ~(groups & (np.arange(len(groups)) % 2 == 0)) for name, groups in can.items()}
    compressed = remove_groups(network, removal, kept)
    assert accounting.count(removal.gone(kept)) == accounting.count(compressed.removed)


def test_a_factor_that_follows_a_width_keeps_it():
    scaled = Net(lambda n, x: n.last((y := n.a(x)) * y.shape[1] ** -0.5), a=conv(3, 8), last=conv(8, 2))
    graph = trace(scaled, picture().float())
    assert graph.locked(graph.elements("a", 0)).all() and "number of channels" in graph.reason(
        graph.elements("a", 0)[0]
    )
    plain = Net(lambda n, x: n.last(n.a(x) * 0.5), a=conv(3, 8), last=conv(8, 2))
    assert_equal(plain, picture(), "a")


def test_a_size_taken_from_another_tensor_keeps_its_channels():
    network = Net(
        lambda n, x: n.last((z := n.b(y := n.a(x))).flatten(1).view(len(z), y.shape[1], 12, 12)),
        a=conv(3, 8),
        b=conv(8, 8),
        last=conv(8, 2),
    )
    assert_equal(network, picture())
    free = Net(lambda n, x: n.last(torch.cat([n.a(x), kept(n.a(x))], 1)), a=conv(3, 8), last=conv(16, 2))
    assert_equal(free, picture())


def kept(y):
    """A tensor that depends on the input and not on channels, in the shape of one that has them."""
    return y.detach().amax((1, 2, 3), keepdim=True).flatten().repeat_interleave(y[0].numel()).view(y.shape)


class Cached(nn.Module):
    """Keeps what it computed once, as biases of attention are kept in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.a, self.last, self.offsets, self.cache = conv(3, 8), conv(8, 2), nn.Parameter(torch.randn(4)), {}

    def forward(self, x):
        if "offset" not in self.cache:
            self.cache["offset"] = self.offsets[torch.tensor([0, 1])].sum()
        return self.last(self.a(x) + self.cache["offset"].detach())


def test_what_is_computed_once_and_kept_does_not_change_the_run():
    network = Cached()
    assert_equal(network, picture(), "a")


def test_norms_of_a_layer_that_runs_twice_are_not_folded_into_it():
    network, _ = copy.deepcopy(EXACT["a shared layer with norms of its own"])
    for norm in (network.norm1, network.norm2):
        nn.init.normal_(norm.weight)
    network = network.double().eval()
    fast = folded(network, picture())
    assert torch.allclose(outputs(fast, picture())[0], outputs(network, picture())[0], rtol=1e-9, atol=1e-9)
    assert isinstance(fast.norm1, nn.BatchNorm2d) and isinstance(fast.a[1], nn.Identity)


def test_entries_read_as_another_type_are_locked():
    network = Net(lambda n, x: n.last(n.a(x).view(torch.int32).float()), a=conv(3, 8), last=conv(8, 2))
    graph = trace(network, picture().float())
    assert "another type" in graph.reason(graph.elements("a", 0)[0])


class Keeping(nn.Module):
    """Keeps numbers that its forward computed."""

    def __init__(self):
        super().__init__()
        self.width, self.a, self.last = 4, conv(3, 8), conv(8, 2)

    def forward(self, x):
        self.double, self.pair = self.width * 2, (self.width, self.width + 1)
        return self.last(torch.cat(self.a(x).split(self.width, 1), 1))


class Alone(Keeping):
    """Cannot be copied, so that it is traced itself."""

    def __deepcopy__(self, memo):
        raise TypeError("there is one of me")


def test_a_trace_leaves_plain_numbers():
    network = Alone()
    with pytest.raises(TypeError, match="one of me"):  # a size is tried out on a copy
        trace(network, picture().float())
    assert [type(n) for n in (network.width, network.double, *network.pair)] == [int] * 4
    assert (network.double, network.pair) == (8, (4, 5))
    with pytest.raises(UseError):
        trace(network, picture(1, 2, 8, 8).float())
    assert type(network.width) is int


class Remembering(nn.Module):
    """Changes what it holds when it runs: a buffer, an attribute, and a number that is no channel."""

    def __init__(self):
        super().__init__()
        self.a, self.last, self.first, self.runs = conv(3, 8), conv(8, 2), None, 0
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        y = self.a(x)
        self.mean.copy_(y.mean((0, 2, 3)))
        self.first, self.runs = y if self.first is None else self.first, self.runs + 1
        return self.last(y)


def test_a_trace_leaves_a_network_as_it_was():
    network = Remembering()
    graph = trace(network, picture().float())
    assert network.first is None and network.runs == 0 and not network.mean.any()
    assert not graph.locked(graph.elements("a", 0)).any()


class SetBy(nn.Module):
    """Sets a parameter by the first input that it sees."""

    def __init__(self):
        super().__init__()
        self.a, self.last, self.scale, self.ready = conv(3, 8), conv(8, 2), nn.Parameter(torch.zeros(8)), False

    def forward(self, x):
        y = self.a(x)
        if not self.ready:
            self.scale.copy_(1 / y.std((0, 2, 3)))
            self.ready = True
        return self.last(y * self.scale[:, None, None])


class Growing(nn.Module):
    """Makes a buffer, a cache and a number of channels when it first runs."""

    def __init__(self):
        super().__init__()
        self.a, self.last, self.ready, self.cache = conv(3, 8), conv(8, 2), False, {}

    def forward(self, x):
        y = self.a(x)
        if not self.ready:
            self.register_buffer("factor", torch.linspace(1, 2, 8, dtype=x.dtype)[:, None, None])
            self.ready, self.wide, self.cache["one"] = True, 8, x.new_ones(1)
        return self.last((y * self.factor).view(len(x), self.wide, *x.shape[2:]))


def test_a_network_that_grows_when_it_first_runs_can_be_made_smaller():
    network = Growing().double()
    graph, small, masked, removed = halved(network, picture())
    for a, b in zip(outputs(small, picture()), outputs(masked, picture()), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert "factor" in graph.axes and network.ready


def test_a_network_that_sets_its_parameters_by_inputs_computes_them():
    network, other = (copy.deepcopy(n) for n in [SetBy()] * 2)
    trace(network, picture().float())
    with torch.no_grad():
        other(picture().float())
    assert torch.equal(network.scale, other.scale) and network.ready


def test_an_attribute_that_counts_several_parts_keeps_them_equal():
    network = Block(
        lambda n, x: n.last(torch.cat([p.tanh() for p in n.a(x).split((n.key, n.key, n.value), 1)], 1)),
        {"key": 4, "value": 6},
        a=conv(3, 14),
        last=conv(14, 2),
    )
    graph = trace(network, picture().float())
    query, key, value = np.split(graph.elements("a", 0), [4, 8])
    assert (query == key).all() and not set(query) & set(value) and not graph.locked(query).any()
    small = assert_equal(network, picture(), "a")
    assert (small.key, small.value, small.a.out_channels) == (2, 3, 7)


class Gated(nn.Conv2d):
    """Its weight depends on its input."""

    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean().sigmoid(), self.bias, self.stride, self.padding)


class GatedByANumber(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * float(x.mean()), self.bias, self.stride, self.padding)


class Louder(Standardised):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [Gated, GatedByANumber, Louder])
def test_no_weight_that_depends_on_the_input_becomes_plain(kind):
    network = Net(lambda n, x: n.last(n.a(x)), a=kind(3, 8, 3, padding=1), last=conv(8, 2)).double()
    assert plain_weights(network.eval(), picture()) is network


def test_a_computed_weight_that_a_convolution_keeps_stays_its_own():
    class Keeping(nn.Conv2d):
        kept = None

        def forward(self, x):
            self.kept = 2 * self.weight if self.kept is None else self.kept
            return F.conv2d(x, self.kept, self.bias, self.stride, self.padding)

    network = Net(lambda n, x: n.last(n.a(x)), a=Keeping(3, 8, 3, padding=1), last=conv(8, 2)).double().eval()
    plain = plain_weights(network, picture())
    before = network(picture())
    with torch.no_grad():
        plain.a.weight.zero_()
    assert type(plain.a) is nn.Conv2d and torch.equal(network(picture()), before)
