"""`main.py verify RUN [OTHER]`: compare a run with its run.json, or with another run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeGuard

from paddlex_feat.config.load import load
from paddlex_feat.config.schema import Config, value_of, walk
from paddlex_feat.data.lists.fingerprint import fingerprint
from paddlex_feat.data.lists.split import Division
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers import require_lists
from paddlex_feat.errors import ConfigError, FeatError, OutputError, sanitize
from paddlex_feat.fileio import lookup
from paddlex_feat.fileio.atomic import read_result
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.hub.fetch import image_fetcher
from paddlex_feat.provenance import run_record
from paddlex_feat.runtime import paddle_build

_PLACES = ("Global.output", "Global.dataset_dir")  # may differ: the data set is compared by its fingerprint
_ABSENT = "absent"
SAME = "the same (images: by path, label and size, not by content)"
_MAX_LINES, _MAX_CHARACTERS = 1000, 400  # of the output; run.json may hold anything
_MAX_CONFIG_BYTES = 4 * 2**20  # bytes, more than config.load reads
_COMPARED_FIELDS = ("git", "device", "convolutions", "processes", "threads", "processor", "mkl_debug_cpu_type")
EPILOG = """verify RUN compares a training's folder with its run.json: outputs and configuration with their SHA-256,
the data set with its fingerprint, the installed packages with the recorded versions. The fingerprint is of the path,
label and size of each image: an image exchanged by another of the same size is not seen. It also tells whether
kernel and processor are others and, after a training on a GPU, whether driver, CUDA, cuDNN, NCCL or ONNX Runtime are.
verify RUN OTHER compares two folders: outputs of train, check_dataset, evaluate and export byte for byte, and the
data sets. It also tells how the runs were made differently: configuration, versions, git commit, device, threads,
processor, GPU.

exit codes: 0 the same; 1 something differs, or a folder is no run's; 2 the command line is not understood.
What is told under "made differently" does not count.
"""


def main(words: Sequence[str]) -> int:
    """Run the command; what differs goes to standard output, a line each. Returns the exit code.

    Raises FeatError for a folder that is no run's, or cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="main.py verify", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a training")
    parser.add_argument("other", type=Path, metavar="OTHER", nargs="?", help="output folder of another one")
    given = parser.parse_args(words)
    try:
        if given.other is None:
            differences, made = _with_itself(given.run)
        else:
            differences, made = _with_another(given.run, given.other)
    except OSError as error:
        raise OutputError(
            f"Cannot read: {error.strerror}.", where=str(error.filename), code="run-unreadable"
        ) from error
    _print(differences)
    if made:
        print("made differently:")
        _print(made, "  ")
    print(f"{len(differences)} differences" if differences else SAME)
    return 1 if differences else 0


def _print(lines: list[str], indent: str = "") -> None:
    for line in lines[:_MAX_LINES]:
        print(indent + sanitize(line, _MAX_CHARACTERS))
    if len(lines) > _MAX_LINES:
        print(f"{indent}… and {len(lines) - _MAX_LINES} more")


def _record(run: Path) -> dict[str, Any]:
    record = read_result(run / run_record.NAME)
    if not _is_record(record):
        hint = lookup.explain(run, "folder")
        raise ConfigError(
            f"The folder is not that of a training: run.json is missing or damaged. {hint}".rstrip(),
            where=str(run / run_record.NAME),
            fix="Give the Global.output of a training.",
            code="run-record-missing",
        )
    return record


def _is_record(record: dict[str, Any]) -> bool:
    """Whether all compared fields have the types that a training writes; the names of lists are read as files."""
    data = record.get("dataset")
    return (
        _is_table(data, dict)
        and set(data) == set(LISTS)
        and all(_is_table(part, str, int) for part in data.values())
        and _is_table(record.get("versions"), str)
        and _is_table(record.get("outputs", {}), str)
        and _is_table(record.get("sizes", {}), int)
        and _is_table(record.get("git") or {}, str, bool)
        and _is_table(record.get("gpu") or {}, str, int, NoneType)
        and all(isinstance(record.get(key), str | int | None) for key in ("config", *_COMPARED_FIELDS[1:]))
        and isinstance(record.get("working_directory"), str | None)
    )


def _is_table(value: Any, *kinds: type) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(part, kinds) for part in value.values())


