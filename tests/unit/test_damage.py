"""What an image file really holds: data behind its end, damaged data, nothing to see."""

from __future__ import annotations

import io
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import damaged_images
import numpy as np
import pytest
from PIL import Image
from support.runs import run_here

from paddlex_feat.checks.damage import has_step
from paddlex_feat.checks.image_info import ImageInfo, inspect
from paddlex_feat.checks.phash import appearance_of, grey_of, upright
from paddlex_feat.data.images import decoder_warnings
from paddlex_feat.data.images.decode import MAX_NAMED, _repaired, decode_bgr
from paddlex_feat.data.images.jpeg import read_layout


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    import matplotlib

    return Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")


def encode(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def info_of(tmp_path: Path, data: bytes, name: str = "a.jpg") -> ImageInfo:
    (tmp_path / name).write_bytes(data)
    return inspect(str(tmp_path / name))


TRAILERS = (
    bytes(3),
    bytes(5000),
    b"MotionPhoto_Data\0",
    b"x\0",
    b"\r\n",
    b"\xff",
    b"\xff\xd9\0",
    b"\xff\xd8\xff\xe1\0\4",
)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("trailer", TRAILERS, ids=range(len(TRAILERS)))
def test_bytes_behind_the_end_of_an_image_do_not_matter(photograph, tmp_path, form, trailer):
    info = info_of(tmp_path, encode(photograph.resize((96, 80)), form) + trailer)
    assert (info.error, info.damage) == ("", "")


def test_a_photograph_and_its_preview_or_a_second_copy_behind_it_is_sound(photograph, tmp_path):
    data = encode(photograph.resize((200, 240)), quality=90)
    for trailer in (data, data[:3000], encode(photograph.resize((64, 64)))):
        info = info_of(tmp_path, data + trailer)
        assert (info.error, info.damage) == ("", "")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 8}, {"subsampling": 0}])
@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("padding", [0, 4000])
def test_a_jpeg_that_was_cut_off_is_an_error_also_where_zeros_follow(photograph, tmp_path, options, keep, padding):
    data = encode(photograph.resize((200, 240)), **options)
    info = info_of(tmp_path, data[: int(keep * len(data))] + bytes(padding))
    assert info.error == "image-truncated"


@pytest.mark.parametrize(("kind", "share"), [("hole", 0.95), ("lost", 0.8), ("doubled", 0.9), ("text", 0.98)])
def test_damaged_jpegs_are_found(photograph, tmp_path, kind, share):
    found = seen = 0
    for number in range(60):
        rng = random.Random(number)
        data = damaged_images.encoded(photograph, rng)
        made = damaged_images.damage(data, kind, rng)
        if damaged_images.changed(damaged_images.decode(data), damaged_images.decode(made)) > 0.05:
            info = info_of(tmp_path, made)
            seen, found = seen + 1, found + bool(info.damage or info.error)
    assert seen > 40 and found >= share * seen


def test_sound_jpegs_with_trailers_are_not_findings(photograph, tmp_path, faces):
    pictures = [photograph, *(Image.open(faces / f"images/s{p:02d}/01.pgm") for p in range(1, 9))]
    for number in range(150):
        rng = random.Random(number)
        made = damaged_images.trailer(damaged_images.encoded(rng.choice(pictures), rng), rng)
        info = info_of(tmp_path, made)
        assert (info.error, info.damage) == ("", ""), number


def test_a_step_of_brightness_from_one_block_on_is_found_and_an_edge_of_the_picture_is_not(photograph):
    image = np.array(photograph.resize((320, 240)).convert("L"))
    assert not has_step(image, (16, 16))
    damaged = image.astype(np.int16)
    damaged[96:112, 7 * 16 :] += 25
    damaged[112:] += 25
    assert has_step(np.clip(damaged, 0, 255).astype(np.uint8), (16, 16))
    bar = image.copy()
    bar[96:] = np.clip(bar[96:].astype(np.int16) + 25, 0, 255)  # begins with a row of blocks
    assert not has_step(bar, (16, 16)) and not has_step(image[:20], (16, 16)) and not has_step(damaged[:, :60], (0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_turned_by_exif_are_inspected_as_stored_and_compared_as_shown(photograph, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph.resize((160, 96)), exif=exif)
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert np.array_equal(upright(stored, orientation), decode_bgr(data, "x"))
    assert ("rotated" in info_of(tmp_path, data).properties) == (orientation != 1)


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_out_of_range_is_no_rotation(photograph, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph.resize((160, 96)), exif=exif)
    assert info_of(tmp_path, data).properties == () and decode_bgr(data, "x").shape == (96, 160, 3)


def test_a_tiff_that_decompresses_in_part_is_damaged(photograph, tmp_path, capfd):
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        data = bytearray(encode(photograph.resize((300, 200)), "TIFF", compression=compression))
        assert info_of(tmp_path, bytes(data), "a.tif").damage == ""
        data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
        assert info_of(tmp_path, bytes(data), "b.tif").damage.startswith("its data cannot be decompressed")
    assert "tempfile.tif" not in capfd.readouterr().err


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "TIFF", "PNG", "GIF"])
def test_a_transfer_as_text_is_found(photograph, tmp_path, form):
    data = encode(photograph.resize((300, 200)), form)
    info = info_of(tmp_path, data.replace(b"\n", b"\r\n"))
    assert info.damage or info.error


