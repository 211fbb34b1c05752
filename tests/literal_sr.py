"""Public super-resolution networks spelled out: names and shapes of their checkpoints, and what is computed of them.

Layouts are {name: shape}. The functions take such a state dict and images in the range of the public code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Layout = dict[str, tuple[int, ...]]
State = dict[str, Tensor]
MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)


def fill(layout: Layout, seed: int = 0, gain: float = 1.0, dtype: torch.dtype = torch.float64) -> State:
    """Random weights of a layout, of a size that keeps features from vanishing and growing."""
    random = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        fan = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 10
        return (torch.randn(shape, generator=random, dtype=torch.float64) * gain / fan**0.5).to(dtype)

    return {name: draw(shape) for name, shape in layout.items()}


def conv(name: str, outputs: int, inputs: int, kernel: int = 3) -> Layout:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def apply(state: State, name: str, x: Tensor, **options) -> Tensor:
    weight = state[f"{name}.weight"]
    options.setdefault("padding", weight.shape[-1] // 2)
    return F.conv2d(x, weight, state[f"{name}.bias"], **options)


# SRVGGNetCompact: xinntao/Real-ESRGAN, realesr-animevideov3.pth (x4, 16 convolutions), realesr-general-x4v3.pth (32).


def srvgg_layout(scale: int = 4, n_feats: int = 64, n_convs: int = 16) -> Layout:
    layout: Layout = {}
    for k in range(n_convs + 1):
        layout |= conv(f"body.{2 * k}", n_feats, n_feats if k else 3)
        layout[f"body.{2 * k + 1}.weight"] = (n_feats,)
    return layout | conv(f"body.{2 * n_convs + 2}", 3 * scale**2, n_feats)


def srvgg(state: State, x: Tensor, scale: int) -> Tensor:
    last = max(int(name.split(".")[1]) for name in state)
    y = x
    for k in range(0, last, 2):
        y = apply(state, f"body.{k}", y)
        y = torch.where(y > 0, y, y * state[f"body.{k + 1}.weight"].view(1, -1, 1, 1))
    return F.pixel_shuffle(apply(state, f"body.{last}", y), scale) + x.repeat_interleave(scale, 2).repeat_interleave(
        scale, 3
    )


# RLFN: bytedance/RLFN, rlfn_x2.pth, rlfn_x4.pth (52 channels), rlfn_s_x*.pth (48), rlfn_ntire_x4.pth (46, 48 inside).


def rlfn_layout(scale: int = 4, n_feats: int = 52, n_blocks: int = 6, n_mid: int | None = None) -> Layout:
    mid = n_mid or n_feats
    layout = conv("conv_1", n_feats, 3)
    for k in range(1, n_blocks + 1):
        b = f"block_{k}"
        layout |= conv(f"{b}.c1_r", mid, n_feats) | conv(f"{b}.c2_r", mid, mid) | conv(f"{b}.c3_r", n_feats, mid)
        layout |= conv(f"{b}.c5", n_feats, n_feats, 1) | conv(f"{b}.esa.conv1", 16, n_feats, 1)
        layout |= conv(f"{b}.esa.conv_f", 16, 16, 1) | conv(f"{b}.esa.conv2", 16, 16)
        layout |= conv(f"{b}.esa.conv3", 16, 16) | conv(f"{b}.esa.conv4", n_feats, 16, 1)
    return layout | conv("conv_2", n_feats, n_feats) | conv("upsampler.0", 3 * scale**2, n_feats)


def rlfn(state: State, x: Tensor, scale: int) -> Tensor:
    first = y = apply(state, "conv_1", x)
    for k in range(1, 1 + len({name.split(".")[0] for name in state if name.startswith("block_")})):
        z = y
        for layer in ("c1_r", "c2_r", "c3_r"):
            z = F.leaky_relu(apply(state, f"block_{k}.{layer}", z), 0.05)
        z = apply(state, f"block_{k}.c5", z + y)
        narrow = apply(state, f"block_{k}.esa.conv1", z)
        pooled = F.max_pool2d(apply(state, f"block_{k}.esa.conv2", narrow, stride=2, padding=0), 7, 3)
        wide = F.interpolate(
            apply(state, f"block_{k}.esa.conv3", pooled), z.shape[2:], mode="bilinear", align_corners=False
        )
        y = z * torch.sigmoid(
            apply(state, f"block_{k}.esa.conv4", wide + apply(state, f"block_{k}.esa.conv_f", narrow))
        )
    return F.pixel_shuffle(apply(state, "upsampler.0", apply(state, "conv_2", y) + first), scale)


# SPAN: hongyuanyu/SPAN, spanx2_ch48.pth, spanx4_ch48.pth, spanx4_ch52.pth (under params or params_ema).


def branched(name: str, outputs: int, inputs: int) -> Layout:
    return (
        conv(f"{name}.sk", outputs, inputs, 1)
        | conv(f"{name}.conv.0", 2 * inputs, inputs, 1)
        | conv(f"{name}.conv.1", 2 * outputs, 2 * inputs)
        | conv(f"{name}.conv.2", outputs, 2 * outputs, 1)
        | conv(f"{name}.eval_conv", outputs, inputs)
    )


def span_layout(scale: int = 4, n_feats: int = 48, n_blocks: int = 6) -> Layout:
    layout = branched("conv_1", n_feats, 3)
    for k in range(1, n_blocks + 1):
        for layer in ("c1_r", "c2_r", "c3_r"):
            layout |= branched(f"block_{k}.{layer}", n_feats, n_feats)
    layout |= conv("conv_cat", n_feats, 4 * n_feats, 1) | branched("conv_2", n_feats, n_feats)
    return layout | conv("upsampler.0", 3 * scale**2, n_feats)


def span(state: State, x: Tensor, scale: int) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        y = apply(state, f"{name}.conv.0", F.pad(x, (1, 1, 1, 1)))
        y = apply(state, f"{name}.conv.2", apply(state, f"{name}.conv.1", y, padding=0))
        return y + apply(state, f"{name}.sk", x)

    first = y = layer("conv_1", (x - MEAN.to(x.dtype)) * 255)
    outputs = []
    for k in range(1, 1 + len({name.split(".")[0] for name in state if name.startswith("block_")})):
        inner = F.silu(layer(f"block_{k}.c1_r", y))
        z = layer(f"block_{k}.c3_r", F.silu(layer(f"block_{k}.c2_r", inner)))
        y = (z + y) * (torch.sigmoid(z) - 0.5)
        outputs.append(y)
    joined = torch.cat([first, layer("conv_2", y), outputs[0], inner], 1)
    return F.pixel_shuffle(apply(state, "upsampler.0", apply(state, "conv_cat", joined)), scale)


# PLKSR: dslisleedh/PLKSR, PLKSR_X2_DIV2K.pth (28 blocks, kernels of 17), PLKSR_tiny_* (12 blocks, 13).


def plksr_layout(
    scale: int = 4, n_feats: int = 64, n_blocks: int = 28, kernel: int = 17, mixer: tuple[int, int] = (3, 3)
) -> Layout:
    layout = conv("feats.0", n_feats, 3)
    for k in range(1, n_blocks + 1):
        layout |= conv(f"feats.{k}.channe_mixer.0", 2 * n_feats, n_feats, mixer[0])
        layout |= conv(f"feats.{k}.channe_mixer.2", n_feats, 2 * n_feats, mixer[1])
        layout |= conv(f"feats.{k}.lk.conv", n_feats // 4, n_feats // 4, kernel)
        layout |= conv(f"feats.{k}.attn.f.0", n_feats, n_feats) | conv(f"feats.{k}.refine", n_feats, n_feats, 1)
    return layout | conv(f"feats.{n_blocks + 1}", 3 * scale**2, n_feats)


def plksr(state: State, x: Tensor, scale: int) -> Tensor:
    last = max(int(name.split(".")[1]) for name in state)
    y = apply(state, "feats.0", x)
    for k in range(1, last):
        z = apply(state, f"feats.{k}.channe_mixer.2", F.gelu(apply(state, f"feats.{k}.channe_mixer.0", y)))
        large = state[f"feats.{k}.lk.conv.weight"].shape[0]
        z = torch.cat([apply(state, f"feats.{k}.lk.conv", z[:, :large]), z[:, large:]], 1)
        z = z * torch.sigmoid(apply(state, f"feats.{k}.attn.f.0", z))
        y = y + apply(state, f"feats.{k}.refine", z)
    repeated = torch.stack([x] * scale**2, 2).flatten(1, 2)
    return F.pixel_shuffle(apply(state, f"feats.{last}", y) + repeated, scale)


# EDSR: sanghyun-son/EDSR-PyTorch, edsr_baseline_x2-1bc95232.pt and its like (0 to 255).


def edsr_layout(scale: int = 2, n_feats: int = 64, n_blocks: int = 16) -> Layout:
    layout = conv("sub_mean", 3, 3, 1) | conv("add_mean", 3, 3, 1) | conv("head.0", n_feats, 3)
    for k in range(n_blocks):
        layout |= conv(f"body.{k}.body.0", n_feats, n_feats) | conv(f"body.{k}.body.2", n_feats, n_feats)
    layout |= conv(f"body.{n_blocks}", n_feats, n_feats)
    steps = {1: [], 2: [2], 3: [3], 4: [2, 2]}[scale]
    for number, s in enumerate(steps):
        layout |= conv(f"tail.0.{2 * number}", n_feats * s**2, n_feats)
    return layout | conv("tail.1", 3, n_feats)


def edsr_state(state: State) -> State:
    """The mean colours as the public files have them, which are not learned."""
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        kind = state[f"{name}.weight"].dtype
        state[f"{name}.weight"] = torch.eye(3, dtype=kind).view(3, 3, 1, 1)
        state[f"{name}.bias"] = (sign * 255 * MEAN.flatten()).to(kind)
    return state


def edsr(state: State, x: Tensor, scale: int) -> Tensor:
    last = max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    first = y = apply(state, "head.0", apply(state, "sub_mean", x))
    for k in range(last):
        y = y + apply(state, f"body.{k}.body.2", F.relu(apply(state, f"body.{k}.body.0", y)))
    y = apply(state, f"body.{last}", y) + first
    for number, s in enumerate({1: [], 2: [2], 3: [3], 4: [2, 2]}[scale]):
        y = F.pixel_shuffle(apply(state, f"tail.0.{2 * number}", y), s)
    return apply(state, "add_mean", apply(state, "tail.1", y))


# The same network in XPixelGroup/BasicSR's names (EDSR_Mx2_f64b16_DIV2K_official-*.pth, under params).
BASICSR = {"head.0": "conv_first", "tail.1": "conv_last", "tail.0.0": "upsample.0", "tail.0.2": "upsample.2"}


def basicsr_names(state: State, n_blocks: int) -> State:
    names = {**BASICSR, f"body.{n_blocks}": "conv_after_body"}
    for k in range(n_blocks):
        names |= {f"body.{k}.body.0": f"body.{k}.conv1", f"body.{k}.body.2": f"body.{k}.conv2"}
    parts = ((name.rpartition("."), value) for name, value in state.items() if not name.startswith(("sub_", "add_")))
    return {f"{names[module]}.{kind}": value for (module, _, kind), value in parts}


# Architecture: (layout of a small network, what it computes, largest value of its images).
LITERAL: dict[str, tuple[Callable[[int], Layout], Callable[[State, Tensor, int], Tensor], float]] = {
    "SRVGGNetCompact": (lambda scale: srvgg_layout(scale, 8, 3), srvgg, 1.0),
    "RLFN": (lambda scale: rlfn_layout(scale, 10, 2, 12), rlfn, 255.0),
    "SPAN": (lambda scale: span_layout(scale, 8, 3), span, 1.0),
    "PLKSR": (lambda scale: plksr_layout(scale, 8, 2, 5), plksr, 1.0),
    "EDSR": (lambda scale: edsr_layout(scale, 8, 2), edsr, 255.0),
}


def small_state(name: str, scale: int, dtype: torch.dtype = torch.float64) -> State:
    """Random weights of a small network of an architecture, in its public layout."""
    state = fill(LITERAL[name][0](scale), dtype=dtype)
    return edsr_state(state) if name == "EDSR" else state


def compute(name: str, state: State, images: Tensor, scale: int) -> Tensor:
    """The literal output for images of 0 to 255, of 0 to 255."""
    _, run, largest = LITERAL[name]
    return run(state, images * (largest / 255), scale) * (255 / largest)
