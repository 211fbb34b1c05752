"""Retraining and evaluating the small networks that masks describe."""

from sparsemask import _checkout

_checkout.unify(__name__)
