"""Connections, channels and places together: networks of searched connectivity without groups, under masks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hinge import enliven, one_thread  # noqa: F401
from sparsemask import spaces
from sparsemask.costs import multiply_adds
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.masks.groups import GroupMask, load_mask, save_mask
from sparsemask.spaces.connectivity import PrunedNetwork, load_network, named_mask, save_network
from sparsemask.spaces.connectivity.encoding import mask_word
from sparsemask.spaces.connectivity.space import ConnectivityConfig
from sparsemask.spaces.connectivity.widths import narrow_, widths_of
from sparsemask.spaces.connectivity_pruned_encoder.space import described, small_widths
from sparsemask.spaces.sparse_conv.masking import apply_masks, hard_masks
from sparsemask.spaces.specialized import SpecializedNetwork
from sparsemask.sparse import available_backends, backend
from test_specialize_network import lively

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = [name for name, reason in available_backends().items() if reason is None]
SLIM = spaces.get("slim")
CONNECTIONS = named_mask("unet", 9)
OPTIONS = {
    "connectivity": mask_word(CONNECTIONS), "backbone_name": "mobilenet_v2", "depth": 8, "first_expansion": "no",
    "bn_momentum": 0.1, "n_class": 4, "init": "svd2", "input_shape": [3, 33, 33],
}  # fmt: skip


@pytest.fixture(scope="module")
def slimmed():
    """(network with its groups zeroed, its mask, weights of what is left)."""
    torch.manual_seed(0)
    config = SLIM.config(OPTIONS)
    plain = enliven(SLIM.plain(config), (4, 3, 64, 64))
    hinged = SLIM.hinged(plain, config)
    network, reduction = hinged.network.eval(), hinged.reduction
    rng = np.random.default_rng(0)
    kept = {s.name: rng.random(s.count) < 0.6 for s in reduction.sets}
    for one in kept.values():
        one[0] = True
    mask = GroupMask(config, kept, space="slim", sha256="0")
    state = SLIM.compressed(hinged, mask).network.state_dict()
    return reduction.removal.zero_(copy.deepcopy(network), kept), mask, state


def small(state: dict, **more) -> PrunedNetwork:
    """The network that is left, built as a connectivity network."""
    config = {**OPTIONS, "widths": small_widths(CONNECTIONS, OPTIONS, state), **more}
    network = spaces.get("connectivity").network(CONNECTIONS, config)
    network.load_state_dict(state)
    return network.eval()


def test_what_is_left_is_a_connectivity_network_of_the_same_function(slimmed):
    zeroed, mask, state = slimmed
    network = small(state)
    x = torch.randn(2, 3, 65, 80)  # of another size than the groups were found at
    with torch.no_grad():
        torch.testing.assert_close(network(x), zeroed(x), rtol=1e-4, atol=1e-4)
    assert multiply_adds(network, (1, 3, 64, 64)) < 0.6 * multiply_adds(zeroed, (1, 3, 64, 64))
    assert all(name.startswith("backbone.") for name in mask.kept)  # the decoder's channels are specialising's
    end_points = network.backbone(x)
    assert [point.shape[1] for point in end_points] == network.backbone.channels


def test_its_file_says_its_widths_and_optimised_forms_agree(slimmed, tmp_path):
    network = small(slimmed[2])
    config = ConnectivityConfig.from_options({**OPTIONS, "widths": network.widths})
    save_network(
        tmp_path / "net.safetensors",
        network,
        {"backbone_name": config.backbone_name, "depth": config.depth, "first_expansion": "no"},
        4,
    )
    again = load_network(tmp_path / "net.safetensors")
    folded = copy.deepcopy(network)
    folded.fold()
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-4)
    found = described(tmp_path / "net.safetensors")  # and groups may be looked for in it again
    assert found["widths"] == network.widths and found["connectivity"] == OPTIONS["connectivity"]
    assert SLIM.plain(SLIM.config({**OPTIONS, **found})).state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("name", BACKENDS)
def test_skipping_equals_masking_without_groups(slimmed, name):
    torch.manual_seed(1)
    state = slimmed[2]
    network = SpecializedNetwork(
        CONNECTIONS, depth=8, num_classes=4, first_expansion=False, widths=small(state).widths, max_stride=8
    )
    own = network.state_dict()
    network.load_state_dict({**own, **state})
    lively(network)
    rng = np.random.default_rng(2)
    apply_masks(network, {key: rng.random(one.shape) < 0.6 for key, one in hard_masks(network).items()})
    x = torch.randn(1, 3, 64, 72)
    with torch.no_grad(), backend(name):
        fast = spaces.get("specialized").fast_form(network)
        wanted = network(x)
        torch.testing.assert_close(fast(x.contiguous(memory_format=torch.channels_last)), wanted, rtol=1e-4, atol=1e-4)
    shares = [float(one.float().mean()) for one in network.masks]
    assert 0 < sum(shares) < len(shares)  # some places are dropped, some kept
    assert network.config["widths"] == network.widths
    again = spaces.get("specialized").build(network.state_dict(), "weights", network.config)
    with torch.no_grad():
        assert torch.equal(again(x), wanted)


def test_specialising_begins_from_the_network_without_groups(slimmed):
    state = slimmed[2]
    space = spaces.get("specialized")
    config = {**OPTIONS, "where": "all", "max_stride": 8, "widths": small(state).widths}
    network = space.supernet(config)
    space.load_weights_into(network, state, "weights")
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(space.dense_form(network.eval())(x), small(state)(x), rtol=1e-4, atol=1e-4)


def test_mask_files_say_the_space_and_are_of_one_checkpoint(slimmed, tmp_path):
    zeroed, mask, state = slimmed
    weights = tmp_path / "searched.pt"
    torch.save({"model": zeroed.state_dict()}, weights)
    path = tmp_path / "groups.npz"
    save_mask(path, GroupMask(mask.config, mask.kept, checkpoint=str(weights), sha256=sha256(weights), space="slim"))
    connections, found = SLIM.read(path)
    assert np.array_equal(connections, CONNECTIONS) and load_mask(path).space == "slim"
    assert found.config["arch_options"]["depth"] == 8
    left = SLIM.start(path)
    assert left.keys() == state.keys() and all(torch.equal(left[key], state[key]) for key in state)
    torch.save({"model": state}, weights)
    with pytest.raises(UseError, match=r"another checkpoint"):
        SLIM.read(path)


def test_pairs_are_widths_too():
    backbone = spaces.backbones.create("mobilenet_v2", first_expansion=False)
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    assert widths_of(backbone, state) is None
    conv = state.pop("backbone.conv1.weight")
    state |= {"backbone.conv1.0.weight": conv[:5], "backbone.conv1.1.weight": torch.zeros(32, 5, 1, 1)}
    word = widths_of(backbone, state)
    assert word.startswith("32x5x3,32,")
    narrow_(backbone, word)
    assert backbone.conv1[0].weight.shape == (5, 3, 3, 3) and backbone.channels[-1] == 32


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda word: "nonsense", "not the widths"),
        (lambda word: word + ",3", "not the widths"),
        (lambda word: word.replace("32x3,", "64x3,", 1), "conv1 cannot be 64x3"),
        (lambda word: word.replace("32x3,32,", "16x3,16,", 1), "do not fit together"),
        (lambda word: word.replace("32x3,", "0x3,", 1), "cannot be 0x3"),
    ],
)
def test_widths_that_are_none_are_refused(spoil, words):
    backbone = spaces.backbones.create("mobilenet_v2", first_expansion=False)
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    state["backbone.conv_last.weight"] = state["backbone.conv_last.weight"][:1000]  # else there is nothing to say
    with pytest.raises(UseError, match=words):
        narrow_(backbone, spoil(widths_of(backbone, state)))


def test_bordered_weights_are_refused():
    backbone = spaces.backbones.create("mobilenet_v2", first_expansion=False)
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    with pytest.raises(UseError, match=r"conv1 has a border.*--fold interior"):
        widths_of(backbone, {**state, "backbone.conv1.border": torch.zeros(32, 1, 3, 3)})
