"""torch.compile and torch.export see the sparse operators and keep them; torch's own checks of operators pass."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from literal_sparse import Case, one_thread, problem  # noqa: F401
from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.sparse import DataMask, SparseMaskBlock, SparseMaskConv, available_backends, backend, set_backend
from test_sparse_block import attention, block_problem

NAMES = ("reference", "gather", "native")


class Module(nn.Module):
    """Mask branch and block, as networks use them."""

    def __init__(self, channels: int = 8, layers: int = 2):
        super().__init__()
        self.branch, self.block = DataMask(channels), SparseMaskBlock(channels, layers)

    def forward(self, x):
        y, kept = self.block(x, self.branch(x))
        return x + y, kept


def inputs(seed=0, size=(6, 7)):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, 8, *size, generator=g), torch.rand(1, 1, *size, generator=g) < 0.4


@pytest.fixture
def block():
    torch.manual_seed(0)
    return SparseMaskBlock(8, 2).eval()


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def test_a_block_compiles_into_one_graph(fresh, block):
    # By "aot_eager": the graph and its fake tensors are what can go wrong here, not machine code.
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for seed in range(3):  # other masks, the same graph
        x, mask = inputs(seed)
        y, kept = compiled(x, mask)
        assert torch.allclose(y, block(x, mask)[0], atol=1e-6) and torch.allclose(kept, block(x, mask)[1])
    last = x.contiguous(memory_format=torch.channels_last)
    y, _ = compiled(last, mask)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, block(last, mask)[0], atol=1e-6)


@torch.no_grad()
def test_a_compiled_block_follows_the_choice_of_backend(fresh, block, monkeypatch):
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, mask = inputs()
    expected = block(x, mask)[0]
    served = []
    for name in ("reference", "gather"):
        one = dispatch.find(name)
        own = type(one).block
        monkeypatch.setattr(
            type(one), "block", lambda self, *given, own=own: (served.append(self.name), own(self, *given))[1]
        )
    for name in ("reference", "gather"):
        with backend(name):
            assert torch.allclose(compiled(x, mask)[0], expected, atol=1e-5)
        set_backend(block, name)
        assert torch.allclose(compiled(x, mask)[0], expected, atol=1e-5)
    assert served == ["reference", "reference", "gather", "gather"]


@torch.no_grad()
def test_a_compiled_block_follows_its_weights(fresh, block):
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, mask = inputs()
    before = compiled(x, mask)[0]
    for parameter in block.parameters():
        parameter.mul_(0.5)
    after = compiled(x, mask)[0]
    assert not torch.allclose(before, after) and torch.allclose(after, block(x, mask)[0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("form", [{}, dict(stride=2), dict(transposed=True, stride=2, output_padding=1),
                                  dict(dims=3), dict(norm="batch", bias=True)])  # fmt: skip
def test_layers_compile(fresh, form):
    torch.manual_seed(0)
    layer = SparseMaskConv(4, 6, 3, **form).eval()
    x = torch.randn(2, 4, *(5, 6, 4)[: layer.geometry.dims])
    mask = torch.rand(2, 1, *layer.geometry.output_size(x.shape[2:])) < 0.5
    given = (x, mask, torch.arange(4) < 2, torch.arange(6) < 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*given), layer(*given), atol=1e-5)


@torch.no_grad()
def test_a_module_with_its_mask_branch_compiles_for_open_sizes(fresh):
    # The mask's decision is inside the graph; one graph serves pictures of many sizes.
    torch.manual_seed(0)
    module = Module().eval()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((6, 8), (8, 10), (12, 4)):
        x, _ = inputs(size=size)
        got, expected = compiled(x), module(x)
        assert torch.allclose(got[0], expected[0], atol=1e-5) and torch.allclose(got[1], expected[1])


@pytest.mark.slow
@torch.no_grad()
def test_inductor_compiles_it_to_machine_code(fresh):
    torch.manual_seed(0)
    module = Module().eval()
    compiled = torch.compile(module, fullgraph=True)
    x, _ = inputs(size=(6, 8))
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        got, expected = compiled(given), module(given)
        assert torch.allclose(got[0], expected[0], atol=1e-5) and torch.allclose(got[1], expected[1])


def test_training_compiles(fresh):
    torch.manual_seed(0)
    block = SparseMaskBlock(6, 2).train()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, mask = torch.randn(1, 6, 5, 4), torch.rand(1, 1, 5, 4, requires_grad=True)
    found = []
    for run in (compiled, block):
        block.zero_grad()
        mask.grad = None
        torch.manual_seed(1)  # the same noise
        y, kept = run(x, mask)
        (y.square().sum() + kept.sum()).backward()
        found.append([y.detach(), mask.grad, *(p.grad for p in block.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_evaluation_with_gradients_compiles(fresh, block):
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, mask = inputs()
    found = []
    for run in (compiled, block):
        block.zero_grad()
        run(x, mask)[0].square().sum().backward()
        found.append([p.grad for name, p in block.named_parameters() if name != "ch_mask"])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def called(program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@torch.no_grad()
def test_export_keeps_the_operator_and_runs_after_a_round_trip(block):
    x, mask = inputs()
    program = torch.export.export(block, (x, mask))
    assert "sparsemask.block.default" in called(program)
    assert not any("aten.conv" in name for name in called(program))  # nothing was decomposed into dense ones
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for seed in range(3):  # the mask is an input: any other serves
        x, mask = inputs(seed)
        y, kept = again(x, mask)
        assert torch.allclose(y, block(x, mask)[0], atol=1e-6) and torch.allclose(kept, block(x, mask)[1])
    x, mask = inputs()
    for none in (torch.zeros_like(mask), torch.ones_like(mask)):
        assert torch.allclose(again(x, none)[0], block(x, none)[0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_export_with_a_backend(block, name):
    if available_backends()[name] is not None:
        pytest.skip(available_backends()[name])
    x, mask = inputs()
    again = torch.export.export(set_backend(block, name), (x, mask)).module()
    set_backend(block, "reference")
    assert torch.allclose(again(x, mask)[0], block(x, mask)[0], atol=1e-5)


@torch.no_grad()
def test_export_with_sizes_left_open():
    torch.manual_seed(0)
    module = Module().eval()
    h, w = torch.export.Dim("h", min=2, max=64), torch.export.Dim("w", min=2, max=64)
    x, _ = inputs(size=(6, 8))
    program = torch.export.export(module, (x,), dynamic_shapes=({2: 2 * h, 3: 2 * w},))
    assert "sparsemask.block.default" in called(program)
    again = program.module()
    for size in ((6, 8), (10, 4)):
        x, _ = inputs(1, size)
        assert torch.allclose(again(x)[0], module(x)[0], atol=1e-5)


@torch.no_grad()
def test_export_of_a_layer_with_sizes_left_open():
    layer = SparseMaskConv(4, 6, 3, stride=2).eval()
    x = torch.randn(2, 4, 9, 8)
    flags = torch.arange(4) < 2, torch.arange(6) < 3
    h = torch.export.Dim("h", min=2, max=64)
    mask = torch.rand(2, 1, 5, 4) < 0.5
    shapes = ({2: 2 * h - 1}, {2: h}, None, None)
    again = torch.export.export(layer, (x, mask, *flags), dynamic_shapes=shapes).module()
    x, mask = torch.randn(2, 4, 13, 8), torch.rand(2, 1, 7, 4) < 0.5
    assert torch.allclose(again(x, mask, *flags), layer(x, mask, *flags), atol=1e-6)


OPCHECKED = {
    "plain": Case(),
    "stride 2, no bias": Case(bias=False, form=(("kernel", 3), ("stride", 2))),
    "transposed": Case(spatial=(3, 4), form=(("kernel", 3), ("stride", 2), ("transposed", True),
                                             ("output_padding", 1))),
    "volume": Case(1, 3, 4, (3, 4, 3)),
    "points": Case(1, 3, 4, (7,), form=(("kernel", 1),)),
    "groups": Case(1, 4, 6, form=(("kernel", 3), ("groups", 2))),
    "one channel": Case(1, 1, 1),
    "one place": Case(1, 3, 4, (1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("what", OPCHECKED)
def test_opcheck_of_a_layer(what):
    opcheck(problem(OPCHECKED[what]), "reference", last=False)


@pytest.mark.parametrize("what", ["plain", "volume"])
def test_opcheck_of_a_layer_channels_last(what):
    opcheck(problem(OPCHECKED[what]), "gather", last=True)


def opcheck(given, name: str, last: bool) -> None:
    x, f = given.x, given.form
    if last:
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    arguments = (
        x.requires_grad_(), given.weight.requires_grad_(), *given.tensors[2:], list(f.stride), list(f.padding),
        list(f.dilation), list(f.output_padding), f.transposed, f.groups, given.activation, name,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.sparsemask.conv.default, arguments)


@pytest.mark.parametrize("spatial, grad, last", [((3, 4), True, None), ((5, 6), False, torch.channels_last),
                                                 ((3, 4, 3), False, None), ((7,), False, None)])  # fmt: skip
def test_opcheck_of_a_block(spatial, grad, last):
    x, mask, weights, *rest = block_problem(channels=4, spatial=spatial, dense=("random", "one"))
    x = x.contiguous(memory_format=last) if last else x
    x.requires_grad_(grad)
    weights = [w.requires_grad_(grad) for w in weights]
    torch.library.opcheck(torch.ops.sparsemask.block.default, (x, mask, weights, *rest, "relu", "reference"))


def test_opcheck_of_a_block_with_attention():
    given = block_problem(channels=4, dense=("random", "one"))
    arguments = (*given, attention(4), "relu", "reference")
    torch.library.opcheck(torch.ops.sparsemask.attended_block.default, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_every_backend(name):
    # Memory order and aliasing differ from backend to backend.
    if available_backends()[name] is not None:
        pytest.skip(available_backends()[name])
    given = block_problem(channels=4, dense=("random", "none"))
    x = given[0].contiguous(memory_format=torch.channels_last)
    tests = ("test_schema", "test_faketensor")
    for features in (given[0], x):
        torch.library.opcheck(
            torch.ops.sparsemask.block.default, (features, *given[1:], "relu", name), test_utils=tests
        )


def test_an_exported_program_says_when_its_backend_is_absent(block):
    x, mask = inputs()
    program = torch.export.export(block, (x, mask))
    for node in program.graph.nodes:
        if str(node.target) == "sparsemask.block.default":
            node.args = (*node.args[:-1], "nonesuch")
    with pytest.raises(UseError, match="unknown backend 'nonesuch'; known: .*gather"):
        program.module()(x, mask)
