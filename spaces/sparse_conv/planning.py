"""Find a network's plan: every part timed densely and skipping where it stands, then the whole network, in turn.

Parts are computed by a backend that skips or densely and multiplied by their masks; both give the same numbers. Without
its masks the network is another function: it is timed beside, and :func:`unmask` drops masks that save no time, where
the task's metric allows it.
"""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from sparsemask.ops import dispatch
from sparsemask.spaces.protocols import HasFastForm
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork, MaskModule
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.spaces.sparse_conv.plan import DENSE, Machine, Plan, Plans, digest, keep_plans, path_of, save_plans
from sparsemask.timing import evaluating, timer

Network = TypeVar("Network", bound=MaskedNetwork)
SECONDS = 2.0
_ALL = 10.0  # seconds after which a command plans no further sizes
_ROUNDS, _LONG = 3, 0.05  # measurements of each at least, one of networks that take longer than so many seconds
SKIPPING = ("native", "triton", "gather")  # the first that can compute skips
_MARGIN = 0.99  # a dense part must be that much faster than a skipping one
SAVED = 1.03  # masks save time if the network is so many times as fast as without them


def make_plan(space: MaskedSpace, network: MaskedNetwork, inputs: Any, seconds: float = SECONDS) -> Plan:
    """Measure how a network is computed fastest on this machine, with as many threads as torch has now.

    Args:
        space: of the network.
        network: in evaluation mode, on the device to be measured.
        inputs: a batch of the size that will be used; what its masks keep counts.
        seconds: spent about, in halves for the parts and for the whole.

    Returns:
        The plan. It is not followed before it is added to `network.plans`.
    """
    device, dtype = inputs.device, next(network.parameters()).dtype
    able = [name for name in (*SKIPPING, *DENSE) if dispatch.find(name).why_not(device, dtype) is None]
    skipping, dense = able[0], next(name for name in able if name in DENSE)
    choices = list(dict.fromkeys([skipping, dense]))
    with _unplanned(network):
        all_skip = dict.fromkeys(network.parts(), skipping)
        _run(network, inputs, all_skip)  # packs weights, and makes tables for the size
        begun = time.perf_counter()
        _run(network, inputs, all_skip)
        rounds = _ROUNDS if time.perf_counter() - begun < _LONG else 1
        kept = float(mean_kept(network))
        times = _time_parts(network, inputs, choices, seconds / 2, rounds) if len(choices) > 1 else {}
        mixed = {
            name: dense if name in times and times[name][dense] < _MARGIN * times[name][skipping] else skipping
            for name in all_skip
        }
        plans = {"skip": all_skip}
        if dense in mixed.values() and len(choices) > 1:
            plans |= {"dense": dict.fromkeys(mixed, dense)} | ({"mixed": mixed} if skipping in mixed.values() else {})
        unmasked = space.dense_form(network)
        calls: dict[Hashable, Callable[[], object]] = {
            name: functools.partial(_run, network, inputs, backends) for name, backends in plans.items()
        }
        found, _ = timer(device, torch.get_num_threads(), seconds / 2, warm=True)(
            {**calls, "unmasked": functools.partial(unmasked, inputs)}, rounds
        )
    milliseconds = {str(name): value for name, value in found.items()}
    best = min(plans, key=lambda name: milliseconds[name] * (_MARGIN if name == "skip" else 1.0))
    milliseconds["plan"] = milliseconds[best]
    return Plan(Machine.here(device), tuple(inputs.shape), plans[best], kept, milliseconds)