def grey(level: int, noise: int = 0) -> np.ndarray:
    spread = np.random.default_rng(0).integers(0, noise + 1, (200, 160, 1), dtype=np.uint8)
    return np.repeat(np.uint8(level) + spread, 3, axis=2)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (grey(0), "blank"),
        (grey(255), "blank"),
        (grey(117, 5), "blank"),
        (grey(2, 28), "dark"),
        (grey(230, 20), "bright"),
        (grey(20, 60), ""),
    ],
)
def test_images_that_show_nothing(image, kind):
    assert appearance_of(grey_of(image), lambda: image).empty == kind


def test_a_stroke_or_a_colour_is_something_and_dead_pixels_are_not():
    stroke, red, dead = grey(255), grey(0), grey(3)
    stroke[100:103, 20:140] = 0
    red[50:90, 40:80, 2] = 200
    dead[17, 23] = 255
    empty = [appearance_of(grey_of(image), lambda image=image: image).empty for image in (stroke, red, dead)]
    assert empty == ["", "", "blank"]


@pytest.mark.parametrize(("bits", "left"), [(10, 3), (12, 15), (14, 63), (16, 255)])
def test_few_bits_in_sixteen_are_said_to_turn_dark(tmp_path, bits, left):
    values = np.linspace(0, 2**bits - 1, 96 * 96).reshape(96, 96).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    info = inspect(str(tmp_path / "a.png"))
    assert info.properties == ("16-bit",) and info.levels[1] == left
    lists = dict.fromkeys(("train", "gallery", "query"), "images/a.png 0\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "images/a.png")
    for name, text in lists.items():
        (tmp_path / f"{name}.txt").write_text(text)
    done = run_here(
        "-c", "PP-ShiTuV2_rec", "-o", f"Global.dataset_dir={tmp_path}", "-o", f"Global.output={tmp_path}/out"
    )
    assert (f"brightest pixel then is {left} of 255" in done.stderr) == (bits < 16)
    assert "image-dark" not in done.stderr


def warned(photograph: Image.Image) -> bytes:
    """A JPEG of which the decoder warns."""
    data = encode(photograph.resize((160, 120)), quality=90)
    at = read_layout(data).first_scan + 400
    return data[:at] + data[at + 900 :]


def test_the_decoders_lines_belong_to_their_images_whatever_the_number_of_threads(photograph):
    sound, damaged = encode(photograph.resize((160, 120)), quality=90), warned(photograph)
    jobs = [damaged if i % 5 == 0 else sound for i in range(200)]

    def said(data: bytes) -> str:
        warnings: list[str] = []
        decode_bgr(data, "x", warnings=warnings)
        return "".join(warnings)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(said, jobs))
    assert all(bool(text) == (i % 5 == 0) for i, text in enumerate(found))
    assert found[0].startswith("Corrupt JPEG data: ") and len(set(found)) == 2


def test_other_lines_of_the_c_library_still_reach_standard_error(capfd):
    import ctypes

    libc = ctypes.CDLL(None)
    stderr = lambda: ctypes.c_void_p.in_dll(libc, "stderr")  # noqa: E731
    usual = stderr().value

    def decode() -> int:
        libc.fputs(b"libpng warning: mine\n", stderr())
        libc.fputs(b"of another library\n", stderr())
        return 5

    result, said = decoder_warnings.listen(decode)
    assert (result, said) == (5, "libpng warning: mine") and stderr().value == usual
    with pytest.raises(ZeroDivisionError):
        decoder_warnings.listen(lambda: 1 // 0)
    assert stderr().value == usual
    assert set(capfd.readouterr().err.split("\n")) == {"of another library", ""}


def test_a_forked_child_listens_too(photograph):
    data = warned(photograph)
    reader, writer = os.pipe()

    def decode() -> str:
        child = os.fork()  # while standard error is exchanged
        if not child:
            warnings: list[str] = []
            decode_bgr(data, "x", warnings=warnings)
            os.write(writer, "".join(warnings).encode() or b"nothing")
            os._exit(0)
        os.waitpid(child, 0)
        return ""

    decoder_warnings.listen(decode)
    assert os.read(reader, 1000).startswith(b"Corrupt JPEG data")


def test_decoding_names_damaged_files_once_and_not_without_end(photograph, caplog, capfd):
    _repaired.clear()
    data = warned(photograph)
    for i in range(MAX_NAMED + 5):
        for _ in range(2):
            decode_bgr(data, f"{i}.jpg")
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines[0].startswith("0.jpg: its data are damaged") and len(lines) == MAX_NAMED + 1
    assert "check_dataset lists all" in lines[-1] and "Corrupt JPEG" not in capfd.readouterr().err
    _repaired.clear()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (bytes(3000), "begins with zeros"),
        (b"PK\3\4" + bytes(30), "an archive"),
        (b"hello", "not a JPEG, PNG"),
    ],
)
def test_what_is_not_an_image_is_called_by_its_name(tmp_path, content, what):
    info = info_of(tmp_path, content)
    assert info.error == "image-undecodable" and what in info.message
