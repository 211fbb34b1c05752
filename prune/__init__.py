"""Pruning: turn the relaxed masks of a search into hard ones."""

from sparsemask import _checkout

_checkout.unify(__name__)
