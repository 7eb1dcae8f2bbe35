"""Prepare the data sets of benchmarks/quality.py: emoji of several vendors, icons of several themes, Fashion-MNIST.

In the first two a class is one emoji or one icon name, its images are the drawings of different artists at 160 px. The
classes are divided by a digest of their names: 400 that training never sees, the others for training.
Gallery and queries are the same images of the unseen classes; `Evaluate.exclude_self` leaves a query's
own file out. The packages come through npm and apt-get; the drawings are rasterised by `resvg-py`
(pip install resvg-py).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE, UNSEEN, TRAINED = 160, 400, 400
FEWEST = {"emoji": 4, "icons": 3}
FASHION = ("images-idx3", "labels-idx1")
FASHION_IMAGES = {"train": 400, "query": 200}  # of each class
EMOJI_SETS = ("twemoji", "noto", "openmoji", "fluent-emoji", "emojione-v1", "fxemoji")
ICON_THEMES = (
    *("gnome", "tango", "oxygen", "faenza", "papirus", "elementary-xfce", "moka", "deepin", "breeze", "lxde", "numix"),
    *("gnome-nuovo", "gnome-yasis"),
)
# Variants of one drawing and names for people of every kind would be classes that nobody can tell apart.
EMOJI_VARIANT = re.compile(r"skin-tone|\b(dark|light|medium|person|man|woman|men|women|people|flag|keycap|clock)\b|\d")
ICON_FOLDERS = {"apps", "devices", "places", "categories", "actions", "mimetypes", "emblems", "preferences"}
SETS = ("emoji", "icons", "fashion")
Pixels = NDArray[np.uint8]
Drawing = tuple[str, str, Callable[[], Pixels]]
"""Class name, artist, and the function that draws it."""


def on_white(picture: NDArray[np.uint8]) -> Pixels:
    """SIDE x SIDE colour pixels (BGR, uint8) of a decoded picture; transparent parts become white."""
    if picture.ndim == 2:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGRA), np.uint8)
    if picture.shape[2] == 4:
        alpha = picture[..., 3:].astype(np.float32) / 255
        picture = np.asarray(np.rint(picture[..., :3] * alpha + 255 * (1 - alpha)), np.uint8)
    scale = SIDE / max(picture.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=way)
    return canvas


def decoded(png: bytes) -> Pixels:
    """The pixels of a PNG file, see `on_white`."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError("not a picture")
    return on_white(np.asarray(picture, np.uint8))


def rasterised(svg: str) -> Pixels:
    """The pixels of an SVG drawing."""
    resvg = importlib.import_module("resvg_py")
    return decoded(bytes(resvg.svg_to_bytes(svg_string=svg, width=SIDE, skip_system_fonts=True)))


def command(*words: str, folder: Path) -> None:
    """Run a program in `folder`."""
    program = shutil.which(words[0])
    if program is None:
        sys.exit(f"{words[0]} is not installed.")
    subprocess.run([program, *words[1:]], cwd=folder, check=True)


def debian_package(name: str, store: Path) -> Path:
    """The unpacked content of a Debian package, which is downloaded once."""
    folder = store / name
    if not folder.is_dir():
        command("apt-get", "download", "-qq", name, folder=store)
        command("dpkg-deb", "-x", str(next(store.glob(f"{name}_*.deb"))), str(folder), folder=store)
    return folder


def emoji(store: Path) -> Iterable[Drawing]:
    """The drawings of the emoji sets, which npm delivers as one JSON file a set."""
    for name in EMOJI_SETS:
        found = sorted(store.glob(f"iconify-json-{name}-[0-9]*.tgz"))
        if not found:
            command("npm", "pack", "--silent", f"@iconify-json/{name}", folder=store)
            found = sorted(store.glob(f"iconify-json-{name}-[0-9]*.tgz"))
        with tarfile.open(found[0]) as archive:
            member = archive.extractfile("package/icons.json")
            assert member is not None
            drawings = json.load(io.TextIOWrapper(member, encoding="utf-8"))
        for title, icon in drawings["icons"].items():
            if EMOJI_VARIANT.search(title.replace("-", " ")) or icon.get("hidden"):
                continue
            width, height = (icon.get(side, drawings.get(side, 16)) for side in ("width", "height"))
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" \
viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
            yield title.replace("-", ""), name, lambda svg=svg: rasterised(svg)  # type: ignore[misc]


