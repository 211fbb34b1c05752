"""Operators of our own, defined so that calling one costs no import of torch's compiler (seconds, the first time)."""

from __future__ import annotations

from collections.abc import Callable

import torch

_library = torch.library.Library("sparsemask", "FRAGMENT")


def operator(name: str) -> Callable[[Callable], Callable]:
    """Make a function of tensors and numbers the operator `sparsemask::name`; its annotations say the schema.

    The function changes none of its arguments and returns no view of them.
    """

    def made(function: Callable) -> Callable:
        _library.define(name + torch.library.infer_schema(function, mutates_args=()))
        _library.impl(name, function, "CompositeExplicitAutograd")
        return function

    return made
