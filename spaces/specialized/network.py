"""Networks of searched connectivity with fine-grained masks.

The connectivity mask selects which features are fused (SparseMask, arXiv 1904.07642); data and channel masks select the
locations and channels that the encoder's blocks and the decoder's stages compute (Wang et al., CVPR 2021, 2006.09603).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.exporting.bicubic import enlarge
from sparsemask.masks.decoder import DecoderMask, only_published
from sparsemask.spaces import backbones
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.connectivity.encoding import mask_word
from sparsemask.spaces.connectivity.pruned_network import PrunedNetwork
from sparsemask.spaces.connectivity.search_network import batch_norm_errors, upsample
from sparsemask.spaces.specialized.accounting import Accounts, number
from sparsemask.spaces.specialized.bottleneck import MaskedBottleneck
from sparsemask.spaces.specialized.chain import EncoderChain
from sparsemask.spaces.specialized.channel_masked_bottleneck import NarrowBottleneck
from sparsemask.spaces.specialized.stage import StageMasks, folded_decoder
from sparsemask.VOC12.augment import IMAGENET_MEAN, IMAGENET_STD

WHERE = ("decoder", "encoder", "all")
"""Choices of the modules that have masks."""


class DenseNetwork(PrunedNetwork):
    """A :class:`PrunedNetwork`, optionally for super-resolution.

    Args:
        mask: connections, bool (L, L, 2), or a decoder of the wider space, as PrunedNetwork's.
        backbone_name: name or module of the encoder.
        depth: channels of the decoder.
        in_channels: channels of the input.
        num_classes: channels of the output.
        bn_momentum: of all running statistics.
        scale: None, or the magnification of super-resolution, 1 to 8: RGB of 0 to 255 in and out, `num_classes` is
            ignored; a pixel shuffle brings the last stage's features to full size, and bicubic upsampling is added.
        backbone_options: further arguments of the backbone's builder.

    Raises:
        UseError: `scale` out of range, with other than 3 input channels, or with a decoder of the wider space; and as
            :class:`PrunedNetwork`.
    """

    def __init__(
        self,
        mask: np.ndarray | DecoderMask,
        backbone_name: str | nn.Module = "mobilenet_v2",
        depth: int = 64,
        in_channels: int = 3,
        num_classes: int = 21,
        bn_momentum: float = 0.0003,
        scale: int | None = None,
        **backbone_options,
    ):
        if scale is not None:
            only_published(mask, "mask", "networks that enlarge pictures")
            if in_channels != 3 or not 1 <= scale <= 8:
                raise UseError(
                    f"pictures are RGB and enlarged 1 to 8 times, not of {in_channels} channels {scale} times"
                )
            finest = backbones.strides(backbone_name) if isinstance(backbone_name, str) else backbone_name.strides
            num_classes = 3 * (scale * int(finest[-1])) ** 2
        super().__init__(mask, backbone_name, depth, in_channels, num_classes, bn_momentum, **backbone_options)
        self.scale = scale
        if scale is not None:
            for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
                self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)
            nn.init.zeros_(self.fc_conv.weight)  # initially the output is bicubic upsampling

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> scores (B, classes, h, w) at the last stage's size, or upsampled to `size`; or images."""
        return self.scored(x, size) if self.scale is None else self.enlarged(x, self.scored)

    def enlarged(self, x: Tensor, scored: Callable[[Tensor], Tensor]) -> Tensor:
        """Images (B, 3, H, W) of 0 to 255 to (B, 3, s·H, s·W); scored: gives the classifier's output."""
        logits = scored((x - self.mean) / self.std)
        factor = round((logits.shape[1] / 3) ** 0.5)
        height, width = (self.scale * n for n in x.shape[-2:])
        residual = F.pixel_shuffle(logits, factor)[..., :height, :width]
        return enlarge(x, self.scale) + 255 * residual

    def scored(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The classifier's output."""
        return PrunedNetwork.forward(self, x, size)


class SpecializedNetwork(Accounts, DenseNetwork):
    """A :class:`DenseNetwork` with masks on its modules; its weights keep their names.

    Args:
        mask: connections, bool (L, L, 2), or a decoder of the wider space, as DenseNetwork's. The stages of the latter
            have no masks.
        backbone_name: name or module of the encoder.
        depth: channels of the decoder.
        in_channels: channels of the input.
        num_classes: channels of the output.
        bn_momentum: of all running statistics.
        scale: as DenseNetwork's.
        backbone_options: further arguments of the backbone's builder.
        where: which modules have masks: stages of the "decoder", inverted residuals of the "encoder", or "all".
        max_stride: modules whose output has a larger stride are left dense.
        place_stride: modules whose output has a larger stride have channel masks alone, since predicting data masks on
            small maps takes longer than skipping saves; None: all have data masks.

    In training masks are soft (see :func:`sparsemask.sparse.set_mask_mode`) and `tau` is their temperature; in
    evaluation they are hard and multiply. :meth:`fold` makes the form that skips.

    After a forward pass `masks` holds each masked module's data mask (N, 1, h, w), `kept` the executed fractions
    (layers,) of its convolutions' multiply-adds, differentiable in training, `hard_kept` those of hard masks,
    `kept_weights` each convolution's fraction of all multiply-adds, and `kept_base` that of unmasked layers.

    Raises:
        UseError: no module would have a mask; and as :class:`DenseNetwork`.
    """

    def __init__(
        self,
        mask: np.ndarray | DecoderMask,
        backbone_name: str | nn.Module = "mobilenet_v2",
        depth: int = 64,
        in_channels: int = 3,
        num_classes: int = 21,
        bn_momentum: float = 0.0003,
        where: str = "all",
        max_stride: int = 16,
        place_stride: int | None = None,
        scale: int | None = None,
        **backbone_options,
    ):
        choose(where, WHERE, "part of the network")
        wider = isinstance(mask, DecoderMask)
        if wider and where == "decoder":
            raise UseError("--where decoder: the stages of a decoder of the wider space have no masks; take encoder")
        twin = backbone_name if isinstance(backbone_name, str) else copy.deepcopy(backbone_name).to("meta")
        super().__init__(mask, backbone_name, depth, in_channels, num_classes, bn_momentum, scale, **backbone_options)
        self.where, self.max_stride = where, max_stride
        self.place_stride = max_stride if place_stride is None else min(place_stride, max_stride)
        self.arguments = {
            "mask": self.mask, "backbone_name": twin if not isinstance(twin, str) else backbone_name, "depth": depth,
            "in_channels": in_channels, "num_classes": num_classes, "bn_momentum": bn_momentum, "scale": scale,
            **backbone_options,
        }  # fmt: skip
        self.tau, self.in_one_call = 1.0, True
        self._word = mask_word(self.mask)
        self.masked = {}
        self.folded = False
        self.decoder = None  # filled by fold(), unless it is of the wider space
        self._chain: EncoderChain | None = None  # holds addresses: not copied, rebuilt when needed
        self._chains = True
        self._dense_twin = (
            twin,
            depth,
            in_channels,
            self.fc_conv.out_channels,
            tuple(sorted(backbone_options.items())),
        )
        self._counted = None
        if where in ("encoder", "all"):
            self._mask_encoder()
        self.stage_masks = nn.ModuleDict()
        if where in ("decoder", "all") and not wider:
            channels, strides = self.backbone.channels, self.backbone.strides
            live = sorted({i for takers in self._takers.values() for i in takers})
            for i in live:
                if strides[i] <= max_stride:
                    self.stage_masks[f"Decoders_{i}"] = StageMasks(channels[i], depth, strides[i] <= self.place_stride)
        self.masked |= {f"stage_masks.{name}": module for name, module in self.stage_masks.items()}
        if not self.masked:
            raise UseError(
                f"no module to mask: --where {where} finds no stage, and no inverted residual of the toolkit's own "
                f"encoders, of stride {max_stride} or less"
            )

    def _mask_encoder(self) -> None:
        """Put masks on the encoder's inverted residuals."""
        stride = 2  # of the first block's input: the first convolution has stride 2
        for name, block in list(self.backbone.named_modules()):
            if isinstance(block, LinearBottleneck):
                stride *= block.conv2.stride[0]
                has_data_mask = stride <= self.place_stride
                if stride <= self.max_stride and (has_data_mask or block.expand):
                    owner, _, last = name.rpartition(".")
                    masked = (MaskedBottleneck if has_data_mask else NarrowBottleneck).of(block)
                    self.backbone.get_submodule(owner)._modules[last] = masked
                    self.masked[f"backbone.{name}"] = masked

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_counted": None, "_chain": None}

    @torch.no_grad()
    def fold(self, chained: bool = True) -> None:
        """Turn into the skipping form for evaluation, in place and irreversibly; batch norms are folded.

        Args:
            chained: True: the encoder's blocks may run as one native call, and the decoder's stages; False: each is an
                operator that files can hold.
        """
        self._chains = chained
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        located = {number(name): module for name, module in self.stage_masks.items() if module.locate is not None}
        narrow = {number(name): module for name, module in self.stage_masks.items() if module.locate is None}
        dense = {i: module.channels()[1][0] for i, module in located.items()}
        present = {i: module.channels.some()[1] for i, module in narrow.items()}
        bottlenecks = [module for module in self.modules() if isinstance(module, (MaskedBottleneck, NarrowBottleneck))]
        super().fold()
        for module in [*bottlenecks, *self.stage_masks.values()]:
            module.fold()
        dense = {i: flags for i, flags in dense.items() if not located[i].unmasked}
        self.folded = True
        if not isinstance(self.mask, DecoderMask):
            self.decoder = folded_decoder(self, dense, present)
            self.decoder.chained = chained

    @torch.no_grad()
    def begin(self) -> None:
        """Initialise the channel masks of modules without a data mask from the loaded weights."""
        for name, module in self.masked.items():
            if isinstance(module, NarrowBottleneck):
                module.begin()
            elif isinstance(module, StageMasks) and module.locate is None:
                norm = self.decoders[name.rpartition(".")[2]].bn
                module.channels.rank((norm.weight.square() + norm.bias.clamp_min(0).square()).sqrt())

    def scored(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """The classifier's output."""
        self.note_size(x)
        if not self.folded:
            for module in self.masked.values():
                module.tau = self.tau
        with batch_norm_errors():
            points = self._chained(x) if self.folded else self.backbone(x)
            for name, module in self.stage_masks.items():
                module.see(points[number(name)])
            if self.decoder is None:
                logits = self.fc_conv(self.decode(points))
            else:
                masks = {
                    number(name): module.seen[0]
                    for name, module in self.stage_masks.items()
                    if module.locate is not None and not module.unmasked
                }
                rows = self.decoder(points, masks).permute(
                    0, 2, 3, 1
                )  # as a matrix product, faster than a single 1×1 convolution
                logits = F.linear(rows, self.decoder.classify.flatten(1), self.fc_conv.bias).permute(0, 3, 1, 2)
        return logits if size is None else upsample(logits, size)

    def module_calls(self, inputs: Tensor) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """Each block and stage by itself, folded, with its masks and without; see :class:`MaskedNetwork`."""
        from sparsemask.spaces.specialized.module_calls import module_calls

        return module_calls(self, inputs)

    def _chained(self, x: Tensor) -> list[Tensor | None]:
        """The folded encoder's end points."""
        if self._chain is None and self._chains:
            self._chain = EncoderChain.of(self.backbone)
        return self.backbone(x) if self._chain is None else self._chain(self.backbone, x)

    def note_size(self, images: Tensor) -> None:
        """Set the size of images (N, C, H, W) for which multiply-adds are counted."""
        self._counted = tuple(images.shape[-2:])

    def finish(self, i: int, total: Tensor) -> Tensor:
        """Batch norm, activation and masks of stage i on the sum of its inputs."""
        total = super().finish(i, total)
        name = f"Decoders_{i}"
        return self.stage_masks[name].gate(F.relu6(total)) if name in self.stage_masks else total

    @property
    def config(self) -> dict:
        """The arguments that build this network again, plain values.

        Raises:
            UseError: the encoder was given as a module.
        """
        a = self.arguments
        if not isinstance(a["backbone_name"], str):
            raise UseError("a network on an encoder of its own cannot be described in a file: register the encoder")
        entries = {name: a[name] for name in ("backbone_name", "depth")}
        entries |= {"n_class": a["num_classes"], **forms.words_of(a)}
        entries |= {"connectivity": self._word, "where": self.where, "max_stride": self.max_stride}
        entries |= {"place_stride": self.place_stride}
        entries |= {"widths": self.widths} if self.widths else {}
        return entries if self.scale is None else {**entries, "scale": self.scale}
