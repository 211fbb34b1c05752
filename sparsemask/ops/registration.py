"""Registers operators so that calling one costs no import of torch's compiler (seconds, the first time)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import register_flop_formula

_library = torch.library.Library("sparsemask", "FRAGMENT")


def register(
    name: str,
    run: Callable,
    *,
    fake: Callable,
    flops: Callable[..., int],
    schema: str | None = None,
    backward: Callable | None = None,
    save: Callable | None = None,
) -> None:
    """Make `run` the operator `sparsemask::name`.

    Args:
        run: a function of tensors and numbers. It changes none of its arguments and returns no view of them.
        fake: makes an empty result from the same arguments, of which shapes, types and devices alone are known.
        flops: multiplies and adds of a call, from its arguments and `out_val`, what it returned.
        schema: "(Tensor x, ...) -> Tensor", for an operator that is safe to compile whole; None: read from the
            annotations of `run`.
        backward, save: gradients, as `torch.library.register_autograd` takes them (`save` is its `setup_context`);
            None: the operator is for inference.
    """
    qualified = f"sparsemask::{name}"
    tags = () if schema is None else (torch.Tag.pt2_compliant_tag,)
    _library.define(name + (schema or torch.library.infer_schema(run, mutates_args=())), tags=tags)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    operator = getattr(torch.ops.sparsemask, name)  # torch makes it when it is asked for by name
    register_flop_formula(operator, get_raw=True)(flops)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=save, lib=_library)
