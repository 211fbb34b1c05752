"""Registers every operator of the toolkit on import; needed before an exported program is loaded.

Instructions beside exported programs name this module; it is :mod:`sparsemask.ops.register_all`.
"""

from sparsemask.ops import register_all  # noqa: F401
