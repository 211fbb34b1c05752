"""Group sparsity's networks: sizes as published, shapes, names, and networks of a user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hinge import one_thread, published_count  # noqa: F401
from sparsemask import plugins
from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity import networks
from sparsemask.spaces.group_sparsity.networks.layers import PadChannels

pytestmark = pytest.mark.usefixtures("one_thread")

# Network, classes, multiply-adds in millions as published, parameters.
PUBLISHED = [
    ("resnet20", 10, 41.116, 269_738),
    ("resnet20", 100, None, 275_588),
    ("resnet56", 10, 127.083, 853_034),
    ("resnet164", 10, 257.326, 1_704_154),
    ("resnet164", 100, None, 1_727_284),
    ("resnext20", 10, 36.817, 211_850),
    ("resnext20", 100, None, 234_980),
    ("resnext164", 10, 259.640, 1_713_546),
    ("vgg16", 10, 314.555, 15_253_578),
    ("densenet40", 10, 290.106, 1_059_298),
    ("wrn16_10", 100, 3123.084, 17_179_940),
]


@pytest.mark.parametrize(("arch", "n_class", "millions", "parameters"), PUBLISHED)
def test_sizes_are_the_published_ones(arch, n_class, millions, parameters):
    network = networks.create(arch, n_class)
    found, count = published_count(network)
    assert count == parameters
    assert millions is None or round(found / 1e6, 3) == millions


def test_every_name_stands_in_the_table():
    assert {row[0] for row in PUBLISHED} == set(networks.available())


@pytest.mark.parametrize(
    ("arch", "keys"),
    [
        ("resnet20", ["features.0.0.bias", "features.1.2.body.3.weight", "features.3.0.body.4.running_var"]),
        ("resnet164", ["features.1.0.downsample.0.weight", "features.3.17.body.6.weight", "classifier.bias"]),
        ("resnext20", ["conv1.weight", "layer2.0.shortcut.1.weight", "layer3.1.conv3.weight", "linear.weight"]),
        ("vgg16", ["features.0.0.bias", "features.16.1.running_mean", "classifier.2.weight"]),
        ("densenet40", ["features.0.weight", "features.5.11.body.2.weight", "features.4.2.weight", "features.6.bias"]),
        ("wrn16_10", ["conv1.bias", "layer1.0.shortcut.0.bias", "layer3.1.bn2.weight", "bn1.weight", "linear.bias"]),
    ],
)
def test_keys_follow_the_published_files(arch, keys):
    state = networks.create(arch).state_dict()
    assert not set(keys) - set(state)


def test_features_halve_where_a_stage_begins():
    network = networks.create("resnet20").eval()
    sizes = []
    for stage in network.features:
        stage.register_forward_hook(lambda module, given, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_stride_of_shortcuts_takes_every_second_pixel():
    x = torch.randn(2, 16, 6, 8)
    strided, mean = (networks.create("resnet20", shortcut=kind).features[2][0].downsample for kind in ("strided", "A"))
    padded = torch.zeros(2, 32, 3, 4)
    padded[:, 8:24] = x[:, :, ::2, ::2]
    assert torch.equal(strided(x), padded)
    padded[:, 8:24] = x.reshape(2, 16, 3, 2, 4, 2).mean((3, 5))
    assert torch.allclose(mean(x), padded, atol=1e-6)


def test_padding_follows_removed_channels():
    pad = PadChannels(2, 3)
    keep_in, keep_out = (
        torch.tensor([1, 0, 1, 1]).bool().numpy(),
        torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 0]).bool().numpy(),
    )
    pad.remove_channels(keep_in, keep_out)
    assert (pad.before, pad.after) == (1, 2)
    assert pad(torch.ones(1, 3, 1, 1)).flatten().tolist() == [0, 1, 1, 1, 0, 0]


def test_other_depths_of_known_families():
    assert len(networks.create("resnet110").features[1]) == 18
    assert len(networks.create("densenet22").features[1]) == 6


# What is asked for, and what the one line has to say.
WRONG = [
    (("resnet21",), {}, "depth 21 does not exist"),
    (("vgg19",), {}, "unknown network 'vgg19'; did you mean 'vgg16'\\? known: densenet40"),
    (("resnet20",), {"shortcut": "B"}, "unknown shortcut 'B'"),
    (("resnet20",), {"widen": 3}, "unknown option of resnet20 'widen'; known: bias, block, shortcut"),
    (("nowhere.at_all:net",), {}, "cannot be imported"),
    (("hinge:nothing",), {}, "cannot be imported"),
    (("hinge:__doc__",), {}, "is no callable"),
    (("builtins:int",), {}, "expected a torch.nn.Module"),
    (("hinge:small_unet",), {"bias": True}, "takes no options"),
]


@pytest.mark.parametrize(("given", "options", "text"), WRONG)
def test_errors_of_use(given, options, text):
    with plugins.trusting(given), pytest.raises(UseError, match=text):
        networks.create(*given, **options)


def test_a_network_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_small_net.py").write_text(
        "from torch import nn\ndef build(num_classes): return nn.Sequential(nn.Conv2d(3, num_classes, 3))\n"
        "def plain(): return nn.Conv2d(3, 5, 1)\n"
    )
    with plugins.trusting(["my_small_net:build", "my_small_net:plain"]):
        network = networks.create("my_small_net:build", 7)  # a file beside which the command was started
        assert isinstance(network, nn.Module) and network[0].out_channels == 7
        assert networks.create("my_small_net:plain", 7).out_channels == 5  # takes no number of classes
    assert networks.create(lambda n_class: nn.Conv2d(3, n_class, 1), 6).out_channels == 6
    assert networks.architecture("my_small_net:build") is None
