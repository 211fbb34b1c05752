"""Several processes by torchrun, through torch.distributed itself.

No wrapper around the module: gradients are summed over processes after the last part of a batch, and every loss is
divided by what all processes counted, so that N processes compute what one would. A process that is gone ends the
others by one line; they do not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist

from sparsemask.errors import UseError, one_line, say


def start(device_is_cuda: bool | None = None) -> tuple[int, int, int]:
    """Join the process group torchrun announced; returns (rank, world size, local rank), (0, 1, 0) without one.

    Raises:
        UseError: the processes do not find each other.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1, 0
    if not dist.is_initialized():
        cuda = torch.cuda.is_available() if device_is_cuda is None else device_is_cuda
        with together():
            dist.init_process_group("nccl" if cuda else "gloo")
    return dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Context of what processes do together: where one of them cannot be reached, the others end with one line.

    Raises:
        UseError: a process is gone, or its network is.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors that begin with the place in its source.
        message = re.sub(r"^\[\S+\]\s*", "", one_line(error))
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        cause = message.partition(". ")[0][:200]
        _abandon()
        raise UseError(
            f"process {os.environ.get('RANK', '?')} cannot reach another process of this command, which may have ended "
            f"({cause}); start all of them again, a training with --resume"
        ) from None


def _abandon() -> None:
    # gloo's threads end here: one that comes back to an interpreter that is shutting down aborts the process.
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def stop() -> None:
    """Leave the process group, if there is one, together with the others.

    The first process may still write pictures and reports when the others are done, and gloo can abort a process whose
    peers have closed their connections.
    """
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one, whatever group it is of: what it trains and evaluates is its own."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes (in place)."""
    if world() > 1:
        with together():
            dist.all_reduce(value)
    return value


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        with together():
            dist.barrier()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes, in one message."""
    if world() == 1:
        return
    _flat([p.grad for p in parameters if p.grad is not None], _sum)


def _sum(flat: torch.Tensor) -> None:
    dist.all_reduce(flat)


def average_buffers(module: torch.nn.Module) -> None:
    """Average running statistics, so that every process evaluates and saves the same network."""
    if world() == 1:
        return

    def average(flat: torch.Tensor) -> None:
        dist.all_reduce(flat)
        flat /= world()

    _flat([b for b in module.buffers() if b.is_floating_point()], average)


def copy_from_first(module: torch.nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if world() > 1:
        for value in [*module.parameters(), *module.buffers()]:
            with together():
                dist.broadcast(value.data, 0)


def from_first(text: str) -> str:
    """The first process's text, in every process."""
    texts = [text]
    with together():
        dist.broadcast_object_list(texts, 0)
    return texts[0]


def _flat(tensors: list[torch.Tensor], work: Callable[[torch.Tensor], None]) -> None:
    if not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    with together():
        work(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def warn(text: str) -> None:
    """One line on standard error, from the first process only."""
    if rank() == 0:
        say(text, sys.stderr)
