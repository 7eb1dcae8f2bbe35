"""What predict takes, in which order it gives results, and what it does about inputs that fail."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence
from support.runs import ROOT
from support.servers import serving

pytest.importorskip("paddle")

import paddlex_feat
from paddlex_feat.data.images import tiff
from paddlex_feat.errors import ConfigError, FeatError, ImageError, OutputError, WeightsError
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.hub import download
from paddlex_feat.inference.inputs import pixels
from paddlex_feat.inference.inputs.items import iter_images

NAME = "PP-ShiTuV2_rec"


def loaded(source) -> list[np.ndarray]:
    """The full pixels of every image of an input, RGB."""
    return [item.load(lambda image: image) for item in iter_images(source)]


def test_every_kind_of_input_gives_the_same_feature(model, files, tmp_path):
    array = cv2.imread(files[0])
    (tmp_path / "sub").mkdir()
    shutil.copy(files[0], tmp_path / "sub" / "a.PGM")
    (tmp_path / "notes.txt").write_text("no image")
    rgba = np.dstack([array, array[..., :1]])
    sources = [files[0], Path(files[0]), array, array[..., 0], array[..., :1], rgba, str(tmp_path), tmp_path]
    sources += [Image.open(files[0]), Image.fromarray(array[..., ::-1]), {"img": files[0]}, {"img": array}]
    sources += [[files[0]], (array,), [[{"img": [files[0]]}]], ({"img": p} for p in [files[0]]), iter([array])]
    features = [[r.feature for r in model.predict(source)] for source in sources]
    assert all(len(f) == 1 for f in features)
    assert max(np.abs(f[0] - features[0][0]).max() for f in features) == 0
    assert [r["input_path"] for r in model(sources)].count(files[0]) == 5  # an iterator is used up


def test_bgr_arrays_are_not_taken_for_rgb(model):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), (32, 32))
    image[..., 0] //= 8
    swapped = np.ascontiguousarray(image[..., ::-1])
    assert (loaded(image)[0] == swapped).all() and (loaded(Image.fromarray(swapped))[0] == swapped).all()
    path_like = next(model.predict(image)).feature
    assert np.abs(path_like - next(model.predict(swapped)).feature).max() > 1e-3


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "La", "RGBa", "I", "I;16", "I;16B"]
)
def test_pil_images_of_any_mode(files, mode):
    grey = cv2.imread(files[0])
    if mode.startswith("I"):
        wide = cv2.imread(files[0], cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 256 + 255
        image = Image.fromarray(wide.astype(np.int32 if mode == "I" else ">u2" if mode == "I;16B" else "<u2"))
    else:
        image = Image.fromarray(grey[..., 0])  # from grey, for a palette of 256 greys
        image = image if mode in ("L", "P", "PA") else image.convert("RGB")
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)
    assert image.mode == mode
    dithered = mode == "1"  # black and white, with no grey to come back
    expected = np.asarray(image.convert("L"))[..., None] if dithered else grey
    assert np.abs(loaded(image)[0].astype(int) - expected).max() <= (0 if dithered else 8)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pil_images_are_as_opencv_reads_their_files(mode, tmp_path):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels.view("<u2")[..., 0]) if mode == "I;16" else image.convert("RGB").convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(pixels[..., 3]))
    image.save(tmp_path / "a.png")
    assert (loaded(Image.open(tmp_path / "a.png"))[0] == loaded(tmp_path / "a.png")[0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_of_pil_images_is_that_of_files(orientation, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    from_pil, from_file = loaded(Image.open(tmp_path / "a.png"))[0], loaded(tmp_path / "a.png")[0]
    assert from_pil.shape == ((30, 20, 3) if orientation > 4 else (20, 30, 3))
    if tuple(map(int, cv2.__version__.split(".")[:2])) >= (4, 11):  # older ones know the orientation of JPEGs alone
        assert (from_pil == from_file).all()


def test_each_frame_of_an_animation_is_the_one_that_was_given(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (10, 80, 150, 220)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.png") as image:
        given = list(iter_images(ImageSequence.Iterator(image)))  # all, before the first is read
    assert [item.load(lambda i: i).mean() for item in given] == [10, 80, 150, 220]


def test_unusable_pil_images_are_errors(files, tmp_path):
    Image.open(files[0]).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    closed = Image.open(files[0])
    closed.close()
    for image in (Image.open(tmp_path / "cut.png"), closed, Image.new("F", (3, 3))):
        with pytest.raises(ImageError, match=r"PIL image.*\n.*input"):
            loaded(image)


def test_limits_hold_for_what_is_no_file(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PIXELS", 99)
    for source in (np.zeros((10, 10), np.uint8), Image.new("L", (10, 10))):
        with pytest.raises(ImageError, match="10 x 10 pixels"):
            loaded(source)


def test_limits_hold_where_opencv_was_imported_first(tmp_path):
    """It reads its limit when it is imported; what is decoded here is a header alone."""
    code = """
