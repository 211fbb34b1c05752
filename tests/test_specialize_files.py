"""Files of specialised networks: everything a file says comes back, and what does not belong together is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemask import spaces
from sparsemask.errors import UseError
from sparsemask.files import sha256
from sparsemask.masks.spatial import FineMasks, load_masks, save_masks
from sparsemask.spaces.connectivity import PrunedNetwork, named_mask
from sparsemask.spaces.connectivity.encoding import mask_word, read_mask
from sparsemask.spaces.sparse_conv.masking import apply_masks, hard_masks
from sparsemask.spaces.specialized import SpecializedNetwork

SPACE = spaces.get("specialized")
CONFIG = {"connectivity": "unet", "depth": 8, "n_class": 4, "first_expansion": "no", "where": "all", "max_stride": 8}


@pytest.fixture(scope="module")
def network() -> SpecializedNetwork:
    torch.manual_seed(0)
    return SPACE.supernet(CONFIG).eval()


def masks_of(network, **more) -> FineMasks:
    given = {
        "space": "specialized", "task": "segmentation", "channels": hard_masks(network), "sha256": "0" * 64,
        "config": network.config, "connectivity": SPACE.connectivity_of(network),
    }  # fmt: skip
    return FineMasks(**{**given, **more})


def out(network) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.randn(1, 3, 33, 40, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["unet", "dense", "random-15", "sparsemask-voc"])
def test_connections_are_a_word_and_come_back(name):
    mask = named_mask(name, 9)
    word = mask_word(mask)
    assert " " not in word and np.array_equal(read_mask(word, 9), mask)


@pytest.mark.parametrize(
    "text, features, words",
    [
        ("9:0e0,9e0", 9, "outside"),
        ("8:0e0", 9, "8 features"),
        ("nothing", 9, "nothing"),
        ("missing.npy", 9, "missing.npy"),
    ],
)
def test_connections_that_do_not_fit_are_refused(text, features, words):
    with pytest.raises(UseError, match=words):
        read_mask(text, features)


def test_a_shared_network_says_all_about_itself(network, tmp_path):
    path = tmp_path / "network.safetensors"
    SPACE.save(path, network, masks_of(network, threshold=0.3))
    found = SPACE.load(path).network
    assert found.config == network.config
    assert found.config["connectivity"] == mask_word(named_mask("unet", 9))
    assert all(one.locate.threshold == 0.3 for one in found.masked.values())
    apply_masks(found, hard_masks(found), 0.5)
    assert torch.equal(out(found), out(network))


def test_a_network_that_enlarges_keeps_its_scale(tmp_path):
    made = SPACE.supernet({**CONFIG, "scale": 3}).eval()
    SPACE.save(tmp_path / "n.safetensors", made)
    found = SPACE.load(tmp_path / "n.safetensors").network
    assert found.scale == 3 and out(found).shape == (1, 3, 99, 120)


def test_a_mask_file_holds_all_levels_and_belongs_to_its_weights(network, tmp_path):
    weights, other = tmp_path / "network.safetensors", tmp_path / "other.safetensors"
    SPACE.save(weights, network)
    shared = {"sha256": sha256(weights), "kept_whole": 0.4, "measured_on": "somewhere", "threshold": 0.6}
    save_masks(tmp_path / "mask.npz", masks_of(network, kept=dict.fromkeys(hard_masks(network), 0.5), **shared))
    found = load_masks(tmp_path / "mask.npz")
    assert np.array_equal(found.connectivity, named_mask("unet", 9))
    assert found.channels.keys() == hard_masks(network).keys()
    assert (found.threshold, found.mean_kept, found.measured_on) == (0.6, 0.4, "somewhere")
    again = SPACE.network(found, {})  # the file alone says what to build
    again.load_state_dict(network.state_dict())
    assert again.config == network.config
    found.check_weights(weights)
    with torch.no_grad():
        network.fc_conv.bias += 1
    SPACE.save(other, network)
    with pytest.raises(UseError, match="another checkpoint"):
        found.check_weights(other)


def test_masks_of_another_network_are_refused(network):
    channels = hard_masks(network)
    fewer = dict(list(channels.items())[1:])
    wider = {name: np.ones((1, mask.shape[1] + 1), bool) for name, mask in channels.items()}
    for wrong in (fewer, wider):
        with pytest.raises(UseError, match="another network"):
            apply_masks(network, wrong)
    with pytest.raises(UseError, match="space 'smsr'"):
        SPACE.network(masks_of(network, space="smsr"))


def test_weights_without_masks_start_a_network_of_other_classes_too(network):
    dense = PrunedNetwork(named_mask("unet", 9), depth=8, num_classes=4, first_expansion=False)
    made = SPACE.supernet(CONFIG)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    SPACE.load_weights_into(made, dense.state_dict(), "dense")
    after = made.state_dict()
    for name, value in dense.state_dict().items():
        assert torch.equal(after[name], value), name
    fresh = [name for name in after if name not in dense.state_dict()]
    assert fresh and all(torch.equal(after[name], before[name]) for name in fresh)
    other = SPACE.supernet({**CONFIG, "n_class": 2})
    SPACE.load_weights_into(other, dense.state_dict(), "dense")  # another task: only the classifier is fresh
    assert other.fc_conv.out_channels == 2
    with pytest.raises(UseError, match="do not fit"):
        SPACE.load_weights_into(SPACE.supernet({**CONFIG, "connectivity": "dense"}), dense.state_dict(), "dense")


def test_weights_that_do_not_say_what_they_are_of_are_refused(network):
    with pytest.raises(UseError, match="connectivity"):
        SPACE.build(network.state_dict(), "weights", {})
    with pytest.raises(UseError, match="--connectivity is missing"):
        SPACE.supernet({"depth": 8})


def test_forms_share_nothing_and_compute_the_same(network):
    network.eval()
    wanted = out(network)
    fast, dense = SPACE.fast_form(network), SPACE.dense_form(network)
    assert torch.allclose(out(fast), wanted, atol=1e-4 * float(wanted.abs().max()))
    apply_masks(network, hard_masks(network), 0.0)  # everything is kept
    assert torch.allclose(out(dense), out(network), atol=1e-4 * float(wanted.abs().max()))
    apply_masks(network, hard_masks(network), 0.5)
    assert torch.equal(out(network), wanted)
