"""The contract test of search spaces: what every :class:`spaces.Space` must do, and what its capabilities promise.

A space's test inherits it and says on which network, which input and which mask::

    class TestToySpace(SpaceContract):
        space, config = ToySpace(), {"n_class": 4}
        inputs, mask = torch.randn(2, 3, 16, 16), np.array([True, False, True, True])

Networks should be small: tests take seconds then.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsemask import exporting, families, flags, spaces, tasks
from sparsemask.costs import count_parameters
from sparsemask.errors import UseError
from sparsemask.options import Parser
from sparsemask.spaces import Loaded, Space
from sparsemask.spaces.protocols import (
    Exportable,
    HasDenseForm,
    HasFastForm,
    HasKernelForm,
    HasLayerwiseForm,
    HasUnmaskedForm,
    HasViews,
    MakesMasks,
    PreparesImages,
    Shareable,
)
from sparsemask.sparse import repeatable


class SpaceContract:
    """Inherit it as a class whose name begins with ``Test``, and set the attributes.

    What a space needs otherwise may be overridden: :meth:`make_mask`, :meth:`save`, :meth:`cost_input`.
    """

    space: Space
    """The space, registered."""
    config: Mapping[str, Any] = {}
    """Options of a small network."""
    inputs: Any
    """A batch as the space's networks take it in training, and as its exported forms do."""
    mask: Any = None
    """A mask of such a network; None: the space makes one of its supernet (`MakesMasks`)."""
    tolerance: float = 1e-4
    """How far outputs that must be equal may be apart, over the largest output."""

    # What a test may say otherwise.

    def make_mask(self, supernet: nn.Module) -> Any:
        """A mask of a supernet of `config`."""
        if self.mask is not None:
            return self.mask
        assert isinstance(self.space, MakesMasks), "say the class attribute `mask`, or override make_mask()"
        return self.space.masks_of(supernet)

    def save(self, path: Path, network: nn.Module, mask: Any) -> None:
        """Write a network as the file to share."""
        if isinstance(self.space, Shareable):
            self.space.save(path, network, mask)
        else:
            assert isinstance(self.space, Exportable), "override save(): the space has no way to write a network"
            self.space.exportable(network, self.inputs, self.options(), mask).save(path)

    def cost_input(self) -> Any:
        """What :meth:`spaces.Space.cost` is asked about: a tensor's shape, or inputs of other kinds themselves."""
        return tuple(self.inputs.shape) if isinstance(self.inputs, Tensor) else [self.inputs]

    # What tests are made of.

    def options(self) -> dict[str, Any]:
        """`config` as a command has it: over the defaults of the space's flags."""
        return {**self.space.section().values(), **self.config}

    def supernet(self) -> nn.Module:
        """The supernet of `config`, the same at every call."""
        torch.manual_seed(0)
        return self.space.supernet(self.config)

    def small(self) -> tuple[nn.Module, Any]:
        """(the small network with its first weights, in evaluation mode; its mask). Built once, given as copies."""
        if "_small" not in vars(type(self)):
            supernet = self.supernet()
            mask = self.make_mask(supernet)
            network = self.space.network(mask, self.config)
            state = self.space.transfer(supernet.state_dict(), mask, self.config)
            self.space.load_weights_into(network, state, "the supernet")
            type(self)._small = network.eval().requires_grad_(False), mask
        network, mask = type(self)._small
        return copy.deepcopy(network), mask

    @torch.no_grad()
    def outputs(self, network: Any, *inputs: Any) -> list[Tensor]:
        """All tensors that a network gives, of the class's inputs or of others; they must be finite."""
        with repeatable():
            tensors = tree_leaves(network(*inputs) if inputs else network(self.inputs))
        assert tensors and all(isinstance(tensor, Tensor) and tensor.isfinite().all() for tensor in tensors)
        return tensors

    def assert_equal(self, actual: list[Tensor], expected: list[Tensor]) -> None:
        """Outputs are of the same shapes and agree to the tolerance."""
        assert [tensor.shape for tensor in actual] == [tensor.shape for tensor in expected]
        for a, b in zip(actual, expected, strict=True):
            apart, size = float((a - b).abs().max()), float(b.abs().max())
            assert apart <= self.tolerance * max(size, 1e-3), f"outputs differ by {apart:g}, their size is {size:g}"

    def need(self, capability: type) -> None:
        """Skip where the space has no such capability."""
        if not isinstance(self.space, capability):
            pytest.skip(f"'{self.space.name}' is not {capability.__name__}")

    # What every space does.

    def test_it_is_found_by_its_name(self):
        assert isinstance(self.space, Space)
        assert spaces.get(self.space.name) is self.space and self.space.name in spaces.available()
        assert isinstance(spaces.get(self.space.trained_as), Space)

    def test_its_family_and_task_exist(self):
        for verb in ("search", "prune", "retrain"):
            families.find(verb, self.space)
        assert self.space.task in tasks.available()
        assert all(isinstance(value, int | float) for value in self.space.published.values())

    def test_it_serves_its_own_task(self):
        before = self.space.task
        space = self.space.for_task(before)
        assert isinstance(space, Space) and space.name == self.space.name and space.task == before
        for task in tasks.available():  # what it does for others leaves the registered space alone
            self.space.for_task(task)
        assert self.space.task == before

    def test_its_flags_stand_beside_those_of_every_command(self):
        for adds in (
            (flags.add_run, flags.add_data, flags.add_network, flags.add_device, flags.add_training),  # training
            (flags.add_data, flags.add_network, flags.add_device),  # evaluation
        ):
            parser = Parser("retrain", prog="contract")
            for add in adds:
                add(parser, self.space)
            if self.space.views is not None:
                parser.add_section("views", self.space.views)
            assert parser.get_default("space") == self.space.name
            assert all(action.help for action in parser.actions().values()), "every flag says what it is for"

    def test_a_command_s_options_make_the_same_network(self):
        shapes = {name: value.shape for name, value in self.supernet().state_dict().items()}
        assert shapes
        torch.manual_seed(0)
        network = self.space.supernet(self.options())
        assert {name: value.shape for name, value in network.state_dict().items()} == shapes

    def test_its_supernet_is_drawn_from_torch_s_generator(self):
        first, second = (self.supernet().state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_its_supernet_learns(self):
        supernet = self.supernet().train()
        outputs = tree_leaves(supernet(self.inputs))
        assert outputs and all(tensor.isfinite().all() for tensor in outputs)
        sum(tensor.square().mean() for tensor in outputs).backward()
        gradients = [p.grad for p in supernet.parameters() if p.grad is not None]
        assert any(bool(tensor.abs().sum() > 0) for tensor in gradients) and all(
            tensor.isfinite().all() for tensor in gradients
        )

    def test_its_small_network_takes_the_supernet_s_weights(self):
        supernet = self.supernet()
        mask = self.make_mask(supernet)
        before = {name: value.clone() for name, value in supernet.state_dict().items()}
        state = self.space.transfer(supernet.state_dict(), mask, self.config)
        network = self.space.network(mask, self.config)
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in network.state_dict().items()}
        assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
        network.load_state_dict(state)
        self.outputs(network.eval())
        assert count_parameters(network) <= count_parameters(supernet)

    def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(self):
        network, _ = self.small()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        name = next(iter(network.state_dict()))
        torn = {key: value + 1 for key, value in before.items() if key != name}
        with pytest.raises(UseError, match="torn.pt"):
            self.space.load_weights_into(network, torn, "torn.pt")
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    def test_a_shared_file_is_read_again(self, tmp_path):
        network, mask = self.small()
        path = tmp_path / "network.safetensors"
        self.save(path, network, mask)
        loaded = self.space.load(path)
        assert isinstance(loaded, Loaded) and isinstance(loaded.network, nn.Module)
        assert not any(module.training for module in loaded.network.modules())
        assert all(value.device.type == "cpu" for value in loaded.network.state_dict().values())
        self.assert_equal(self.outputs(loaded.network), self.outputs(network))
        if loaded.mask is not None:  # it builds the network again
            again = self.space.network(loaded.mask, self.config)
            self.space.load_weights_into(again, loaded.network.state_dict(), path)
            self.assert_equal(self.outputs(again.eval()), self.outputs(network))

    def test_files_that_are_none_are_refused(self, tmp_path):
        (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 40)
        (tmp_path / "page.pt").write_text("<html>not found</html>")
        for name in ("absent.safetensors", "torn.safetensors", "page.pt"):
            with pytest.raises(UseError, match=name):
                self.space.load(tmp_path / name)

    def test_its_cost_is_measured(self):
        network, _ = self.small()
        cost = self.space.cost(network, self.cost_input())
        assert cost.parameters == count_parameters(network) and cost.multiply_adds > 0
        assert cost.milliseconds is None or cost.milliseconds > 0

    # What its capabilities promise.

    def test_exported_forms_are_the_network(self):
        self.need(Exportable)
        network, mask = self.small()
        exportable = self.space.exportable(network, self.inputs, self.options(), mask)
        assert isinstance(exportable, exporting.Exportable)
        batch = exportable.fitted(self.inputs)
        assert len(exportable.tensors(batch)) == len(exportable.inputs) and exportable.outputs
        expected = self.outputs(network, batch)
        for form in (exportable.program, exportable.plain):
            self.assert_equal(self.outputs(form, *exportable.tensors(batch)), expected)
        self.assert_equal(self.outputs(exportable.network, batch), expected)
        self.assert_equal(self.outputs(exportable.fast, batch), expected)

    def test_the_fast_form_is_the_network_and_shares_nothing(self):
        self.need(HasFastForm)
        network, _ = self.small()
        expected = self.outputs(network)
        form = self.space.fast_form(network)
        self.assert_equal(self.outputs(form), expected)
        with torch.no_grad():
            for parameter in form.parameters():
                parameter.zero_()
        self.assert_equal(self.outputs(network), expected)

    def test_the_dense_form_is_the_network_without_masks(self):
        self.need(HasDenseForm)
        network, _ = self.small()
        shapes = [tensor.shape for tensor in self.outputs(network)]
        dense = self.outputs(self.space.dense_form(network))
        assert [tensor.shape for tensor in dense] == shapes
        if isinstance(self.space, HasKernelForm):
            self.assert_equal(self.outputs(self.space.kernel_form(network)), dense)
        if isinstance(self.space, HasUnmaskedForm):
            self.assert_equal(self.outputs(self.space.unmasked(network)), dense)

    def test_the_layerwise_form_is_the_network(self):
        self.need(HasLayerwiseForm)
        network, _ = self.small()
        self.assert_equal(self.outputs(self.space.layerwise_form(network, True)), self.outputs(network))
        self.outputs(self.space.layerwise_form(network, False))

    def test_views_are_of_the_network(self):
        self.need(HasViews)
        network, _ = self.small()
        expected = self.outputs(network)
        self.assert_equal([self.space.run(network, self.inputs)], expected)
        self.assert_equal([self.space.run(network, self.inputs, tile=1024)], expected)  # one tile holds it all
        assert self.space.run(network, self.inputs, ensemble=True).shape == expected[0].shape
        if isinstance(self.space, HasDenseForm):
            dense = self.outputs(self.space.dense_form(network))
            self.assert_equal([self.space.run_dense(network, self.inputs)], dense)

    def test_colours_become_inputs(self):
        self.need(PreparesImages)
        network, _ = self.small()
        colour = (255 * torch.rand(16, 24, 3)).numpy()
        self.outputs(network, self.space.prepare(colour))