def words(space: MaskedSpace, network: MaskedNetwork, plan: Plan) -> list[str]:
    """Return what a plan chose, as lines.

    Args:
        space: of the network.
        network: the network.
        plan: of it.
    """
    size, kept = space.size_words(plan.shape), f"masks keep {plan.kept:.2f}"
    where = "on this processor" if plan.machine.device == "cpu" else "on this device"
    ours, unmasked = plan.milliseconds["plan"], plan.milliseconds["unmasked"]
    unmasked_modules, lines = open_modules(network), []
    if unmasked_modules and len(unmasked_modules) == len(network.mask_modules()):
        return [f"plan: nothing is masked, the network is computed densely at {size}: {ours:.2f} ms"]
    if plan.backends and len(plan.dense) == len(plan.backends):
        lines.append(f"plan: {kept} but save no time at {size} {where}: computed densely and multiplied by the masks")
    elif plan.dense:
        parts = f"{len(plan.dense)} of {len(plan.backends)} masked parts"
        lines.append(f"plan: {kept}; at {size} {where} {parts} are computed densely, the others skip")
    elif ours * SAVED > unmasked:
        lines.append(f"plan: {kept} but save no time at {size} {where}")
    else:
        lines.append(f"plan: {kept}; at {size} {where} all masked parts skip")
    if unmasked_modules:
        lines.append(f"{', '.join(unmasked_modules)}: the masks select nothing, no mask branch is computed")
    lines[0] += f": {ours:.2f} ms, {unmasked:.2f} ms without masks"
    if ours * SAVED > unmasked:
        lines.append("the same weights without masks are another function; --unmask BOUND drops masks within a quality")
    return lines


class Planner:
    """Plans for the inputs that a command sees, as long as it takes, kept beside the weights.

    Args:
        space: of the network.
        network: in evaluation mode, on the device to be measured; it follows the plans.
        weights: file of its weights, beside which plans are kept; None: they are not kept.
        found: whether the file is one that was named, not written by this command: see
            :func:`sparsemask.spaces.sparse_conv.plan.keep_plans`.
    """

    def __init__(
        self,
        space: MaskedSpace,
        network: MaskedNetwork,
        weights: str | os.PathLike[str] | None = None,
        found: bool = False,
    ):
        self.space, self.network, self.weights, self.found = space, network, weights, found
        if network.plans is None:
            network.plans = Plans()
        self._known = len(network.plans)
        self._until = time.monotonic() + _ALL
        self._seen: list[Plan] = []

    def see(self, inputs: Any) -> None:
        """Have a plan for an input's size, measured now if there is none for this machine.

        Args:
            inputs: a batch.
        """
        plans = self.network.plans
        assert plans is not None
        plan = plans.find(inputs.shape, inputs.device)
        if plan is None or plan.shape != tuple(inputs.shape):
            if plan is not None and time.monotonic() > self._until:
                return  # the nearest size's serves
            plan = make_plan(self.space, self.network, inputs)
            plans.add(plan)
        if plan not in self._seen:
            self._seen.append(plan)

    def lines(self) -> list[str]:
        """Return what was chosen for the sizes seen, and whether it was measured anew for this machine."""
        plans = self.network.plans or Plans()
        found = [line for plan in self._seen for line in words(self.space, self.network, plan)]
        found = list(dict.fromkeys(found))  # what several sizes have in common once
        if (
            self._seen
            and self._known
            and not any(plan.machine == self._seen[0].machine for plan in [*plans][: self._known])
        ):
            found.insert(0, "plan: the plans of these weights are of another machine: measured again on this one")
        return found

    def save(self, weights: str | os.PathLike[str] | None = None) -> None:
        """Write the plans of a file of the network's weights; default: the one named at the beginning."""
        weights = weights or self.weights
        if weights is None or not self.network.plans:
            return
        state = digest(self.network.state_dict())
        if self.found:
            keep_plans(weights, self.network.plans, state)
        else:
            save_plans(path_of(weights), self.network.plans, state)


@dataclass(frozen=True)
class Unmasked:
    """What :func:`unmask` did.

    Attributes:
        network: a copy of the network without the masks of some modules; the same one if there are none.
        modules: their names.
        before, after: the metric with all masks, and of `network`; None where no mask costs time, so that nothing was
            tried.
    """

    network: MaskedNetwork
    modules: Sequence[str]
    before: float | None
    after: float | None


