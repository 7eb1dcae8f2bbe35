"""The same images in five formats: the same weights, byte for byte."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import pytest
from support.runs import train_tiny

from paddlex_feat.data.readers import LISTS, require_lists

pytestmark = pytest.mark.slow
Rows = list[tuple[str, str, int]]  # list, file, label


def rows_of(data: Path) -> Rows:
    lists = require_lists(str(data))
    return [(n, file, c) for n, r in lists.items() for file, c in zip(r.files(), r.labels, strict=True)]


def as_folders(root: Path, rows: Rows) -> None:
    for number, (name, file, label) in enumerate(rows):
        target = root / name / f"{label:03d}" / f"{number:05d}.pgm"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(file).read_bytes())


def as_table(root: Path, rows: Rows) -> None:
    root.mkdir()
    (root / "images").mkdir()
    with (root / "set.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "split"))
        for number, (name, file, label) in enumerate(rows):
            (root / f"images/{number}.pgm").write_bytes(Path(file).read_bytes())
            writer.writerow((f"images/{number}.pgm", label, name))


def as_parquet(root: Path, rows: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    for part in LISTS:
        own = [(file, label) for name, file, label in rows if name == part]
        images = [{"bytes": Path(file).read_bytes(), "path": f"{i}.pgm"} for i, (file, _) in enumerate(own)]
        table = pa.table({"image": images, "label": [label for _, label in own]})
        pq.write_table(table, root / f"{part}-00000-of-00001.parquet")


def as_shards(root: Path, rows: Rows) -> None:
    root.mkdir()
    for part in LISTS:
        with tarfile.open(root / f"{part}-0000.tar", "w") as archive:
            for number, (name, file, label) in enumerate(rows):
                if name == part:
                    for suffix, data in (("pgm", Path(file).read_bytes()), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))


FORMATS = {"ClassFolders": as_folders, "Table": as_table, "Parquet": as_parquet, "TarShards": as_shards}


def test_five_formats_train_to_the_same_bytes(small_faces, tmp_path):
    rows = rows_of(small_faces)
    weights = {}
    for name, write in {"ShiTuRecDataset": None, **FORMATS}.items():
        root = small_faces if write is None else tmp_path / name
        if write is not None:
            write(root, rows)
        done = train_tiny(root, tmp_path / f"{name}-output", "Train.epochs_iters=2")
        assert done.returncode == 0, done.stderr[-2000:]
        assert write is None or name in done.stderr
        weights[name] = (tmp_path / f"{name}-output/best_model/best_model.pdparams").read_bytes()
    assert len(set(weights.values())) == 1, [name for name in weights if weights[name] != weights["ShiTuRecDataset"]]
