"""Pixels to batches: decoding, pre-processing, sampling, loading. Augmentation: test_augment.py."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlex_feat.data import samplers
from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.decode import decode_rgb, read_rgb
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.loader import (
    BATCHES_AHEAD,
    evaluation_batches,
    prefetch_map,
    prefetch_map_then,
    training_batches,
)
from paddlex_feat.errors import ConfigError, ImageError, WeightsError


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    """uint8 [40, 60, 3], RGB: red left, green right, blue at the top."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30, 0] = image[:, 30:, 1] = 200
    image[:10, :, 2] = 150
    return image


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".webp", ".jpg"])
def test_decoding_gives_rgb(colours, suffix):
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else [cv2.IMWRITE_JPEG_QUALITY, 100]
    data = cv2.imencode(suffix, colours[..., ::-1], options)[1].tobytes()
    decoded = decode_rgb(data, "x").astype(int)
    assert decoded.shape == colours.shape
    if suffix == ".jpg":
        assert np.abs(decoded - colours)[15:, 5:25].max() < 12
    else:
        assert np.array_equal(decoded, colours)


def test_grey_16_bit_and_alpha_become_three_8_bit_channels(colours):
    grey16 = (colours[..., 0].astype(np.uint16)) << 8
    assert np.array_equal(decode_rgb(cv2.imencode(".png", grey16)[1].tobytes(), "x")[..., 1], colours[..., 0])
    alpha = np.dstack([colours[..., ::-1], np.full((40, 60), 7, np.uint8)])
    assert np.array_equal(decode_rgb(cv2.imencode(".png", alpha)[1].tobytes(), "x"), colours)


