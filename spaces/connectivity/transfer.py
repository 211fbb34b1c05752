"""Weights that a pruned network inherits from the supernet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.masks.decoder import MULTIPLE, DecoderMask
from sparsemask.spaces.connectivity.elastic import ElasticNetwork
from sparsemask.spaces.connectivity.pruned_network import FCN, PrunedNetwork

INHERIT = ("encoder", "all")


def inherited_state(net: PrunedNetwork | FCN, state: Mapping[str, Tensor], how: str = "encoder") -> dict[str, Tensor]:
    """Build the state dict of a small network from a supernet's weights.

    Args:
        net: the small network; weights that are not inherited keep their values.
        state: state dict of the FullyDenseNetwork, or of a one-shot search's ElasticNetwork (bare keys).
        how: `encoder` copies the backbone only. `all` also carries over the classifier, the stages' batch
            norms and the kept convolutions, with connection weight and inner batch norm folded in: in
            evaluation the result equals the supernet whose other connections have weight 0. A decoder of the wider
            space takes what is there: of other widths the first channels, the classifier if its output is the last
            stage; all else keeps its values. Of an elastic network everything is there, at every width.

    Returns:
        A state dict that fits `net` strictly.

    Raises:
        UseError: a supernet of another backbone, depth or number of classes; `all` for the FCN baseline.
    """
    choose(how, INHERIT, "inheritance")
    target = net.state_dict()
    new = {key: _take(state, key, target) if key.startswith("backbone.") else value for key, value in target.items()}
    if how == "encoder":
        return new
    if not isinstance(net, PrunedNetwork):
        raise UseError("inherit 'all' needs a connectivity mask: the FCN baseline has no decoder to inherit")
    wider = isinstance(net.mask, DecoderMask)
    if _is_elastic(state):
        taken = _elastic_decoder(state, len(net.mask)).state_for(net.mask)
        return new | {key: _take(taken, key, target) for key in target if not key.startswith("backbone.")}
    if not wider or net.mask.output == len(net.mask) - 1:
        new |= {key: _get(state, key).clone() for key in target if key.startswith("fc_conv.")}
    for name, stage in net.decoders.items():
        prefix = f"decoders.{name}"
        w = _get(state, f"{prefix}._weight_").clamp(0, 2)
        offset = torch.zeros_like(_get(state, f"{prefix}.bn.running_mean"))
        for column, (kind, convs) in enumerate((("down_convs", stage.down_convs), ("up_convs", stage.up_convs))):
            for j in convs:
                key = f"{prefix}.{kind}.{j}"
                scale, constant = _folded(state, f"{key}.1", w[int(j), column], stage.bn.eps)
                new[f"{key}.weight"] = _get(state, f"{key}.0.weight") * scale[:, None, None, None]
                offset += constant
        for key in target:
            if key.startswith(f"{prefix}.bn."):
                new[key] = _get(state, key).clone()
        # The constants of the inner batch norms are gone from the sum: its mean moves by as much.
        new[f"{prefix}.bn.running_mean"] = new[f"{prefix}.bn.running_mean"] - offset
    for key, value in new.items():
        if value.shape != target[key].shape:
            if not wider:
                raise UseError(_misfit(key, value, target[key]))
            new[key] = _leading(key, value, target[key])
    return new


def _is_elastic(state: Mapping[str, Tensor]) -> bool:
    return "decoders.Decoders_0.full.conv.weight" in state


class _EndPoints(nn.Module):
    """Stands for an encoder of which the channels alone are asked."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.channels, self.strides = channels, [1] * len(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Never computed."""
        raise NotImplementedError


def _elastic_decoder(state: Mapping[str, Tensor], length: int) -> ElasticNetwork:
    """The elastic network of a state dict, without its encoder."""
    convs = [_get(state, f"decoders.Decoders_{length - 1}.down_convs.{j}.weight") for j in range(length)]
    depth, classes = len(convs[0]), len(_get(state, "fc_conv.bias"))
    widths = range(MULTIPLE, depth + 1, MULTIPLE)
    network = ElasticNetwork(_EndPoints([conv.shape[1] for conv in convs]), depth, widths, classes).to(convs[0].dtype)
    try:
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("backbone.")})
    except RuntimeError:
        raise UseError("the search checkpoint is of another elastic network: other stages or channels") from None
    return network


def _leading(key: str, value: Tensor, drawn: Tensor) -> Tensor:
    """The value's first channels in the drawn tensor; numbers of classes and of the encoder's channels must agree."""
    widths = {0, 1} if ".up_convs." in key else {1} if key.startswith("fc_conv.") else {0}
    fixed = [n for n in range(drawn.dim()) if n not in widths]
    if value.dim() != drawn.dim() or any(value.shape[n] != drawn.shape[n] for n in fixed):
        raise UseError(_misfit(key, value, drawn))
    common = tuple(slice(min(sizes)) for sizes in zip(value.shape, drawn.shape, strict=True))
    filled = drawn.clone()
    filled[common] = value[common]
    return filled


def _folded(state: Mapping[str, Tensor], norm: str, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """w * BN(z) in evaluation as scale * z + constant."""
    scale = w * _get(state, f"{norm}.weight") * torch.rsqrt(_get(state, f"{norm}.running_var") + eps)
    return scale, w * _get(state, f"{norm}.bias") - scale * _get(state, f"{norm}.running_mean")


def _get(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise UseError(f"the search checkpoint has no {key}: it is not of this space and backbone")
    return state[key]


def _take(state: Mapping[str, Tensor], key: str, target: Mapping[str, Tensor]) -> Tensor:
    value = _get(state, key)
    if value.shape != target[key].shape:
        raise UseError(_misfit(key, value, target[key]))
    return value.clone()


def _misfit(key: str, value: Tensor, expected: Tensor) -> str:
    return (
        f"the search checkpoint does not fit: {key} is {tuple(value.shape)} there, {tuple(expected.shape)} in the "
        "network (other classes, depth or backbone)"
    )
