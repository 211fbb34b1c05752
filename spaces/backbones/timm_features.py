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
        in_channels: channels of the input image.
        momentum: of all running statistics (models without batch norm have none).

    Raises:
        UseError: unknown model, a model without features, or one for images of a single size.
    """

    def __init__(self, name: str, in_channels: int = 3, momentum: float = 0.1):
        super().__init__()
        traits = model_traits(name)
        self.channels, self.strides = list(traits.channels), list(traits.strides)
        self._name, self._in_channels = name, in_channels
        self._indices, self._multiple, self._channels_last = traits.indices, traits.multiple, traits.channels_last
        self.timm = _build(name, in_channels)
        self.deepest = 0  # the deepest end point that is computed
        for module in self.timm.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum

    def truncate_(self, deepest: int) -> None:
        """As :meth:`sparsemask.spaces.backbones.Truncatable.truncate_`; models that timm does not cut stay whole."""
        # Numbers of timm's features, of which a model may leave out the first (DLA).
        features = tuple(self.timm.feature_info.out_indices)[: self._indices[deepest - self.deepest] + 1]
        with torch.random.fork_rng(devices=[]):
            cut = _build(self._name, self._in_channels, features)
        # Where stages are one sequence, timm builds all of them (EfficientNet).
        head, _, tail = cut.feature_info.module_name(features[-1]).partition(".")
        steps = dict(cut.named_children()).get(head)
        number = tail.partition(".")[0]
        if isinstance(steps, nn.Sequential) and number in steps._modules:
            names = list(steps._modules)
            for name in names[names.index(number) + 1 :]:
                del steps._modules[name]
        tensors = {**dict(self.timm.named_parameters()), **dict(self.timm.named_buffers())}
        wanted = cut.state_dict()
        if not wanted.keys() < tensors.keys():
            return
        learns = {name: parameter.requires_grad for name, parameter in self.timm.named_parameters()}
        cut.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
        for name, parameter in cut.named_parameters():
            parameter.requires_grad_(learns[name])
        modules = dict(self.timm.named_modules())
        for name, module in cut.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = modules[name].momentum
        self.timm = cut.train(self.timm.training)
        self._indices = self._indices[deepest - self.deepest :]
        self.deepest = deepest

    def forward(self, x: Tensor) -> list[Tensor | None]:
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
        points = [features[index] for index in self._indices]
        if self._channels_last:
            points = [point.permute(0, 3, 1, 2) for point in points]
        if self._multiple > 1:
            points = [
                point[..., : -(-height // stride), : -(-width // stride)]
                for point, stride in zip(points, self.strides[self.deepest :], strict=True)
            ]
        return [*[None] * self.deepest, *points]


@dataclass(frozen=True)
class Traits:
    """Properties of a model measured by a trial run; all tuples deepest first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    indices: tuple[int, ...]  # of the end points in timm's list of features
    multiple: int  # height and width of an image must be multiples of it; 1 for most
    channels_last: bool  # features come as (B, H, W, C)


@functools.cache
def model_traits(name: str) -> Traits:
    """Determine the end points of a timm model by a trial run on the meta device.

    Raises:
        UseError: the model does not accept images of any size.
    """
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
    channels_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")  # some of timm's models alone have it
    indices = [i for i, stride in enumerate(strides) if stride > 1][::-1]
    return Traits(
        channels=tuple(features[i].shape[3 if channels_last else 1] for i in indices),
        strides=tuple(strides[i] for i in indices),
        indices=tuple(indices),
        multiple=multiple,
        channels_last=channels_last,
    )


def _try(net: nn.Module, size: tuple[int, int]) -> list[Tensor] | None:
    try:
        return net(torch.zeros(1, 3, *size))
    except (RuntimeError, AssertionError, ValueError):  # in many words of its own
        return None


def timm_builder(name: str, registered: list[str]) -> Callable[..., TimmFeatures]:
    """Return the function that builds backbone `name` with timm.

    Args:
        name: a timm model, with or without "timm/" before it.
        registered: names of the built-in backbones, for the error message.

    Raises:
        UseError: timm is missing or does not know the name.
    """
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
    """Import timm.

    Raises:
        UseError: it is not installed or does not import.
    """
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


def _build(name: str, in_channels: int = 3, features: tuple[int, ...] | None = None) -> nn.Module:
    timm = import_timm()
    options = {"in_chans": in_channels} | ({} if features is None else {"out_indices": features})
    try:
        return timm.create_model(name.removeprefix(PREFIX), pretrained=False, features_only=True, **options)
    except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
        raise UseError(f"backbone '{name}': timm gives no features of this model ({one_line(error)[:160]})") from None


@dataclass(frozen=True)
class TimmLayout:
    """How weight files of a timm model name their tensors."""

    keys: dict[str, str]  # a file's key -> the backbone's
    unused: frozenset[str]  # keys of the whole model that its features do not need
    inputs: tuple[str, ...]  # the backbone's keys of the filters that read the image


def timm_layout(name: str) -> TimmLayout:
    """Return the layout of timm's weight files for a model; torchvision's ResNets, VGGs and DenseNets mostly match."""
    model = name.removeprefix(PREFIX)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        classifier = import_timm().create_model(model, pretrained=False)
        feature_keys = list(_build(model).state_dict())
    classifier_keys = set(classifier.state_dict())
    # A feature net may flatten the model's outer containers ("features.0" -> "features_0") or wrap the model.
    flat = {f"{a}_{b}": f"{a}.{b}" for a, child in classifier.named_children() for b, _ in child.named_children()}
    keys = {}
    for key in feature_keys:
        head, dot, tail = key.partition(".")
        names = (key, flat.get(head, head) + dot + tail, key.removeprefix("model."), key.removeprefix("body."))
        keys[next((name for name in names if name in classifier_keys), key)] = f"timm.{key}"
    first_convs = classifier.pretrained_cfg.get("first_conv") or ()
    first_convs = [first_convs] if isinstance(first_convs, str) else first_convs
    inputs = tuple(keys[f"{conv}.weight"] for conv in first_convs if f"{conv}.weight" in keys)
    return TimmLayout(keys, frozenset(classifier_keys - set(keys)), inputs)
