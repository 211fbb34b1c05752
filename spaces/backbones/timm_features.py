"""Any timm model that gives features, as a backbone: ResNet, VGG, EfficientNet, ConvNeXt, ... (the extra `timm`).

timm (Wightman 2019, github.com/huggingface/pytorch-image-models) is imported where it is used, never asked for
pretrained weights and never for anything but its own list of models: nothing is downloaded.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError, one_line

PREFIX = "timm/"
# Height and width of the trial runs: odd ones, and ones that every usual stride divides.
_ODD, _EVEN = (257, 225), (256, 224)


class TimmFeatures(nn.Module):
    """A timm model's features as end points, deepest first.

    Features of stride 1 (VGG's first) are left out, as the published space begins at stride 2: a decoder stage at
    full resolution would cost as much as all others together. End points are what timm gives, mostly after the
    activation; the decoders apply ReLU6 to every end point, which then only cuts off what is above 6.

    Args:
        name: a timm model, with or without "timm/" before it.
        in_channels: channels of the input picture.
        momentum: of all running statistics (models without batch norm have none).

    Raises UseError for unknown models, models without features, and those for pictures of one size only.
    """

    def __init__(self, name: str, in_channels: int = 3, momentum: float = 0.1):
        super().__init__()
        traits = model_traits(name)
        self.channels, self.strides = list(traits.channels), list(traits.strides)
        self._places, self._multiple, self._channels_last = traits.places, traits.multiple, traits.channels_last
        self.timm = _build(name, in_channels)
        for module in self.timm.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> end points, deepest first, of sizes H / stride (rounded as the model does)."""
        height, width = x.shape[-2:]
        if self._multiple > 1:
            x = F.pad(x, (0, -width % self._multiple, 0, -height % self._multiple))
        try:
            features = self.timm(x)
        except RuntimeError as error:
            if "too small" not in str(error) and "Kernel size can't be greater" not in str(error):
                raise
            raise UseError(f"pictures of {height}x{width} are too small for this backbone: take larger crops") from None
        points = [features[place] for place in self._places]
        if self._channels_last:
            points = [point.permute(0, 3, 1, 2) for point in points]
        if self._multiple > 1:
            points = [
                point[..., : -(-height // stride), : -(-width // stride)]
                for point, stride in zip(points, self.strides, strict=True)
            ]
        return points


@dataclass(frozen=True)
class Traits:
    """What a trial run tells of a model; all tuples deepest first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    places: tuple[int, ...]  # of the end points in timm's list
    multiple: int  # sides of a picture must be its multiples; 1 for most
    channels_last: bool  # features come as (B, H, W, C)


@functools.cache
def model_traits(name: str) -> Traits:
    """End points of a timm model, found by a trial run without memory or arithmetic; UseError where it fails."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        net = _build(name).eval()
        strides = net.feature_info.reduction()
        features, multiple = _try(net, _ODD), 1
        if features is None:
            features, multiple = _try(net, _EVEN), max(strides)
    if features is None or any(feature.dim() != 4 for feature in features):
        raise UseError(
            f"backbone '{name}': this timm model does not take pictures of any size, which an encoder here must; "
            "take a convolutional one (resnet50, vgg16, efficientnet_b0, convnext_tiny, ...)"
        )
    last = str(getattr(net, "output_fmt", "")).endswith("NHWC")  # some of timm's models alone have it
    places = [i for i, stride in enumerate(strides) if stride > 1][::-1]
    return Traits(
        channels=tuple(features[i].shape[3 if last else 1] for i in places),
        strides=tuple(strides[i] for i in places),
        places=tuple(places),
        multiple=multiple,
        channels_last=last,
    )


def _try(net: nn.Module, size: tuple[int, int]) -> list[Tensor] | None:
    try:
        return net(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError):  # in many words of its own
        return None


def timm_builder(name: str, registered: list[str]) -> Callable[..., TimmFeatures]:
    """What builds backbone `name` by timm; UseError for a name that neither we (`registered`) nor timm know."""
    model = name.removeprefix(PREFIX)
    try:
        timm = import_timm()
    except UseError as error:
        raise UseError(
            f"unknown backbone '{name}'; known: {', '.join(registered)}, and any timm model with features, but {error}"
        ) from None
    # Only its own list: timm would take names of hubs and folders too.
    if not timm.is_model(model):
        like = difflib.get_close_matches(model, timm.list_models(), 4, 0.5) or ["resnet50", "vgg16", "efficientnet_b0"]
        raise UseError(
            f"unknown backbone '{name}'; known: {', '.join(registered)}, and timm's, such as {', '.join(like)}"
        )
    return functools.partial(TimmFeatures, model)


def import_timm():
    """The timm package; UseError in plain words where it is absent or does not import."""
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name == "timm":
            raise UseError("timm is not installed: pip install 'sparsemask[timm]'") from None
        raise UseError(f"timm does not import, it needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # whatever a compiled dependency dies of
        raise UseError(
            f"timm is installed but does not import ({one_line(error)[:160]}): most often a torchvision made for "
            f"another torch; install the one that belongs to torch {torch.__version__}"
        ) from None
    return timm


def _build(name: str, in_channels: int = 3) -> nn.Module:
    timm = import_timm()
    try:
        return timm.create_model(name.removeprefix(PREFIX), pretrained=False, features_only=True, in_chans=in_channels)
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
        raise UseError(f"backbone '{name}': timm gives no features of this model ({one_line(error)[:160]})") from None


@dataclass(frozen=True)
class TimmLayout:
    """How weight files of a timm model name their tensors."""

    keys: dict[str, str]  # a file's key -> the backbone's
    rest: frozenset[str]  # keys of the whole model that its features have no use for
    inputs: tuple[str, ...]  # the backbone's keys of the filters that see the picture


def timm_layout(name: str) -> TimmLayout:
    """The layout of timm's own files for `name`; torchvision's ResNets, VGGs and DenseNets mostly agree with it."""
    model = name.removeprefix(PREFIX)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        whole = import_timm().create_model(model, pretrained=False)
        own = list(_build(model).state_dict())
    theirs = set(whole.state_dict())
    # A feature net may flatten the model's outer containers ("features.0" -> "features_0") or wrap the model.
    flat = {f"{a}_{b}": f"{a}.{b}" for a, child in whole.named_children() for b, _ in child.named_children()}
    keys = {}
    for key in own:
        head, dot, tail = key.partition(".")
        names = (key, flat.get(head, head) + dot + tail, key.removeprefix("model."), key.removeprefix("body."))
        keys[next((name for name in names if name in theirs), key)] = f"timm.{key}"
    first = whole.pretrained_cfg.get("first_conv") or ()
    first = [first] if isinstance(first, str) else first
    inputs = tuple(keys[f"{conv}.weight"] for conv in first if f"{conv}.weight" in keys)
    return TimmLayout(keys, frozenset(theirs - set(keys)), inputs)
