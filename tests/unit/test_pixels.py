"""Images whose pixels are unlike those of the others."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from paddlex_feat.checks.context import CheckSettings
from paddlex_feat.checks.measures import measure
from paddlex_feat.checks.phash import grey_of
from paddlex_feat.checks.runner import check

PHOTO = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8), (0, 0), 1.2)


def photo(seed: int) -> np.ndarray:
    """A picture of some detail, a little brighter or darker than the others."""
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (160, 200, 3), dtype=np.uint8), (0, 0), rng.uniform(1.0, 1.4))
    return cv2.convertScaleAbs(image, alpha=rng.uniform(0.9, 1.1), beta=float(rng.uniform(-15, 15)))


ODD = {
    "image-blurred": lambda i: cv2.GaussianBlur(i, (0, 0), 12),
    "image-darker": lambda i: i // 4,
    "image-brighter": lambda i: 255 - i // 4,
    "image-plain": lambda i: np.where(i > 128, 140, 120).astype(np.uint8),
    "image-aspect": lambda i: i[:12],
    "image-odd-size": lambda i: cv2.resize(i, None, fx=8, fy=8),
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for number in range(60):
        cv2.imwrite(str(root / f"{number}.png"), photo(number))
    return root


def codes(root, lines: list[str], pixels: bool = True) -> set[tuple[str, str]]:
    for name in ("train", "gallery", "query"):
        (root / f"{name}.txt").write_text("\n".join(lines))
    settings = CheckSettings(4, None, None, 1, 32, pixels=pixels)
    return {(f.code, f.where) for f in check(root, settings)[1] if f.code in ODD}


@pytest.mark.parametrize("code", ODD)
def test_the_odd_image_is_found(usual, code, tmp_path):
    lines = [f"{n}.png {n % 6}" for n in range(60)]
    assert not codes(usual, lines)
    cv2.imwrite(str(usual / f"{code}.png"), ODD[code](photo(99)))
    lines.insert(3, f"{code}.png 1")
    found = codes(usual, lines)
    assert (code, "train.txt:4") in found and {where for _, where in found} == {"train.txt:4"}
    assert not codes(usual, lines, pixels=False)
    assert not codes(usual, lines[:40])  # too few to tell what is usual


def test_measures_are_those_of_their_definitions():
    flat = np.full((90, 70), 77, np.uint8)
    assert measure(flat) == (0, 77, 0)
    half = flat.copy()
    half[:45] = 33
    assert measure(half)[1:] == (55, 1)
    grey = grey_of(PHOTO)
    sharp, blurred = measure(grey)[0], measure(cv2.GaussianBlur(grey, (0, 0), 5))[0]
    laplacian = cv2.Laplacian(grey, cv2.CV_64F)
    assert sharp == pytest.approx(laplacian.var(), rel=1e-3) and blurred < sharp / 20
