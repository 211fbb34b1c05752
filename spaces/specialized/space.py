"""The space of specialised networks: searched connectivity with fine-grained masks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask import weights
from sparsemask.config import flag
from sparsemask.errors import UseError
from sparsemask.flags import EncoderSection
from sparsemask.masks.decoder import DecoderMask
from sparsemask.options import positive
from sparsemask.spaces import backbones, register
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.encoding import read_mask
from sparsemask.spaces.connectivity.space import ConnectivityConfig
from sparsemask.spaces.described import build_described, describing
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.specialized.network import WHERE, DenseNetwork, SpecializedNetwork
from sparsemask.VOC12.augment import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecializedNetworkSection(EncoderSection):
    """Which connectivity network, and which of its modules have masks."""

    connectivity: str | None = flag(help="the connectivity mask: a file (.npy), a name, a word")
    where: str = flag("all", choices=WHERE, help="which modules have masks (default: all)")
    max_stride: int = flag(
        16, positive, help="modules of maps more times smaller than the picture stay dense (default: 16)"
    )
    place_stride: int | None = flag(
        None,
        positive,
        help="those of maps more times smaller than this have channel masks alone (default: all have data masks)",
    )


class SpecializedSpace(MaskedSpace):
    """Networks of a connectivity mask whose blocks and stages have data and channel masks."""

    name = "specialized"
    mask_options = ("where", "max_stride", "place_stride", "scale")
    fixed = ("connectivity", "backbone_name", "depth", "n_class", *forms.names(), *mask_options)
    task = "segmentation"
    section = SpecializedNetworkSection
    # Schedules of this toolkit: λ rises over a fifth of the run, τ falls until its end.
    published = {"epochs": 100, "sparse": 10.0, "sparse_epochs": 20, "tau_epochs": 120.0, "tau_end": 0.4}

    def for_task(self, task: str) -> SpecializedSpace:
        """Return a copy of the space for another task's data."""
        space = copy.copy(self)
        space.task = task
        return space

    def arguments(self, config) -> dict:
        """Return a network's arguments.

        Args:
            config: options by name, `connectivity` among them.

        Raises:
            UseError: no connectivity mask, or one that does not fit the backbone.
        """
        options = super().arguments(config)
        if not options.get("connectivity"):
            raise UseError("--connectivity is missing: a mask file (.npy), a named mask, or use retrain/specialize.py")
        common = ConnectivityConfig.from_options(config)
        backbone = common.backbone_name
        strides = backbones.strides(backbone)
        mask = read_mask(options["connectivity"], len(strides), config.get("seed") or 0, strides, common.depth)
        arguments = {**common.network_options(), "mask": mask, "depth": common.depth}
        return arguments | {name: options[name] for name in self.mask_options if name in options}

    def supernet(self, config) -> SpecializedNetwork:
        """Build the network with soft masks."""
        return SpecializedNetwork(**self.arguments(config))

    def load_weights_into(self, network: SpecializedNetwork, state: Mapping[str, Tensor], source: object) -> None:
        """Load another network's weights; missing masks and a classifier of another shape stay as they are."""
        current = network.state_dict()
        fresh = {k for k in current if k not in state and (".locate." in k or k.endswith(".ch_mask"))}
        if "fc_conv.weight" in state and state["fc_conv.weight"].shape != current["fc_conv.weight"].shape:
            fresh |= {"fc_conv.weight", "fc_conv.bias"}  # another task
        weights.load_strictly(network, {**state, **{k: current[k] for k in fresh}}, source)
        if any(k.endswith(".ch_mask") for k in fresh):
            network.begin()

    def build(
        self, state: Mapping[str, Tensor], what: object, description: Mapping | None = None
    ) -> SpecializedNetwork:
        """Build the network of a state dict, in evaluation mode.

        Args:
            state: its weights.
            what: the file's name in errors.
            description: its configuration: `connectivity`, `where`, `max_stride` and others.

        Raises:
            UseError: an incomplete description, or weights of another network.
        """
        description = description or {}
        missing = [name for name in ("connectivity", "where", "max_stride") if not description.get(name)]
        if missing:
            raise UseError(f"{what}: does not say what network it is (no {', '.join(missing)})")
        name = description.get("backbone_name", "mobilenet_v2")
        with describing(what):
            form = forms.of_weights(state, name)
        return build_described(lambda: self.supernet({"backbone_name": name, **description, **form}), state, what)

    def connectivity_of(self, network: SpecializedNetwork) -> np.ndarray | None:
        """Return the connectivity mask (L, L, 2), for mask files; None of a decoder of the wider space."""
        return None if isinstance(network.mask, DecoderMask) else network.mask

    def dense_cost(self, network: SpecializedNetwork, images: Tensor) -> int:
        """Count multiply-adds on images (N, 3, H, W) with everything kept, without mask branches."""
        network.note_size(images)
        return network.dense_multiply_adds * len(images)

    def exportable(self, network: SpecializedNetwork, batch: Tensor, options, mask=None):
        """Describe the network for retrain/export.py; see :class:`sparsemask.exporting.Exportable`."""
        from sparsemask.spaces.specialized.export import exportable

        return exportable(self, network, batch)

    def fast_form(self, network: SpecializedNetwork, chained: bool = True) -> SpecializedNetwork:
        """Return a copy that skips what the masks drop.

        Args:
            network: not changed.
            chained: whether the encoder's blocks may run as one native call, which cannot be exported.
        """
        form = copy.deepcopy(network).eval()
        form.fold(chained)
        return form.to(memory_format=torch.channels_last)

    def dense_form(self, network: SpecializedNetwork) -> nn.Module:
        """Return the same weights without masks, batch norms folded: the baseline for timing."""
        form = self.unmasked(network)
        form.fold()
        for parameter in form.parameters():
            parameter.requires_grad_(False)
        return form.to(memory_format=torch.channels_last)

    def kernel_form(self, network: SpecializedNetwork) -> nn.Module:
        """Return the same weights with everything kept, computed by the kernels of the skipping form."""
        options = {**network.arguments, "where": "all", "max_stride": 1 << 10, "place_stride": 1}
        form = SpecializedNetwork(**options).to(network.fc_conv.weight)
        state, current = network.state_dict(), form.state_dict()
        form.load_state_dict(
            {k: current[k] if k.endswith(".ch_mask") or ".locate." in k else state[k] for k in current}
        )
        for module in form.masked.values():
            nn.init.ones_(module.channels.ch_mask)  # ties are dense
        form = form.eval()
        form.fold()
        return form.to(memory_format=torch.channels_last)

    def unmasked(self, network: SpecializedNetwork) -> DenseNetwork:
        """Return a copy without masks, in evaluation mode."""
        arguments, like = network.arguments, network.fc_conv.weight
        if not isinstance(arguments["backbone_name"], str):  # an encoder of one's own, kept without numbers
            empty = copy.deepcopy(arguments["backbone_name"]).to_empty(device=like.device)
            arguments = {**arguments, "backbone_name": empty}
        form = DenseNetwork(**arguments).to(like)
        state = network.state_dict()
        form.load_state_dict({name: state[name] for name in form.state_dict()})
        return form.eval()

    def draw_masks(self, inputs: Tensor, masks: list, path, title: str | None = None, names=None) -> None:
        """Draw data masks, bool arrays (h, w), over their image (1, 3, H, W), normalised or of 0 to 255."""
        from sparsemask.pictures.overlay import draw_masks

        image = inputs[0].float()
        if image.min() < 0 or image.max() < 10:  # normalised: within three deviations of the mean
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
            image = 255 * (image * std + mean)
        image = image.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
        draw_masks(image, [_enlarged(mask, image.shape[:2]) for mask in masks], path, title, names)


def _enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at the image's size by nearest neighbour, corners aligned."""
    rows, columns = (np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(mask.shape, size, strict=True))
    return np.asarray(mask)[rows][:, columns]


register(SpecializedSpace.name, SpecializedSpace())
