"""`main.py merge TARGET SHARD…`: the file of one run, out of those of its shards."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from heapq import merge as in_order
from operator import attrgetter
from pathlib import Path

from paddlex_feat.errors import ConfigError, OutputError, ShardError
from paddlex_feat.inference.shards import FORMS, Record, ShardReader
from paddlex_feat.inference.writers import feature_file
from paddlex_feat.runtime.logs import log_to_console
from paddlex_feat.runtime.process import allow_many_files
from paddlex_feat.runtime.progress import bar

_MAX_LISTED = 5  # shards and failed inputs that are named
_SHARD = re.compile(r"features-\d+-of-\d+\.(npz|parquet)")
EPILOG = """writes the features of all shards (Predict.shard=i/n) into one file, in the order of the input: the same
bytes that one run would have written. The shards may come in any order; those of another model or input, repeated,
damaged or missing ones are refused.

exit codes: 0 done; 1 the shards cannot be merged; 2 the command line is not understood.
"""


def main(words: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises ShardError, OutputError, ConfigError for the target's suffix."""
    parser = argparse.ArgumentParser(
        prog="main.py merge", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, metavar="TARGET", help="the new file: .npz or .parquet")
    parser.add_argument("shards", type=Path, nargs="+", metavar="SHARD", help="a shard, or a folder of shards")
    given = parser.parse_args(words)
    log_to_console()
    record, count = merge(given.target, _files(given.shards))
    print(f"{given.target}: {count} features of {record.inputs} images")
    if record.failed:
        print(f"{len(record.failed)} inputs had failed:", file=sys.stderr)
        for _, name, what in record.failed[:_MAX_LISTED]:
            print(f"    {name}: {what}", file=sys.stderr)
        if len(record.failed) > _MAX_LISTED:
            print(f"    and {len(record.failed) - _MAX_LISTED} more", file=sys.stderr)
    return 0


def _files(given: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        found = sorted(f for f in path.iterdir() if _SHARD.fullmatch(f.name)) if path.is_dir() else [path]
        if not found:
            fix = "Give the folder Global.output of the jobs."
            raise ShardError("The folder holds no shard.", where=str(path), fix=fix, code="shard-missing")
        files += found
    return files


def merge(target: Path, shards: Sequence[Path]) -> tuple[Record, int]:
    """Write the features of all shards of a job into one file; streamed, whatever their number.

    Args:
        target: file to write, whose suffix names its form.
        shards: the files of the shards, in any order.

    Returns a record of the whole input, with all that failed, and the number of features.

    Raises ShardError for shards that are not those of one job, each once; OutputError, ConfigError, DependencyError.
    """
    if target.suffix.lower() not in FORMS:  # JSON would show boxes and names as the shards keep them
        fix = f"Use one of {', '.join(FORMS)}."
        raise ConfigError("The suffix is of no form of shards.", where=str(target), fix=fix, code="shard-form")
    taken = next((path for path in shards if path.exists() and target.exists() and path.samefile(target)), None)
    if taken is not None:
        fix = "Give the merged file another name."
        raise ConfigError(f"{target.name} is one of the shards.", where=str(target), fix=fix, code="shard-target")
    allow_many_files()  # all are open at once
    with ExitStack() as stack, feature_file(target) as file:
        try:
            readers = {path: stack.enter_context(ShardReader(path)) for path in shards}
            record = _whole({path: reader.record for path, reader in readers.items()})
            file.identity = record.model
            streams = [reader.rows() for reader in readers.values()]
            with bar(record.inputs - len(record.failed), "merging", "features") as progress:
                for row in in_order(*streams, key=attrgetter("number")):
                    file.add_row(row.result, row.feature)
                    progress.update()
        except BaseException:
            file.discard()
            raise
    if not file.count:
        what, fix = "No image of the shards has a feature.", "Check the input of predict."
        if record.failed:
            listed = [f"{name}: {why}" for _, name, why in record.failed[:_MAX_LISTED]]
            what = "\n    ".join([f"All {len(record.failed)} inputs had failed:", *listed])
        raise OutputError(what, where=str(target), fix=fix, code="no-results")
    return record, file.count


def _whole(records: dict[Path, Record]) -> Record:
    """The record of all shards together. Raises ShardError unless they are those of one job, each once."""
    (first, record), *others = records.items()
    places = {record.shard: first}
    for path, other in others:
        other.require_same_job(path, record, first.name)
        if other.shard in places:
            raise ShardError(
                f"{path.name} and {places[other.shard].name} are both shard {other.shard}.",
                where=str(path),
                fix="Give each shard once.",
                code="shard-twice",
            )
        places[other.shard] = path
    there = {shard.number for shard in places}
    missing = [number for number in range(record.shard.count) if number not in there]
    if missing:
        named = ", ".join(f"{number}/{record.shard.count}" for number in missing[:_MAX_LISTED])
        raise ShardError(
            f"{len(missing)} of {record.shard.count} shards are missing, such as {named}.",
            where=str(first.parent),
            fix="Run them: each with its Predict.shard.",
            code="shard-missing",
        )
    failed = sorted(failure for each in records.values() for failure in each.failed)
    return Record(record.shard, record.inputs, record.digest, record.model, tuple(failed), record.left_out)
