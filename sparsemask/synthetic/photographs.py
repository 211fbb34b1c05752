"""Pictures that networks for shipping are trained on: photographs in the public domain, and generated scenes.

    python -m sparsemask.synthetic.photographs FOLDER      write them

The photographs are those in scikit-image's wheel that its documentation names as CC0 or as released into the public
domain. They are written at several smaller sizes, at which they are sharp to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sparsemask.errors import UseError, command
from sparsemask.files import write_bytes
from sparsemask.options import Parser
from sparsemask.pictures.files import encoded
from sparsemask.resize import imresize

# Name in scikit-image, terms as its documentation has them, and the sizes that are written, over the original.
PHOTOGRAPHS = {
    "astronaut.png": ("NASA, public domain", (1.0, 0.8, 0.6)),
    "brick.png": ("CC0Textures, CC0", (0.7,)),
    "camera.png": ("Lav Varshney, CC0", (0.8, 0.6)),
    "chelsea.png": ("Stefan van der Walt, CC0", (0.8, 0.6)),
    "coffee.png": ("Rachel Michetti, CC0", (0.9, 0.7, 0.5)),
    "grass.png": ("linolafett, CC0", (0.7,)),
    "gravel.png": ("CC0Textures, CC0", (0.7,)),
    "hubble_deep_field.jpg": ("NASA, public domain", (0.5,)),
    "retina.jpg": ("Mikael Häggström, CC0", (0.4,)),
    "rocket.jpg": ("SpaceX, public domain", (0.7, 0.5)),
}
SCENES, SIZE, SEED = 16, 256, 0


def write(folder: Path) -> list[Path]:
    """Write all pictures as PNG into a folder; returns their files.

    Raises:
        UseError: this scikit-image carries none of the photographs.
    """
    from sparsemask.synthetic.segmentation import draw_scene
    from sparsemask.tasks.super_resolution.folders import sample_folder
    from sparsemask.VOC12.images import read_picture

    folder.mkdir(parents=True, exist_ok=True)
    source, images = sample_folder(), {}
    for name, (_, sizes) in PHOTOGRAPHS.items():
        if not (source / name).is_file():
            continue
        whole = read_picture(source / name)
        for size in sizes:
            images[f"{Path(name).stem}_{100 * size:.0f}"] = whole if size == 1 else imresize(whole, size)
    if not images:
        raise UseError(f"{source}: this scikit-image carries none of its photographs")
    images |= {f"scene_{number:03d}": draw_scene(SEED, number, SIZE)[0] for number in range(SCENES)}
    paths = []
    for name, image in images.items():
        paths.append(folder / f"{name}.png")
        write_bytes(paths[-1], encoded(Image.fromarray(np.ascontiguousarray(image)), "PNG"))
    return paths


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("photographs", prog="python -m sparsemask.synthetic.photographs", description=__doc__)
    parser.add_argument("folder", help="where to write")
    paths = write(Path(parser.parse_args(argv).folder))
    print(f"{len(paths)} pictures in {paths[0].parent}")
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main())
