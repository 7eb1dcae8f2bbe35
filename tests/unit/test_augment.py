"""Training augmentation: what chance decides, the steps, the single warp, RandAugment, reduced decoding."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from paddlex_feat.data.augment import geometry, rand_augment
from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.augment.rand_augment import FILL, NAMES, RandAugment
from paddlex_feat.data.images.decode import decode_bgr, read_rgb
from paddlex_feat.data.images.jpeg import frame_size
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ImageError

OFF = Augment(flip_prob=0, pad=0, rotation_prob=0)
CLIP = Augment(
    crop="random_resized_crop", rotation_prob=0.3, rotation_interpolation="bicubic", rand_augment=RandAugment(num_ops=2)
)
STILL = OFF.sample_params(np.random.default_rng(0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A bright random image without detail of fewer than about 1/5 of the side: uint8 [H, W, 3]."""
    coarse = rng(seed).integers(60, 256, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(60, 255)


def positions(height: int, width: int) -> np.ndarray:
    """Red tells the column, green the row (both 40..240 over the extent), blue is white."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[..., 0] = np.rint(40 + 200 * (np.arange(width) + 0.5) / width)
    image[..., 1] = np.rint(40 + 200 * (np.arange(height) + 0.5) / height)[:, None]
    return image


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """uint8 [37, 53, 3], all values."""
    return rng().integers(0, 256, (37, 53, 3), dtype=np.uint8)


# What chance decides


def test_draws_of_the_padded_recipe():
    """Flips, rotations, angles and offsets of 20,000 samples against the distributions of the recipe."""
    generator, augment, n = rng(1), Augment(), 20_000
    samples = [augment.sample_params(generator) for _ in range(n)]
    assert abs(np.mean([p.flip for p in samples]) - 0.5) < 0.015
    angles = np.array([p.degrees for p in samples if p.degrees is not None])
    assert abs(len(angles) / n - 0.5) < 0.015
    assert -90 <= angles.min() < -89 and 89 < angles.max() <= 90
    assert np.abs(np.histogram(angles, 9)[0] / len(angles) - 1 / 9).max() < 0.012
    windows = [geometry.padded_window(224, 10, p.zoom, p.offset) for p in samples]
    for axis, length in (("top", "height"), ("left", "width")):
        offsets = Counter(getattr(w, axis) + 10 for w in windows)
        assert sorted(offsets) == list(range(22))
        assert np.abs(np.array(list(offsets.values())) / n - 1 / 22).max() < 0.006
        assert all(getattr(w, length) == (223 if getattr(w, axis) == 11 else 224) for w in windows)
    places = np.array([p.offset for p in samples])
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.03
    assert all(p.ops == () and p.brightness == p.contrast == 1 for p in samples)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (100, 900)])
def test_draws_of_the_area_recipe(height, width):
    """Area, aspect and offsets of 20,000 crops, the bounds recomputed here in their original form."""
    generator, n = rng(2), 20_000
    samples = [CLIP.sample_params(generator) for _ in range(n)]
    aspects, fractions = np.array([p.aspect for p in samples]), np.array([p.area_fraction for p in samples])
    assert np.abs(np.histogram(aspects, 7, (3 / 4, 4 / 3))[0] / n - 1 / 7).max() < 0.012  # linear, not logarithmic
    assert np.abs(np.histogram(fractions, 7, (0, 1))[0] / n - 1 / 7).max() < 0.012
    assert abs(np.mean([p.degrees is not None for p in samples]) - 0.3) < 0.012
    down, right = [], []
    for p in samples:
        window = CLIP._area_window(p, height, width)
        w, h = math.sqrt(p.aspect), 1 / math.sqrt(p.aspect)
        bound = min((width / height) / w**2, (height / width) / h**2)
        low, high = min(0.08, bound), min(1.0, bound)
        side = math.sqrt((low + (high - low) * p.area_fraction) * width * height)
        assert abs(window.width - side * w) < 1.001 and abs(window.height - side * h) < 1.001
        assert 0 <= window.top <= height - window.height and 0 <= window.left <= width - window.width
        down.append((window.top + 0.5) / (height - window.height + 1))
        right.append((window.left + 0.5) / (width - window.width + 1))
    for parts in (down, right):
        assert abs(np.mean(parts) - 0.5) < 0.01


def test_draws_of_rand_augment():
    """Operations, their number, their signs and magnitudes of 30,000 draws."""
    generator, n = rng(3), 30_000
    draws = [RandAugment(num_ops=2).sample_ops(generator) for _ in range(n)]
    names = Counter(name for ops in draws for name, _ in ops)
    assert set(names) == set(NAMES) and len(NAMES) == 15
    assert np.abs(np.array(list(names.values())) / n - 2 * 0.5 / 15).max() < 0.006
    assert np.allclose([sum(len(o) == k for o in draws) / n for k in range(3)], [0.25, 0.5, 0.25], atol=0.01)
    twice = sum(len(o) == 2 and o[0][0] == o[1][0] for o in draws) / n
    assert abs(twice - 0.25 / 15) < 0.004  # with replacement
    for name, scale in {"Rotate": 3, "ShearX": 0.03, "ShearY": 0.03, "TranslateX": 0.045, "TranslateY": 0.045}.items():
        values = np.array([v for ops in draws for k, v in ops if k == name]) / scale
        assert abs(np.mean(values > 0) - 0.5) < 0.05
        assert abs(np.abs(values).mean() - 7) < 0.05 and abs(np.abs(values).std() - 0.5) < 0.03


def test_magnitudes_are_clipped():
    generator = rng(4)
    draws = [RandAugment(num_ops=2, prob=1, magnitude=9.5, magnitude_std=5).sample_ops(generator) for _ in range(3000)]
    degrees = [abs(v) for ops in draws for name, v in ops if name == "Rotate"]
    assert min(degrees) == 0 and max(degrees) == 30


def test_the_same_generator_gives_the_same_sample(noise):
    for augment in (Augment(), CLIP, Augment(zoom=0.3, brightness=0.3, contrast=0.3, rand_augment=RandAugment(2))):
        a, b, c = (augment(noise, Preprocess(32), rng(s)) for s in (5, 5, 6))
        assert np.array_equal(a, b) and not np.array_equal(a, c)
        assert a.dtype == np.uint8 and a.shape == (32, 32, 3)


def test_a_setting_changes_nothing_of_the_other_draws():
    plain, other = (
        Augment().sample_params(rng()),
        Augment(pad=0, flip_prob=0, rotation_prob=1, brightness=0.3).sample_params(rng()),
    )
    assert (plain.offset, plain.area_fraction, plain.aspect) == (other.offset, other.area_fraction, other.aspect)
    assert plain.degrees in (None, other.degrees)


# The steps


def test_augmentation_that_is_off_is_the_plain_resize(noise):
    preprocess = Preprocess(32)
    assert np.array_equal(OFF(noise, preprocess, rng()), preprocess.resize(noise))


def test_flip(noise):
    preprocess = Preprocess(32)
    assert np.array_equal(replace(OFF, flip_prob=1)(noise, preprocess, rng()), preprocess.resize(noise)[:, ::-1])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (0.5, 0.99), (0.99, 0.3), (0.99, 0.99)])
def test_padding_and_crop_against_numpy(noise, fused, offset):
    preprocess, pad = Preprocess(32), 5
    padded = np.pad(preprocess.resize(noise), ((pad, pad), (pad, pad), (0, 0)))
    top, left = (int(p * 12) for p in offset)
    expected = preprocess.resize(padded[top : top + 32, left : left + 32])
    params = replace(STILL, offset=offset)
    assert np.array_equal(Augment(pad=pad, fused=fused).apply(params, noise, preprocess), expected)


def test_zoom_crops_a_smaller_side():
    preprocess = Preprocess(64)
    params = replace(STILL, zoom=0.25, offset=(0.5, 0.0))
    for fused in (False, True):
        out = Augment(pad=0, fused=fused).apply(params, positions(128, 128), preprocess).astype(float)
        columns = (out[20, :, 0] - 40) / 200 * 64  # of the resized image, pixel edges at whole numbers
        assert np.abs(columns - (np.arange(64) + 0.5) * 48 / 64).max() < 0.6


@pytest.mark.parametrize("fused", [False, True])
def test_rotation_keeps_the_centre_and_fills_black(fused):
    image = np.full((33, 33, 3), 90, np.uint8)
    image[16, 16] = 255
    for degrees in (-90, -37, 10, 45, 90):
        out = Augment(pad=0, fused=fused).apply(replace(STILL, degrees=degrees), image, Preprocess(33))
        assert out[16, 16, 0] == 255
        assert (out[0, 0, 0] == 0) == (abs(degrees) < 90)


@pytest.mark.parametrize("fused", [False, True])
def test_a_quarter_turn_is_anticlockwise(fused):
    image = smooth(64, 64)
    out = Augment(pad=0, fused=fused).apply(replace(STILL, degrees=90.0), image, Preprocess(64))
    assert np.abs(out.astype(int) - np.rot90(image)).max() <= 1


def test_area_crop_against_numpy(noise):
    params = replace(STILL, area_fraction=0.3, aspect=0.9, offset=(0.4, 0.8), flip=True)
    w = CLIP._area_window(params, *noise.shape[:2])
    expected = cv2.resize(noise[w.top : w.top + w.height, w.left : w.left + w.width], (24, 24))[:, ::-1]
    for fused in (False, True):
        assert np.array_equal(replace(CLIP, fused=fused).apply(params, noise, Preprocess(24, "bicubic")), expected)
    full = replace(STILL, area_fraction=1.0, aspect=53 / 37, offset=(0.9, 0.9))
    assert CLIP._area_window(full, 37, 53) == geometry.Window(0, 0, 37, 53)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (300, 2)])
def test_the_smallest_images_survive(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    for seed in range(20):
        for augment in (Augment(), CLIP):
            assert augment(image, Preprocess(16), rng(seed)).shape == (16, 16, 3)


def test_a_side_beyond_the_warps_coordinates_is_no_fault():
    image = np.full((20, 2**15 + 5, 3), 200, np.uint8)
    out = Augment(pad=0).apply(replace(STILL, degrees=30.0), image, Preprocess(16))
    assert out[8, 8, 0] == 200


def test_the_order_of_the_area_recipe():
    """RandAugment comes before the rotation, whose fill is black and stays black."""
    params = replace(STILL, area_fraction=1.0, aspect=1.0, degrees=45.0, ops=(("Invert", 0.0),))
    out = CLIP.apply(params, np.full((64, 64, 3), 55, np.uint8), Preprocess(64))
    assert out[0, 0].tolist() == [0, 0, 0] and out[32, 32].tolist() == [200, 200, 200]
    bicubic = geometry.rotate(smooth(64, 64), 30, "bicubic")
    plain = replace(CLIP, rotation_interpolation="bilinear").apply(
        replace(params, ops=()), smooth(64, 64), Preprocess(64)
    )
    assert not np.array_equal(bicubic, plain)


def test_bgr_is_turned_before_the_colours_change(noise):
    params = replace(STILL, ops=(("Rotate", 20.0), ("Color", 0.5)), area_fraction=0.5)
    for augment in (Augment(), CLIP):
        a = augment.apply(params, noise, Preprocess(32))
        assert np.array_equal(a, augment.apply(params, noise[..., ::-1].copy(), Preprocess(32), bgr=True))


def test_light_moves_the_mean_within_its_bounds():
    image = np.full((32, 32, 3), 100, np.uint8)
    augment = replace(OFF, brightness=0.2)
    values = [int(augment(image, Preprocess(32), rng(s))[0, 0, 0]) for s in range(300)]
    assert 80 <= min(values) < 85 and 115 < max(values) <= 120
    params = replace(STILL, contrast=1.5)
    assert replace(OFF, contrast=0.5).apply(params, image, Preprocess(32))[0, 0, 0] == round((100 - 128) * 1.5 + 128)


# One warp against the steps


def where_from(x: float, y: float, size: int, window: geometry.Window, params, pad: int) -> tuple[float, float]:
    """Walks an output point back, step by step in continuous coordinates, to 0..1 of the source; nan if black."""
    x, y = x * window.width / size, y * window.height / size  # the last resize
    if params.degrees is not None:
        turn, cx, cy = math.radians(params.degrees), window.width / 2, window.height / 2
        dx, dy = x - cx, y - cy
        x, y = cx + dx * math.cos(turn) - dy * math.sin(turn), cy + dx * math.sin(turn) + dy * math.cos(turn)
    if not (0 <= x <= window.width and 0 <= y <= window.height):
        return math.nan, math.nan
    x, y = x + window.left, y + window.top
    if not (0 <= x <= size and 0 <= y <= size):
        return math.nan, math.nan
    return (size - x if params.flip else x) / size, y / size


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("height", "width", "size"), [(300, 451, 64), (600, 230, 224), (50, 80, 64), (30, 700, 64)])
def test_every_pixel_comes_from_where_it_should(height, width, size, fused):
    """To 0.45 pixels of the output or the source, whichever is coarser, and 0.1 on average; and black elsewhere."""
    image, augment = positions(height, width), Augment(zoom=0.1, rotation_prob=0.7, fused=fused)
    for seed in range(25):
        params = augment.sample_params(rng(seed))
        window = geometry.padded_window(size, augment.pad, params.zoom, params.offset)
        out = augment.apply(params, image, Preprocess(size)).astype(float)
        source = np.array(
            [[where_from(x + 0.5, y + 0.5, size, window, params, 10) for x in range(size)] for y in range(size)]
        )
        black = np.isnan(source[..., 0])
        inner = cv2.erode((~black).astype(np.uint8), np.ones((9, 9)), borderValue=0).astype(bool)
        edge = (np.abs(source - 0.5) > 0.5 - 1.5 * max(1 / size, 1 / height, 1 / width)).any(-1)
        inner &= ~edge
        for channel, side in ((0, width), (1, height)):
            error = ((out[..., channel] - 40) / 200 - source[..., channel])[inner]
            assert np.abs(error).max() < 0.45 / min(size, side) + 1.5 / 200, (seed, channel)
            # OpenCV rounds down a little: 0.1 of a level each time it interpolates.
            assert abs(error.mean()) < 0.1 / min(size, side) + 0.25 / 200, (seed, channel)
        outer = cv2.erode(black.astype(np.uint8), np.ones((5, 5)), borderValue=1).astype(bool)
        assert out[outer].max(initial=0) == 0


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("shape", [(1, 1), (1.5, 2.3), (4, 1.2), (0.7, 0.7), (0.5, 1.6)])
def test_one_warp_against_the_steps(size, shape):
    """Same samples, cuts, flips and rotations among them: nearly the same pixels, the same black."""
    height, width = (round(size * s) for s in shape)
    preprocess, augment = Preprocess(size), Augment(zoom=0.1)
    differences, overlaps = [], []
    for seed in range(60):
        params = augment.sample_params(rng(seed))
        if seed % 4 == 0:
            params = replace(params, zoom=0.0, offset=(0.999, params.offset[1]))  # a cut axis
        image = smooth(height, width, seed)
        one, steps = (replace(augment, fused=f).apply(params, image, preprocess) for f in (True, False))
        if params.degrees is None:
            assert np.array_equal(one, steps)
            continue
        white = np.full_like(image, 255)
        black = [replace(augment, fused=f).apply(params, white, preprocess)[..., 0] < 128 for f in (True, False)]
        overlaps.append((black[0] & black[1]).sum() / max((black[0] | black[1]).sum(), 1))
        differences.append(np.abs(one.astype(int) - steps)[~(black[0] | black[1])].mean())
    assert len(overlaps) > 20
    print(f"{size} px from {height} x {width}: difference {np.mean(differences):.2f}, IoU {np.mean(overlaps):.4f}")
    assert np.mean(differences) < (1.4 if size == 64 else 0.6)
    assert np.mean(overlaps) > (0.98 if size == 64 else 0.99)


def test_nothing_but_padding_is_black():
    params = replace(STILL, degrees=20.0, offset=(0.0, 0.0))
    assert not Augment(pad=40).apply(params, smooth(64, 64), Preprocess(32)).any()


# RandAugment


def test_arguments_are_those_of_the_reference():
    for magnitude in (0.0, 3.3, 7.0, 7.49, 10.0):
        for sign in (1, -1):
            expected = {
                "AutoContrast": 0,
                "Equalize": 0,
                "Invert": 0,
                "Rotate": sign * 3 * magnitude,
                "Posterize": 4 - math.floor(0.4 * magnitude),
                "Solarize": 256 - math.floor(25.6 * magnitude),
                "SolarizeAdd": math.floor(11 * magnitude),
                **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), 1 + sign * 0.09 * magnitude),
                **dict.fromkeys(("ShearX", "ShearY"), sign * 0.03 * magnitude),
                **dict.fromkeys(("TranslateX", "TranslateY"), sign * 0.045 * magnitude),
            }
            assert set(expected) == set(NAMES)
            for name, value in expected.items():
                assert rand_augment.argument(name, magnitude, sign) == pytest.approx(value), (name, magnitude)


PILLOW = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": lambda image, bits: ImageOps.posterize(image, int(bits)) if bits else image.point([0] * 768),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": lambda image, add: image.point([min(255, v + int(add)) if v < 128 else v for v in range(256)] * 3),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
}


@pytest.mark.parametrize("name", PILLOW)
def test_tables_give_pillows_bits(name, noise):
    images = [
        noise,
        (noise // 3 + 40).astype(np.uint8),
        np.full_like(noise, 77),
        smooth(40, 50),
        noise[:2, :3].copy(),
        rng(9).binomial(255, 0.4, (64, 64, 3)).astype(np.uint8),
    ]
    for image in images:
        for magnitude in np.linspace(0, 10, 23):
            for sign in (1, -1):
                value = rand_augment.argument(name, magnitude, sign)
                expected = np.asarray(PILLOW[name](Image.fromarray(image), value))
                assert np.array_equal(rand_augment.apply(image, ((name, value),)), expected), (magnitude, sign)


def test_colour_contrast_and_sharpness_against_numpy(noise):
    """Blends with the grey image, the mean grey and a 3 x 3 smoothing; Pillow truncates where numpy does not."""
    image = noise.astype(float)
    grey = np.rint(image @ [0.299, 0.587, 0.114])
    soft = image.copy()
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    soft[1:-1, 1:-1] = sum(kernel[i, j] * image[i : i + 35, j : j + 51] for i in range(3) for j in range(3))
    for factor in (0.37, 1.63):
        for name, degenerate in (("Color", grey[..., None]), ("Contrast", round(grey.mean())), ("Sharpness", soft)):
            expected = np.clip(degenerate + factor * (image - degenerate), 0, 255)
            assert np.abs(rand_augment.apply(noise, ((name, factor),)) - expected).max() <= 2, name


@pytest.mark.parametrize(
    ("name", "value", "linear", "shift"),
    [
        ("ShearX", 0.21, [[1, 0.21], [0, 1]], (0, 0)),
        ("ShearY", -0.15, [[1, 0], [-0.15, 1]], (0, 0)),
        ("TranslateX", 0.3, np.eye(2), (0.3 * 120, 0)),
        ("TranslateY", -0.25, np.eye(2), (0, -0.25 * 90)),
        ("Rotate", 21.0, None, None),
    ],
)
def test_geometric_operations_against_numpy(name, value, linear, shift):
    """Output (x, y) shows the input at linear @ (x, y) + shift, in continuous coordinates; elsewhere the fill."""
    height, width = 90, 120
    centre = np.array([width / 2, height / 2])
    if linear is None:
        c, s = math.cos(math.radians(value)), math.sin(math.radians(value))
        linear = np.array([[c, -s], [s, c]])  # anti-clockwise on the screen
        shift = centre - linear @ centre
    out = rand_augment.apply(positions(height, width), ((name, value),)).astype(float)
    y, x = np.mgrid[:height, :width] + 0.5
    source = np.stack([x, y], -1) @ np.asarray(linear).T + shift
    inside = ((source > 3) & (source < [width - 3, height - 3])).all(-1)
    outside = ((source < -1) | (source > [width + 1, height + 1])).any(-1)
    assert np.abs((out[..., :2] - 40) / 200 * [width, height] - source)[inside].max() < 0.9
    assert inside.sum() > 3000 and outside.sum() > 50 and (out[outside] == FILL).all()


# Reduced decoding


def jpeg(image: np.ndarray, orientation: int = 1, **options) -> bytes:
    """RGB, grey or CMYK pixels as a JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(image, options.pop("mode", None)).save(out, "JPEG", quality=95, exif=exif, **options)
    return out.getvalue()


def asks(least: int):
    """An `is_large_enough` that wants both sides of at least this length and notes what it is asked."""

    def is_large_enough(width, height):
        is_large_enough.seen.append((width, height))
        return min(width, height) >= least

    is_large_enough.seen = []
    return is_large_enough


@pytest.mark.parametrize(
    ("height", "width", "least", "expected"),
    [
        (1024, 1365, 224, (256, 342)),
        (1024, 1365, 257, (512, 683)),
        (1024, 1365, 128, (128, 171)),
        (1024, 1365, 513, (1024, 1365)),
        (301, 77, 10, (38, 10)),
        (7, 5, 1, (1, 1)),
    ],
)
def test_the_smallest_size_that_is_large_enough_is_decoded(height, width, least, expected):
    data = jpeg(smooth(height, width))
    assert frame_size(data) == (width, height)
    assert decode_bgr(data, "x", asks(least)).shape[:2] == expected
    assert decode_bgr(data, "x").shape[:2] == (height, width)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_come_out_as_in_the_full_decode(tmp_path, orientation):
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg(positions(203, 331), orientation))
    is_large_enough = asks(40)
    full, reduced = read_rgb(path), read_rgb(path, is_large_enough)
    assert full.shape[:2] == ((203, 331) if orientation < 5 else (331, 203))
    assert reduced.shape[:2] == ((51, 83) if orientation < 5 else (83, 51))
    assert all((h, w) in is_large_enough.seen for w, h in is_large_enough.seen[-2:])  # asked both ways round
    expected = cv2.resize(full, reduced.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(reduced - expected).mean() < 2


@pytest.mark.parametrize("kind", ["progressive", "grey", "cmyk", "restart"])
def test_other_jpegs(kind):
    image = smooth(200, 301)
    options = {"progressive": {"progressive": True}, "restart": {"restart_marker_blocks": 3}}.get(kind, {})
    if kind == "grey":
        data = jpeg(image[..., 0].copy())
    elif kind == "cmyk":
        data = jpeg(np.dstack([255 - image, np.zeros((200, 301), np.uint8)]), mode="CMYK")
    else:
        data = jpeg(image, **options)
    assert frame_size(data) == (301, 200)
    full, reduced = decode_bgr(data, "x"), decode_bgr(data, "x", asks(60))
    assert reduced.shape == (100, 151, 3)
    expected = cv2.resize(full, reduced.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(reduced - expected).mean() < 3


def test_what_is_no_plain_jpeg_is_decoded_fully(noise):
    png = cv2.imencode(".png", noise)[1].tobytes()
    assert frame_size(png) is None and np.array_equal(decode_bgr(png, "x", asks(1)), noise)
    data = jpeg(noise)
    frame = data.index(b"\xff\xc0")
    assert frame_size(data[: frame + 5]) is None and frame_size(b"\xff\xd8" + bytes(40)) is None
    assert frame_size(data[:2] + b"\xff\xff\xff" + data[3:]) == (53, 37)  # fill bytes
    unknown_height = data[: frame + 5] + b"\0\0" + data[frame + 7 :]
    assert frame_size(unknown_height) is None
    assert frame_size(b"\xff\xd8\xff\xe0\0\0" * 5) is None


@pytest.mark.parametrize("part", [0.02, 0.5, 0.98])
def test_a_truncated_jpeg_is_an_error_at_any_size(part, tmp_path):
    data = jpeg(rng().integers(0, 256, (301, 402, 3), dtype=np.uint8))
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(len(data) * part)])
    for reduced in (False, True):
        with pytest.raises(ImageError, match=r"cut\.jpg"):
            Augment(reduced_decode=reduced).read(path, Preprocess(32), rng())