import cv2, sys
from paddlex_feat.errors import ImageError
from paddlex_feat.data.images.decode import read_bgr
for path in sys.argv[1:]:
    try:
        print(read_bgr(path).shape)
    except ImageError as error:
        print(error.what)
"""
    width, height = 11_000, 10_500
    small = cv2.imencode(".jpg", np.zeros((64, 48, 3), np.uint8))[1].tobytes()
    png = cv2.imencode(".png", np.zeros((64, 48, 3), np.uint8))[1].tobytes()
    ihdr = b"IHDR" + struct.pack(">2I", width, height) + png[24:29]
    big = {
        "a.jpg": small.replace(struct.pack(">2H", 64, 48), struct.pack(">2H", height, width)),
        "a.png": png[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + png[33:],
        "a.pgm": b"P5 %d %d 255\n" % (width, height),
        "b.pgm": b"P5 %d %d 255\n" % (20 * width, height),
        "ok.jpg": small,
    }
    for name, content in big.items():
        (tmp_path / name).write_bytes(content)
    words = [sys.executable, "-c", code, *(str(tmp_path / name) for name in big)]
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment)
    message = "The image cannot be decoded: it has more than 110000000 pixels."
    assert done.stdout.splitlines() == [message] * 4 + ["(64, 48, 3)"], done.stderr


def pages_file(path: Path, files: list[str], **options: object) -> list[np.ndarray]:
    pages = [Image.open(f) for f in files]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    return [cv2.imread(f) for f in files]


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
def test_pages_of_a_tiff_are_results_of_their_own(model, files, tmp_path, options):
    expected = pages_file(tmp_path / "a.TIF", files[:5], **options)
    cv2.imwrite(str(tmp_path / "b.tiff"), expected[0])
    assert all((got == page).all() for got, page in zip(loaded(tmp_path / "a.TIF"), expected, strict=True))
    results = list(model.predict(tmp_path))
    assert [r.get("page_index") for r in results] == [0, 1, 2, 3, 4, None]
    assert list(results[0]) == ["input_path", "page_index", "feature"] and "page_index" not in results[5]
    assert np.abs(np.stack([r.feature for r in results[:5]]) - [r.feature for r in model(files[:5])]).max() <= 1e-6
    names = [r.save_to_json(tmp_path / "out").name for r in results]
    assert names == [f"a_{i}_res.json" for i in range(5)] + ["b_res.json"]


def test_damaged_tiff_files(files, tmp_path):
    pages_file(tmp_path / "a.tif", files[:3])
    whole = (tmp_path / "a.tif").read_bytes()
    offsets = tiff.page_offsets(tmp_path / "a.tif")
    (tmp_path / "cut.tif").write_bytes(whole[: offsets[2] - 100])
    items = list(iter_images(tmp_path / "cut.tif"))
    assert [i.page_index for i in items] == [0, 1, 2] and items[0].load(lambda i: i).shape == (112, 92, 3)
    with pytest.raises(ImageError, match=r"cut\.tif page 2"):
        items[2].load(lambda i: i)
    entries = int.from_bytes(whole[offsets[1] : offsets[1] + 2], "little")
    end = offsets[1] + 2 + 12 * entries
    looped = whole[:end] + offsets[0].to_bytes(4, "little") + whole[end + 4 :]
    (tmp_path / "loop.tif").write_bytes(looped)
    assert tiff.page_offsets(tmp_path / "loop.tif") == offsets[:2]
    for content in (b"", b"II*\0", b"no image"):
        (tmp_path / "no.tif").write_bytes(content)
        with pytest.raises(ImageError, match=r"no\.tif"):
            loaded(tmp_path / "no.tif")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.jpg", r"absent\.jpg"),
        (b"x", "bytes"),
        (3, "int"),
        (["a" * 300], r"input\[0\]"),
        ({"image": "x"}, "'img'"),
        (np.zeros((3, 3)), "float64"),
        (np.zeros((1, 3, 3, 3), np.uint8), "list"),
        ([np.zeros((3, 3, 3), np.uint8), [None]], r"input\[1\]\[0\]"),
        (np.array(["a.jpg", "b.jpg"]), r"list\(array\)"),
        (np.array(["a.jpg", None]), r"list\(array\)"),
        (["tests/conftest.py"], r"conftest\.py \(input\[0\]\)\n.*\.py is not an image"),
    ],
)
def test_an_input_that_cannot_be_used_is_named(model, source, message):
    if isinstance(source, np.ndarray) and source.ndim == 4:
        message = r"shape.*\n.*\n.*list\(array\)"
    with pytest.raises(ImageError, match=message):
        list(model.predict(source))


def test_a_folder_that_cannot_be_read_is_said(model, files, tmp_path, monkeypatch):
    shutil.copy(files[0], tmp_path / "a.pgm")

    def scandir(folder: str):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    real = os.scandir
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    assert len(list(model.predict(str(tmp_path), on_error="skip"))) == 1
    assert model.failed == [(str(tmp_path / "closed"), "The folder cannot be read (Permission denied).")]


def test_folders_behind_symbolic_links_are_read_once(files, tmp_path):
    top, aside = tmp_path / "top", tmp_path / "aside"
    for folder in (top / "z", top / "m", aside / "deep"):
        folder.mkdir(parents=True)
        shutil.copy(files[0], folder / "a.pgm")
    for link, target in (
        ("a", top / "z"),  # a folder that lies below keeps its own path
        ("b", aside),
        ("c", aside / "deep"),  # comes by way of b
        ("m/loop", top),
        ("m/out", tmp_path),
        ("dead", tmp_path / "nothing"),
    ):
        (top / link).symlink_to(target)
    (aside / "loop").symlink_to(aside)
    found = [item.input_path for item in iter_images(top)]
    assert [Path(f or "").relative_to(top).as_posix() for f in found] == ["b/deep/a.pgm", "m/a.pgm", "z/a.pgm"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif"):
        loaded(tmp_path / "a.tif")


def test_a_folder_without_images_is_an_error(model, tmp_path):
    with pytest.raises(ImageError, match="holds no images"):
        list(model.predict(str(tmp_path)))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_what_comes_before_a_bad_input_is_still_given(model, files, batch_size):
    seen = []
    with pytest.raises(ImageError, match=r"absent\.jpg \(input\[5\]\)"):
        for result in model.predict([*files[:5], "absent.jpg", files[6]], batch_size=batch_size):
            seen.append(result["input_path"])
    assert seen == files[:5] and [name for name, _ in model.failed] == ["absent.jpg"]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_skipping_gives_the_others_and_names_the_failed(model, files, batch_size, tmp_path, caplog):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    mixed = [files[0], tmp_path / "bad.jpg", None, files[1], [], "absent", np.zeros(3), *files[2:5]]
    results = list(model.predict(mixed, batch_size=batch_size, on_error="skip"))
    assert [r["input_path"] for r in results] == files[:5]
    assert np.abs(np.stack([r.feature for r in results]) - [r.feature for r in model(files[:5])]).max() <= 1e-6
    list(model.predict(mixed, on_error="skip"))
    assert [name for name, _ in model.failed] == [str(tmp_path / "bad.jpg"), "input[2]", "absent", "input[6]"]
    assert "cannot be decoded" in model.failed[0][1] and "absent" in caplog.text
    assert list(model.predict([None, 3], on_error="skip")) == [] and len(model.failed) == 2
    former = model.failed
    assert len(list(model.predict(files[:1]))) == 1 and model.failed == [] and len(former) == 2


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("error", [KeyError("mine"), ImageError("mine")])
def test_an_exception_of_an_iterator_comes_through_after_the_results_before_it(model, files, on_error, error):
    def stream():
        yield from files[:3]
        raise error

    seen = []
    with pytest.raises(type(error)) as caught:
        for result in model.predict([stream(), files[4]], batch_size=2, on_error=on_error):
            seen.append(result["input_path"])
    assert caught.value is error and seen == files[:3] and model.failed == []


def test_an_endless_stream_is_read_as_it_is_consumed_and_ends_with_the_iterator(model, files):
    taken = []
    array = cv2.imread(files[0])
    results = model.predict((taken.append(i) or array for i in count()), batch_size=2)
    for _ in range(10):
        next(results)
    assert 10 <= len(taken) <= 16
    assert any(t.name.startswith("decode") for t in threading.enumerate())
    results.close()
    deadline = time.monotonic() + 10
    while any(t.name.startswith("decode") for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(t.name.startswith("decode") for t in threading.enumerate())
    assert len(list(model.predict(files[:3]))) == 3


def test_inputs_at_hand_are_computed_eight_at_a_time_and_those_of_an_iterator_as_asked(model, files, monkeypatch):
    sizes, run = [], model._extractor.engine.run
    monkeypatch.setattr(model._extractor.engine, "run", lambda x: sizes.append(len(x)) or run(x))
    many = [*files[:5], {"img": files[5]}, cv2.imread(files[6])] * 3
    for source, size, expected in (
        (many, 1, [8, 8, 5]),
        (many, 20, [8, 8, 4, 1]),  # of a batch size, 20, the pieces
        (iter(many[:3]), 1, [1, 1, 1]),
        ([files[0], (f for f in files[1:3])], 2, [2, 1]),
        ({"img": iter(many[:3])}, 2, [2, 1]),
        ([*many[:3], None, 3, *many[3:5]], 1, [5]),  # none of them is waited for
        ([*many[:3], {"img": "http://127.0.0.1:9/a.b"}], 2, [2, 1]),
    ):
        sizes.clear()
        assert len(list(model.predict(source, batch_size=size, on_error="skip"))) == sum(expected)
        assert sizes == expected


@pytest.mark.parametrize("number", [0, 1, 5])
def test_as_many_results_as_images(model, files, number):
    assert [r["input_path"] for r in model.predict(iter(files[:number]), batch_size=2)] == files[:number]


def test_a_picture_behind_a_url_is_fetched_anew(model, files, tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "www"))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    url = f"{address}/face.pgm?sig=a/b.c"
    features = []
    for file in (files[0], files[9]):
        shutil.copy(file, tmp_path / "www" / "face.pgm")
        result = next(model.predict(url))
        features.append(result.feature)
        assert result["input_path"] == url and result.save_to_json(tmp_path).name == "face_res.json"
        assert np.abs(result.feature - next(model.predict(file)).feature).max() <= 1e-6
    assert np.abs(features[0] - features[1]).max() > 1e-3
    same = np.stack([r.feature for r in model.predict([url] * 12, batch_size=4)])
    assert np.abs(same - features[1]).max() <= 1e-6  # fetched by several threads at once
    pages_file(tmp_path / "www/pages.tif", files[:3])
    assert [r["page_index"] for r in model.predict(f"{address}/pages.tif")] == [0, 1, 2]
    for name in ("absent.pgm", "absent.tif"):
        with pytest.raises(FeatError, match="404"):
            list(model.predict(f"{address}/{name}"))
        assert len(list(model.predict([f"{address}/{name}", files[0]], on_error="skip"))) == 1
    bad = ["http://[x/a.pgm", "http://[x/a.tif"]
    assert len(list(model.predict([*bad, files[0]], on_error="skip"))) == 1 and len(model.failed) == 2
    assert not (tmp_path / "cache").exists()  # what is fetched anew each time is not kept
    server.shutdown()


def test_what_is_nested_in_itself_or_too_deep_is_an_error(model, files):
    itself: list[object] = [files[0]]
    itself += [itself, itself]
    round_about: dict[str, object] = {}
    round_about["img"] = [files[0], round_about]
    deep: object = files[0]
    for _ in range(5000):
        deep = [deep]
    for source, images, faults in ((itself, 1, 2), (round_about, 1, 1), (deep, 0, 1)):
        assert len(list(model.predict(source, on_error="skip"))) == images
        assert [message[:19] for _, message in model.failed] == ["The input is nested"] * faults
    assert len(list(model.predict([[files[0]], [[files[0]]]] * 2))) == 4  # the same one again is not in itself


def test_failed_downloads_leave_nothing_open(model, tmp_path, monkeypatch):
    """Their errors are kept until their batch is done, and a process has about a thousand descriptors."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serving(b"x") as server:
        for name in ("absent", "absent.tif"):
            found = list(iter_images([f"{server.url}/{name}"] * 3))
            errors = []
            for item in found:
                with pytest.raises(FeatError, match="404") as caught:
                    item.load(lambda image: image)
                errors.append(caught.value)  # with its traceback, and what that refers to
            assert not list(tmp_path.iterdir())


