"""Small raw folders of S3DIS and SemanticKITTI for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TEXT = "-1.000 2.000 0.500 10 20 30\n-0.990 2.010 0.510 20 30 40\n1.000 -2.500 0.000 255 0 0\n"


def raw_rooms(root: Path) -> Path:
    """Two raw rooms of four points, with stairs and with files that are none of theirs; returns their folder."""
    for area, room in ((1, "office_1"), (5, "hallway_6")):
        folder = root / f"raw/Area_{area}/{room}/Annotations"
        folder.mkdir(parents=True)
        (folder / "chair_1.txt").write_text(TEXT)
        (folder / "stairs_1.txt").write_text("0 0 1 1 2 3\r\n")
        (folder / "empty_1.txt").write_text("")
        (folder / ".DS_Store").write_bytes(b"\x00\x01")
        (folder / "._chair_1.txt").write_bytes(b"\x00\x05\x16\x07")
    return root / "raw"


def raw_scans(root: Path) -> Path:
    """Scans of 300 points: a training, the validation and a test sequence, the last unlabelled; returns the folder."""
    rng = np.random.default_rng(0)
    for sequence, labelled in (("00", True), ("08", True), ("11", False)):
        folder = root / "dataset/sequences" / sequence
        (folder / "velodyne").mkdir(parents=True)
        points = rng.normal(0, 0.1, (300, 4)).astype("<f4")
        points[:, 3] = abs(points[:, 3])  # remission
        points.tofile(folder / "velodyne/000000.bin")
        if labelled:
            (folder / "labels").mkdir()
            raw = rng.choice([0, 10, 252, 40, 81], 300).astype("<u4") | (9 << 16)
            raw.tofile(folder / "labels/000000.label")
    return root / "dataset"


def state(folder: Path) -> dict[Path, bytes]:
    """All files below a folder but hidden ones, and what is in them."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
