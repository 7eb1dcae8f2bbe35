"""Every target, and how many cases each gets in the long version."""

from __future__ import annotations

from support.fuzz import archives, images, parameters, texts, weights_files
from support.fuzz.target import Target

CASES = {
    "config": 6_000,
    "override": 40_000,
    "list": 10_000,
    "labelme": 30_000,
    "info": 8_000,
    "archive": 12_000,
    "weights": 12_000,
    "parameters": 12_000,
    "jpeg": 1_500,
    "png": 1_500,
    "webp": 1_000,
    "tiff": 2_000,
    "largest": 11,
    "others": 1_500,
}
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        texts.CONFIG, texts.OVERRIDE, texts.LIST, texts.LABELME, texts.INFO, archives.ARCHIVE, weights_files.WEIGHTS,
        parameters.PARAMETERS, *images.IMAGES,
    )
}  # fmt: skip
