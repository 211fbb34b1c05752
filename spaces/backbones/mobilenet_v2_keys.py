"""How others name the tensors of MobileNetV2 1.0."""

from __future__ import annotations

from sparsemask.spaces.backbones.mobilenet_v2 import STAGES


def torchvision_keys() -> dict[str, str]:
    """Layer names, torchvision's -> ours; without a first expansion."""
    names = {"features.0.0": "conv1", "features.0.1": "bn1"}
    for number, (block, expands, _, _) in enumerate(_blocks(), start=1):
        layers = ["0.0", "0.1", "1.0", "1.1", "2", "3"] if expands else ["0.0", "0.1", "1", "2"]
        names |= _pair(f"features.{number}.conv.", layers, block, expands)
    last_number = len(list(_blocks())) + 1
    return names | {f"features.{last_number}.0": "conv_last", f"features.{last_number}.1": "bn_last"}


def timm_keys() -> dict[str, str]:
    """Layer names, timm's (mobilenetv2_100) -> ours; without a first expansion."""
    names = {"conv_stem": "conv1", "bn1": "bn1"}
    for block, expands, i, j in _blocks():
        layers = ["conv_dw", "bn1", "conv_pw", "bn2"]
        if expands:
            layers = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        names |= _pair(f"blocks.{i}.{j}.", layers, block, expands)
    return names | {"conv_head": "conv_last", "bn2": "bn_last"}


def _blocks():
    """Block name, whether it expands, stage, index within the stage."""
    for i, (expansion, _, repeats, _) in enumerate(STAGES):
        for j in range(repeats):
            yield f"bottlenecks.Bottlenecks_{i}.LinearBottleneck{i}_{j}.", expansion > 1, i, j


def _pair(source_prefix: str, layers: list[str], target_prefix: str, expands: bool) -> dict[str, str]:
    target_layers = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"][0 if expands else 2 :]
    return {source_prefix + a: target_prefix + b for a, b in zip(layers, target_layers, strict=True)}