def test_a_folder_for_downloads_that_cannot_be_listed_is_an_error_of_ours(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "glob", refuse)
    with pytest.raises(OutputError, match="Too many open files"):
        TemporaryFolder(tmp_path)


def test_wrong_settings_are_errors_at_once(model, files):
    with pytest.raises(ConfigError, match="at least 1"):
        model.predict(files, batch_size=0)
    for wrong in (0, -1, 1.5, True, "2", None, 2**70):
        with pytest.raises(ConfigError, match="batch_size"):
            model.batch_size = wrong
    assert model.batch_size == 4 and len(list(model.predict(files[0], batch_size=np.int64(4)))) == 1
    with pytest.raises(ConfigError, match="on_error"):
        model.predict(files, on_error="ignore")


def test_features_that_are_no_numbers_are_an_error(model, files, monkeypatch):
    monkeypatch.setattr(model._extractor.engine, "run", lambda x: np.full((len(x), 512), np.nan, np.float32))
    with pytest.raises(WeightsError, match="not finite"):
        list(model.predict(files[:2], on_error="skip"))


def test_fast_decoding_reduces_large_jpegs_alone(run_folder, files, tmp_path):
    size = 32
    face = cv2.imread(files[0])
    for name, side in (("small", 4 * size - 2), ("large", 8 * size)):
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC))
    folder = run_folder / "best_model/inference"
    exact, fast = (paddlex_feat.create_model(NAME, folder, device="cpu", fast_decode=f) for f in (False, True))
    both = [[r.feature for r in m.predict(tmp_path)] for m in (exact, fast)]
    large, small = (np.dot(*pair) for pair in zip(*both, strict=True))
    assert small == pytest.approx(1, abs=1e-6) and 0.9 < large < 1 - 1e-6


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes_and_open_files_are_no_iterators(model, files, wrap):
    content = wrap(Path(files[0]).read_bytes())
    with pytest.raises(ImageError, match=rf"{type(content).__name__} are not accepted.*\n.*input\[1\].*\n.*imdecode"):
        list(model.predict([files[0], content]))
    with Path(files[0]).open("rb") as opened, tempfile.NamedTemporaryFile() as wrapped:
        for source in (opened, wrapped):
            with pytest.raises(ImageError, match="cv2"):
                list(model.predict({"img": source}))


