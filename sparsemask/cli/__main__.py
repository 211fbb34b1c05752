"""``python -m sparsemask.cli``: the same as the ``sparsemask`` command and ``python -m sparsemask``."""

from sparsemask import __main__  # noqa: F401  (it runs)