def icons(store: Path) -> Iterable[Drawing]:
    """The drawings of Debian's icon themes: of each name the file nearest to 160 px, no symbolic ones."""
    for theme in ICON_THEMES:
        own = theme.removeprefix("gnome-")
        folder = debian_package(f"{theme}-icon-theme" if own == theme else f"gnome-icon-theme-{own}", store)
        best: dict[str, tuple[float, Path]] = {}
        for path in sorted((folder / "usr/share/icons").rglob("*")):
            # A symbolic link is a second name of another icon: the same picture would be in two classes.
            if path.is_symlink() or path.suffix not in (".png", ".svg", ".svgz") or "symbolic" in str(path):
                continue
            parts = [part for part in path.parts if part.removesuffix("s") + "s" in ICON_FOLDERS]
            if not parts:
                continue
            sizes = [int(number) for number in re.findall(r"/(\d{2,3})(?:x\d+)?(?=/)", f"/{path.relative_to(folder)}")]
            size = max(sizes, default=0 if path.suffix == ".png" else SIDE)
            if size < 48:
                continue
            distance = abs(float(np.log(size / SIDE)))
            title = path.stem.lower()
            if title not in best or distance < best[title][0]:
                best[title] = distance, path
        for title, (_, path) in best.items():
            yield title, theme, lambda path=path: icon_pixels(path)  # type: ignore[misc]


def icon_pixels(path: Path) -> Pixels:
    """The pixels of one icon file."""
    content = path.read_bytes()
    if path.suffix == ".png":
        return decoded(content)
    return rasterised((gzip.decompress(content) if path.suffix == ".svgz" else content).decode("utf-8"))


def draw(drawings: Iterable[Drawing], fewest: int) -> dict[str, dict[str, Pixels]]:
    """Class -> artist -> pixels, of the classes with `fewest` different pictures or more.

    A picture that two classes share, and a second copy of one inside a class, is left out: artists reuse each other's
    drawings, and finding an identical file says nothing about the features.
    """
    wanted: dict[str, list[tuple[str, Callable[[], Pixels]]]] = defaultdict(list)
    for title, artist, function in drawings:
        wanted[title].append((artist, function))
    pictures: dict[str, dict[str, Pixels]] = {}
    owners: dict[bytes, str] = {}
    broken = 0
    order = sorted((t for t in wanted if len(wanted[t]) >= fewest), key=lambda t: hashlib.sha256(t.encode()).digest())
    for title in order:
        drawn: dict[str, Pixels] = {}
        for artist, function in wanted[title]:
            try:
                pixels = function()
            except ValueError:  # a drawing that the rasteriser refuses
                broken += 1
                continue
            # A coarse print, so that a copy that was scaled or saved again counts as the same picture.
            key = (cv2.resize(pixels, (12, 12), interpolation=cv2.INTER_AREA) // 24).tobytes()
            if pixels.std() > 5 and owners.setdefault(key, title + artist) == title + artist:
                drawn[artist] = pixels
        if len(drawn) >= fewest:
            pictures[title] = drawn
        if len(pictures) == UNSEEN + TRAINED:
            break
    print(f"{len(pictures)} classes of {len(order)} names; {broken} drawings could not be rasterised")
    return pictures


def fashion(store: Path, target: Path) -> None:
    """Debian's copy of Fashion-MNIST: the even classes train, images of the odd ones are gallery and queries."""
    folder = debian_package("dataset-fashion-mnist", store)
    images, labels = (gzip.decompress(next(folder.rglob(f"train-{kind}-ubyte.gz")).read_bytes()) for kind in FASHION)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(labels, np.uint8, offset=8)
    lists: dict[str, list[str]] = {"train": [], "query": []}
    (target / "images").mkdir(parents=True, exist_ok=True)
    for label in range(10):
        part = "query" if label % 2 else "train"
        for index in np.flatnonzero(classes == label)[: FASHION_IMAGES[part]].tolist():
            path = f"images/{label}_{index:05d}.png"
            cv2.imwrite(str(target / path), pixels[index])
            lists[part].append(f"{path} {label // 2}")
    write_lists(lists, target)


def write(pictures: dict[str, dict[str, Pixels]], target: Path) -> None:
    """Write the images and the three lists."""
    lists: dict[str, list[str]] = {"train": [], "query": []}
    for label, (title, drawn) in enumerate(pictures.items()):
        folder = target / "images" / f"{label:03d}_{re.sub('[^a-z0-9]+', '_', title)}"
        folder.mkdir(parents=True, exist_ok=True)
        for artist, pixels in sorted(drawn.items()):
            path = folder / f"{artist}.png"
            cv2.imwrite(str(path), pixels)
            part = "query" if label < UNSEEN else "train"
            lists[part].append(f"{path.relative_to(target)} {label - (UNSEEN if part == 'train' else 0)}")
    write_lists(lists, target)


def write_lists(lists: dict[str, list[str]], target: Path) -> None:
    """Write train.txt, and query.txt with gallery.txt, which has the same images."""
    for name, lines in {**lists, "gallery": lists["query"]}.items():
        (target / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{target}: {len(lists['train'])} images for training, {len(lists['query'])} of other classes for the test")


def main() -> None:
    """Prepare the sets that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sets go, one folder each")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--packages", type=Path, default=None, help="where downloads go; default: FOLDER/packages")
    arguments = parser.parse_args()
    store: Path = (arguments.packages or arguments.folder / "packages").resolve()
    store.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        if name == "fashion":
            fashion(store, arguments.folder / name)
        else:
            write(draw({"emoji": emoji, "icons": icons}[name](store), FEWEST[name]), arguments.folder / name)


if __name__ == "__main__":
    main()