def test_passwords_of_addresses_are_used_and_shown_nowhere(model, files, tmp_path, caplog):
    caplog.set_level("DEBUG")
    with serving(Path(files[0]).read_bytes()) as server:
        host = server.url.removeprefix("http://")
        secret = [f"HTTP://joe:s3c@ret@{host}/{name}" for name in ("face.pgm", "absent", "absent.tif")]
        secret += ["http://joe:s3c@ret@[x/a.pgm", "http://joe:s3c@ret\u2100/a.tif"]
        results = list(model.predict(secret, on_error="skip"))
        assert [r["input_path"] for r in results] == [f"HTTP://{host}/face.pgm"] and len(model.failed) == 4
        assert base64.b64decode((server.users[0] or "").removeprefix("Basic ")) == b"joe:s3c@ret"
        path = results[0].save_to_json(tmp_path)
        shown = [caplog.text, str(results), str(model.failed), path.name, path.read_text()]
        for address in secret[1:]:
            with pytest.raises(FeatError) as caught:
                list(model.predict(address))
            shown.append("".join(traceback.format_exception(caught.value)))
        assert not [text for text in shown if "s3c" in text or "ret@" in text]


WAIT = download.TIMEOUT_SECONDS + 30  # on a machine that has other work too; without cancelling it is minutes


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a picture of which 100 bytes come, and then nothing."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    held[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 100)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/face.jpg"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


