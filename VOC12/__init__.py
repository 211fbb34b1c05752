"""PASCAL VOC 2012 and SBD: preparing, checking and reading them, and any data in the same layout."""

from sparsemask import _checkout

_checkout.unify(__name__)