@pytest.mark.parametrize("data", [b"", b"GIF", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_what_is_no_image_is_an_error_that_names_it(data):
    with pytest.raises(ImageError, match=r"thing\.jpg"):
        decode_rgb(data, "thing.jpg")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        read_rgb(tmp_path / "gone.jpg")


@pytest.mark.parametrize("preprocess", [Preprocess(), Preprocess(8, "bicubic", (0.1, 0.2, 0.3), (1, 2, 3), 1.0)])
def test_normalise_against_float64(preprocess):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = (images * preprocess.scale - np.array(preprocess.mean)) / np.array(preprocess.std)
    got = preprocess.normalise(images)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    assert np.abs(got - expected.transpose(0, 3, 1, 2)).max() < 2e-5 * np.abs(expected).max()


def test_preprocess_survives_inference_yml():
    for preprocess in (Preprocess(), Preprocess(64, "bicubic")):
        assert Preprocess.from_ops(preprocess.to_ops(), "x") == preprocess


@pytest.mark.parametrize("ops", [[], None, [{"ResizeImage": {"size": [224, 100]}}, {"NormalizeImage": {}}], [3]])
def test_preprocessing_of_another_form_is_an_error(ops):
    with pytest.raises(WeightsError, match=r"that\.yml"):
        Preprocess.from_ops(ops, "that.yml")


def test_a_size_given_as_one_number_is_understood():
    ops = Preprocess().to_ops()
    ops[0]["ResizeImage"]["size"] = 224
    assert Preprocess.from_ops(ops, "x") == Preprocess()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    p=st.integers(1, 6),
    k=st.integers(2, 4),
    seed=st.integers(0, 5),
)
def test_every_batch_has_p_classes_with_k_images(sizes, p, k, seed):
    labels = np.repeat(np.arange(len(sizes)) * 7 + 3, sizes)
    if len(sizes) < p:
        with pytest.raises(ConfigError) as caught:
            samplers.PKSampler(labels, p * k, k, seed)
        assert caught.value.code == "batch-impossible"
        return
    sampler = samplers.PKSampler(labels, p * k, k, seed)
    batches = list(sampler.epoch(0))
    assert len(batches) == sampler.batches_per_epoch == -(-len(labels) // (p * k))
    for batch in batches:
        counts = Counter(labels[batch].tolist())
        assert len(counts) == p and set(counts.values()) == {k}
        for label in counts:
            drawn = batch[labels[batch] == label]
            if np.count_nonzero(labels == label) >= k:
                assert len(set(drawn.tolist())) == k  # without replacement where the class is large enough


def test_classes_are_drawn_in_proportion_to_their_size():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    sampler = samplers.PKSampler(labels, 2, 2, 0)  # one class a batch
    first = Counter(labels[batch[0]] for epoch in range(60) for batch in sampler.epoch(epoch))
    total = sum(first.values())
    assert np.allclose([first[c] / total for c in range(3)], [0.6, 0.3, 0.1], atol=0.03)


@pytest.mark.parametrize(("sizes", "p"), [([1] * 5000, 16), ([900, 1, 1, 1, 2], 4), ([3, 5], 2), ([7] * 6, 6)])
def test_classes_are_drawn_as_numpy_draws_them(sizes, p):
    sampler = samplers.PKSampler(np.repeat(np.arange(len(sizes)), sizes), 2 * p, 2, 0)
    ours, numpys, chance = np.random.default_rng(3), np.random.default_rng(3), np.asarray(sizes) / sum(sizes)
    for _ in range(200):
        expected = numpys.choice(len(sizes), p, replace=False, p=chance)
        assert sampler._draw_classes(ours, p).tolist() == expected.tolist()


def test_epochs_differ_and_repeat_by_seed():
    sampler = samplers.PKSampler([0, 0, 1, 1, 2, 2] * 4, 4, 2, seed=1)
    again = samplers.PKSampler([0, 0, 1, 1, 2, 2] * 4, 4, 2, seed=1)
    third, same, fourth = map(list, (sampler.epoch(3), again.epoch(3), sampler.epoch(4)))
    assert np.array_equal(third, same) and not np.array_equal(third, fourth)


@pytest.mark.parametrize(
    ("classes", "batch", "k", "fit"), [(20, 128, 4, 80), (20, 42, 4, 40), (1, 3, 4, 4), (5, 16, 4, None)]
)
def test_the_preflight_names_the_batch_size_that_fits(classes, batch, k, fit):
    fault = samplers.pk_error(classes, batch, k)
    assert (fault is None) if fit is None else f"batch_size={fit}," in fault[1]
    if fit:
        assert samplers.pk_error(classes, fit, k) is None


def test_shuffled_epochs_hold_every_image_once():
    sampler = samplers.build([0] * 23, 5, None, 0)
    batches = list(sampler.epoch(0))
    assert sorted(np.concatenate(batches)) == list(range(23)) and [len(b) for b in batches] == [5, 5, 5, 5, 3]


def test_the_number_of_workers_changes_nothing(faces):
    paths = [str(p) for p in sorted((faces / "images").rglob("*.pgm"))[:20]]
    batches = list(samplers.PKSampler([i // 5 for i in range(20)], 8, 4, 0).epoch(0))

    def run(workers: int) -> list[np.ndarray]:
        return [i for _, i in training_batches(batches, paths, Preprocess(32), Augment(), (7, 0), workers)]

    one, four = run(1), run(4)
    assert all(np.array_equal(a, b) for a, b in zip(one, four, strict=True))
    assert one[0].dtype == np.uint8 and one[0].shape == (8, 32, 32, 3)


def test_the_cache_changes_nothing_and_keeps_its_limit(faces, tmp_path):
    """Three files of another size each, one cached until the limit, read from memory once their files are gone."""
    paths = []
    for i, side in enumerate((100, 300, 900)):
        image = cv2.resize(cv2.imread(str(faces / f"images/s0{i + 1}/01.pgm")), (side, side))
        paths.append(str(tmp_path / f"{i}.jpg"))
        cv2.imwrite(paths[-1], image)
    augment, preprocess = Augment(crop="random_resized_crop"), Preprocess(64)

    def run(cache: ImageCache | None) -> list[np.ndarray]:
        samples = [(path, seed) for seed in range(12) for path in paths]
        return [augment.read(p, preprocess, np.random.default_rng(seed), cache) for p, seed in samples]

    plain = run(None)
    for limit in (0, 50_000, 10**9):
        cache = ImageCache(limit)
        for _ in range(2):
            assert all(np.array_equal(a, b) for a, b in zip(plain, run(cache), strict=True))
        assert cache.bytes <= limit and (cache.bytes > 0) == (limit > 0)
    for path in paths:
        Path(path).unlink()
    assert all(np.array_equal(a, b) for a, b in zip(plain, run(cache), strict=True))


def test_evaluation_batches_keep_the_order(faces):
    paths = [str(p) for p in sorted((faces / "images").rglob("*.pgm"))[:10]]
    seen = list(evaluation_batches(paths, Preprocess(32), 4, 3))
    assert np.concatenate([i for i, _ in seen]).tolist() == list(range(10))
    assert np.array_equal(seen[2][1][1], Preprocess(32).resize(read_rgb(paths[9])))


def test_an_undecodable_image_stops_with_its_name_and_nothing_is_substituted(faces, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    paths = [*map(str, sorted((faces / "images").rglob("*.pgm"))[:5]), str(bad)]
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        list(evaluation_batches(paths, Preprocess(32), 2, 2))


def test_reading_ahead_is_bounded():
    taken = []

    def groups():
        for i in range(50):
            taken.append(i)
            yield [i]

    stream = prefetch_map(groups(), lambda x: x, 2)
    assert next(stream) == ([0], [0])
    time.sleep(0.05)
    assert len(taken) <= BATCHES_AHEAD + 1
    stream.close()


def test_what_is_done_is_given_though_a_later_job_is_long_at_work():
    ended = threading.Event()
    jobs = [lambda: 1, lambda: 2, lambda: ended.wait(30)]
    stream = prefetch_map_then(
        ([job] for job in jobs), lambda job: job(), 2, lambda group, results: sum(results), ended.set
    )
    assert next(stream) == 1 and next(stream) == 2 and not ended.is_set()
    stream.close()
    assert ended.is_set()


def test_opencv_has_its_threads_back_when_the_last_user_has_ended():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        first, second = (prefetch_map([[0]] * 9, lambda x: cv2.getNumThreads(), 2) for _ in range(2))
        assert next(first)[1] == [1] and next(second)[1] == [1]
        first.close()
        assert cv2.getNumThreads() == 1
        second.close()
        assert cv2.getNumThreads() == 3
        for _ in prefetch_map([[0]], lambda x: x, 2):
            cv2.setNumThreads(2)  # the caller's own wish
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
