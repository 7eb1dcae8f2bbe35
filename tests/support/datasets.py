"""Data sets made of the ORL faces for conversion and split, and the keys that ask for these."""

from __future__ import annotations

import json
from pathlib import Path

from paddlex_feat.data.readers import LISTS

CONVERT = ("CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type=LabelMe")
SPLIT = (
    "CheckDataset.split.enable=True",
    "CheckDataset.split.train_percent=70",
    "CheckDataset.split.gallery_percent=20",
    "CheckDataset.split.query_percent=10",
)


def labelme_set(root: Path, faces: Path) -> Path:
    """Photographs of eight people, annotated by flags."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(faces / "images")
    (root / "label.txt").write_text("".join(f"person{p}\n" for p in range(1, 9)))
    for p in range(1, 9):
        for i in range(1, 11):
            content = {"imagePath": f"../images/s{p:02d}/{i:02d}.pgm", "flags": {f"person{p}": True}, "shapes": []}
            (root / f"annotations/{p}_{i}.json").write_text(json.dumps(content))
    return root


def copied(faces: Path, target: Path) -> dict[str, bytes]:
    target.mkdir()
    (target / "images").symlink_to(faces / "images")
    for name in LISTS:
        (target / f"{name}.txt").write_bytes((faces / f"{name}.txt").read_bytes())
    return {name: (faces / f"{name}.txt").read_bytes() for name in LISTS}
