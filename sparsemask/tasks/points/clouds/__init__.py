"""Point clouds: files, grids, neighbours, and the batches that networks take; public by :mod:`sparsemask.points`."""