@pytest.mark.parametrize("augment", [Augment(), Augment(zoom=0.5), CLIP], ids=["padded", "zoom", "area"])
def test_what_becomes_the_result_keeps_its_pixels(augment):
    """The recipe's own test of sizes: never fewer pixels than the result has, and the reduction is used."""
    size, used = 64, Counter()
    for seed in range(300):
        params, factors = augment.sample_params(rng(seed)), [1]
        for factor in (2, 4, 8):
            height, width = -(-600 // factor), -(-410 // factor)
            if augment._is_large_enough(params, size, width, height):
                factors.append(factor)
                if augment.crop == "random_resized_crop":
                    window = augment._area_window(params, height, width)
                    assert min(window.height, window.width) >= size
                else:
                    side = geometry.padded_window(size, 0, params.zoom, (0, 0)).width
                    assert min(height, width) * side / size >= size
        used[max(factors)] += 1
    assert len(used) > 1 or set(used) == {4}, used


@pytest.mark.parametrize("augment", [Augment(), replace(CLIP, rand_augment=RandAugment())], ids=["padded", "area"])
def test_reading_reduced_is_reading(augment, tmp_path):
    """The same params, the same sample but for the detail."""
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg(smooth(601, 811)))
    differences = []
    for seed in range(20):
        reduced = augment.read(path, Preprocess(64), rng(seed)).astype(int)
        plain = replace(augment, reduced_decode=False)
        assert np.array_equal(
            plain.read(path, Preprocess(64), rng(seed)), plain(read_rgb(path), Preprocess(64), rng(seed))
        )
        differences.append(np.abs(reduced - plain.read(path, Preprocess(64), rng(seed))).mean())
    print(f"mean difference {np.mean(differences):.2f}")
    assert max(differences) < 4