def unmask(
    network: MaskedNetwork, inputs: Any, quality: Callable[[MaskedNetwork], float], bound: float,
    seconds: float = SECONDS,
) -> Unmasked:  # fmt: skip
    """Drop the masks of modules that are faster without, as far as quality allows; this changes the function.

    Modules whose masks cost the most time go first; where quality falls by more than the bound, half of them are tried,
    and so on.

    Args:
        network: in evaluation mode; not changed.
        inputs: a batch of the size that will be used.
        quality: the task's metric of a network, larger is better.
        bound: by how much it may fall.
        seconds: spent about on timing.
    """
    saved = gains(network, inputs, seconds)
    slower = sorted((name for name, gain in saved.items() if gain > 0), key=lambda name: -saved[name])
    before = quality(network) if slower else None
    while slower:
        opened = copy.deepcopy(network)
        opened.plans = None
        for name in slower:
            opened.mask_modules()[name].open_masks()
        after = quality(opened)
        if before is not None and after >= before - bound:
            return Unmasked(opened, slower, before, after)
        slower = slower[: len(slower) // 2]
    return Unmasked(network, [], before, before)


def drop_costly(space: MaskedSpace, network: MaskedNetwork, inputs: Any, seconds: float = SECONDS) -> list[str]:
    """Drop the masks of modules that are faster without; all of them, where the network is no faster for the rest.

    This changes the function: training should follow.

    Args:
        space: of the network.
        network: in evaluation mode, on the device to be measured; changed in place.
        inputs: a batch of the size that will be used.
        seconds: spent about, on the modules and again on the whole.

    Returns:
        Names of the modules whose masks went.
    """
    modules = network.mask_modules()
    slower = [name for name, gain in gains(network, inputs, seconds, space).items() if gain > 0]
    for name in slower:
        modules[name].open_masks()
    rest = [name for name, module in modules.items() if _constant(module) is None]
    if rest and _slower_than_open(space, network, inputs, seconds):
        for name in rest:
            modules[name].open_masks()
        slower = [name for name in modules if name in {*slower, *rest}]
    return slower


def _slower_than_open(space: MaskedSpace, network: MaskedNetwork, inputs: Any, seconds: float) -> bool:
    """Whether a network takes longer with its masks than without any."""
    if not isinstance(space, HasFastForm):
        times = make_plan(space, network, inputs, seconds).milliseconds
        return times["plan"] > times["unmasked"]
    opened = opened_copy(network)
    calls: dict[Hashable, Callable[[], object]] = {
        form is opened: functools.partial(fast_form(space, form), inputs) for form in (network, opened)
    }
    times_of, _ = timer(inputs.device, torch.get_num_threads(), seconds, warm=True)(calls, _ROUNDS)
    return times_of[False] > times_of[True]


def fast_form(space: object, network: MaskedNetwork) -> nn.Module:
    """The form of a network that skips what its masks drop: a copy, or the network itself.

    Args:
        space: of the network; None: it is of none, and has no other form.
        network: in evaluation mode.
    """
    return space.fast_form(network) if isinstance(space, HasFastForm) else network


def opened_copy(network: Network, but: Collection[str] = ()) -> Network:
    """A copy without masks, following no plan.

    Args:
        network: not changed.
        but: names of the modules that keep theirs.
    """
    opened = copy.deepcopy(network)
    opened.plans = None
    for name, module in opened.mask_modules().items():
        if name not in but:
            module.open_masks()
    return opened


def open_modules(network: MaskedNetwork) -> list[str]:
    """Names of the modules whose masks select nothing, whatever the input."""
    return [name for name, module in network.mask_modules().items() if _constant(module)]


def _constant(module: MaskModule) -> bool | None:
    with evaluating(module):
        return module.constant_mask()


def _run(network: MaskedNetwork, inputs: Any, backends: Mapping[str, str]) -> object:
    for name, part in network.parts().items():
        part.chosen.planned = backends[name]
    return network(inputs)


@contextmanager
def _unplanned(network: MaskedNetwork) -> Iterator[None]:
    """Inside, evaluation without gradients in which the network follows no plan."""
    plans, network.plans = network.plans, None
    try:
        with evaluating(network):
            yield
    finally:
        network.plans = plans
        for part in network.parts().values():
            part.chosen.planned = None


def _time_parts(
    network: MaskedNetwork, inputs: Any, choices: Sequence[str], seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of each part by backend, timed within a forward pass, where it has its input."""
    parts = network.parts()
    found: dict[str, dict[str, float]] = {}
    each = timer(inputs.device, torch.get_num_threads(), seconds / max(len(parts), 1))

    def timed(name: str, called: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        def run(backend: str) -> object:
            parts[name].chosen.planned = backend
            return called.forward(*args, **kwargs)

        times, _ = each({choice: functools.partial(run, choice) for choice in choices}, rounds)
        found[name] = {choice: times[choice] for choice in choices}

    hooks = [
        part.called.register_forward_pre_hook(
            lambda called, args, kwargs, name=name: timed(name, called, args, kwargs), with_kwargs=True
        )
        for name, part in parts.items()
    ]
    try:
        network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def gains(network: MaskedNetwork, inputs: Any, seconds: float, space: object = None) -> dict[str, float]:
    """Milliseconds that each module would take less without its masks; negative where they save time.

    Args:
        network: in evaluation mode.
        inputs: a batch.
        seconds: spent about.
        space: of the network, whose form that skips is timed; None: the network itself is.

    Returns:
        By name, of the modules whose masks select something.
    """
    modules = {name: module for name, module in network.mask_modules().items() if _constant(module) is None}
    if network.in_one_call:
        with evaluating(network):
            calls = network.module_calls(inputs)
        if calls:
            return _gains_alone({name: calls[name] for name in modules}, inputs.device, seconds)
        return _gains_of_wholes(network, inputs, list(modules), seconds, space)
    return _gains_where_they_stand(network, inputs, modules, seconds)


def _gains_alone(
    calls: Mapping[str, tuple[Callable[[], object], Callable[[], object]]], device: torch.device, seconds: float
) -> dict[str, float]:
    """Gains of modules that can be called by themselves."""
    each = timer(device, torch.get_num_threads(), seconds / max(len(calls), 1))
    found = {}
    for name, (masked, opened) in calls.items():
        times, _ = each({"masked": masked, "opened": opened}, _ROUNDS)
        found[name] = times["masked"] - times["opened"]
    return found


def _gains_where_they_stand(
    network: MaskedNetwork, inputs: Any, modules: Mapping[str, MaskModule], seconds: float
) -> dict[str, float]:
    """Gains of modules that are timed within a forward pass, where they have their input."""
    found: dict[str, float] = {}
    each = timer(inputs.device, torch.get_num_threads(), seconds / max(len(modules), 1))

    def timed(name: str, module: MaskModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        opened = copy.deepcopy(module)
        opened.open_masks()
        times, _ = each(
            {"masked": lambda: module.forward(*args, **kwargs), "opened": lambda: opened.forward(*args, **kwargs)},
            _ROUNDS,
        )
        found[name] = times["masked"] - times["opened"]

    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: timed(name, module, args, kwargs), with_kwargs=True
        )
        for name, module in modules.items()
    ]
    try:
        with evaluating(network):
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _gains_of_wholes(
    network: MaskedNetwork, inputs: Any, names: Sequence[str], seconds: float, space: object
) -> dict[str, float]:
    """Gains of modules of a network that is computed in one call: whole networks with the masks of one module."""
    with evaluating(network):
        calls: dict[Hashable, Callable[[], object]] = {
            kept: functools.partial(fast_form(space, opened_copy(network, [kept] if kept else [])), inputs)
            for kept in (None, *names)
        }
        times, _ = timer(inputs.device, torch.get_num_threads(), seconds, warm=True)(calls, _ROUNDS)
    return {name: times[name] - times[None] for name in names}
