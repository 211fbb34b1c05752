"""Modules of a specialised network by themselves, folded, so that what their masks cost and save can be timed.

A network runs as two native calls, the encoder's and the decoder's, and differences between whole networks drown in
noise. A block is therefore a chain of one, a stage its mask branch and the decoder with this stage's mask alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.spaces.backbones.mobilenet_v2 import MobileNetV2
from sparsemask.spaces.sparse_conv.masked_network import MaskModule
from sparsemask.spaces.sparse_conv.planning import opened_copy
from sparsemask.spaces.specialized.accounting import number
from sparsemask.spaces.specialized.chain import chain_of_one
from sparsemask.spaces.specialized.stage import FoldedDecoder, StageMasks, folded_decoder

if TYPE_CHECKING:
    from sparsemask.spaces.specialized.network import SpecializedNetwork

Call = Callable[[], object]


def module_calls(network: SpecializedNetwork, inputs: Tensor) -> dict[str, tuple[Call, Call]]:
    """Each module's call with its masks and without.

    Args:
        network: in evaluation mode, not folded; not changed.
        inputs: images.

    Returns:
        By name, in the order of the network's modules.
    """
    form, opened = copy.deepcopy(network), opened_copy(network)
    for folded in (form, opened):
        folded.fold(chained=False)
    read: dict[str, Tensor] = {}
    blocks = {name: module for name, module in form.mask_modules().items() if not isinstance(module, StageMasks)}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0]}))
        for name, module in blocks.items()
    ]
    points = form.backbone(inputs)
    for hook in hooks:
        hook.remove()
    native = type(form.backbone) is MobileNetV2 and dispatch.find("native").why_not(inputs.device, inputs.dtype) is None
    modules = opened.mask_modules()
    calls = {
        name: (_block(module, read[name], native), _block(modules[name], read[name], native))
        for name, module in blocks.items()
    }
    plain = folded_decoder(form, {}) if form.stage_masks else None
    for name, module in form.stage_masks.items():
        assert isinstance(module, StageMasks) and plain is not None
        i = number(name)
        stage, flags = f"stage_masks.{name}", module.channels.some()[1]
        located = module.locate is not None
        decoder = (
            folded_decoder(form, {i: module.channels()[1][0]}) if located else folded_decoder(form, {}, {i: flags})
        )
        calls[stage] = (
            functools.partial(_decode, decoder, points, module, i),
            functools.partial(plain, points, {}),
        )
    return calls


def _block(module: MaskModule, x: Tensor, native: bool) -> Call:
    assert isinstance(module, nn.Module)
    return functools.partial(chain_of_one(module), x) if native else functools.partial(module, x)


def _decode(decoder: FoldedDecoder, points: list[Tensor | None], stage: StageMasks, i: int) -> Tensor:
    """The decoder under the masks of stage i alone, these predicted, too."""
    stage.see(points[i])
    masks = {} if stage.locate is None or stage.unmasked else {i: stage.mask}
    return decoder(points, masks)
