"""Write pictures and labels of a VOC folder at half of their size: short trainings on small crops see whole objects.

    python bench/reduced_voc.py VOCdevkit HALF [--factor 2]

Pictures are reduced by PIL's Lanczos filter and written as JPEG of quality 92, labels by the nearest neighbour.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voc_root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=int, default=2)
    options = parser.parse_args()
    source, target = options.voc_root / "VOC2012", options.out / "VOC2012"
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if folder.name == "ImageSets":
            shutil.copytree(folder, target / folder.name, dirs_exist_ok=True)
            continue
        (target / folder.name).mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            image = Image.open(path)
            size = tuple(max(1, round(side / options.factor)) for side in image.size)
            labels = image.mode in ("P", "L")
            small = image.resize(size, Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS)
            small.save(target / folder.name / path.name, **({} if labels else {"quality": 92}))


if __name__ == "__main__":
    main()
