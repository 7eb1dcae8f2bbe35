"""Draw docs/images/augmentation.jpg: what training sees of a few images, by both recipes.

The images are ORL faces (the extra `demo`), a photograph that comes with matplotlib, and a drawn one.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib.cbook
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from prepare_orl import photographs

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.augment.rand_augment import RandAugment
from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.preprocess import Preprocess

CELL, GAP, MARGIN = 128, 6, 140
PLANS = 2  # rows of each way
TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "augmentation.jpg"
REC = Augment()
CLIP = Augment(
    crop="random_resized_crop", rotation_prob=0.3, rotation_interpolation="bicubic", rand_augment=RandAugment(num_ops=2)
)


def drawn() -> np.ndarray:
    """Colours, straight edges and fine lines: uint8 [300, 420, 3]."""
    y, x = np.mgrid[:300, :420]
    image = np.dstack([x * 200 // 420 + 40, y * 200 // 300 + 40, 230 - x * 150 // 420]).astype(np.uint8)
    for i in range(7):
        cv2.circle(
            image, (60 + 50 * i, 230 - 25 * (i % 3)), 34, (250 - 30 * i, 60 + 25 * i, 40 + 30 * i), -1, cv2.LINE_AA
        )
        cv2.line(image, (20 + 60 * i, 15), (40 + 60 * i, 120), (255, 255, 255), 2, cv2.LINE_AA)
    cv2.putText(image, "Query", (120, 105), cv2.FONT_HERSHEY_DUPLEX, 2, (20, 20, 60), 3, cv2.LINE_AA)
    return image


def whole(image: np.ndarray) -> np.ndarray:
    """The image in a white square, its aspect kept."""
    factor = CELL / max(image.shape[:2])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    cell = np.full((CELL, CELL, 3), 255, np.uint8)
    top, left = (CELL - height) // 2, (CELL - width) // 2
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    cell[top : top + height, left : left + width] = small
    return cell


def rows(images: list[np.ndarray]) -> list[tuple[str, list[np.ndarray]]]:
    """Caption and cells of every row."""
    preprocess, rng = Preprocess(CELL), np.random.default_rng(3)
    found = [("original", [whole(image) for image in images])]
    for number in range(PLANS):
        samples = [REC.sample_params(rng) for _ in images]
        for fused, name in ((True, "one warp"), (False, "step by step")):
            augment = replace(REC, fused=fused)
            cells = [augment.apply(params, image, preprocess) for params, image in zip(samples, images, strict=True)]
            found.append((f"PP-ShiTuV2_rec\nsample {number + 1}\n{name}", cells))
    for number in range(PLANS + 1):
        cells = [CLIP(image, preprocess, rng) for image in images]
        found.append((f"CLIP\nsample {number + 1}", cells))
    return found


def main(target: Path) -> None:
    """Write the picture."""
    faces = [read_rgb(photographs() / person / "1.pgm") for person in ("s1", "s5", "s12")]
    portrait = read_rgb(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    images = [*faces, portrait, portrait[30:420, 90:400], drawn()]
    table = rows(images)
    step = CELL + GAP
    sheet = Image.new("RGB", (MARGIN + step * len(images), GAP + step * len(table)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for i, (caption, cells) in enumerate(table):
        top = GAP + i * step
        draw.multiline_text((GAP + 4, top + CELL // 2), caption, fill="black", font=font, anchor="lm")
        for j, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (MARGIN + j * step, top))
    sheet.save(target, quality=85)
    print(f"{target}: {target.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
