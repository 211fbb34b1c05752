"""Pruning: the masks of a search are made hard."""

from sparsemask import _checkout

_checkout.unify(__name__)
