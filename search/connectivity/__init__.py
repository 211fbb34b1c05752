"""Search for decoders: which connections they have, and in the wider space every stage's operation and width.

A module a way (`--method`): `published`, `latency`, `one_shot` with the `front` that it ends in, framed by
`one_shot_front`; `family` is what the command calls.
"""

from sparsemask.search.connectivity.family import FAMILY, ConnectivitySearchFamily

__all__ = ["FAMILY", "ConnectivitySearchFamily"]
