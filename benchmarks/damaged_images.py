"""How many damaged JPEGs check_dataset finds, and how many sound ones it takes for damaged.

    python benchmarks/damaged_images.py [images] [folder of photographs]

Half of the images are sound, with something behind their end as cameras and tools append it; the others are damaged
in one place. Those are asked for that look otherwise than the original in more than 5 % of their area.
Without a folder the pictures are the ORL faces and matplotlib's photograph, cut and resized at random.
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from paddlex_feat.checks.image_info import inspect
from paddlex_feat.data.images.decoder_warnings import listen
from paddlex_feat.data.images.jpeg import read_layout

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
VISIBLE = 3  # levels of 255
AREA = 0.05
LENGTHS = (16, 17, 24, 32, 48, 64, 128, 256, 512, 1024, 4096)


def photographs(folder: Path | None) -> list[Image.Image]:
    """The pictures that all images are made from."""
    if folder is None:
        import matplotlib
        import prepare_orl

        folder = Path(tempfile.mkdtemp())
        prepare_orl.main(folder)
        paths = [*sorted(folder.rglob("*.pgm"))[::10]]
        paths += [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"] * len(paths)
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    return [Image.open(p).convert("L" if p.suffix == ".pgm" else "RGB") for p in paths]


def encoded(picture: Image.Image, rng: random.Random) -> bytes:
    """A random part of a picture as a JPEG of random size, quality and form."""
    side = min(picture.size)
    part = rng.randint(min(side, 64), side)
    x, y = rng.randint(0, picture.width - part), rng.randint(0, picture.height - part)
    width = rng.choice((112, 160, 224, 320, 480, 640))
    size = (width, int(width * rng.choice((1, 0.75))))
    options: dict[str, int] = {"quality": rng.choice((60, 75, 85, 90, 95, 98))}
    if picture.mode == "RGB":
        options["subsampling"] = rng.choice((0, 1, 2, 2))
    if rng.random() < 0.3:
        options["optimize"] = True
    form = rng.random()
    if form < 0.2:
        options["progressive"] = True
    elif form < 0.35:
        options["restart_marker_blocks"] = rng.choice((4, 16, 64))
    stream = io.BytesIO()
    picture.crop((x, y, x + part, y + part)).resize(size).save(stream, "JPEG", **options)
    return stream.getvalue()


def trailer(data: bytes, rng: random.Random) -> bytes:
    """Something behind the end of an image."""
    noise = rng.randbytes(rng.randint(1, 4000))
    return data + rng.choice(
        (b"", bytes(rng.randint(1, 4096)), b"MotionPhoto_Data" + noise + b"\0", b"x\0", b"\n", b"\r\n", b"\xff", noise,
         noise + bytes(7), data, data[: len(data) // 2], b"\0" + noise, b"\xff\xd8\xff\xe1" + noise, b"\xff\xd9")
    )  # fmt: skip


def damage(data: bytes, kind: str, rng: random.Random) -> bytes:
    """The image with one place of its scans damaged."""
    start, end = read_layout(data).first_scan, len(data) - 2
    length = min(rng.choice(LENGTHS), (end - start) // 2)
    at = rng.randint(start, end - length)
    if kind == "hole":
        return data[:at] + bytes(length) + data[at + length :]
    if kind == "lost":
        return data[:at] + data[at + length :]
    if kind == "doubled":
        return data[: at + length] + data[at:]
    if kind == "text":
        return data.replace(b"\n", b"\r\n")
    bit = rng.randrange(start * 8, end * 8)
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def changed(one: np.ndarray, other: np.ndarray | None) -> float:
    """Share of the area that looks otherwise."""
    if other is None or other.shape != one.shape:
        return 1.0
    return float((cv2.absdiff(one, other).max(axis=2) > VISIBLE).mean())


def decode(data: bytes) -> np.ndarray | None:
    """Pixels as OpenCV gives them."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def judged(folder: Path, pictures: list[Image.Image], number: int) -> tuple[str, bool, float, bool]:
    """(kind, is there a finding?, changed share, did the decoder warn or fail?) of one image."""
    rng = random.Random(number)  # noqa: S311 - a draw that repeats
    data = encoded(rng.choice(pictures), rng)
    kinds = ("hole", "lost", "doubled", "text", "flipped bit")
    kind = "sound" if number % 2 else kinds[number // 2 % len(kinds)]
    made = trailer(data, rng) if kind == "sound" else damage(data, kind, rng)
    whole = decode(data)
    found, said = listen(lambda: decode(made))
    path = folder / f"{number}.jpg"
    path.write_bytes(made)
    info = inspect(str(path))
    path.unlink()
    finding = bool(info.error or info.damage)
    return kind, finding, 0.0 if whole is None else changed(whole, found), bool(said) or found is None


def main(count: int, folder: Path | None) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    pictures = photographs(folder)
    total, found = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        for kind, finding, share, warned in pool.map(lambda n: judged(Path(temporary), pictures, n), range(count)):
            names = [kind]
            if kind == "flipped bit":
                names += ["flipped bit with a decoder warning"] if warned else []
            elif kind != "sound":
                if share <= AREA:
                    continue
                names += ["holes, lost, doubled, text together"]
            for name in names:
                total[name] += 1
                found[name] += finding
    print(f"{count} images\n\n| kind | images | findings | share |\n|---|---|---|---|")
    for name in sorted(total):
        print(f"| {name} | {total[name]} | {found[name]} | {found[name] / total[name]:.2%} |")


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 10_000,
        Path(sys.argv[2]) if len(sys.argv) > 2 else None,
    )