def test_a_silent_server_keeps_nobody_from_closing_for_longer_than_the_read_timeout(model, files, silent, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 3)
    results = model.predict(iter([*files[:4], silent]), batch_size=4)
    assert next(results)["input_path"] == files[0]
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < WAIT
    with pytest.raises(ImageError, match="absent"):  # an error ends the downloads after it
        list(model.predict(["absent.jpg", silent], batch_size=1))
    assert time.monotonic() - started < 2 * WAIT


@pytest.mark.slow
def test_a_slow_address_delays_no_result_before_it(model, files, silent):
    results = model.predict([*files[:3], silent, files[3]], batch_size=1)
    started = time.monotonic()
    assert [next(results)["input_path"] for _ in range(3)] == files[:3]
    assert time.monotonic() - started < WAIT
    results.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_a_silent_server_keeps_no_run_from_ending_and_what_is_done_is_saved(
    run_folder, files, silent, tmp_path, number
):
    words = {"mode": "predict", "output": tmp_path, "device": "cpu"}
    options = [f"Global.{key}={value}" for key, value in words.items()]
    options += [
        "Predict.batch_size=1",
        "Predict.save_format=npz",
        f"Predict.model_dir={run_folder / 'best_model/inference'}",
    ]
    options += [f"Predict.input=[{', '.join([*files, silent])}]"]
    command = [sys.executable, ROOT / "main.py", "-c", NAME, *(word for option in options for word in ("-o", option))]
    # A shell's background jobs, CI's among them, ignore SIGINT, and their children with them.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Downloading" in line:
                break
        time.sleep(1)  # the images before it are computed
        started = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=2 * WAIT)
        assert time.monotonic() - started < WAIT and process.returncode == 1
    with np.load(tmp_path / "features.npz") as content:
        assert list(content["input_paths"]) == files[: len(content["input_paths"])] and len(content["features"]) >= 8