def _with_itself(run: Path) -> tuple[list[str], list[str]]:
    """Return the differences to run.json, and those of the machine."""
    record = _record(run)
    if "outputs" not in record:
        return [_unended(run)], []
    config = run / "config.yaml"
    lines = _differences("", record["outputs"], _found(run, record))
    lines += _differences("", {"config.yaml": record.get("config")}, {"config.yaml": _digest(config)})
    then, now = record["versions"], run_record.versions()
    machine = ({"platform": v.pop("platform", _ABSENT)} for v in (then, now))  # a kernel is renewed every other week
    made = _differences("", *machine)
    if "processor" in record:  # not in those of earlier versions
        made += _differences("", {"processor": record["processor"]}, {"processor": run_record.processor()})
    if record.get("gpu"):  # name, capability and switches are known to a loaded Paddle only
        then_gpu = {name: value for name, value in _gpu(record).items() if name in paddle_build.WITHOUT_PADDLE}
        made += _differences("gpu ", then_gpu, paddle_build.present())
    lines += _differences("version of ", then, now)
    try:
        found = _data(load(str(config), [], usable=False)[0], record)
    except FeatError as error:
        return [*lines, f"data set: {' '.join(error.what.split())}"], made
    return lines + _differences("data set, ", record["dataset"], found), made


def _unended(run: Path) -> str:
    return f"{run / run_record.NAME}: the run has not ended, no outputs are recorded"


def _found(run: Path, record: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each output; files of another size than recorded are not read, they may be endless."""
    files, sizes = run_record.outputs(run), {name: record.get("sizes", {}).get(name) for name in record["outputs"]}
    found, same = dict.fromkeys(files, "not recorded"), {}
    for name in files.keys() & sizes.keys():
        size = files[name].stat().st_size
        found[name] = f"{size} bytes"
        if sizes[name] in (size, None):  # earlier versions recorded none
            same[name] = files[name]
    return found | run_record.sha256_of(same)


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    return sha256_file(path) if size <= _MAX_CONFIG_BYTES else f"{size} bytes"


def _data(config: Config, record: dict[str, Any]) -> dict[str, Any]:
    """The data set as run.json holds it; its path may be relative to where the run was started."""
    place, started = Path(config.Global.dataset_dir), record.get("working_directory")
    if started and not place.exists():
        place = Path(started) / place
    split = config.CheckDataset.split
    division = Division.of(split.percents(), split.by, split.seed)
    lists = require_lists(
        str(place),
        tuple(record["dataset"]),
        False,
        config.Global.dataset_format,
        division,
        image_fetcher(config.CheckDataset.urls),
    )
    prints = {n: fingerprint(r.paths, r.files(), r.labels) for n, r in lists.items()}
    return {n: {"images": p.images, "sha256": p.sha256} for n, p in prints.items()}


def _with_another(run: Path, other: Path) -> tuple[list[str], list[str]]:
    """Return the differences of outputs and data, and of how the runs were made."""
    records, folders = [_record(folder) for folder in (run, other)], (run, other)
    lines = [_unended(folder) for folder, record in zip(folders, records, strict=True) if "outputs" not in record]
    lines += _differences("", *_contents(*(run_record.outputs(folder, of_other_modes=True) for folder in folders)))
    lines += _differences("data set, ", *(r["dataset"] for r in records))
    made = _differences("", *(_keys(load(str(folder / "config.yaml"), [], usable=False)[0]) for folder in folders))
    made += _differences("version of ", *(r["versions"] for r in records))
    made += _differences("", *({k: r[k] for k in _COMPARED_FIELDS if k in r} for r in records))
    return lines, made + _differences("gpu ", *(_gpu(record) for record in records))


def _gpu(record: dict[str, Any]) -> dict[str, Any]:
    """What run.json knows of the GPU: nothing after a training on a CPU, or by an earlier version."""
    return {name: value for name, value in (record.get("gpu") or {}).items() if value is not None}


def _contents(one: dict[str, Path], other: dict[str, Path]) -> list[dict[str, str]]:
    """SHA-256 of the files that are of one size in both, of others the size."""
    sizes = [{name: path.stat().st_size for name, path in files.items()} for files in (one, other)]
    same = {name for name, size in sizes[0].items() if size == sizes[1].get(name)}
    return [
        {name: f"{size} bytes" for name, size in own.items()}
        | run_record.sha256_of({name: path for name, path in files.items() if name in same})
        for own, files in zip(sizes, (one, other), strict=True)
    ]


def _keys(config: Config) -> dict[str, Any]:
    """Every key with its value, but for those that tell places."""
    return {name: value_of(config, name) for name, _ in walk() if name not in _PLACES}


def _differences(what: str, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """A line for each name whose values differ."""
    names = [*one, *(name for name in other if name not in one)]
    pairs = {name: (one.get(name, _ABSENT), other.get(name, _ABSENT)) for name in names}
    return [f"{what}{name}: {_short(a)} | {_short(b)}" for name, (a, b) in pairs.items() if a != b]


def _short(value: Any) -> str:
    """A value in a line; of a SHA-256 the beginning says enough."""
    if isinstance(value, dict):
        return ", ".join(_short(v) for v in value.values())
    text = str(value)
    return text[:12] if len(text) in (40, 64) and text.isalnum() else text
