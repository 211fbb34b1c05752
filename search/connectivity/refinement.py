"""Refinement of a front: decoders that differ from its best ones in one choice, round after round.

Random decoders are poor, most of them; near a good one, a named one too, most are good and some are better. A round
proposes changes of the best decoders known so far and scores them as the finalists were scored, so that a decoder and
its parent differ in that choice alone. What is better at no more cost, or as good at less, is a parent of the next
round. A round follows from the scores before it alone, whoever gave them: after a kill and with any number of processes
rounds are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sparsemask.engine.randomness import draw_generator
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import DecoderMask, as_decoder, decoder_mask
from sparsemask.search.connectivity.front import Candidate, Encoding, FrontSearch, front, mask_key
from sparsemask.search.connectivity.one_shot import AnyMask

ROUND = 6  # candidates
_REFINED = 5  # stream of randomness
_PARENTS = 3  # of a round: the best decoders of the front
_DEARER = 1.05  # of a parent's cost: what a change may cost; one that costs more is rarely paid back by another


def changes(encoding: Encoding, mask: AnyMask) -> list[list[AnyMask]]:
    """The decoders that differ from one in a single choice, by kinds of choices; each decoder once, in a fixed order.

    Kinds are: a connection more or less; a stage left out, whose readers take its inputs, one more, which takes its end
    point and the stage before it, or one at another place; and in the wider space a stage's operation, its width, the
    context block.

    Args:
        encoding: of the space.
        mask: a decoder of the space.
    """
    params = encoding.encode(mask)
    near, *others = encoding.in_use(params)
    kinds = [[encoding.decode({**params, name: not params[name]}) for name in near], _stages(encoding, mask)]
    for names in others:
        kind = []
        for name in names:
            if name == "output":  # another output stage is a stage more or less
                continue
            known = encoding.distributions[name].choices
            kind += [encoding.decode({**params, name: choice}) for choice in known if choice != params[name]]
        kinds.append(kind)
    seen = {mask_key(mask)}
    different = []
    for kind in kinds:
        unseen = {key: near for near in kind if (key := mask_key(near)) not in seen}
        seen |= set(unseen)
        different.append(list(unseen.values()))
    return [kind for kind in different if kind]


def _stages(encoding: Encoding, mask: AnyMask) -> list[AnyMask]:
    """Decoders with a stage less or more, or with one at another place between its neighbours."""
    space = encoding.space
    decoder = as_decoder(mask, space.widths[-1])
    live, length = decoder.stages, len(decoder)
    forms = [_without(decoder, stage) for stage in live if len(live) > 1]
    forms += [_with(decoder, stage) for stage in range(length) if stage not in live]
    for before, stage, after in zip([-1, *live], live, [*live[1:], length], strict=False):
        forms += [_moved(decoder, stage, place) for place in range(before + 1, after) if place != stage]
    outputs = encoding.outputs if space.wide else [length - 1]
    found = [near for form in forms if (near := decoder_mask(*form, decoder.context)).output in outputs]
    return [near if space.wide else near.connections for near in found]


def _parts(decoder: DecoderMask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connections, operations and widths, to be changed."""
    return decoder.connections.copy(), decoder.operations.copy(), decoder.widths.copy()


def _without(decoder: DecoderMask, stage: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A stage left out: those that read it take its inputs, of the output stage the one before it."""
    takes, operations, widths = _parts(decoder)
    inputs, takes[stage] = takes[stage].copy(), False
    if stage == decoder.output:
        before = decoder.stages[-2]
        inputs[before + 1 :] = False
        takes[before] |= inputs
    else:
        takes[takes[:, stage + 1, UP]] |= inputs
        takes[:, stage + 1, UP] = False
    return takes, operations, widths


def _with(decoder: DecoderMask, stage: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A stage more: it takes its end point and the stage before it, and the one after it takes it."""
    takes, operations, widths = _parts(decoder)
    earlier, later = ([i for i in decoder.stages if (i > stage) == side] for side in (False, True))
    takes[stage, stage, DOWN] = True
    if earlier:
        takes[stage, earlier[-1] + 1, UP] = True
    if later:
        takes[later[0], stage + 1, UP] = True
    like = (later or earlier[-1:])[0]
    operations[stage], widths[stage] = operations[like], widths[like]
    return takes, operations, widths


def _moved(decoder: DecoderMask, stage: int, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A stage at a place that no stage has: its own end point is the one there, and its readers take it there."""
    takes, operations, widths = _parts(decoder)
    inputs, takes[stage] = takes[stage].copy(), False
    own, inputs[stage, DOWN] = inputs[stage, DOWN], False
    inputs[place, DOWN] |= own
    inputs[place + 1 :] = False
    if not inputs.any():
        inputs[place, DOWN] = True
    takes[place] = inputs
    if stage != decoder.output:
        takes[:, place + 1, UP] = takes[:, stage + 1, UP]
        takes[:, stage + 1, UP] = False
    operations[place], widths[place] = operations[stage], widths[stage]
    return takes, operations, widths


def propose(
    encoding: Encoding,
    known: Sequence[Candidate],
    count: int,
    rng: np.random.Generator,
    cost: Callable[[AnyMask], float],
    most: float,
) -> list[AnyMask]:
    """Changes of the best decoders known, none of which is known.

    Args:
        encoding: of the space.
        known: decoders with their scores, in any order.
        count: how many, at most: there may be fewer.
        rng: draws among them.
        cost: of a decoder.
        most: the budget; parents cost no more where any such decoder is known, and no proposal does.
    """
    parents = front([c for c in known if c.cost <= most])
    taken = {mask_key(c.mask) for c in known}
    chosen: list[AnyMask] = []
    pools: list[list[list[AnyMask]]] = []
    while len(chosen) < count and (parents or pools):
        while parents and len(pools) < _PARENTS:  # the best ones first, others where these have no more changes
            parent = parents.pop()
            bound = min(most, _DEARER * parent.cost)
            kinds = [
                [mask for mask in kind if mask_key(mask) not in taken and cost(mask) <= bound]
                for kind in changes(encoding, parent.mask)
            ]
            pools.append(kinds)
        for kinds in pools:
            kinds[:] = [left for kind in kinds if (left := [mask for mask in kind if mask_key(mask) not in taken])]
            if kinds and len(chosen) < count:
                kind = kinds[rng.integers(len(kinds))]
                mask = kind.pop(rng.integers(len(kind)))
                taken.add(mask_key(mask))
                chosen.append(mask)
        pools = [kinds for kinds in pools if kinds]
    return chosen


def rounds(count: int) -> list[int]:
    """The sizes of rounds that have `count` candidates together."""
    return [min(ROUND, count - first) for first in range(0, count, ROUND)]


def next_round(search: FrontSearch, known: Sequence[Candidate], number: int, count: int) -> FrontSearch:
    """The candidates of a round.

    Args:
        search: what the known decoders come from.
        known: decoders with their scores.
        number: of the round.
        count: candidates at most.
    """
    rng = draw_generator(search.seed, _REFINED, number)
    masks = propose(search.encoding, known, count, rng, search.cost, search.most)
    return search.among(masks, f"round-{number}")