def test_a_script_that_fails_among_the_results_ends_though_a_server_is_silent(run_folder, files, silent):
    code = """
import sys
from paddlex_feat import create_model
for result in create_model("PP-ShiTuV2_rec", sys.argv[1], device="cpu").predict(sys.argv[2:]):
    raise KeyboardInterrupt
"""
    words = [str(run_folder / "best_model/inference"), *files[:8], silent]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode and "KeyboardInterrupt" in done.stderr


def test_boxes_are_images_of_their_own_with_the_features_of_their_crops(model, tmp_path):
    pixels = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (80, 120, 3), dtype=np.uint8), (0, 0), 3)
    file = tmp_path / "shelf.jpg"
    cv2.imwrite(str(file), pixels)
    picture, boxes = cv2.imread(str(file)), [[10, 5, 70.4, 60], [30, 20, 110, 75]]
    for number, (x1, y1, x2, y2) in enumerate(np.round(boxes).astype(int).tolist()):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture[y1:y2, x1:x2])
    crops = [result["feature"] for result in model.predict([str(tmp_path / "0.png"), str(tmp_path / "1.png")])]
    found = list(model.predict([{"img": str(file), "boxes": boxes}, {"img": picture, "box": boxes[1]}]))
    assert [result["feature"] for result in found] == [*crops, crops[1]]
    assert [result["box"] for result in found] == [*boxes, boxes[1]]
    paths = [result.save_to_json(tmp_path / "out") for result in found[:2]]
    assert len(set(paths)) == 2 and json.loads(paths[1].read_text())["box"] == boxes[1]
    whole = next(iter(model.predict({"img": str(file)})))
    assert "box" not in whole
    for suffix in ("npz", "parquet"):
        paddlex_feat.save_features([*found, whole], tmp_path / f"features.{suffix}")
    assert np.array_equal(np.load(tmp_path / "features.npz")["boxes"][:2], np.array(boxes, np.float32))
    assert np.isnan(np.load(tmp_path / "features.npz")["boxes"][3]).all()


@pytest.mark.parametrize(
    "box", [[1, 2, 3], [5, 5, 5, 9], ["a", 1, 2, 3], [], [[1, 2, 3, 4], [1, 2]], [0, 0, float("nan"), 1]]
)
def test_a_box_that_is_none_is_an_error_of_that_input(model, files, box):
    results = list(model.predict([{"img": files[0], "box": box}, files[0]], on_error="skip"))
    assert len(results) == 1 and "box" in model.failed[0][1] and "box" not in results[0]


def test_a_box_beside_its_picture_is_an_error_of_that_input(model, files):
    list(model.predict([{"img": files[0], "box": [5000, 5000, 5010, 5010]}], on_error="skip"))
    assert "has no pixel of the picture" in model.failed[0][1]
