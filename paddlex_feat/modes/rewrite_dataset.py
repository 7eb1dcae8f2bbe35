"""What check_dataset writes into a data set's folder where it is asked to: conversions, divisions, corrections.

List files are replaced together, the former ones are kept as `.bak`; images are never changed.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

from paddlex_feat.checks.inspection import inspect_all
from paddlex_feat.config.schema import Config
from paddlex_feat.data.converters import CONVERTERS, ConverterSpec
from paddlex_feat.data.findings import Finding, cap_per_code, log_findings
from paddlex_feat.data.images.decode import read_bgr, read_content
from paddlex_feat.data.images.formats import suffix_of
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.source import ImageSource, box_of, file_of
from paddlex_feat.data.lists import split, transaction
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import LISTS, READERS, find_root, reader_of
from paddlex_feat.data.readers.shitu_rec import SHITU_REC, is_listable_path
from paddlex_feat.data.readers.tables import CONVERTED, CONVERTED_HEAD
from paddlex_feat.errors import ConfigError, DatasetError, ImageError
from paddlex_feat.fileio.addresses import is_url
from paddlex_feat.fileio.atomic_folder import atomic_folder
from paddlex_feat.fileio.backups import next_backup_path, write_with_backup
from paddlex_feat.modes.data import division_of, read_lists
from paddlex_feat.reports.suspects_table import read_marks
from paddlex_feat.runtime.cpu import cpu_count

log = logging.getLogger(__name__)
CROPS = "crops"  # folder of images that become files; crops.1 and so on if it is there
LABELS = "label.txt"


class Rewritten(NamedTuple):
    """What came of it.

    Attributes:
        findings: of a converter.
        leave_one_out: whether gallery and query have been written with the same images.
    """

    findings: list[Finding]
    leave_one_out: bool


def rewrite(config: Config) -> Rewritten:
    """Convert, divide and correct the data set, as far as the configuration asks for it.

    Raises:
        ConfigError: there is no format of that name.
        DatasetError: the data set cannot be read, or cannot be written so; nothing has changed then.
        OutputError: its folder cannot be written.
    """
    wanted, findings, alone = config.CheckDataset, [], False
    name = wanted.convert.src_dataset_type
    reads = name is None or (name not in CONVERTERS and (name == "auto" or name in READERS))
    converter = None if reads or name is None else CONVERTERS.get(name)  # a wrong name is an error in any case
    if wanted.convert.enable:
        if converter is not None:
            findings += _convert_annotations(config, converter)
        else:
            alone = _convert_format(config)
    if wanted.fix and not (wanted.convert.enable and wanted.convert.to == "CSV"):
        _fix(config)
    if wanted.split.enable:
        findings += _divide(config)
        alone = False
    return Rewritten(findings, alone)


def _convert_annotations(config: Config, converter: ConverterSpec) -> list[Finding]:
    """Convert another format to the three lists."""
    root = converter.find_root(config.Global.dataset_dir)
    converted = converter.convert(root)
    try:
        if not converted.paths:
            raise DatasetError(
                "No annotation could be used.",
                where=str(root),
                fix=f"Correct what is listed above. {converter.needs}",
                code="nothing-to-convert",
            )
        parts = split.random_split(converted.labels, converter.percents, "image", config.CheckDataset.convert.seed)
        split.validate_split(parts, converted.labels, "CheckDataset.convert", "Annotate more images of each class")
    except DatasetError as error:
        log_findings(converted.findings)
        findings = [finding.as_result() for finding in cap_per_code(converted.findings)]
        raise error.with_result({"check_pass": False, "findings": findings}) from None
    converted.write_images()
    transaction.replace_lists(root, split.list_texts(converted.paths, converted.labels, parts))
    log.info(
        "Converted %d annotated images of %d classes: %s",
        len(converted.paths),
        len(set(converted.labels)),
        ", ".join(f"{len(parts[name])} {name}" for name in LISTS),
    )
    return converted.findings


def _convert_format(config: Config) -> bool:
    """Write the lists of a data set of any format as train.txt, gallery.txt and query.txt, or as one table.

    Returns whether gallery and query are the same images.
    """
    wanted = config.CheckDataset.convert
    form = None if wanted.src_dataset_type == "auto" else wanted.src_dataset_type
    source = config.model_copy(update={"Global": config.Global.model_copy(update={"dataset_format": form})})
    lists = read_lists(source)
    root = find_root(config.Global.dataset_dir, form=form)
    name = reader_of(root, form=form).name
    skip = "undecodable" in config.CheckDataset.fix
    (_write_lists if wanted.to == "ShiTuRecDataset" else _write_table)(root, lists, wanted.crops, skip)
    log.info("Converted %s to %s: %s", name, wanted.to, ", ".join(f"{len(r)} {n}" for n, r in lists.items()))
    return lists["query"].leave_one_out


def _write_lists(root: Path, lists: dict[str, ImageList], crops: bool, skip: bool) -> None:
    _require(lists, crops, "-o CheckDataset.convert.crops=True writes an image file for each.")
    files = _write_crops(root, lists, skip) if crops else {}
    texts = {}
    for name, records in lists.items():
        paths = [files.get(path, path) for path in records.paths]
        texts[name] = "".join(f"{path} {label}\n" for path, label in zip(paths, records.labels, strict=True) if path)
    _write_names(root, lists["train"])
    transaction.replace_lists(root, texts)
    if lists["query"].leave_one_out:
        log.warning("Gallery and query are the same images: give -o Evaluate.exclude_self=True with these lists.")
    if lists["query"].cameras:
        log.warning("Lists cannot name cameras: gallery images of a query's own camera count with these lists.")


def _require(lists: dict[str, ImageList], crops: bool, fix: str) -> None:
    """Raise DatasetError for images that a list cannot name."""
    for records in lists.values():
        for index, path in enumerate(records.paths):
            within = isinstance(path, ImageSource)
            if within and not crops:
                raise DatasetError(
                    f"{path} is a part of a file, which lists cannot name.",
                    where=records.where(index),
                    fix=fix,
                    code="convert-needs-crops",
                )
            from_list = records.file == ""  # what a list has named, a list can name
            if not within and not from_list and not is_listable_path(path):
                raise DatasetError(
                    f"{path!r} cannot be written in a list.",
                    where=records.where(index),
                    fix="Rename the file: no spaces at the ends, no line breaks or control characters.",
                    code="path-unlistable",
                )


def _write_names(root: Path, records: ImageList) -> None:
    """Write the class names, a line each in the order of the labels."""
    if records.names:
        names = [_plain(records.names.get(label, "")) for label in range(max(records.names) + 1)]
        write_with_backup(root / LABELS, "".join(f"{name}\n" for name in names).encode(errors="surrogateescape"))


def _plain(name: str) -> str:
    """The name of a class on one line."""
    return " ".join(name.split())


def _write_crops(root: Path, lists: dict[str, ImageList], skip: bool) -> dict[str, str]:
    """Write the images that are no files of their own into a new folder; their paths there, "" for one that is skipped.

    A box becomes a PNG of its pixels, bytes within a file become a file of the same bytes. The folder appears whole.

    Args:
        root: of the data set.
        lists: their images.
        skip: leave out images that cannot be decoded; else they are errors.

    Raises DatasetError that names them.
    """
    sources = [
        path for path in dict.fromkeys(p for r in lists.values() for p in r.paths) if isinstance(path, ImageSource)
    ]
    if not sources:
        return {}
    numbered = (f"{CROPS}.{number}" if number else CROPS for number in count())
    folder = next(name for name in numbered if not (root / name).exists())
    paths, failed = {}, list[ImageError]()
    with atomic_folder(root / folder) as place:
        for number, source in enumerate(sources):
            try:
                content, suffix = _file_of(source)
            except ImageError as error:
                failed.append(error)
                paths[str(source)] = ""
                continue
            paths[str(source)] = f"{folder}/{number:07d}{suffix}"
            (place / f"{number:07d}{suffix}").write_bytes(content)
        if failed and not skip:
            shown = "\n    ".join(f"{error.where}: {error.what}" for error in failed[:10])
            raise DatasetError(
                f"{len(failed)} images cannot be decoded:\n    {shown}",
                where=str(root),
                fix="Correct or remove their annotations, or leave them out with -o CheckDataset.fix=[undecodable].",
                code="crops-undecodable",
            )
    for one in failed:
        log.warning("Left out: %s: %s", one.where, one.what)
    return paths


def _file_of(source: ImageSource) -> tuple[bytes, str]:
    if box_of(source) is None:
        content = read_content(source)
        return content, suffix_of(content)
    return cv2.imencode(".png", read_bgr(source))[1].tobytes(), ".png"


def _write_table(root: Path, lists: dict[str, ImageList], crops: bool, skip: bool) -> None:
    """Write all lists as data.csv; images in gallery and query are one line. Lists of integers become .bak."""
    _require(lists, True, "")
    files = _write_crops(root, lists, skip) if crops else {}
    rows: dict[tuple[str, int], list[bool]] = {}
    for place, name in enumerate(LISTS):
        for path, label in zip(lists[name].paths, lists[name].labels, strict=True):
            rows.setdefault((path, label), [False] * len(LISTS))[place] = True
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CONVERTED_HEAD)
    names = _names_apart({label for _, label in rows}, lists["train"].names)
    for (path, label), (trained, searched, asked) in rows.items():
        box = box_of(path) if not crops else None
        if isinstance(path, ImageSource) and path.length is not None and not crops:
            raise DatasetError(
                f"{path} is a part of a file, which a table cannot name.",
                where=str(root),
                fix="-o CheckDataset.convert.crops=True writes an image file for each.",
                code="convert-needs-crops",
            )
        if not (file := files.get(path, path) if box is None else _picture_of(path, root)):
            continue
        for part in ["train"] * trained + ["validation"] * (searched or asked):
            flags = (asked, searched) if part == "validation" else ("", "")
            writer.writerow([file, names[label], part, *flags, *(box or ("",) * 4)])
    write_with_backup(root / CONVERTED, text.getvalue().encode(errors="surrogateescape"))
    for former in (root / f"{name}.txt" for name in LISTS):
        if former.is_file():
            kept = next_backup_path(former)
            former.replace(kept)
            log.info("The former %s is now %s", former.name, kept)


def _names_apart(labels: set[int], names: Mapping[int, str]) -> dict[int, str]:
    """A name for each class that no other has; the number of the class stands behind one that two have."""
    plain = {label: _plain(names.get(label, "")) or str(label) for label in sorted(labels)}
    counts = Counter(plain.values())
    apart = {label: name if counts[name] == 1 else f"{name} ({label})" for label, name in plain.items()}
    if len(set(apart.values())) < len(apart):
        raise DatasetError(
            "Names of classes are equal, also with their numbers behind them.",
            where=LABELS,
            fix="Give each class another name.",
            code="names-equal",
        )
    return apart


def _picture_of(path: str, root: Path) -> str:
    """The picture that a box is of, as a table names it: its address, or its path below the root."""
    if is_url(path):
        return path.removesuffix(f"[{box_of(path)}]")
    return os.path.relpath(file_of(path), root)


def _divide(config: Config) -> list[Finding]:
    """Divide all lines of the three lists anew."""
    wanted, lists = config.CheckDataset.split, read_lists(config)
    _require(lists, False, "Convert the data set with -o CheckDataset.convert.crops=True first.")
    root = lists["train"].root
    of_lists = reader_of(root, form=config.Global.dataset_format) is SHITU_REC
    classes = len({label for records in lists.values() for label in records.labels})
    by = wanted.by or ("image" if of_lists or classes < split.MIN_CLASSES else "class")  # as it is read
    done = split.split_lists(lists, division_of(wanted).percents, by, wanted.seed)
    _write_names(root, lists["train"])
    transaction.replace_lists(root, done.texts())
    if done.repeated:
        log.info("%d repeated lines are kept once.", done.repeated)
    drawn = {name: len({done.labels[i] for i in done.parts[name]}) for name in LISTS}
    told = ", ".join(f"{len(done.parts[name])} {name} ({drawn[name]} classes)" for name in LISTS)
    log.info("Split %d images by %s with seed %d: %s", len(done.paths), by, wanted.seed, told)
    return done.findings if of_lists else []


def _fix(config: Config) -> None:
    """Write the three lists anew without what `CheckDataset.fix` names."""
    wanted = config.CheckDataset
    root = find_root(config.Global.dataset_dir, form=config.Global.dataset_format)
    if (form := reader_of(root, form=config.Global.dataset_format)) is not SHITU_REC:
        raise ConfigError(
            f"CheckDataset.fix writes train.txt, gallery.txt and query.txt, and this is a data set of {form.name}.",
            where="CheckDataset.fix",
            fix="Convert it first: -o CheckDataset.convert.enable=True -o CheckDataset.convert.src_dataset_type=auto",
            code="fix-needs-lists",
        )
    lists = read_lists(config)
    marks = read_marks(Path(wanted.suspects), lists) if "suspects" in wanted.fix and wanted.suspects else {}
    dropped = _unusable(lists, wanted.fix)
    texts, counts = {}, dict.fromkeys(("dropped", "relabelled"), 0)
    for name, records in lists.items():
        lines, seen = [], set()
        for path, file, label in zip(records.paths, records.files(), records.labels, strict=True):
            label_now = marks.get((name, file, label), label)
            repeated = "duplicates" in wanted.fix and (file, label_now) in seen
            if file in dropped or repeated or label_now is None:
                counts["dropped"] += 1
                continue
            seen.add((file, label_now))
            counts["relabelled"] += label_now != label
            lines.append(f"{path} {label_now}\n")
        texts[name] = "".join(lines)
    if empty := [name for name, text in texts.items() if not text and lists[name]]:
        raise DatasetError(
            f"Nothing would be left of {' and '.join(empty)}.",
            where="CheckDataset.fix",
            fix="Name fewer kinds, or correct the paths of the lists; nothing has been changed.",
            code="fix-empties-list",
        )
    _write_names(root, lists["train"])
    transaction.replace_lists(root, texts)
    log.info("CheckDataset.fix: %(dropped)d lines dropped, %(relabelled)d relabelled.", counts)


def _unusable(lists: dict[str, ImageList], kinds: Iterable[str]) -> set[str]:
    """Files that are dropped because they are missing, or because they cannot be decoded."""
    kinds = set(kinds)
    if not kinds & {"missing", "undecodable"}:
        return set()
    files = list(dict.fromkeys(file for records in lists.values() for file in records.files()))
    found = inspect_all(files, cpu_count())
    missing = {file for file, info in found.items() if info.error == "image-missing"}
    broken = {file for file, info in found.items() if info.error} - missing
    return (missing if "missing" in kinds else set()) | (broken if "undecodable" in kinds else set())
