"""Draw the embedded sample set: a few hundred pictures of 20 object classes, the same every time.

    python VOC12/sample.py --out VOC12/data/sample

Writes OUT/img/*.jpg, OUT/gt/*.png (class indices, 255 = ignore), OUT/class_names.txt, the lists
OUT/{train,val,trainval,train_aug}.txt and, last, OUT/STAMP.json: the layout of prepared VOC, for which it
stands in. `sparsemask/synthetic/scenes.py` says what its classes ask of a network. What is there is not drawn again.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys

from sparsemask.errors import command
from sparsemask.options import Parser
from sparsemask.synthetic.objects import CLASS_NAMES
from sparsemask.synthetic.segmentation import make_sample


@command
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = Parser("sample", prog="VOC12/sample.py", description=__doc__)
    parser.add_argument("--out", default="VOC12/data/sample", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--train", type=int, default=240, metavar="N", help="training pictures (default: 240)")
    parser.add_argument("--val", type=int, default=60, metavar="N", help="validation pictures (default: 60)")
    parser.add_argument("--size", type=int, default=128, metavar="PIXELS", help="of a side (default: 128)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other pictures (default: 0)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    options = parser.parse_args(argv)
    make_sample(options.out, options.train, options.val, options.size, options.seed, options.workers)
    print(
        f"{options.out}: the sample set, {options.train} training and {options.val} validation pictures of "
        f"{options.size} x {options.size}, {len(CLASS_NAMES)} classes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
