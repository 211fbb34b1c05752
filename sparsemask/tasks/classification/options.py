"""The flags of classification."""

from __future__ import annotations

from sparsemask.options import natural, positive

# Mean and deviation of red, green and blue in [0, 1].
STATISTICS = {
    # CIFAR's own, as Hinge has them (Li et al., CVPR 2020).
    "cifar": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    # torchvision's and most public ImageNet weights'; some public CIFAR networks were trained with it too.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def add_options(group) -> None:
    """The flags that say which pictures, and how they are cut and normalised."""
    group.add_argument(
        "--data_root",
        default=None,
        help="CIFAR-10 or -100 (a public archive, or its folder), a folder of train*.npz and test*.npz (x uint8 NHWC, "
        "y), or class folders: train/CLASS/ and val/CLASS/, or CLASS/ alone, of which every tenth picture validates",
    )
    group.add_argument("--n_class", type=positive, default=None, help="classes of the network (default: the data's)")
    group.add_argument(
        "--image_size",
        type=positive,
        default=None,
        help="side of what the network takes (default: small pictures of one size as they are, others 224)",
    )
    group.add_argument(
        "--resize",
        type=positive,
        default=None,
        help="shorter side that larger pictures get before they are cropped (default: 8/7 of --image_size)",
    )
    group.add_argument(
        "--pad", type=natural, default=4, help="black pixels around small pictures, random crops of which train"
    )
    group.add_argument("--no_flip", action="store_true", help="training pictures are not mirrored at random")
    group.add_argument(
        "--normalise",
        choices=("auto", *STATISTICS),
        default="auto",
        help="whose mean and deviation colours are normalised with; auto: cifar for small pictures, else imagenet",
    )
    group.add_argument("--eval_batch", type=positive, default=250, help="validation pictures at once (default: 250)")
