"""Every built-in space, and a user's, by the contract test that ships with the package."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import pyramid  # noqa: F401  a user's encoder, trusted
from point_crops import crop
from sparsemask import spaces
from sparsemask.config import Section, flag
from sparsemask.masks.decoder import FULL, POINTWISE, SEPARABLE, decoder_mask
from sparsemask.masks.groups import GroupMask
from sparsemask.options import positive
from sparsemask.spaces import Loaded, Space, backbones
from sparsemask.spaces.connectivity import named_mask
from sparsemask.spaces.connectivity.encoding import mask_word
from sparsemask.tasks.stereo.batch import StereoPair
from sparsemask.testing.spaces import SpaceContract
from toy_space import TOY, ToyNetwork, ToySpace


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small are only slowed down by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


ENCODER = {"depth": 4, "n_class": 3, "first_expansion": "no"}
WORD = mask_word(named_mask("unet", 9))
WIDER = named_mask("fpn", 9, strides=backbones.strides("mobilenet_v2"), depth=8)


class TestConnectivity(SpaceContract):
    space, config = spaces.get("connectivity"), ENCODER
    inputs, mask = noise(2, 3, 33, 40), named_mask("unet", 9)


class TestConnectivityWider(SpaceContract):
    space, config = spaces.get("connectivity"), ENCODER
    inputs, mask = noise(2, 3, 33, 40), WIDER


class TestConnectivityBaseline(SpaceContract):
    space, config = spaces.get("connectivity"), {"backbone_name": "pyramid:Pyramid", "n_class": 3}
    inputs, mask = noise(2, 3, 33, 40), "fcn"


class TestSMSR(SpaceContract):
    space, config = spaces.get("smsr"), {"scale": 2, "n_feats": 8, "n_modules": 2, "n_layers": 2, "reduction": 4}
    inputs = 255 * noise(1, 3, 16, 20).abs().clamp(0, 1)


class TestSR(SpaceContract):
    space = spaces.get("sr")
    config = {"dense": '{"architecture": "EDSR", "scale": 2, "n_feats": 16, "n_blocks": 2}'}
    inputs = 255 * noise(1, 3, 16, 20).abs().clamp(0, 1)


class TestSMPointSeg(SpaceContract):
    space = spaces.get("smpointseg")
    config = {"d_in": 6, "n_class": 4, "channels": [4, 8], "n_neighbors": 4, "radius": 0.3}
    inputs = crop(64, k=4, levels=2)


class TestSMStereo(SpaceContract):
    space, config = spaces.get("smstereo"), {"maxdisp": 16, "groups": 8}
    inputs = StereoPair(noise(1, 3, 16, 32), noise(1, 3, 16, 32))


class TestSpecialized(SpaceContract):
    space, config = spaces.get("specialized"), {**ENCODER, "connectivity": WORD, "place_stride": 8}
    inputs = noise(2, 3, 33, 40)


class TestSpecializedWider(SpaceContract):
    space, config = spaces.get("specialized"), {**ENCODER, "connectivity": mask_word(WIDER), "place_stride": 8}
    inputs = noise(2, 3, 33, 40)


class TestSpecializedEnlarging(SpaceContract):
    space, config = spaces.get("specialized"), {**ENCODER, "connectivity": WORD, "where": "decoder", "scale": 2}
    inputs = 255 * noise(2, 3, 32, 40).abs().clamp(0, 1)


class Groups(SpaceContract):
    """A space of group sparsity: half of the groups of every set stay."""

    def make_mask(self, supernet):
        config = self.space.config(self.config)
        sets = self.space.structure(config).reduction.sets
        return GroupMask(config, {s.name: np.arange(s.count) % 2 == 0 for s in sets}, space=self.space.name)


class TestHinge(Groups):
    space, config = spaces.get("hinge"), {"arch": "resnet8", "n_class": 4, "input_shape": [3, 16, 16]}
    inputs = noise(2, 3, 16, 16)


class TestSlim(Groups):
    space = spaces.get("slim")
    config = {
        "backbone_name": "pyramid:Pyramid", "depth": 4, "n_class": 3, "input_shape": [3, 33, 40],
        "connectivity": mask_word(named_mask("unet", 4)),
    }  # fmt: skip
    inputs = noise(2, 3, 33, 40)


class TestSlimWider(Groups):
    space = spaces.get("slim")
    takes = named_mask("unet", 4)
    decoder = decoder_mask(takes, [FULL, SEPARABLE, POINTWISE, FULL], [16, 8, 24, 8], context=True)
    config = {**TestSlim.config, "connectivity": mask_word(decoder)}
    inputs = noise(2, 3, 33, 40)


class TestUsersOwn(SpaceContract):
    space, config = TOY, {"hidden": 6, "n_class": 4}
    inputs, mask = noise(2, 3, 16, 16), np.array([True, False, True, True, False, True])


def test_all_built_in_spaces_are_tested():
    tested = {case.space.name for case in every(SpaceContract) if isinstance(vars(case).get("space"), Space)}
    # Other tests of this process may have registered spaces of their own.
    built_in = {
        name for name in spaces.available() if type(spaces.get(name)).__module__.startswith("sparsemask.spaces.")
    }
    assert built_in and tested == {*built_in, TOY.name}


def every(kind: type) -> set[type]:
    """All classes below one."""
    return {below for one in kind.__subclasses__() for below in (one, *every(one))}


def halved(self, network):
    made = copy.deepcopy(network)
    made.last.weight.data.mul_(0.5)
    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class OddViews(Section):
    """A flag without a word of what it is for."""

    title: ClassVar[str] = "odd"

    odd: int = flag(1, positive, help="")


# Members that break the contract, and the test that must find it.
FAULTS = {
    "load gives a bare network": (
        {"load": lambda self, path: ToySpace.load(self, path).network},
        SpaceContract.test_a_shared_file_is_read_again,
    ),
    "load gives it in training mode": (
        {"load": lambda self, path: Loaded(ToySpace.load(self, path).network.train())},
        SpaceContract.test_a_shared_file_is_read_again,
    ),
    "transfer cuts nothing": (
        {"transfer": lambda self, checkpoint, mask, config: dict(checkpoint)},
        SpaceContract.test_its_small_network_takes_the_supernet_s_weights,
    ),
    "weights are loaded as far as they fit": (
        {"load_weights_into": lambda self, network, state, source: network.load_state_dict(state, strict=False)},
        SpaceContract.test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded,
    ),
    "the fast form shares weights": (
        {"fast_form": lambda self, network: network},
        SpaceContract.test_the_fast_form_is_the_network_and_shares_nothing,
    ),
    "the fast form computes something else": (
        {"fast_form": halved},
        SpaceContract.test_the_fast_form_is_the_network_and_shares_nothing,
    ),
    "a flag does not say what it is for": (
        {"views": OddViews},
        SpaceContract.test_its_flags_stand_beside_those_of_every_command,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_finds_faults(fault, tmp_path):
    methods, test = FAULTS[fault]
    case = type("Case", (TestUsersOwn,), {"space": type("Broken", (ToySpace,), methods)()})()
    arguments = [tmp_path] if "tmp_path" in inspect.signature(test).parameters else []
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(case, *arguments)


def test_what_is_no_space_is_not_registered():
    with pytest.raises(TypeError, match=r"odd.*ToyNetwork"):
        spaces.register("odd", ToyNetwork(2, 2))
    assert "odd" not in spaces.available()


def test_a_space_without_its_methods_cannot_be_made():
    class Half(Space):
        family = "connectivity"

    with pytest.raises(TypeError, match="supernet"):
        Half()
