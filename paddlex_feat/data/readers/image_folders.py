"""Image folders as Hugging Face's `datasets` loads them: metadata.csv or metadata.jsonl beside images.

The table has file_name and label, or other names of columns that tables may have. It lies in the folder, or one does in
each of the folders train, test and validation (huggingface.co/docs/datasets/image_dataset).
"""

from __future__ import annotations

import os
from pathlib import Path

from paddlex_feat.data.readers.items import Items
from paddlex_feat.data.readers.names import folders_of_parts
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.data.readers.tables import METADATA, ROW_FINDINGS, columns_of, names_files, read_tables

_NAMES = (f"{METADATA}.jsonl", f"{METADATA}.csv")


def _tables(folder: Path) -> dict[str, str | None]:
    """Path of each table below a folder, and the part of its images; None: each line says it."""
    name = _metadata(folder)
    if name is not None:
        return {name: None}
    below = {part: (name, _metadata(folder / name)) for name, part in folders_of_parts(folder).items()}
    return {f"{name}/{table}": part for part, (name, table) in below.items() if table is not None}


def _metadata(folder: Path) -> str | None:
    """The table of a folder; None if it has none with columns of paths and classes."""
    files = (name for name in _NAMES if os.path.isfile(folder / name))
    return next((name for name in files if columns_of(folder / name) is not None), None)


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists, if an image of the first lines exists; one less if none does."""
    tables = _tables(folder)
    return len(names) - (not any(names_files(folder / table) for table in tables)) if tables else 0


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    return read_tables(Items(root), _tables(root), names, refuse_outside)


IMAGE_FOLDERS = ReaderSpec(
    name="ImageFolders",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("metadata.csv or metadata.jsonl",),
    layout="Image folders have metadata.csv or metadata.jsonl with file_name and label, also in train, test.",
    findings=ROW_FINDINGS,
)
