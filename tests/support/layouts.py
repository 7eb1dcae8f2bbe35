"""Random data sets in every layout that is read: with odd names, at odd depths, among other files."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

PICTURE = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))[1].tobytes()
NAMES = ("cat", "dog", "red fox", "猫", "[x]", "naïve", "No. 7", "собака", "a+b", "T-shirt", "0x1", "Ünï")
OTHERS = ("README.md", "LICENSE", "notes.txt", "Thumbs.db", ".git/HEAD", "docs/manual.pdf", "old.zip", "run.log",
          "__MACOSX/._a.jpg", "config.json", "stats.csv", "requirements.txt")  # fmt: skip
TOPS = ("", "data", "my set", "v1.0/export", "a/b/c", "数据")


@dataclass(frozen=True)
class Image:
    """One image of a data set: its class, its part ("train", "test") and, in some layouts, its box."""

    name: str
    part: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Made:
    """A data set that was made: the reader that has to claim it, and (class, box) of each image by part."""

    reader: str
    images: list[Image]


def make(layout: str, rng: random.Random, top: Path) -> Made:
    """Make a data set of a layout somewhere below `top`."""
    names = rng.sample(NAMES, rng.randint(4, 6))
    boxed = layout in BOXED
    images = [
        Image(name, part, (i, i + 1, i + 20, i + 30) if boxed else None)
        for name in names
        for part in ("train", "test")
        for i in range(rng.randint(2, 3))
    ]
    root = top / rng.choice(TOPS)
    root.mkdir(parents=True, exist_ok=True)
    reader, write = LAYOUTS[layout]
    kept = write(root, images, rng) or images
    for other in rng.sample(OTHERS, 4):
        put(
            root / other,
            b"path;comment\n1;2\n" if other.endswith(".csv") else b"{}" if other.endswith("json") else b"text",
        )
    return Made(reader, kept)


def put(path: Path, data: bytes | str = PICTURE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _lists(root: Path, images: list[Image], rng: random.Random) -> None:
    numbers = {name: i for i, name in enumerate(sorted({image.name for image in images}))}
    lines: dict[str, list[str]] = {"train": [], "gallery": [], "query": []}
    for i, image in enumerate(images):
        put(root / f"images/{i}.png")
        for part in ("train",) if image.part == "train" else ("gallery", "query"):
            lines[part].append(f"images/{i}.png {numbers[image.name]}")
    for part, rows in lines.items():
        put(root / f"{part}.txt", "\n".join(rows))
    put(root / "label.txt", "\n".join(numbers))


def _folders(root: Path, images: list[Image], rng: random.Random) -> None:
    train, test = rng.choice((("train", "test"), ("Training", "val"), ("TRAIN", "Validation")))
    for i, image in enumerate(images):
        put(root / (train if image.part == "train" else test) / image.name / f"{i}.png")


def _folders_of_classes(root: Path, images: list[Image], rng: random.Random) -> None:
    for i, image in enumerate(images):
        put(root / image.name / image.part / f"{i}.png")


def _table(root: Path, images: list[Image], rng: random.Random, suffix: str = ".csv", delimiter: str = ",") -> None:
    header = [rng.choice(("path", "file_name", "Image")), rng.choice(("label", "class", "Category")), "split"]
    rows = [[str(put(root / f"pics/{i}.png").relative_to(root)), m.name, m.part] for i, m in enumerate(images)]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    put(root / f"{rng.choice(('items', 'all data', 'df'))}{suffix}", text.getvalue())


def _tsv(root: Path, images: list[Image], rng: random.Random) -> None:
    _table(root, images, rng, ".tsv", "\t")


def _box_table(root: Path, images: list[Image], rng: random.Random) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("path", "label", "split", "x_1", "y_1", "x_2", "y_2"))
    for i, image in enumerate(images):
        put(root / f"p/{i // 2}.png")
        writer.writerow((f"p/{i // 2}.png", image.name, image.part, *(image.box or ())))
    put(root / "boxes.csv", text.getvalue())


def _metadata(root: Path, images: list[Image], rng: random.Random) -> None:
    for part in ("train", "test"):
        own = [(i, image) for i, image in enumerate(images) if image.part == part]
        rows = [{"file_name": put(root / part / f"{i}.png").name, "label": image.name} for i, image in own]
        put(root / part / "metadata.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def _parquet(root: Path, images: list[Image], rng: random.Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir()
    for part in ("train", "test"):
        own = [image for image in images if image.part == part]
        cells = [{"bytes": PICTURE + bytes([i]), "path": None} for i, _ in enumerate(own)]
        table = pa.table({"image": cells, "label": [image.name for image in own]})
        pq.write_table(table, root / f"data/{part}-00000-of-00001.parquet")


def _shards(root: Path, images: list[Image], rng: random.Random) -> None:
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}-000000.tar", "w") as archive:
            for i, image in enumerate(images):
                files = ((".png", PICTURE), (".cls", image.name.encode())) if image.part == part else ()
                for suffix, data in files:
                    member = tarfile.TarInfo(f"{i:06d}{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def _coco(root: Path, images: list[Image], rng: random.Random) -> None:
    names = sorted({image.name for image in images})
    for part in ("train", "test"):
        own = [(i, image) for i, image in enumerate(images) if image.part == part]
        annotations = [
            {"id": i, "image_id": i // 2, "category_id": names.index(m.name), "iscrowd": 0, "area": 580,
             "bbox": [m.box[0], m.box[1], m.box[2] - m.box[0], m.box[3] - m.box[1]]}
            for i, m in own if m.box
        ]  # fmt: skip
        pictures = [
            {"id": i, "file_name": f"{i:012d}.png", "width": 60, "height": 40} for i in {i // 2 for i, _ in own}
        ]
        for picture in pictures:
            put(root / f"{part}2017" / str(picture["file_name"]))
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        content = {"images": pictures, "annotations": annotations, "categories": categories}
        put(root / f"annotations/instances_{part}2017.json", json.dumps(content))


def _voc(root: Path, images: list[Image], rng: random.Random) -> None:
    sets: dict[str, list[str]] = {"train": [], "test": []}
    for i, image in enumerate(images):
        x1, y1, x2, y2 = image.box or (0, 0, 1, 1)
        put(root / f"JPEGImages/{i:06d}.png")
        put(
            root / f"Annotations/{i:06d}.xml",
            f"<annotation><filename>{i:06d}.png</filename><size><width>60</width><height>40</height><depth>3</depth></size>"
            f"<object><name>{image.name}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object></annotation>",
        )
        sets[image.part].append(f"{i:06d}")
    for part, stems in sets.items():
        put(root / f"ImageSets/Main/{part}.txt", "\n".join(stems))


def _yolo(root: Path, images: list[Image], rng: random.Random) -> None:
    names = sorted({image.name for image in images})
    for i, image in enumerate(images):
        x1, y1, x2, y2 = image.box or (0, 0, 1, 1)
        put(root / f"images/{image.part}/{i}.png")
        row = (names.index(image.name), (x1 + x2) / 120, (y1 + y2) / 80, (x2 - x1) / 60, (y2 - y1) / 40)
        put(root / f"labels/{image.part}/{i}.txt", " ".join(map(str, row)))
    content = {"train": "images/train", "test": "images/test", "names": dict(enumerate(names))}
    put(root / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def _shapes(root: Path, images: list[Image], rng: random.Random) -> None:
    for i in range(0, len(images), 2):
        part = images[i].part
        pair = images[i : i + 2]
        shapes = [
            {"label": m.name, "points": [m.box[:2], m.box[2:]], "shape_type": "rectangle"}
            for m in pair
            if m.box and m.part == part
        ]
        put(root / part / f"{i}.png")
        content = {"version": "5", "flags": {}, "shapes": shapes, "imagePath": f"{i}.png", "imageData": None}
        put(root / part / f"{i}.json", json.dumps({**content, "imageHeight": 40, "imageWidth": 60}))


def _studio(root: Path, images: list[Image], rng: random.Random) -> list[Image]:
    tasks = []
    for i, image in enumerate(images):
        x1, y1, x2, y2 = image.box or (0, 0, 1, 1)
        put(root / f"upload/{i}.png")
        value = {"x": x1 / 0.6, "y": y1 / 0.4, "width": (x2 - x1) / 0.6, "height": (y2 - y1) / 0.4, "rotation": 0,
                 "rectanglelabels": [image.name]}  # fmt: skip
        result = {"type": "rectanglelabels", "original_width": 60, "original_height": 40, "value": value}
        tasks.append({"id": i, "data": {"image": f"/data/upload/{i}.png"}, "annotations": [{"result": [result]}]})
    put(root / "project-1.json", json.dumps(tasks))
    return [Image(image.name, "all", image.box) for image in images]


def _in_shop(root: Path, images: list[Image], rng: random.Random) -> list[Image]:
    rows = []
    for i, image in enumerate(images):
        item = f"id_{sorted(NAMES).index(image.name):08d}"
        path = f"img/WOMEN/Tees/{item}/{i:02d}_1_front.jpg"
        put(root / path)
        for status in ("train",) if image.part == "train" else ("query", "gallery"):
            rows.append(f"{path}    {item}    {status}")
    header = "image_name    item_id    evaluation_status"
    put(root / "list_eval_partition.txt", "\n".join([str(len(rows)), header, *rows]))
    return [Image(f"id_{sorted(NAMES).index(image.name):08d}", image.part) for image in images]


def _products(root: Path, images: list[Image], rng: random.Random) -> list[Image]:
    kept = []
    for part in ("train", "test"):
        rows = ["image_id class_id super_class_id path"]
        for i, image in enumerate(images):
            if image.part == part:
                number = sorted(NAMES).index(image.name) + 1
                put(root / f"bicycle_final/{number}_{i}.JPG")
                rows.append(f"{i + 1} {number} 1 bicycle_final/{number}_{i}.JPG")
                kept.append(Image(str(number), part))
        put(root / f"Ebay_{part}.txt", "\n".join(rows))
    return kept


def _market(root: Path, images: list[Image], rng: random.Random) -> list[Image]:
    kept = []
    for i, image in enumerate(images):
        number = sorted(NAMES).index(image.name) + 1
        for folder in ("bounding_box_train",) if image.part == "train" else ("bounding_box_test", "query"):
            put(root / folder / f"{number:04d}_c{1 + (folder == 'query')}s1_{i:06d}_01.jpg")
        kept.append(Image(f"{number:04d}", image.part))
    return kept


Write = Callable[[Path, list[Image], random.Random], list[Image] | None]
LAYOUTS: dict[str, tuple[str, Write]] = {
    "lists": ("ShiTuRecDataset", _lists),
    "folders": ("ClassFolders", _folders),
    "folders of classes": ("ClassFolders", _folders_of_classes),
    "csv": ("Table", _table),
    "tsv": ("Table", _tsv),
    "boxes in csv": ("Table", _box_table),
    "image folders": ("ImageFolders", _metadata),
    "parquet": ("Parquet", _parquet),
    "shards": ("TarShards", _shards),
    "coco": ("COCO", _coco),
    "voc": ("PascalVOC", _voc),
    "yolo": ("YOLO", _yolo),
    "labelme": ("LabelMeShapes", _shapes),
    "label studio": ("LabelStudio", _studio),
    "in-shop": ("InShop", _in_shop),
    "products": ("StanfordOnlineProducts", _products),
    "market": ("Market-1501", _market),
}
BOXED = ("boxes in csv", "coco", "voc", "yolo", "labelme", "label studio")
