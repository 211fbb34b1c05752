"""Copies for trying something out: as `copy.deepcopy` makes them, sharing parameters, and without its many steps."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import nn

from sparsemask.spaces.group_sparsity.tracing import duplicate as module


class Own(nn.Module):
    """Says itself how it is copied."""

    def __init__(self):
        super().__init__()
        self.layer, self.times = nn.Linear(4, 4), 0

    def __deepcopy__(self, memo):
        made = Own()
        made.layer, made.times = copy.deepcopy(self.layer, memo), self.times + 1
        return made


def network() -> nn.Module:
    shared = nn.Linear(4, 4)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten())
    return nn.ModuleDict({"inner": inner, "a": shared, "b": shared, "lstm": nn.LSTM(4, 3), "own": Own()})


def test_a_duplicate_is_a_copy_that_shares_parameters_alone():
    whole = network()
    whole.extra = {"seen": [whole["a"], torch.ones(2)]}
    made = module.duplicate(whole)
    assert [(name, type(m)) for name, m in made.named_modules()] == [(n, type(m)) for n, m in whole.named_modules()]
    assert made["a"] is made["b"] is made.extra["seen"][0] is not whole["a"] and made["own"].times == 1
    for (name, new), (_, old) in zip(made.named_parameters(), whole.named_parameters(), strict=True):
        assert new is not old and new.data_ptr() == old.data_ptr() and new.requires_grad == old.requires_grad, name
    for new, old in zip(
        [*made.buffers(), made.extra["seen"][1]], [*whole.buffers(), whole.extra["seen"][1]], strict=True
    ):
        assert torch.equal(new, old) and new.data_ptr() != old.data_ptr()
    made["inner"][0].weight, made["inner"][0].stride = nn.Parameter(torch.zeros(2, 3, 3, 3)), (2, 2)
    made["inner"].register_forward_hook(lambda *_: None)
    assert whole["inner"][0].weight.shape[0] == 4 and whole["inner"][0].stride == (1, 1)
    assert not whole["inner"]._forward_hooks
    assert made["lstm"](torch.zeros(1, 1, 4))[0].shape == (1, 1, 3)


def test_layers_of_torch_are_copied_without_deepcopy(monkeypatch):
    """They were all taken for classes that copy themselves once torch's modules had a `__getstate__` of their own."""
    calls = []

    def counted(value, memo):
        calls.append(type(value))
        return copy.deepcopy(value, memo)

    monkeypatch.setattr(module, "copy", SimpleNamespace(deepcopy=counted))
    whole = network()["inner"]
    module.duplicate(whole)
    assert calls == [nn.Sequential]
