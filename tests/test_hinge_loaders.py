"""Networks out of files: every layout, smaller tensors, weights that were published, and files that do not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from hinge import SmallUNet, enliven, lively, one_thread  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity import loaders, networks
from sparsemask.spaces.group_sparsity.compression.compress import compress
from sparsemask.spaces.group_sparsity.groups import GroupSet
from sparsemask.spaces.group_sparsity.pairs import DoubleReLU, Pair, groups_of, hinge, merge
from sparsemask.spaces.group_sparsity.rules import plan_for
from sparsemask.spaces.group_sparsity.tracing.graph import trace

pytestmark = pytest.mark.usefixtures("one_thread")

# Network, variant, options: every family, both rules where there are two.
NETWORKS = [
    ("resnet20", "svd", {}),
    ("resnet20", "columns", {"shortcut": "C", "bias": False}),
    ("resnet20", None, {"block": "bottleneck", "bias": False, "shortcut": "C"}),  # a small resnet164
    ("resnext20", None, {}),
    ("vgg16", None, {}),
    ("densenet40", "svd", {"growth": 6}),
    ("densenet40", "columns", {"growth": 6}),
    ("wrn16_10", "columns", {"widen": 2}),
]


def dropped(sets: Sequence[GroupSet], share: float = 0.4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s.name: rng.random(s.count) >= share for s in sets}


@pytest.mark.parametrize("fold", ["exact", "none"])
@pytest.mark.parametrize(("arch", "variant", "options"), NETWORKS)
def test_compressed_files_build_their_network(arch, variant, options, fold):
    network = lively(arch, **options)
    plan = plan_for(arch, variant, network)
    hinge(network, plan, "p-identity")
    x = torch.randn(2, 3, 32, 32)
    sets = groups_of(network, plan)
    small = compress(network, trace(network, x[:1]), sets, dropped(sets), fold)
    merge(small, plan.merge)
    built = loaders.build(small.state_dict(), "file")
    with torch.no_grad():
        assert torch.equal(built(x), small.eval()(x))  # the same layers: the same numbers
    count = lambda n: sum(p.numel() for p in n.parameters())
    assert count(built) == count(small) < count(network)
    for module in built.modules():  # numbers say what the weights are
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean)


def test_hinged_files_have_their_pairs_and_slopes():
    network = lively("resnet20")
    hinge(network, plan_for("resnet20", None, network), "p-identity")
    state = network.state_dict()
    state["features.1.0.body.2.slope_n"] = torch.tensor([0.25])  # written with a dimension elsewhere
    state["features.1.0.running_grad_ratio"] = torch.tensor(1.0)  # a search's state, no weight
    built = loaders.build(state, "file")
    assert sum(isinstance(m, Pair) for m in built.modules()) == 18
    assert sum(isinstance(m, DoubleReLU) for m in built.modules()) == 9
    assert float(built.features[1][0].body[2].slope_n.detach()) == 0.25


def test_published_densenets_keep_the_matrix_beside_its_convolution():
    network = lively("densenet40", growth=4)
    hinge(network, plan_for("densenet40", None, network), "p-identity")
    published = {}
    for key, value in network.state_dict().items():  # ...2.0.weight -> ...2.weight, ...2.1.weight -> ...3.weight
        inside = re.sub(
            r"(\.body|^features\.[24])\.2\.([01])\.weight$", lambda f: f"{f[1]}.{2 + int(f[2])}.weight", key
        )
        published[inside] = value
    assert "features.1.0.body.3.weight" in published and "features.2.3.weight" in published
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaders.build(published, "file")(x), network(x))


@pytest.mark.parametrize(
    ("arch", "n_class", "options"),
    [
        ("resnet56", 10, {}),
        ("resnet164", 10, {}),
        ("resnet29", 10, {"block": "bottleneck"}),
        ("resnet110", 100, {"bias": False}),
        ("resnext20", 7, {"width": 2, "cardinality": 16}),
        ("vgg16", 3, {}),
        ("densenet22", 10, {"growth": 8}),
        ("wrn16_10", 100, {"widen": 1}),
    ],
)
def test_plain_files_say_which_network_they_are_of(arch, n_class, options):
    layout = loaders.read(networks.create(arch, n_class, **options).state_dict(), "file")
    assert (layout.arch, layout.n_class, layout.options) == (arch, n_class, options)


def akamaster(network: nn.Module) -> dict[str, torch.Tensor]:
    """The names of the public CIFAR ResNets, without the counters of newer torch versions."""
    block = r"features\.(\d)\.(\d+)"
    names = [(r"features\.0\.0", "conv1"), (r"features\.0\.1", "bn1"), ("classifier", "linear")]
    parts = {r"body\.0": "conv1", r"body\.1": "bn1", r"body\.3": "conv2", r"body\.4": "bn2", "downsample": "shortcut"}
    names += [(rf"{block}\.{ours}", rf"layer\1.\2.{theirs}") for ours, theirs in parts.items()]
    state = {}
    for key, value in network.state_dict().items():
        for ours, theirs in names:
            key = re.sub(f"^{ours}", theirs, key)
        if not key.endswith("num_batches_tracked"):
            state[key] = value
    return state


@pytest.mark.parametrize("shortcut", ["strided", "C"])
def test_the_other_layout_of_residual_networks(shortcut):
    network = lively("resnet20", bias=False, shortcut=shortcut)
    state = akamaster(network)
    layout = loaders.read(state, "file")
    assert (layout.arch, layout.options) == ("resnet20", {"bias": False, "shortcut": shortcut})
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaders.build(state, "file")(x), network(x))
    fresh = networks.create("resnet20", bias=False, shortcut=shortcut).eval()
    loaders.load_into(fresh, state, "file")
    assert torch.equal(fresh(x), network(x))


# Published top-1 in percent of the files that the shared data has; a picture set of 512 is right within four points.
@pytest.mark.parametrize(
    ("file", "published"),
    [("resnet20-12fca82f.th", 91.7), pytest.param("resnet56-4bfd9763.th", 93.4, marks=pytest.mark.slow)],
)
def test_public_weights_are_as_good_as_published(shared_data, file, published):
    network = loaders.load(shared_data / "weights" / file)
    assert network.shortcut == "strided"
    with np.load(shared_data / "cifar10" / "test_5000.npz") as data:
        pictures, labels = data["x"][:512], data["y"][:512]
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # as they were trained
    with torch.no_grad():
        found = network((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).argmax(1)
    accuracy = 100 * float((found == torch.from_numpy(labels)).float().mean())
    assert abs(accuracy - published) < 4


def test_weights_of_a_network_of_the_users_own():
    network, other = (enliven(SmallUNet(), (2, 3, 16, 16)) for _ in range(2))
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    loaders.load_into(other, state, "file")
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(other(x), network(x))
    graph = trace(network, x)
    plan = plan_for("my:unet", None, network, graph)
    sets = groups_of(hinge(network, plan), plan)
    small = compress(network, trace(network, x), sets, dropped(sets))
    fresh = SmallUNet().eval()
    loaders.fit_shapes(fresh, small.state_dict())
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(x), small(x))


# Files that do not fit ----------------------------------------------------------------------------------------------


def without(key: str) -> dict:
    return {k: v for k, v in networks.create("resnet20").state_dict().items() if k != key}


def with_shape(key: str, *shape: int) -> dict:
    return {**networks.create("resnet20").state_dict(), key: torch.zeros(shape)}


BROKEN = [
    (lambda: {"fc.weight": torch.zeros(2, 2)}, "of none of the networks densenet40.*begins with fc.weight"),
    (lambda: without("features.2.1.body.3.weight"), r"1 tensors are missing \(features.2.1.body.3.weight\)"),
    (lambda: without("classifier.weight"), "torn or of another network"),
    (lambda: {**without(""), "extra": torch.zeros(1)}, r"do not belong here \(extra\)"),
    (lambda: with_shape("features.1.0.body.0.weight", 9, 16, 3, 3), "its layers do not fit each other"),
    (lambda: with_shape("features.1.0.body.0.weight", 16, 16), "features.1.0.body.0.weight is"),
    (lambda: {**without(""), "features.4000.0.body.0.weight": torch.zeros(1)}, "do not belong here"),
]


@pytest.mark.parametrize(("state", "text"), BROKEN)
def test_broken_files_are_refused_in_one_line(state, text):
    with pytest.raises(UseError, match=f"^the file: .*{text}"):
        loaders.build(state(), "the file")


def test_strided_shortcuts_are_not_taken_for_means():
    state = akamaster(networks.create("resnet20", bias=False, shortcut="strided"))
    network = networks.create("resnet20", bias=False)
    before = network.classifier.weight.clone()
    with pytest.raises(UseError, match="every second pixel.*shortcut 'strided'"):
        loaders.load_into(network, state, "file")
    with pytest.raises(UseError, match="do not fit the network"):
        loaders.load_into(networks.create("resnet56", bias=False, shortcut="strided"), state, "file")
    assert torch.equal(network.classifier.weight, before)  # nothing was loaded
