"""Learning the masks of a space."""

from sparsemask import _checkout

_checkout.unify(__name__)
