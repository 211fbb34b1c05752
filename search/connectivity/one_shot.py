"""One-shot: one network with the weights of every decoder, trained under sampled decoders.

At first one decoder is trained with the encoder, for `STEADY` of the run: under decoders at random an encoder learns
slowly, from random weights hardly at all. Then the largest, the smallest and random ones are trained in turn
(the sandwich rule: Yu and Huang 2019, arXiv 1903.05134). Which ones depends on the seed and the step alone. Candidates
are then scored, see :mod:`sparsemask.search.connectivity.scoring` and :mod:`sparsemask.search.connectivity.front`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparsemask.config import RunConfig
from sparsemask.engine import Method
from sparsemask.engine.method import batch_norms
from sparsemask.engine.randomness import draw_generator
from sparsemask.masks.decoder import FULL, MULTIPLE, DecoderMask, as_decoder, decoder_mask
from sparsemask.spaces.connectivity.budget import smallest_masks
from sparsemask.spaces.connectivity.elastic import ElasticNetwork
from sparsemask.spaces.connectivity.named_masks import named_mask, random_decoder
from sparsemask.spaces.connectivity.pruned_network import Structure
from sparsemask.spaces.connectivity.search_network import init_convolutions
from sparsemask.tasks.protocol import Task

SAMPLED = 4  # stream of randomness
AnyMask = np.ndarray | DecoderMask
_REMEMBERED = 1 << 30  # bytes of features
STEADY = 0.75  # of the run: the part in which one decoder alone is trained
_CYCLE = ("largest", "random", "random", "random", "smallest", "random", "random", "random")


@dataclass(frozen=True)
class DecoderSpace:
    """The decoders that are candidates.

    Attributes:
        strides: of the encoder's end points, deepest first.
        depth: channels of the stages of published masks.
        wide: whether operations, widths, output stage and context are chosen too.
        first: name of the decoder that is trained with the encoder at first; None: a pyramid (`fpn`), in the published
            space `unet`.
        eighths: of the depth that stages of the wider space may have as channels.
    """

    strides: tuple[int, ...]
    depth: int
    wide: bool
    first: str | None = None
    eighths: tuple[int, ...] = (2, 3, 4, 6, 8)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels that stages of the wider space may have."""
        return tuple(sorted({max(MULTIPLE, self.depth * part // 8 // MULTIPLE * MULTIPLE) for part in self.eighths}))

    def doubled(self) -> DecoderSpace:
        """The same with stages of up to twice the depth, which the elastic network has no weights of."""
        return replace(self, eighths=(*self.eighths, 12, 16))

    def largest(self) -> AnyMask:
        """Every connection, and the dearest of all else."""
        dense = named_mask("dense", len(self.strides))
        if not self.wide:
            return dense
        length = len(dense)
        return decoder_mask(dense, [FULL] * length, [self.widths[-1]] * length, context=True)

    def plain(self) -> AnyMask:
        """The decoder that is trained with the encoder at first, every stage of full width."""
        name = self.first or ("fpn" if self.wide else "unet")
        mask = named_mask(name, len(self.strides), strides=self.strides, depth=self.widths[-1])
        return as_decoder(mask, self.widths[-1]) if self.wide else mask

    def smallest(self, rng: np.random.Generator) -> AnyMask:
        """One of those of a single connection."""
        masks = list(smallest_masks(len(self.strides), self.wide))
        mask = masks[rng.integers(len(masks))]
        if isinstance(mask, DecoderMask):
            return decoder_mask(mask.connections, mask.operations, [self.widths[0]] * len(mask))
        return mask

    def random(self, rng: np.random.Generator) -> AnyMask:
        """One of any size."""
        length = len(self.strides)
        if self.wide:
            mask = random_decoder(rng, length, self.strides, self.widths)
            return mask
        count = round(float(np.exp(rng.uniform(0, np.log(length * (length + 1))))))
        return named_mask(f"random-{count}", length, int(rng.integers(1 << 31)))


class OneShotNetwork(ElasticNetwork):
    """An elastic network that computes the decoder `chosen` where none is given.

    Args:
        space: of the decoders; the other arguments are :class:`ElasticNetwork`'s.
    """

    def __init__(self, space: DecoderSpace, *arguments, **options):
        super().__init__(*arguments, depth=space.depth, widths=space.widths, **options)
        self.chosen = space.largest()
        self._points: dict[bytes, Sequence[Tensor]] | None = None
        self._room = _REMEMBERED

    def forward(self, x: Tensor, mask: AnyMask | None = None, size: Sequence[int] | None = None) -> Tensor:
        """As :meth:`ElasticNetwork.forward`."""
        return super().forward(x, self.chosen if mask is None else mask, size)

    def draw_decoders_(self) -> None:
        """Draw all weights but the encoder's anew, by torch's global generator, as those of a new network."""
        init_convolutions(self.decoders, self.fc_conv)
        for norm in batch_norms(self.decoders):
            norm.reset_parameters()

    def remember_end_points(self) -> None:
        """From now on compute the encoder once for each batch of images; its weights must not change any more."""
        self._points, self._room = {}, _REMEMBERED

    def end_points(self, x: Tensor) -> Sequence[Tensor]:
        """All features of the encoder, as remembered if it has seen these images."""
        if self._points is None:
            return self.backbone(x)
        key = hashlib.blake2b(x.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
        if key in self._points:
            return self._points[key]
        with torch.no_grad():
            points = self.backbone(x)
        size = sum(point.numel() * point.element_size() for point in points)
        if self._room >= size:
            self._points[key] = points
            self._room -= size
        return points

    def _end_points(self, x: Tensor, structure: Structure) -> Sequence[Tensor | None]:
        return super()._end_points(x, structure) if self._points is None else self.end_points(x)


class OneShotSearch(Method):
    """Train an elastic network under sampled decoders.

    Args:
        config: of the run.
        space: of the decoders.
    """

    def __init__(self, config: RunConfig, space: DecoderSpace):
        self.space, self.seed, self.each = space, config.run.seed, config.family.masks_a_step
        self._others: list[AnyMask] = []

    def sampled(self, step: int) -> list[AnyMask]:
        """The decoders of a step, which depend on the seed and the step alone."""
        if step < STEADY * self.steps:
            return [self.space.plain()]
        masks = []
        for number in range(step * self.each, (step + 1) * self.each):
            rng = draw_generator(self.seed, SAMPLED, number)
            kind = _CYCLE[number % len(_CYCLE)]
            if kind == "largest":
                masks.append(self.space.largest())
            else:
                masks.append(self.space.smallest(rng) if kind == "smallest" else self.space.random(rng))
        return masks

    def before_step(self, model: torch.nn.Module, step: int) -> None:
        """Choose the step's decoders; outside steps the largest."""
        masks = [self.space.largest()] if step < 0 else self.sampled(step)
        model.chosen, self._others = masks[0], masks[1:]

    def loss(self, model: torch.nn.Module, task: Task, images, output, target) -> torch.Tensor:
        """The mean over the step's decoders; a teacher answers once for all of them."""
        answer = None if self.teacher is None else self.teacher.answer(images)
        losses = []
        for given in (output, *(model(images, mask) for mask in self._others)):
            own = task.loss(given, target)
            losses.append(own if self.teacher is None else self.teacher.mixed(own, task, given, answer, target))
        return torch.stack(losses).sum() / len(losses)

    def evaluate(self, model, task, arithmetic, config) -> dict[str, float]:
        """Validation metrics of the largest decoder."""
        model.chosen = self.space.largest()
        return super().evaluate(model, task, arithmetic, config)
