"""The flags of classification."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemask.config import flag
from sparsemask.options import natural, positive
from sparsemask.tasks.protocol import DataSection

# Mean and deviation of red, green and blue in [0, 1].
STATISTICS = {
    # CIFAR's own, as Hinge has them (Li et al., CVPR 2020).
    "cifar": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    # torchvision's and most public ImageNet weights'; some public CIFAR networks were trained with it too.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationData(DataSection):
    """Which images, and how they are cut and normalised."""

    data_root: str | None = flag(
        help="CIFAR-10 or -100 (a public archive, or its folder), a folder of train*.npz and test*.npz (x uint8 NHWC, "
        "y), or class folders: train/CLASS/ and val/CLASS/, or CLASS/ alone, of which every tenth picture validates"
    )
    n_class: int | None = flag(None, positive, help="classes of the network (default: the data's)")
    image_size: int | None = flag(
        None,
        positive,
        help="side of what the network takes (default: small pictures of one size as they are, others 224)",
    )
    resize: int | None = flag(
        None,
        positive,
        help="shorter side that larger pictures get before they are cropped (default: 8/7 of --image_size)",
    )
    pad: int = flag(4, natural, help="black pixels around small pictures, random crops of which train")
    no_flip: bool = flag(False, help="training pictures are not mirrored at random")
    normalise: str = flag(
        "auto",
        choices=("auto", *STATISTICS),
        help="whose mean and deviation colours are normalised with; auto: cifar for small pictures, else imagenet",
    )
    eval_batch: int = flag(250, positive, help="validation pictures at once (default: 250)")
