"""What the fast form of a connectivity network executes, as a list of steps with the multiply-adds of each.

As in :func:`sparsemask.spaces.connectivity.search_network.decode`, every feature is activated and convolved once, for
all that take it; a stage adds what has one size, resizes each sum to its own size, adds the sums and applies ReLU6.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import FULL, SEPARABLE, DecoderMask

CONSTANT = (1, 1)
"""Size of the global average."""

_OPERATION_STEPS = {SEPARABLE: "separable", FULL: "full"}


@dataclass(frozen=True)
class Geometry:
    """Shapes that decide what a decoder costs.

    Attributes:
        channels: of every end point, deepest first.
        sizes: (height, width) of every end point in the picture size at hand.
        depth: channels of a stage of the published space.
        n_class: channels of the output.
    """

    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    depth: int
    n_class: int

    def __len__(self) -> int:
        return len(self.sizes)

    def source_size(self, kind: int, j: int) -> tuple[int, int]:
        """Size of feature j of a kind: of E_j, or of u_j = D_{j-1}, of the global average for j = 0."""
        if kind == DOWN:
            return self.sizes[j]
        return self.sizes[j - 1] if j else CONSTANT


@dataclass(frozen=True)
class Step:
    """One thing that is executed.

    Attributes:
        kind: `encoder`, `mean`, `relu6`, `conv` (1x1), `add`, `add_part`, `resize`, `resize_part`, `finish` (ReLU6 in
            place), `separable`, `full`, `context` or `head`. A `_part` reads some channels of a joint product.
        site: what the cost depends on beside the width: height, width, of `conv` and `head` also the channels on the
            other side, of `resize` also the size after it; of `encoder` the deepest end point.
        width: channels that vary: outputs of `conv`, inputs of `head`, channels of the rest.
    """

    kind: str
    site: tuple[int, ...]
    width: int

    @property
    def multiply_adds(self) -> int:
        """Of the convolutions; 0 for all else. Those of the encoder are not known here."""
        if self.kind not in _PRODUCTS:
            return 0
        once = self.width**2 if self.kind == "context" else 0  # the global mean's product
        return self.site[0] * self.site[1] * _PRODUCTS[self.kind](self.width, *self.site[2:]) + once


_PRODUCTS = {
    "conv": lambda width, inputs: width * inputs,
    "head": lambda width, classes: width * classes,
    "full": lambda width: 9 * width**2,
    "separable": lambda width: 9 * width + width**2,
    "context": lambda width: 27 * width + 3 * width**2,
}
"""Multiply-adds at one location, by the width and the channels on the other side."""


def decoder_steps(geometry: Geometry, decoder: DecoderMask) -> list[tuple[str, Step]]:
    """All steps of a network with a decoder, each with the part of the network that it belongs to.

    Args:
        geometry: shapes of the encoder's features.
        decoder: a cleaned decoder of as many features.

    Raises:
        UseError: a decoder of another number of features.
    """
    if len(decoder) != len(geometry):
        raise UseError(f"the mask is for {len(decoder)} features, this cost table for {len(geometry)}")
    connections, widths = decoder.connections, [int(width) for width in decoder.widths]
    steps = [(f"encoder to end point {decoder.deepest}", Step("encoder", (decoder.deepest,), 0))]
    shared = set()
    for j in range(len(geometry)):
        for kind in (DOWN, UP):
            takers = [i for i in decoder.stages if connections[i, j, kind]]
            if not takers:
                continue
            if len(takers) > 1:
                shared.add((j, kind))
            part = (
                f"{'E' if kind == DOWN else 'u'}_{j} for stage{'s' * (len(takers) > 1)} {', '.join(map(str, takers))}"
            )
            inputs = widths[j - 1] if kind == UP and j else geometry.channels[j]
            if kind == UP and not j:
                steps.append((part, Step("mean", geometry.sizes[0], inputs)))
            size = geometry.source_size(kind, j)
            if kind == DOWN or not j:
                steps.append((part, Step("relu6", size, inputs)))
            steps.append((part, Step("conv", (*size, inputs), sum(widths[i] for i in takers))))
    for i in decoder.stages:
        groups: dict[tuple[int, int], list[bool]] = defaultdict(list)
        for j in range(i + 1):
            for kind in (DOWN, UP):
                if connections[i, j, kind]:
                    groups[geometry.source_size(kind, j)].append((j, kind) in shared)
        steps += [(f"stage {i}", step) for step in _stage(groups, geometry.sizes[i], widths[i])]
        if (operation := int(decoder.operations[i])) in _OPERATION_STEPS:
            steps.append((f"stage {i}", Step(_OPERATION_STEPS[operation], geometry.sizes[i], widths[i])))
        if decoder.context and i == decoder.stages[0]:
            steps.append(("context block", Step("context", geometry.sizes[i], widths[i])))
    head = Step("head", (*geometry.sizes[decoder.output], geometry.n_class), widths[decoder.output])
    return [*steps, ("head", head)]


def _stage(groups: dict[tuple[int, int], list[bool]], size: tuple[int, int], width: int) -> list[Step]:
    """Steps of a stage whose inputs, by their size, are or are not part of a joint product."""
    steps = []
    spatial = sorted((at for at in groups if at != CONSTANT), key=lambda at: at[0] * at[1])
    for at, parts in groups.items():
        kind = "add_part" if any(parts) else "add"
        steps += [Step(kind, at, width)] * (len(parts) - 1)
        if at not in (size, CONSTANT):
            steps.append(Step("resize_part" if parts == [True] else "resize", (*at, *size), width))
    if CONSTANT in groups and spatial:
        steps.append(Step("add", spatial[0], width))
    steps += [Step("add", size, width)] * (len(spatial) - 1)
    return [*steps, Step("finish", size, width)]
