"""Importing this registers every operator of the toolkit: before a program that was exported elsewhere is loaded.

The name that the instructions beside exported programs give; it is :mod:`sparsemask.ops.register_all`.
"""

from sparsemask.ops import register_all  # noqa: F401
