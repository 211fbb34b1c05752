"""Trace one run of a network operator by operator: which channels every tensor carries.

Since a run is traced, loops, dictionaries, functional convolutions and sizes taken from other tensors need no special
care. Value-dependent control flow is not supported; it is detected and refused.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from sparsemask.errors import UseError, one_line
from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.tracing.numbers import tagged
from sparsemask.spaces.group_sparsity.tracing.operators import follow
from sparsemask.spaces.group_sparsity.tracing.record import (
    Elements,
    Number,
    RemovesChannels,
    Value,
    Watched,
    tensors_in,
)
from sparsemask.spaces.group_sparsity.tracing.slicing import tensors
from sparsemask.spaces.group_sparsity.tracing.sparing import spared
from sparsemask.timing import evaluating

# Functions and operators that return a tensor's values to Python.
_READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"}
_READS |= {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


_QKV = ("query", "key", "value")


class WritesWeights(Exception):
    """A network changes its parameters when it runs."""


@functools.cache
def _written(func: OpOverload) -> tuple[int, ...]:
    """Positions of the arguments that an operator writes to."""
    arguments = enumerate(func._schema.arguments) if func._schema.is_mutable else ()
    return tuple(position for position, arg in arguments if arg.alias_info is not None and arg.alias_info.is_write)


@dataclass(frozen=True)
class TorchCall:
    """A torch function that was called, and its arguments."""

    name: str = ""
    arguments: tuple[Any, ...] = ()


class Tracer(TorchDispatchMode):
    """Runs a network once and records its operators.

    Args:
        network: not changed.
        ways: by key of a :class:`~sparsemask.spaces.group_sparsity.tracing.record.Site`: the way to take, the first by
            default.
        free_statistics: whether channels over which statistics are taken are free.
        fixed: names of modules and numbers of operators whose inputs' channels are locked, since sizes and factors are
            taken from them.
        spare: whether products are not computed. The network must be a duplicate then, which is no longer used.

    Raises:
        WritesWeights: the network writes to its parameters, which a duplicate shares, before it does.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is ever compiled, and torch would import its compiler (seconds) to say so

    def __init__(
        self,
        network: nn.Module,
        ways: dict[tuple[str, str, int], int] | None = None,
        free_statistics: bool = False,
        fixed: Collection[str | int] = (),
        spare: bool = False,
    ):
        super().__init__()
        self.network, self.elements = network, Elements()
        self.ways, self.free_statistics, self.fixed, self.spare = ways or {}, free_statistics, fixed, spare
        self._weights = {p.untyped_storage().data_ptr() for p in network.parameters()} if spare else set()
        self.names = {id(t): name for name, t in tensors(network).items()}
        self.values: MutableMapping[Tensor, Value] = (
            WeakIdKeyDictionary()
        )  # what no one holds any more is freed, as in any other run
        self.numbers = itertools.count()
        modules = list(network.named_modules())
        handling = {kind for kind in {type(module) for _, module in modules} if issubclass(kind, RemovesChannels)}
        self.handling = {name for name, module in modules if type(module) in handling}
        self.seen = Watched(self.elements, [], [], {})
        self.running: list[tuple[str, nn.Module]] = []
        """The modules whose forward runs, the innermost last."""
        self._sites = [itertools.count()]
        """Of the network and of each running module: how many places there were where channels can go several ways."""
        self.call = TorchCall()

    def run(self, inputs: Inputs) -> Watched:
        """Run the network on its inputs.

        Raises:
            UseError: the network does not run on this input, or cannot be traced.
        """
        for tensor in inputs.tensors:
            channels = tensor.dim() > 1 and tensor.is_floating_point()
            axes = {1: self.elements.fresh(tensor.shape[1], "it is the network's input")} if channels else {}
            self.remember(tensor, axes, varies=True)
        hooks = self._hooks()
        try:
            with tagged(self.network), evaluating(self.network), self, _Calls(self):
                output = inputs.run(self.network)
        except (UseError, WritesWeights):
            raise
        except Exception as error:
            what = f"{self.where()} does not run on an input of {inputs}"
            raise UseError(f"{what}: {one_line(error)[:200]}") from error
        finally:
            for hook in hooks:
                hook.remove()
        for tensor in tensors_in(output):
            for elements in self.value(tensor).axes.values():
                self.elements.lock(elements, "it reaches the network's output")
        return self.seen

    def where(self) -> str:
        """Name and class of the running module, for messages."""
        name, module = self.running[-1] if self.running else ("", self.network)
        kind = type(module).__name__
        return f"module '{name}' ({kind})" if name else kind

    def value(self, tensor: Tensor) -> Value:
        """The record of a tensor; parameters and buffers get elements on first use."""
        known = self.values.get(tensor)
        if known is None:
            name = self.names.get(id(tensor), "")
            axes = {d: self.elements.fresh(tensor.shape[d]) for d in range(self._dimensions(name, tensor))}
            known = self.remember(tensor, axes, varies=False)
            if name:
                known.parameter = name
                self.seen.parameters[name] = known
        return known

    def _dimensions(self, name: str, tensor: Tensor) -> int:
        """Number of leading dimensions of a parameter that may be channels: kernels and tables of indices are none."""
        if not name or not tensor.is_floating_point():
            return 0
        kernel = isinstance(self.network.get_submodule(name.rpartition(".")[0]), _ConvNd)
        return min(tensor.dim(), 2) if kernel else tensor.dim()

    def next_site(self) -> int:
        """The number of a place within the forward that runs where channels can go several ways."""
        return next(self._sites[-1])

    def remember(self, tensor: Tensor, axes: dict[int, np.ndarray], varies: bool) -> Value:
        """Record a new value for a tensor, which may have been changed in place."""
        value = Value(next(self.numbers), tuple(tensor.shape), axes, varies)
        self.values[tensor] = value
        return value

    def _hooks(self) -> list[RemovableHandle]:
        hooks = []

        def before(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
            self.running.append((name, module))
            self._sites.append(itertools.count())
            for tensor in tensors_in(args) if name in self.fixed else ():
                for elements in self.value(tensor).axes.values():
                    self.elements.lock(elements, f"{self.where()}: a tensor without them has sizes taken from them")

        def after(name: str, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            self.running.pop()
            self._sites.pop()
            self.seen.calls.append((name, module, self._first(args), self._first(output)))

        for name, module in self.network.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                hooks.append(module.register_forward_pre_hook(self._keep_heads(name), with_kwargs=True))
            hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: before(name, m, args)))
            hooks.append(module.register_forward_hook(lambda m, args, out, name=name: after(name, m, args, out)))
        return hooks

    def _keep_heads(self, name: str) -> Callable[[nn.MultiheadAttention, tuple[Any, ...], dict[str, Any]], None]:
        """Torch's attention takes the width of heads from that of its queries: both stay; those of others may go."""

        def keep(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            query, key, value = args[:3] if len(args) > 2 else [*args, *(kwargs[n] for n in _QKV[len(args) :])]
            why = f"module '{name}' (MultiheadAttention): torch's attention takes the width of heads from its queries"
            packed = module.in_proj_weight
            weights = (
                (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if packed is None else (packed,)
            )
            wide = self.value(query).axes.get(query.dim() - 1)
            for elements in (wide, *(self.value(weight).axes[0] for weight in weights)):
                if elements is not None:
                    self.elements.lock(elements, why)
            for attribute, tensor in (("kdim", key), ("vdim", value)):
                counted = self.value(tensor).axes.get(tensor.dim() - 1)
                if packed is None and counted is not None:
                    self.seen.numbers.append(Number(name, attribute, None, counted))

        return keep

    def _first(self, tree: object) -> Value | None:
        return next(map(self.value, tensors_in(tree)), None)

    def refuse_reading(self, name: str, tree: object) -> None:
        """Raise UseError if an operator returns values of an input-dependent tensor to Python."""
        operands = tensors_in(tree)
        if name == "index":  # a mask's number of entries is a size of the result
            operands = [t for t in operands[1:] if t.dtype in (torch.bool, torch.uint8)]
        elif name not in _READS:
            return
        if any(self.value(t).varies for t in operands):
            raise UseError(
                f"{self.where()} decides by what a tensor contains ({name.strip('_')}): its channels cannot be traced; "
                "take that decision out of forward"
            )

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.refuse_reading(name, (args, kwargs))
        inputs = [self.value(t) for t in tensors_in((args, kwargs))]
        varies = any(value.varies for value in inputs)
        if self._weights and any(t.untyped_storage().data_ptr() in self._weights for t in self._written_to(func, args)):
            raise WritesWeights
        output = spared(name, args, varies) if self.spare and not kwargs else None
        if output is None:
            output = func(*args, **kwargs)
        follow(self, func, args, kwargs, inputs, output)
        return output

    @staticmethod
    def _written_to(func: OpOverload, args: tuple[Any, ...]) -> list[Tensor]:
        return tensors_in([args[position] for position in _written(func) if position < len(args)])


class _Calls(TorchFunctionMode):
    """Records which torch function was called, with which arguments, while its operators run."""

    def __init__(self, tracer: Tracer):
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")  # some of torch's own functions have none
        if name in _READS:
            self.tracer.refuse_reading(name, args)
        outer, self.tracer.call = self.tracer.call, TorchCall(name, (args[1:], kwargs or {}))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.tracer.call = outer
