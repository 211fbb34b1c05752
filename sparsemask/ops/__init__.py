"""The toolkit's operators, one a file: schema, checks, fake, FLOP formula, reference.

`register_all` imports every file. An operator asks a *backend* (:mod:`sparsemask.backends`) by name to compute its call
(:mod:`sparsemask.ops.dispatch`).
"""
