"""What check_dataset writes into a data set's folder where it is asked to: conversions, divisions, corrections.

List files are replaced together, the former ones are kept as `.bak`; images are never changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from paddlex_feat.checks.inspection import inspect_all
from paddlex_feat.config.schema import CheckDatasetSection, Config
from paddlex_feat.data.converters import CONVERTERS, ConverterSpec
from paddlex_feat.data.findings import Finding, cap_per_code, log_findings
from paddlex_feat.data.lists import split, transaction
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import LISTS, READERS, find_root, reader_of
from paddlex_feat.data.readers.shitu_rec import SHITU_REC
from paddlex_feat.data.rewriting.fixes import fixed_lists
from paddlex_feat.data.rewriting.lists import names_text, require_listable, write_lists
from paddlex_feat.data.rewriting.table import write_table
from paddlex_feat.errors import ConfigError, DatasetError
from paddlex_feat.modes.data import division_of, read_lists
from paddlex_feat.reports.suspects_table import read_marks
from paddlex_feat.runtime.cpu import cpu_count

log = logging.getLogger(__name__)


class Rewritten(NamedTuple):
    """What came of it.

    Attributes:
        config: the configuration for the data set as it is now: after a conversion it has another format.
        findings: of a converter.
        leave_one_out: whether gallery and query have been written with the same images.
    """

    config: Config
    findings: list[Finding]
    leave_one_out: bool


def rewrite(config: Config) -> Rewritten:
    """Convert, correct and divide the data set, as far as the configuration asks for it.

    Raises:
        ConfigError: there is no format of that name.
        DatasetError: the data set cannot be read, or cannot be written so; nothing has changed then.
        OutputError: its folder cannot be written.
    """
    wanted, findings, alone = config.CheckDataset, [], False
    name = wanted.convert.src_dataset_type
    reads = name is None or (name not in CONVERTERS and (name == "auto" or name in READERS))
    converter = None if reads or name is None else CONVERTERS.get(name)  # a wrong name is an error in any case
    by_reader = wanted.convert.enable and converter is None
    if wanted.convert.enable and converter is not None:
        findings += _convert_annotations(config, converter)
        config = _with_format(config, None)
    if by_reader or wanted.fix:
        alone = _write_again(config, by_reader)
        config = _with_format(config, None) if by_reader else config
    if wanted.split.enable:
        findings += _divide(config)
        alone = False
    return Rewritten(config, findings, alone)


def _with_format(config: Config, form: str | None) -> Config:
    return config.model_copy(update={"Global": config.Global.model_copy(update={"dataset_format": form})})


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


def _write_again(config: Config, convert: bool) -> bool:
    """Read the data set, apply `CheckDataset.fix`, and write it: in the form of `convert.to`, or as lists as it was.

    Returns whether gallery and query are the same images.
    """
    wanted, source = config.CheckDataset, config
    if convert and wanted.convert.src_dataset_type != "auto":
        source = _with_format(config, wanted.convert.src_dataset_type)
    form = source.Global.dataset_format
    root = find_root(config.Global.dataset_dir, form=form)
    reader = reader_of(root, form=form)
    if not convert and reader is not SHITU_REC:
        raise ConfigError(
            f"CheckDataset.fix writes train.txt, gallery.txt and query.txt, and this is a data set of {reader.name}.",
            where="CheckDataset.fix",
            fix="Convert it as well: -o CheckDataset.convert.enable=True -o CheckDataset.convert.src_dataset_type=auto",
            code="fix-needs-lists",
        )
    lists = read_lists(source)
    if wanted.fix:
        lists = _fixed(wanted, lists)
    crops, skip = convert and wanted.convert.crops, "undecodable" in wanted.fix
    (write_table if convert and wanted.convert.to == "CSV" else write_lists)(root, lists, crops, skip)
    if convert:
        counts = ", ".join(f"{len(records)} {name}" for name, records in lists.items())
        log.info("Converted %s to %s: %s", reader.name, wanted.convert.to, counts)
    return convert and lists["query"].leave_one_out


def _fixed(wanted: CheckDatasetSection, lists: dict[str, ImageList]) -> dict[str, ImageList]:
    """The lists as `CheckDataset.fix` asks for them; line ends and names are right once lists are written."""
    marks = read_marks(Path(wanted.suspects), lists) if "suspects" in wanted.fix and wanted.suspects else {}
    return fixed_lists(lists, _unusable(lists, wanted.fix), marks, "duplicates" in wanted.fix)


def _divide(config: Config) -> list[Finding]:
    """Divide all lines of the three lists anew."""
    wanted, lists = config.CheckDataset.split, read_lists(config)
    require_listable(lists, False, "Convert the data set with -o CheckDataset.convert.crops=True first.")
    root = lists["train"].root
    of_lists = reader_of(root, form=config.Global.dataset_format) is SHITU_REC
    classes = len({label for records in lists.values() for label in records.labels})
    by = wanted.by or ("image" if of_lists or classes < split.MIN_CLASSES else "class")  # as it is read
    done = split.split_lists(lists, division_of(wanted).percents, by, wanted.seed)
    transaction.replace_lists(root, names_text(lists["train"]) | done.texts())
    if done.repeated:
        log.info("%d repeated lines are kept once.", done.repeated)
    drawn = {name: len({done.labels[i] for i in done.parts[name]}) for name in LISTS}
    told = ", ".join(f"{len(done.parts[name])} {name} ({drawn[name]} classes)" for name in LISTS)
    log.info("Split %d images by %s with seed %d: %s", len(done.paths), by, wanted.seed, told)
    return done.findings if of_lists else []


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
